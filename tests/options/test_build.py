"""The world that options build, and every system in it."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import rounds

from jaxfl import data, zoo
from jaxfl.core import Graph
from jaxfl.data.partition import label_histogram
from jaxfl.errors import InputError
from jaxfl.exchange import secure
from jaxfl.options import config, network
from jaxfl.options.build import build, prepare
from jaxfl.options.config import Setup
from jaxfl.options.network import network_of
from jaxfl.options.systems import system_options
from jaxfl.options.topology import first_graph, in_degree, topology_of
from jaxfl.paper import Example, System
from jaxfl.world import clock as timing
from jaxfl.world import cohort, mixing
from jaxfl.world import graph as graphs

TINY = Setup(nodes=8, data="digits", model="logistic", rounds=2, seeds=2)


@pytest.fixture(scope="module", autouse=True)
def digits():
    """The digits are read once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "digits", cache(data.digits))
        yield


def test_set_reaches_the_systems_it_names():
    options = ("dfedsam.rho=1e-2", "batch=0", "rho=0.5", "dfedsam-mgs.gossip_steps=2", "server_momentum=none")
    setup = dataclasses.replace(TINY, options=options)
    assert system_options(setup, ["fedavg", "dfedsam", "dfedsam_mgs"]) == {
        "fedavg": {"batch": None, "server_momentum": None},
        "dfedsam": {"rho": 0.01, "batch": None},
        "dfedsam_mgs": {"batch": None, "rho": 0.5, "gossip_steps": 2},
    }


def test_systems_share_one_world_and_the_same_local_work(monkeypatch):
    made = {}

    def fake(kind, **taken):
        def make(task, net=None, *, lr=0.5, steps=9, batch=99, extra=1.0):
            made[kind] = (task, lr, steps, batch, extra)
            return kind

        return System(make, kind=kind)

    kinds = ("server", "gossip", "reference")
    monkeypatch.setattr(zoo, "find", fake)
    setup = dataclasses.replace(TINY, lr=0.2, steps=4, batch=0, cohort=3, topology="ring")
    world = prepare(setup, kinds)
    arms = {kind: build(world, kind, {"extra": 2.0} if kind == "gossip" else {}) for kind in kinds}
    assert {kind: m[1:] for kind, m in made.items()} == {
        "server": (0.2, 4, None, 1.0),
        "gossip": (0.2, 4, None, 2.0),
        "reference": (0.2, 4, None, 1.0),
    }
    sizes = np.asarray(world.data.size)
    for kind, members, graph in (("server", 3, False), ("gossip", 8, True), ("reference", 8, False)):
        arm = arms[kind]
        assert arm.scenario.data is world.data
        _, (net, cohort, *_) = arm.scenario.step(*start(arm.scenario))
        assert (net is not None) == graph
        assert cohort.ids.shape == (members,)
        np.testing.assert_array_equal(np.asarray(cohort.weight), sizes[np.asarray(cohort.ids)])


def start(scenario):
    key = jax.random.key(0)
    return key, scenario.arrays, scenario.init(key, scenario.arrays), jax.numpy.int32(0)


@pytest.mark.parametrize("name", config.STATIC)
def test_every_fixed_topology_is_doubly_stochastic_and_connected(name):
    setup = dataclasses.replace(TINY, nodes=16, topology=name, degree=4)
    w = mixing.matrix(topology_of(setup))
    np.testing.assert_allclose(w.sum(0), 1, atol=1e-6)
    np.testing.assert_allclose(w.sum(1), 1, atol=1e-6)
    assert (np.linalg.matrix_power(w, 64) > 0).all()


def test_topologies_that_vary_and_mixings():
    for name, k in (("one_peer", 1), ("matching", 1), ("el_oracle", 3), ("el_local", 3)):
        setup = dataclasses.replace(TINY, topology=name, degree=3)
        drawn = jax.eval_shape(partial(first_graph, topology_of(setup)))
        assert drawn.nbr.shape == (8, k)
    ring = {name: topology_of(dataclasses.replace(TINY, topology="ring", mixing=name)) for name in config.MIXINGS}
    assert {name: round(float(g.weight[0, 0]), 4) for name, g in ring.items()} == {
        "metropolis": 0.3333,
        "uniform": 0.3333,
        "lazy": 0.1667,
        "max_degree": 0.3333,
        "optimal": round(2 / (4 + 2 - 2 * np.cos(np.pi / 4)), 4),
    }
    uneven = dataclasses.replace(TINY, topology="star", mixing="uniform")
    assert isinstance(topology_of(uneven), Graph)


def test_a_topology_in_a_file(tmp_path):
    def at(text, **changes):
        path = tmp_path / "g.csv"
        path.write_text(text)
        topology_of.__globals__["_drawn"].cache_clear()
        setup = dataclasses.replace(TINY, topology=str(path), **{"nodes": 4} | changes)
        config.check(setup)
        return topology_of(setup)

    both = lambda *pairs: "".join(f"{a},{b}\n{b},{a}\n" for a, b in pairs)
    path = "source,target\n" + both((0, 1), (1, 2), (2, 3))
    known = mixing.metropolis(graphs.grid(1, 4))
    np.testing.assert_allclose(mixing.matrix(at(path)), mixing.matrix(known))
    np.testing.assert_allclose(mixing.matrix(at(path, mixing="lazy")), mixing.matrix(mixing.lazy(known)))
    directed = "source,target\n0,1\n1,2\n2,3\n3,0\n0,2\n"
    assert mixing.matrix(at(directed, mixing="uniform"))[2, 0] == pytest.approx(1 / 3)
    trace = at("round,source,target\n0,0,1\n0,1,0\n0,2,3\n0,3,2\n1,1,2\n1,2,1\n")
    assert in_degree(trace) == 1
    assert isinstance(at(directed.replace("\n", ",0.4\n").replace("target,0.4", "target,weight")), Graph)
    for text, changes, says in (
        (path, {"nodes": 9}, "has 4 nodes, but 9 are needed"),
        (path, {"degree": 2}, "degree is 2, but topology .*g.csv does not read it"),
        (directed, {}, "g.csv is directed, .* or --mixing uniform"),
        (trace_of(directed), {}, "round 0 of .*g.csv is directed"),
        (directed, {"mixing": "metropolis"}, "g.csv: graph is directed"),
        ("source,target\n" + both((0, 1), (2, 3)), {}, "g.csv: a disconnected graph .* 4 nodes in 2 components"),
        ("source,target,weight\n0,1,0.5\n1,0,0.5\n", {"nodes": 2, "mixing": "lazy"}, "has weights of its own"),
    ):
        with pytest.raises(InputError, match=says):
            at(text, **changes)


def trace_of(static):
    """The same edges in two rounds."""
    head, *rows = static.split()
    return "\n".join([f"round,{head}", *(f"{t},{row}" for t in range(2) for row in rows)])


def world(**changes):
    return prepare(dataclasses.replace(TINY, **changes), ["fedavg"])


def test_models_and_metrics_follow_the_options():
    plain = world(model=None)
    assert (plain.setup.partition, plain.setup.model, plain.setup.cohort, plain.topology) == (
        "dirichlet",
        "mlp",
        1,
        None,
    )
    assert plain.task.dim == 64 * 16 + 16 + 160 + 10
    assert world(model="mlp", hidden=5).task.dim == 64 * 5 + 5 + 50 + 10
    assert world(model="cnn").task.dim == 9 * 16 + 16 + 9 * 16 * 32 + 32 + 2 * 2 * 32 * 10 + 10
    assert world().task.dim == 650
    few = world(test_samples=50).metric.arrays[1]
    assert few.shape == (50,)
    assert len(np.unique(few)) == 10


def test_partitions_follow_the_options():
    labels = lambda w: (label_histogram(w.data, 10) > 0).sum(1).mean()
    assert np.ptp(np.asarray(world(partition="iid").data.size)) <= 1
    assert all(np.ptp(np.asarray(world(partition=law).data.size)) > 1 for law in ("lognormal", "power"))
    many = world(partition="resampled", nodes=3000, shard_size=5).data
    np.testing.assert_array_equal(many.size, np.full(3000, 5))
    assert labels(world(partition="pathological", labels_per_node=1)) <= 3
    assert labels(world(partition="pathological", labels_per_node=4)) > 3
    assert labels(world(alpha=0.01)) < labels(world(alpha=100.0))
    assert np.asarray(world(seed=1).data.order).tolist() != np.asarray(world().data.order).tolist()


def test_natural_keys_become_nodes():
    text = world(data="topics", model=None, hidden=8)
    assert (text.setup.partition, text.setup.model) == ("natural", "transformer")
    assert sorted(np.asarray(text.data.size)) == sorted(np.bincount(text.dataset.clients))[-8:]
    made = world(data="synthetic", model=None, nodes=5)
    assert (made.setup.partition, made.setup.model) == ("natural", "logistic")
    np.testing.assert_array_equal(made.data.size, np.bincount(made.dataset.clients))


def test_every_rule_attack_and_codec_has_its_name():
    setup = Setup(nodes=8, codec="sign", rule="krum", byzantine=2)
    assert network_of(setup, 8).attack is not None
    for name in config.RULES:
        assert callable(network_of(dataclasses.replace(setup, rule=name), 8).rule)
    for name in config.ATTACKS:
        assert network_of(dataclasses.replace(setup, attack=name), 8).attack is not None
    for name in config.CODECS:
        assert callable(network_of(dataclasses.replace(setup, codec=name), 8).codec.send)


@pytest.mark.parametrize(
    ("name", "liars"), [("dsgd", 2), ("fedavg", 5), ("fedbuff", 3), ("modest", 5), ("gossip_averaging", 2)]
)
def test_a_rule_expects_the_liars_among_what_one_receiver_hears(name, liars, monkeypatch):
    """A quarter of 40 nodes lie: a node hears itself and 7 others, a server 20 or, asynchronous, 10."""
    told = []
    monkeypatch.setattr(network.rules, "trimmed_mean", lambda f: told.append(f) or (lambda own, heard, weight: own))
    options = {"topology": "regular", "degree": 7, "cohort": 20, "concurrency": 30, "goal": 10}
    setup = dataclasses.replace(TINY, nodes=40, byzantine=10, rule="trimmed_mean", **options)
    build(prepare(setup, [name]), name, {})
    assert told == [liars]
    if name == "modest":
        build(prepare(setup, [name]), name, {"sample": 12})
        assert told == [5, 3]


def test_a_rule_that_cannot_stand_the_liars_it_may_hear_is_refused():
    setup = Setup(nodes=10, byzantine=2)
    for rule, heard, needed in (("krum", 4, 5), ("multi_krum", 6, 7), ("trimmed_mean", 2, 3)):
        with pytest.raises(InputError, match=f"rule is {rule}, .* needs {needed} messages, and {heard} are heard"):
            network_of(dataclasses.replace(setup, rule=rule), heard)
        network_of(dataclasses.replace(setup, rule=rule), needed)


def test_how_many_neighbours_a_node_hears():
    degree = lambda **options: in_degree(topology_of(dataclasses.replace(TINY, **options)))
    assert degree(topology="ring") == 2
    assert degree(topology="star") == 2  # 14 messages to 8 nodes
    assert degree(nodes=1000) == 10
    assert degree(topology="el_oracle", degree=3) == 3
    assert degree(topology="matching") == 1


@pytest.mark.parametrize("name", config.STATIC)
def test_what_no_mixing_stands_for_is_known(name):
    setup = dataclasses.replace(TINY, nodes=16, topology=name, degree=4)
    arguments = dataclasses.replace(setup, mixing=config.usual(setup)["mixing"])
    np.testing.assert_array_equal(topology_of(arguments).weight, topology_of(setup).weight)


@pytest.mark.parametrize("name", ["fedbuff", "papaya"])
def test_a_job_of_an_asynchronous_system_takes_its_transfers_and_its_steps(name):
    """Jobs of a second each, four at work, two arrivals a round: two rounds end together, a job after those before."""
    options = {"durations": "fixed", "concurrency": 4, "goal": 2, "rounds": 6, "every": 1, "steps": 5}
    options |= {"codec": "int4"} if name == "fedbuff" else {}
    world = prepare(dataclasses.replace(TINY, mbit=0.1, latency_ms=20.0, step_ms=3.0, **options), [name])
    arm = build(world, name, {})
    assert arm.scenario.links is None
    # the model comes as 650 floats; 650 numbers of 4 bits and a float go, of Papaya 650 masked integers and a seed
    up_bits = 650 * 4 + 32 if name == "fedbuff" else 650 * 32 + secure.SEED_BITS
    job = 1 + (0.02 + 650 * 32 / 1e5) + 5 * 0.003 + (0.02 + up_bits / 1e5)
    seconds = rounds(arm.scenario, 6).seconds
    np.testing.assert_allclose(seconds, [job, 0, job, 0, job, 0], rtol=1e-5)


def test_a_system_brings_its_own_clock_or_cohort(monkeypatch):
    """Of a clock it is told who works and how long; a cohort stands in place of the option's."""
    paces = []

    def clock(pace):
        paces.append(pace)
        return timing.buffered(pace.nodes, pace.concurrency, 1, pace.seconds)

    brought = {
        "asynchronous": Example(clock=clock),
        "server": Example(cohort=lambda count: cohort.cyclic(10, count - 1)),
    }
    sizes, fedbuff = {}, zoo.find("fedbuff").make
    for kind, example in brought.items():
        mine = System(fedbuff, None, lambda given, example=example: example, kind)
        monkeypatch.setattr(zoo, "find", lambda name, mine=mine: mine)
        arm = build(prepare(Setup(nodes=10, data="synthetic", concurrency=4, goal=2, cohort=3), ["mine"]), "mine", {})
        sizes[kind] = len(rounds(arm.scenario, 1).cohort.ids[0])
    assert sizes == {"asynchronous": 1, "server": 2}
    assert paces[0][:3] == (10, 4, 2)


def test_an_epoch_of_a_small_shard_takes_fewer_steps():
    world = prepare(
        dataclasses.replace(TINY, durations="fixed", step_ms=1.0, concurrency=1, goal=1, batch=10), ["fedbuff"]
    )
    arm = build(world, "fedbuff", {"epochs": 2})
    _, law = arm.scenario.arrays["cohort"]["seconds"]
    np.testing.assert_allclose(law["seconds"], 2 * np.ceil(np.asarray(world.data.size) / 10) / 1e3, rtol=1e-6)


def test_without_links_a_job_is_log_normal_alone():
    world = prepare(dataclasses.replace(TINY, concurrency=1, goal=1), ["fedasync"])
    law = build(world, "fedasync", {}).scenario.arrays["cohort"]["seconds"]
    assert {name: float(value) for name, value in law.items()} == {"median": 1.0, "sigma": 1.0}


def test_compute_and_strata_reach_the_model_and_the_cohort():
    row, x = jax.random.normal(jax.random.key(0), (64 * 5 + 5 + 50 + 10,)), jnp.ones((3, 64))
    full, half = (world(model="mlp", hidden=5, compute=c).task for c in ("float32", "bfloat16"))
    a, b = (t.predict(t.unravel(row), x) for t in (full, half))
    assert 0 < np.abs(a - b).max() < 0.05 * np.abs(a).max()
    with pytest.raises(InputError, match="compute is bfloat16, but model logistic does not read it"):
        world(model="logistic", compute="bfloat16")
    there = build(world(nodes=8, cohort=4, strata=2), "fedavg", {}).scenario
    key = jax.random.key(1)
    ids = np.asarray(there.step(key, there.arrays, there.init(key, there.arrays), jnp.int32(0))[1].cohort.ids)
    assert (ids[:2] < 4).all()
    assert (ids[2:] >= 4).all()
    with pytest.raises(InputError, match="strata = 3"):
        build(world(nodes=8, cohort=4, strata=3), "fedavg", {})
