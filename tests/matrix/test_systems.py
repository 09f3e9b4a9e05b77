"""The matrix over the zoo: every system trains, compiles once, goes on exactly, and reports its cost."""

import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import digits_world, ring, same

from jaxfl import zoo
from jaxfl.core import Algorithm
from jaxfl.engine import run as engine
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.options import build
from jaxfl.world import clock, durations, graph, mixing
from jaxfl.world.scenario import scenario

N = 8
ADAM = ("all_reduce", "cocktail_sgd")
RUNNABLE = [name for name, entry in zoo.ZOO.items() if entry.kind != "study"]  # others: test_devices


def world_of(name):
    entry = zoo.find(name)
    if entry.kind == "protocol":
        values = jnp.asarray(np.random.default_rng(0).normal(size=(N, 3)), jnp.float32)
        g = mixing.push_weights(graph.ring(N)) if name == "push_sum" else ring(N)
        return entry.make(), scenario(values, nodes=N, topology=g), jnp.zeros(0)
    task, world = digits_world(n=N, c=4 if entry.kind == "federated" else None, topology=ring(N))
    if entry.kind == "asynchronous":
        world = scenario(world.data, cohort=clock.buffered(N, 5, 3, durations.lognormal()))
    takes = build.accepted(entry.make)
    kw = {k: v for k, v in {"batch": 8, "steps": 3, "sample": 4}.items() if k in takes and name != "fedsgd"}
    return entry.make(task, lr=0.02 if "diloco" in name or name in ADAM else 0.2, **kw), world, task.init


@pytest.mark.parametrize("name", RUNNABLE)
def test_every_system_trains_compiles_once_and_goes_on_exactly(name):
    algorithm, world, model = world_of(name)
    assert isinstance(algorithm, Algorithm)
    before = engine._chunk._cache_size()
    whole = run(algorithm, world, model, 6, every=3)
    half = run(algorithm, world, model, 3, every=3)
    assert same(run(algorithm, world, model, 6, every=3, carry=half.carry).state, whole.state)
    assert engine._chunk._cache_size() == before + 1
    assert all(np.isfinite(np.asarray(a)).all() for a in jax.tree.leaves(whole.state))

    kind, table = zoo.find(name).kind, whole.history
    bits = {"up_bits", "down_bits"} & set(table)
    assert bits == (set() if kind == "reference" else {"up_bits", "down_bits"})
    assert all((table[b][1:] > 0).all() for b in bits)
    if kind == "protocol":
        values = np.asarray(world.data)
        spread = lambda x: np.linalg.norm(x - values.mean(0))
        assert spread(np.asarray(algorithm.read(whole.state))) < 0.5 * spread(values)
    else:
        assert table["loss"].iloc[-1] < table["loss"].iloc[1]
        assert (table["gradients"][1:] > 0).all()


def test_no_system_is_missing_from_the_zoo():
    """Every public function of a file in `algorithms` or `programs` that returns an Algorithm has a row."""
    known = {e.make for e in zoo.ZOO.values()}
    workhorses = {"fedopt", "gossip_training", "momentum_fl"}
    from pathlib import Path

    import jaxfl

    for folder in ("algorithms", "programs"):
        for file in (Path(jaxfl.__file__).parent / folder).glob("[!_]*.py"):
            module = importlib.import_module(f"jaxfl.{folder}.{file.stem}")
            for name, f in inspect.getmembers(module, inspect.isfunction):
                made_here = f.__module__ == module.__name__ and not name.startswith("_")
                if made_here and f.__annotations__.get("return") is Algorithm and name not in workhorses:
                    assert f in known, f"{folder}/{file.name}: {name}"


def test_every_paper_is_cited_and_every_claim_exists():
    for name, entry in zoo.ZOO.items():
        line = zoo.cite(name)
        assert line.startswith(name) if entry.paper is None else entry.paper.title in line
    for module, paper in zoo.claims().items():
        for key in (module, paper.card):
            assert zoo.find_claim(key)[0] == module
            assert callable(zoo.find_claim(key)[1])


@pytest.mark.parametrize(
    ("f", "name", "words"),
    [
        (zoo.find, "fedavgg", "did you mean fedavg"),
        (zoo.find, "zzz", "known are"),
        (zoo.find_claim, "999", "card '999' has no claim"),
        (zoo.find_claim, "push_sum", "has no claim"),
    ],
)
def test_unknown_names_get_the_nearest(f, name, words):
    with pytest.raises(InputError, match=words):
        f(name)
    assert zoo.find("FedAvg-M") is zoo.find("fedavg_m")
