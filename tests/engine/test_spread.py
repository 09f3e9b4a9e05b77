"""Nodes, or whole runs, spread over eight devices: the numbers of one."""

import dataclasses
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from common import digits_world, quadratics, ring

from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.fedprox import fedprox
from jaxfl.algorithms.server.scaffold import scaffold
from jaxfl.engine.run import _chunk, run
from jaxfl.exchange import attacks, codecs, mix, rules
from jaxfl.exchange.network import Network
from jaxfl.mapping.shards import full_shards, shard_rows
from jaxfl.world import churn, cohort, graph, links, mixing, tiers
from jaxfl.world.scenario import scenario


def everywhere(result):
    """The state, which must be on all devices."""
    got = jax.tree.leaves((result.state.nodes, result.state.shared))[0]
    assert len(got.sharding.device_set) == jax.device_count()
    return got


def nodes() -> dict:
    """What gossip and servers compute from 40 nodes, by name."""
    out, (_, quadratic, data) = {}, quadratics(n=40)
    gossip = dsgd(quadratic, lr=0.1, steps=2, batch=1)
    world = scenario(data, topology=ring(40))
    out["ring"] = everywhere(run(gossip, world, jnp.ones(3), 4, every=2, seeds=2))
    slots = dataclasses.replace(mixing.metropolis(graph.watts_strogatz(40, 2, 0.0, seed=0)), shifts=None)
    with mock.patch.object(mix, "DENSE_RATIO", 1):
        out["slots"] = everywhere(run(gossip, scenario(data, topology=slots), jnp.ones(3), 4, every=2))
    task, world = digits_world(n=40, c=5)
    state = run(scaffold(task, lr=0.2, steps=2, batch=8), world, task.init, 4, every=2).state
    out["x"], out["controls"] = state.shared["x"], state.nodes
    drawn = scenario(data, cohort=cohort.importance(40, 5, np.arange(1.0, 41.0)))
    out["drawn"] = run(fedavg(quadratic, lr=0.1, steps=2, batch=1), drawn, jnp.ones(3), 2).state.shared["x"]
    return out


def uneven(folder) -> dict:
    """What 37 nodes compute, of which eight devices hold 5, 5, 5, 5, 5, 5, 5 and 2, by name."""
    out, (_, quadratic, data), seen = {}, quadratics(n=37), []
    far = links.links(37, up=1e6, latency=np.linspace(0, 1, 37))
    world = scenario(data, topology=ring(37), churn=churn.crash(37, 0.2, at=3), links=far)
    gossip = dsgd(quadratic, Network(codec=codecs.error_feedback(codecs.top_k(0.5))), lr=0.1, steps=2, batch=1)
    watch = lambda progress: seen.append(jax.tree.map(np.asarray, progress.state.nodes))
    first = run(gossip, world, jnp.ones(3), 4, every=2, seeds=2, callback=watch)
    assert len(seen) == 3
    assert all(a.shape[:2] == (2, 37) for a in jax.tree.leaves((seen, first.state.nodes, first.state.mail.nodes)))
    on = run(gossip, world, jnp.ones(3), 6, every=2, seeds=2, carry=first.carry)
    out["uneven ring"], out["uneven memory"] = everywhere(on), jax.tree.leaves(on.state.mail.nodes)[0]
    out["uneven seconds"] = on.history["seconds"]
    random = scenario(data, topology=mixing.metropolis(graph.random_regular(37, 4, seed=0)), byz=np.arange(37) < 4)
    robust = dsgd(quadratic, Network(rule=rules.median(), attack=attacks.sign_flip()), lr=0.1, steps=2, batch=1)
    go = partial(run, robust, random, jnp.ones(3), every=2, out=folder / str(jax.device_count()), checkpoints=True)
    go(2)
    out["uneven robust"] = everywhere(go(4, resume=True))
    honest = dsgd(quadratic, Network(rule=rules.trimmed_mean(1)), lr=0.1, steps=2, batch=1)
    out["uneven ranks"] = everywhere(run(honest, random, jnp.ones(3), 3, every=3))
    with mock.patch.multiple(tiers, LARGE=0, EMPTY=1):
        star = scenario(data, topology=mixing.metropolis(graph.star(37)))
    middle = dsgd(quadratic, Network(rule=rules.median()), lr=0.1, steps=2, batch=1)
    for name, algorithm in (("means", gossip), ("ranks", middle)):
        out[f"uneven hubs, {name}"] = everywhere(run(algorithm, star, jnp.ones(3), 3, every=3, seeds=2))
    task, few = digits_world(n=37, c=5)
    state = run(scaffold(task, lr=0.2, steps=2, batch=8), few, task.init, 4, every=2).state
    out["uneven x"], out["uneven controls"] = state.shared["x"], state.nodes
    return out


def runs() -> dict:
    """States and losses of eight points of two seeds, and of eight seeds, that go on without compiling."""
    out, (_, task, data) = {}, quadratics(n=12)
    factory, world = partial(fedprox, task, steps=2, batch=1), scenario(data, cohort=cohort.uniform(12, 5))
    for name, lr, seeds in (("points", list(np.arange(1, 9) / 50), 2), ("seeds", 0.1, 8)):
        go = partial(run, factory, world, jnp.ones(3), hyper={"lr": lr, "mu": 0.1}, seeds=seeds, every=2)
        first = go(4)
        compiled = _chunk._cache_size()
        out[f"{name} {seeds}"], out[f"{name} later"] = everywhere(first), go(6, carry=first.carry).history["loss"]
        assert _chunk._cache_size() == compiled
    return out


EIGHT = """
import sys
sys.path[:0] = sys.argv[2:]
import jax
jax.config.update("jax_num_cpu_devices", 8)
import numpy as np
from pathlib import Path
from test_spread import nodes, runs, uneven
np.savez(sys.argv[1], **nodes() | runs() | uneven(Path(sys.argv[1]).parent))
"""


def test_the_same_numbers_on_one_and_eight_devices(tmp_path):
    assert jax.device_count() == 1
    here = Path(__file__).parent
    args = [sys.executable, "-W", "error", "-c", EIGHT, str(tmp_path / "8.npz"), str(here), str(here.parent)]
    subprocess.run(args, check=True)
    eight = np.load(tmp_path / "8.npz")
    for name, one in (nodes() | runs() | uneven(tmp_path)).items():
        np.testing.assert_allclose(eight[name], one, atol=2e-6, err_msg=name)


def test_devices_are_as_many_as_shorten_shards():
    """Nine nodes on eight devices are two a device on five of them; more devices would hold phantoms alone."""
    assert [full_shards(n, 8) for n in (1, 7, 8, 9, 10, 16, 17, 1009)] == [1, 7, 8, 5, 5, 8, 6, 8]
    for n in range(1, 70):
        devices = full_shards(n, 8)
        assert shard_rows(n, devices) == shard_rows(n, 8)
        assert n > (devices - 1) * shard_rows(n, devices)
