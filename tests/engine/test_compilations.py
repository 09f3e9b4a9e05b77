"""What is compiled, and what is not again: by the same process, by a system built anew, by the next process."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from common import ring

from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.fedopt import fedopt
from jaxfl.algorithms.server.fedprox import fedprox
from jaxfl.core import frozen
from jaxfl.data import partition
from jaxfl.data.sets import digits, from_arrays
from jaxfl.engine import programs
from jaxfl.engine import run as engine
from jaxfl.engine.run import run
from jaxfl.exchange.network import Network
from jaxfl.learn import submodels
from jaxfl.learn.hooks import stateless
from jaxfl.learn.task import logistic_regression
from jaxfl.mapping.canonical import SMALL, canonical
from jaxfl.measure.metrics import shared_test
from jaxfl.world import cohort, graph, links, mixing
from jaxfl.world.scenario import scenario

COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **arguments: COMPILED.append(event) if event.endswith("backend_compile_duration") else None
)
DIGITS = digits()


def compilations(f):
    """How many programs of any size XLA compiled while `f` ran."""
    before = len(COMPILED)
    f()
    return len(COMPILED) - before


def world(kind="federated", seed=0):
    """A new world of 8 nodes; another seed is another partition, cohort weight and graph of the same shape."""
    shards = partition.iid(DIGITS, 8, seed)
    if kind == "gossip":
        return scenario(shards, topology=mixing.metropolis(graph.random_regular(8, 4, seed)))
    return scenario(shards, cohort=cohort.uniform(8, 4, weight=shards.size))


def metric(task):
    return shared_test(task, jnp.asarray(DIGITS.test_x[:50]), jnp.asarray(DIGITS.test_y[:50]))


def test_a_process_keeps_so_many_programs_and_no_more(monkeypatch):
    """Of one shape more all others are forgotten; the numbers are the same before and after."""
    monkeypatch.setattr(programs, "MOST", 3)
    task, sizes, ends = logistic_regression(64, 10), [], []
    for n in (3, 4, 5, 6, 7, 3):
        done = run(fedavg(task, steps=1, batch=2), scenario(partition.iid(DIGITS, n)), task.init, 1)
        sizes.append(engine._chunk._cache_size())
        ends.append(done.state.shared["x"])
    assert max(sizes) <= 3
    np.testing.assert_array_equal(ends[0], ends[-1])


@pytest.mark.parametrize(("make", "kind"), [(fedprox, "federated"), (dsgd, "gossip")])
def test_more_rounds_another_seed_world_or_hyper_parameter_compile_nothing(make, kind):
    task = logistic_regression(64, 10)
    factory, test, places = functools.partial(make, task, steps=2), metric(task), [world(kind, seed) for seed in (0, 1)]

    def again(rounds=4, position=0, lr=0.1, **arguments):
        return run(factory, places[position], task.init, rounds, every=2, evaluate=test, hyper={"lr": lr}, **arguments)

    assert compilations(again) > 0
    assert compilations(again) == 0
    assert compilations(lambda: again(rounds=8)) == 0
    assert compilations(lambda: again(seed=7)) == 0
    assert compilations(lambda: again(lr=0.3)) == 0
    assert compilations(lambda: again(position=1)) == 0
    first = again()
    again(rounds=6, carry=first.carry)  # copies the carry, itself a program
    assert compilations(lambda: again(rounds=8, carry=first.carry)) == 0
    assert len(again(rounds=4, carry=first.carry).history) == 0  # nothing is left to run
    again(lr=[0.1, 0.2], seeds=2, seed=1)
    assert compilations(lambda: again(lr=[0.3, 0.4], seeds=2, seed=3, position=1)) == 0


WORLDS = {
    "ring": lambda n: {"topology": mixing.metropolis(graph.ring(n))},
    "random": lambda n: {"topology": mixing.metropolis(graph.random_regular(n, 4, 0))},
    "cohort": lambda n: {"cohort": cohort.uniform(n, 5), "byz": 2, "links": links.links(n, up=1e6)},
    "churn": lambda n: {"cohort": cohort.poisson(n, 0.3), "churn": cohort.availability(n, 0.9, 0.5)},
}


@pytest.mark.parametrize("parts", WORLDS)
@pytest.mark.parametrize("deal", [partition.iid, lambda d, n: partition.resampled(d, n, alpha=1.0)])
def test_a_world_is_built_without_a_program(parts, deal):
    jax.random.key(0)
    samples = from_arrays(np.random.default_rng(0).random((203, 3)), np.arange(203) % 5)  # no other test has so many
    assert compilations(lambda: scenario(deal(samples, 17), **WORLDS[parts](17))) == 0


DEALS = {
    "dirichlet": lambda seed: partition.dirichlet(DIGITS, 8, 0.3, seed),
    "lognormal": lambda seed: partition.quantity_skew(DIGITS, 8, sigma=0.5, seed=seed + 2),
    "held out": lambda seed: partition.hold_out(partition.dirichlet(DIGITS, 8, 0.3, seed), 0.2, seed)[0],
}
GRAPHS = {
    "regular": lambda seed: graph.random_regular(8, 4, seed),
    "erdos_renyi": lambda seed: graph.erdos_renyi(32, 0.3, seed + 8),
}


@pytest.mark.parametrize("deal", DEALS)
@pytest.mark.parametrize("work", [{"steps": 2, "batch": 4}, {"epochs": 1, "batch": 32}])
def test_five_seeds_of_a_partition_share_their_programs(deal, work):
    task = logistic_regression(64, 10)
    shards = [DEALS[deal](seed) for seed in range(5)]
    assert len({int(np.max(part.size)) for part in shards}) > 1
    again = lambda part: run(fedavg(task, **work), scenario(part), task.init, 1)
    again(shards[0])
    bounds = {part.longest for part in shards}
    assert len(bounds) == (2 if deal == "held out" else 1)  # seeds that differ much have another bound
    assert sum(compilations(lambda part=part: again(part)) for part in shards[1:]) == 2 * (len(bounds) - 1)


@pytest.mark.parametrize("kind", GRAPHS)
def test_five_seeds_of_a_random_graph_share_their_programs(kind):
    task, graphs = logistic_regression(64, 10), [mixing.metropolis(GRAPHS[kind](seed)) for seed in range(5)]
    shards = partition.iid(DIGITS, graphs[0].nbr.shape[0])
    again = lambda g: run(dsgd(task, steps=1), scenario(shards, topology=g), task.init, 1)
    again(graphs[0])
    assert [compilations(lambda g=g: again(g)) for g in graphs[1:]] == [0] * 4


def test_a_system_built_anew_compiles_nothing_unless_it_is_another():
    position = world()

    def fresh(**arguments):
        task = logistic_regression(64, 10)
        algorithm = fedavg(task, Network(), **{"lr": 0.1, "steps": 2} | arguments)
        return run(algorithm, position, task.init, 2, every=2, evaluate=metric(task))

    first = fresh()
    assert compilations(fresh) == 0
    assert compilations(lambda: fresh(lr=0.2)) > 0
    assert compilations(lambda: fresh(batch=8)) > 0
    other = fresh(lr=0.2)
    assert not np.array_equal(other.state.shared["x"], first.state.shared["x"])
    np.testing.assert_array_equal(fresh().state.shared["x"], first.state.shared["x"])


def test_a_world_built_anew_is_the_same_program():
    assert world().step is world(seed=1).step
    assert world("gossip").init is world("gossip", 1).init
    assert world().step is not world("gossip").step
    task = logistic_regression(64, 10)
    algorithm = dsgd(task, lr=0.1)
    ask = lambda: run(algorithm, scenario(partition.iid(DIGITS, 8, 0), topology=ring(8)), task.init, 2, every=2)
    ask()
    assert compilations(lambda: run(algorithm, world("gossip"), task.init, 2, every=2)) > 0  # 4 neighbours, not 2
    assert compilations(ask) == 0


def test_numbers_are_told_apart_by_type_and_bits():
    task = logistic_regression(64, 10)
    made = {value: canonical(fedavg(task, lr=value)) for value in (0.1, 0.2)}
    assert canonical(fedavg(task, lr=0.1)) is made[0.1]
    assert made[0.1] is not made[0.2]
    scale = lambda value: canonical(optax.scale(value))
    assert scale(1) is scale(1)
    assert len({id(scale(value)) for value in (0.0, -0.0, 0, False, 1.0, 1, True, np.float32(1), np.float64(1))}) == 9
    assert scale(float("nan")) is scale(float("nan"))
    twice = [canonical(functools.partial(fedprox, task, mu=mu)) for mu in (0.1, 0.1, 0.2)]
    assert twice[0] is twice[1]
    assert twice[1] is not twice[2]
    inner = [canonical(fedopt(task, local=optax.chain(optax.clip(c), optax.sgd(0.1)))) for c in (1.0, 1.0, 2.0)]
    assert inner[0] is inner[1]
    assert inner[1] is not inner[2]


WEIGHT = 0.5


def test_what_a_user_wrote_is_never_taken_for_another():
    """A user's function may read a name that has changed since."""

    def pull():
        return stateless(lambda g, p, **_: jax.tree.map(lambda g, p: g + WEIGHT * p, g, p))

    task = logistic_regression(64, 10)
    make = lambda: fedopt(task, local=optax.chain(pull(), optax.sgd(0.1)))
    one, two = make(), make()
    assert canonical(one) is one
    assert canonical(two) is two
    traced = jax.make_jaxpr(lambda lr: canonical(fedavg(task, lr=lr)).read is None or lr)(0.1)
    assert traced is not None
    assert canonical(test_numbers_are_told_apart_by_type_and_bits) is test_numbers_are_told_apart_by_type_and_bits
    assert canonical([]) == []


def test_small_arrays_that_cannot_change_are_told_apart_by_their_bits():
    task = logistic_regression(64, 10)
    rate = lambda value: canonical(fedavg(task, lr=value))
    same = jnp.float32(0.1)
    assert rate(same) is rate(jnp.float32(0.1)) is rate(same)
    kinds = [jnp.float32(0.1), jnp.float32(0.2), jnp.bfloat16(0.1), jnp.asarray(0.1), np.float32(0.1), 0.1]
    assert len({id(rate(value)) for value in kinds}) == len(kinds)
    held = lambda a: canonical(submodels.fixed(a))
    fixed = np.eye(3, dtype=bool)
    assert held(frozen(fixed)) is held(frozen(fixed)) is not held(frozen(~fixed))
    assert held(frozen(fixed)) is not held(frozen(fixed.reshape(1, 9)))
    assert held(fixed) is not held(fixed)  # it may be changed between the two
    large = jnp.zeros((2, SMALL), bool)
    assert held(large) is not held(large)
    gone = jnp.zeros(3)
    gone.delete()
    assert held(gone) is not held(gone)


NEXT_PROCESS = """
import json, sys
from collections import Counter
from jaxfl import cli
seen, begin = Counter(), cli.start_jax

def start_jax(devices):
    begin(devices)
    import jax
    jax.monitoring.register_event_listener(lambda event, **named: seen.update([event.rpartition("/")[2]]))

cli.start_jax = start_jax
try:
    cli.main(sys.argv[1:])
except SystemExit as end:
    assert not end.code
print(json.dumps([seen["cache_hits"], seen["cache_misses"]]))
"""


def command_line(tmp_path, out, **environment):
    """Programs read from the cache, and compiled, in a process of its own; what it said on stderr."""
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "LOCALAPPDATA": str(tmp_path / "cache")}
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "TF_"))}
    args = ["run", "gossip_averaging", "--nodes", "8", "--rounds", "4", "--seeds", "1", "--out", str(tmp_path / out)]
    told = subprocess.run(
        [sys.executable, "-c", NEXT_PROCESS, *args],
        env=clean
        | home
        | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_NUM_CPU_DEVICES": "1"}
        | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return *json.loads(told.stdout.splitlines()[-1]), told.stderr


def test_the_next_process_compiles_nothing_unless_told_to(tmp_path):
    hits, misses, _ = command_line(tmp_path, "first")
    assert hits == 0
    assert misses > 0
    memory = sorted(p for p in tmp_path.rglob("*-cache"))
    assert len(memory) == misses
    assert all("jaxfl" in p.parts for p in memory)
    hits, again, said = command_line(tmp_path, "second")
    assert (hits, again) == (misses, 0)
    assert sorted(p for p in tmp_path.rglob("*-cache")) == memory
    assert [line for line in said.splitlines() if not line.startswith(("1/1 gossip_averaging", "round "))] == []
    command_line(tmp_path, "third", JAX_ENABLE_COMPILATION_CACHE="0", XDG_CACHE_HOME=str(tmp_path / "none"))
    assert not (tmp_path / "none" / "jaxfl").exists()
