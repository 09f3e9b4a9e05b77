"""Two real processes over loopback: the numbers of one, and checkpoints that move between device counts."""

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

WORKER = """
import sys, jax
sys.path.insert(0, sys.argv[1])
folder, rounds, devices, rank, port = sys.argv[2], *map(int, sys.argv[3:])
jax.config.update("jax_num_cpu_devices", devices)
if rank >= 0:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, rank)
import pathlib
import numpy as np
from common import digits_world, ring
from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.engine.sharding import to_host
from jaxfl.engine.run import run
task, world = digits_world(n=16, topology=ring(16))
algorithm = dsgd(task, lr=0.2, steps=2, batch=8)

def round(key, env, s):
    s, log = algorithm.round(key, env, s)
    return s, log | {"norm": jax.numpy.abs(s.nodes).sum(1)}

folder = pathlib.Path(folder)
result = run(
    algorithm._replace(round=round), world, task.init, rounds, every=2, out=folder, checkpoints=True,
    resume=(folder / "log.jsonl").exists(),
)
assert len(result.state.nodes.sharding.device_set) == (8 if rank >= 0 else devices)
np.savez(folder / f"end{rank}.npz", x=to_host(result.state.nodes), norm=result.nodes["norm"][:, -1],
         loss=result.history["loss"].to_numpy())
"""


def launch(folder, rounds, devices, ranks=(-1,)):
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    here = str(Path(__file__).parents[1])
    args = [sys.executable, "-c", WORKER, here, str(folder), str(rounds), str(devices)]
    jobs = [subprocess.Popen([*args, str(r), str(port)], stderr=subprocess.PIPE, text=True) for r in ranks]
    for job in jobs:
        _, said = job.communicate(timeout=240)
        assert job.returncode == 0, said
    return [dict(np.load(folder / f"end{r}.npz")) for r in ranks]


def test_two_processes_compute_what_one_does_and_resume_each_other(tmp_path):
    (alone,) = launch(tmp_path / "alone", 6, 1)
    moved = tmp_path / "moved"
    first = launch(moved, 2, 4, ranks=(0, 1))  # 2 processes of 4 devices
    launch(moved, 4, 1)  # goes on with one device
    last = launch(moved, 6, 4, ranks=(0, 1))
    np.testing.assert_array_equal(first[0]["x"], first[1]["x"])
    for end in last:
        np.testing.assert_allclose(end["x"], alone["x"], atol=2e-6)
        np.testing.assert_allclose(end["norm"], alone["norm"], rtol=1e-5)
        np.testing.assert_allclose(end["loss"], alone["loss"], rtol=1e-5)
    assert len((moved / "log.jsonl").read_text().splitlines()) == 7
