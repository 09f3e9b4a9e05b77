"""Two real processes over loopback: the numbers of one, and checkpoints that move between device counts."""

import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from common import quadratics, ring

from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.engine.run import run
from jaxfl.engine.sharding import to_host
from jaxfl.world import topology
from jaxfl.world.scenario import scenario


def advance(folder: Path, rounds: int) -> dict:
    """A run that goes on from what `folder` holds, on all devices there are: models, last log by node, losses."""
    _, task, data = quadratics(n=16)
    world = scenario(data, topology=topology.edge_drop(ring(16), 0.3))
    plain = dsgd(task, lr=0.1, steps=2, batch=1)

    def round(key, env, s):
        s, log = plain.round(key, env, s)
        return s, log | {"norm": jnp.abs(s.nodes).sum(1)}

    got = run(
        plain._replace(round=round), world, jnp.ones(3), rounds, every=2, out=folder, checkpoints=True,
        resume=(folder / "log.jsonl").exists(),
    )  # fmt: skip
    assert len(got.state.nodes.sharding.device_set) == jax.device_count()
    return {
        "x": np.asarray(to_host(got.state.nodes)),
        "norm": got.nodes["norm"][:, -1],
        "loss": got.history["loss"].to_numpy(),
    }


WORKER = """
import pathlib, sys
sys.path[:0] = sys.argv[4:]
import jax
rank, port, folder = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, rank)
import numpy as np
from test_processes import advance
for name, rounds in (("begun", 2), ("moved", 4)):
    np.savez(folder / f"{name}{rank}.npz", **advance(folder / name, rounds))
"""


def test_two_processes_compute_what_one_does_and_resume_each_other(tmp_path):
    """One run is begun by two processes of four devices and ended by one device; another changes hands twice."""
    alone = [advance(tmp_path / f"alone{rounds}", rounds) for rounds in (2, 4, 6)]
    advance(tmp_path / "moved", 2)
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    here = Path(__file__).parent
    args = [str(port), str(tmp_path), str(here), str(here.parent)]
    command = [sys.executable, "-c", WORKER]
    jobs = [subprocess.Popen([*command, str(rank), *args], stderr=subprocess.PIPE, text=True) for rank in (0, 1)]
    for job in jobs:
        _, said = job.communicate(timeout=1200)
        assert job.returncode == 0, said
    ends = [(want, np.load(tmp_path / f"{n}{r}.npz")) for n, want in zip(("begun", "moved"), alone[:2], strict=True)
            for r in (0, 1)]  # fmt: skip
    ends += [(alone[2], advance(tmp_path / name, 6)) for name in ("begun", "moved")]
    for want, got in ends:
        np.testing.assert_allclose(got["x"], want["x"], atol=2e-6)
        np.testing.assert_allclose(got["norm"], want["norm"], rtol=1e-5)
        np.testing.assert_allclose(got["loss"], want["loss"], rtol=1e-5)
    np.testing.assert_array_equal(ends[0][1]["x"], ends[1][1]["x"])
    assert [len((tmp_path / n / "log.jsonl").read_text().splitlines()) for n in ("begun", "moved")] == [7, 7]
