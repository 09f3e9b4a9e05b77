"""The exchange against float64 NumPy: every formulation of mixing, the server's mean, delivery, codecs, bits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import ring
from hypothesis import given
from hypothesis import strategies as st

from jaxfl.core import Cohort, Env, Mail, Outbox
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange import codecs, mix, rules
from jaxfl.exchange.network import Network
from jaxfl.mapping import nodes
from jaxfl.measure.metrics import consensus_distance
from jaxfl.programs.push_sum import push_sum
from jaxfl.world import graph, mixing, topology
from jaxfl.world.scenario import scenario

RNG = np.random.default_rng(0)


def env_of(g=None, n=None, ids=None, weight=None):
    n = g.nbr.shape[0] if n is None else n
    ids = jnp.arange(n) if ids is None else jnp.asarray(ids)
    weight = jnp.ones(ids.shape[0]) if weight is None else jnp.asarray(weight, jnp.float32)
    who = Cohort(ids, weight)
    return Env(jnp.int32(0), jnp.float32(0), (), g, who, jnp.zeros(n, bool))


@pytest.mark.parametrize("ratio", [1e-9, 1e9])
@pytest.mark.parametrize(
    "g",
    [
        mixing.metropolis(graph.ring(40)),
        mixing.uniform(graph.exponential(40)),
        mixing.metropolis(graph.barabasi_albert(40, 2, 0)),
        mixing.metropolis(graph.complete(9)),
        mixing.metropolis(graph.star(12)),
        mixing.from_matrix(np.array([[0.2, 0.8], [0.5, 0.5]])),
    ],
)
def test_slots_and_matmul_are_the_matrix(g, ratio, monkeypatch):
    monkeypatch.setattr(mix, "DENSE_RATIO", ratio)
    for one in (g, dataclasses.replace(g, shifts=None)):
        x = RNG.normal(size=(g.nbr.shape[0], 7))
        got = jax.jit(mix.mix)(one, jnp.asarray(x, jnp.float32), jnp.asarray(x, jnp.float32))
        np.testing.assert_allclose(got, mixing.matrix(g) @ x, atol=2e-6)


@pytest.mark.parametrize("ratio", [1e-9, 1e9])
@pytest.mark.parametrize("make", [graph.ring, lambda n: graph.barabasi_albert(n, 2, 0), graph.exponential])
def test_a_node_that_diverged_reaches_its_listeners_and_nobody_else(make, ratio, monkeypatch):
    monkeypatch.setattr(mix, "DENSE_RATIO", ratio)
    g = mixing.uniform(make(40))
    cut = dataclasses.replace(g, weight=g.weight.at[:, 0].set(0.0), shifts=None)  # slot 0 of every node
    x = jnp.asarray(RNG.normal(size=(40, 3)), jnp.float32).at[7, 1].set(jnp.nan)
    for one in (g, cut):
        w = mixing.matrix(one)
        got = np.asarray(jax.jit(mix.mix)(one, x, x))
        np.testing.assert_array_equal(~np.isfinite(got).all(1), w[:, 7] != 0)


def test_own_row_and_sent_row_may_differ():
    g = ring(40)
    x, sent = RNG.normal(size=(2, 40, 3))
    w = mixing.matrix(g)
    want = np.diag(w)[:, None] * x + (w - np.diag(np.diag(w))) @ sent
    np.testing.assert_allclose(mix.mix(g, jnp.float32(x), jnp.float32(sent)), want, atol=2e-6)


def test_a_node_without_neighbours_keeps_its_row():
    g = mixing.metropolis(graph.ring(1))
    np.testing.assert_array_equal(mix.mix(g, jnp.ones((1, 3)), jnp.zeros((1, 3))), np.ones((1, 3)))


MEAN = jax.jit(Network().aggregate)


@given(st.sampled_from([1, 5]), st.integers(0, 5))
def test_the_server_takes_the_weighted_mean_of_those_present(c, absent):
    weight = RNG.uniform(0.5, 2, c) * (np.arange(c) >= absent)
    x = RNG.normal(size=(c, 5))
    env = env_of(n=9, ids=np.arange(c), weight=weight)
    got, mail, cost = MEAN(jax.random.key(0), env, Mail(), jnp.asarray(x, jnp.float32))
    want = weight @ x / weight.sum() if weight.sum() else np.zeros(5)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert jax.tree.leaves(mail) == []
    assert float(cost["up_bits"]) == (weight > 0).sum() * 32 * 5
    total = env._replace(cohort=env.cohort._replace(total=jnp.float32(10)))
    out, *_ = MEAN(jax.random.key(0), total, Mail(), jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(out, weight @ x / 10, atol=1e-5)


def test_an_absent_member_that_diverged_spoils_nothing():
    x = jnp.asarray([[1.0, 2.0], [jnp.nan, jnp.inf], [3.0, 4.0]])
    env = env_of(n=5, ids=[0, 2, 4], weight=[1.0, 0.0, 3.0])
    got, *_ = MEAN(jax.random.key(0), env, Mail(), x)
    np.testing.assert_allclose(got, [2.5, 3.5])


def median(own, heard, weight):
    return jnp.nanmedian(jnp.where((weight > 0)[:, None], heard, jnp.nan), axis=0)


def test_any_rule_runs_at_every_receiver_of_a_ragged_graph():
    g = mixing.metropolis(graph.barabasi_albert(30, 2, seed=1))
    x = RNG.normal(size=(30, 4)).astype(np.float32)
    got, _, cost = jax.jit(Network(rule=median).gossip)(jax.random.key(0), env_of(g), Mail(), jnp.asarray(x))
    w = mixing.matrix(g)
    want = np.stack([np.median(x[w[i] > 0], axis=0) for i in range(30)])
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert float(cost["up_bits"]) == ((w > 0).sum() - 30) * 32 * 4
    assert float(cost["down_bits"]) == float(cost["up_bits"])


def test_a_rule_serves_the_server_too_and_sees_its_own_reference():
    x = jnp.asarray(RNG.normal(size=(5, 4)), jnp.float32)
    env = env_of(n=8, ids=[0, 2, 3, 5, 7], weight=[1, 1, 1, 1, 0])
    got, *_ = jax.jit(Network(rule=median).aggregate)(jax.random.key(0), env, Mail(), x)
    np.testing.assert_allclose(got, np.median(x[:4], axis=0), atol=1e-6)
    memory, *_ = jax.jit(Network(rule=lambda own, heard, weight: own).aggregate)(
        jax.random.key(0), env, Mail(), x, reference=jnp.arange(4.0)
    )
    np.testing.assert_array_equal(memory, np.arange(4.0))


def test_the_mean_rule_is_a_dot():
    w, x = RNG.dirichlet(np.ones(6)), RNG.normal(size=(6, 9))
    np.testing.assert_allclose(rules.mean(jnp.zeros(9), jnp.float32(x), jnp.float32(w)), w @ x, atol=1e-6)


def test_half_rounds_messages_but_not_the_own_row_and_halves_the_bits():
    g = ring(12)
    x, net = RNG.normal(size=(12, 5)).astype(np.float32), Network(codec=codecs.half())
    got, _, cost = jax.jit(net.gossip)(jax.random.key(0), env_of(g), net.init(env_of(g), jnp.zeros(5)), jnp.asarray(x))
    w = mixing.matrix(g)
    rounded = np.asarray(jnp.asarray(x).astype(jnp.bfloat16), np.float64)
    want = np.diag(w)[:, None] * x + (w - np.diag(np.diag(w))) @ rounded
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert float(cost["up_bits"]) == 24 * 16 * 5


def test_a_codec_with_memory_keeps_it_by_node():
    """A codec that sends the sum of all it was given: members remember, the others do not."""
    send = lambda key, memory, message: (message + memory, message + memory, jnp.float32(1))
    net = Network(codec=codecs.Codec(jnp.zeros_like, send))
    env = env_of(n=4, ids=[1, 3])
    mail = net.init(env, jnp.zeros(2))
    for _ in range(2):
        got, mail, cost = jax.jit(net.aggregate)(jax.random.key(0), env, mail, jnp.ones((2, 2)))
    np.testing.assert_array_equal(mail.nodes[0], [[0, 0], [2, 2], [0, 0], [2, 2]])
    np.testing.assert_array_equal(got, [2, 2])
    assert float(cost["up_bits"]) == 2


def test_repeated_gossip_is_the_power_of_the_matrix_also_with_a_codec():
    g, x = ring(12), RNG.normal(size=(12, 5)).astype(np.float32)
    for codec, bits, tolerance in ((codecs.plain(), 32, 1e-6), (codecs.half(), 16, 5e-2)):
        net = Network(codec=codec, repeats=3)
        got, _, cost = jax.jit(net.gossip)(
            jax.random.key(0), env_of(g), net.init(env_of(g), jnp.zeros(5)), jnp.asarray(x)
        )
        np.testing.assert_allclose(got, np.linalg.matrix_power(mixing.matrix(g), 3) @ x, atol=tolerance)
        assert float(cost["up_bits"]) == 3 * 24 * bits * 5


def test_messages_of_another_shape_are_refused():
    env, net = env_of(mixing.metropolis(graph.ring(8)), ids=range(3)), Network()
    mail = net.init(env, jnp.zeros(5))
    for verb, n in ((net.gossip, 8), (net.aggregate, 3)):
        for shape in ((n,), (n + 1, 5), (n, 5, 1)):
            with pytest.raises(InputError, match=rf"^messages has shape .*must be \[{n}, m\]"):
                verb(jax.random.key(0), env, mail, jnp.zeros(shape))
    with pytest.raises(InputError, match=r"^outbox has a message of shape \(\)"):
        net.deliver(env, Outbox(jnp.zeros(8)))


def test_delivery_finds_the_slot_of_the_sender():
    g = mixing.metropolis(graph.watts_strogatz(10, 4, 0.3, seed=2))
    n, k = g.nbr.shape
    outbox = jnp.arange(n * k).reshape(n, k, 1)  # slot s of node j writes to nbr[j, s]
    (inbox,), cost = jax.jit(Network().deliver)(env_of(g), Outbox(outbox))
    nbr, live = np.asarray(g.nbr), np.asarray(g.weight) > 0
    for i in range(n):
        for s in np.flatnonzero(live[i]):
            j = nbr[i, s]
            back = next(r for r in np.flatnonzero(live[j]) if nbr[j, r] == i)
            assert inbox.message[i, s, 0] == j * k + back
    assert float(cost["up_bits"]) == live.sum() * 32
    with pytest.raises(InputError, match="without a reverse"):
        Network().deliver(env_of(mixing.uniform(graph.exponential(8))), Outbox(jnp.zeros((8, 3, 1))))


def test_push_sum_averages_on_a_directed_graph_and_keeps_its_totals():
    g = mixing.push_weights(graph.from_networkx(_directed()))
    values = jnp.asarray(RNG.normal(size=(9, 3)), jnp.float32)
    world = scenario(values, nodes=9, topology=g)
    for rounds in (8, 80):
        result = run(push_sum(), world, jnp.zeros(0), rounds, every=8)
        mass = np.asarray(result.state.nodes[0])
        np.testing.assert_allclose(mass[:, :3].sum(0), values.sum(0), atol=1e-5)
        np.testing.assert_allclose(mass[:, 3].sum(), 9, atol=1e-5)
    estimate = np.asarray(push_sum().read(result.state))
    np.testing.assert_allclose(estimate, np.tile(values.mean(0), (9, 1)), atol=1e-5)
    plain = mixing.uniform(graph.from_networkx(_directed()))
    from jaxfl.programs.gossip_averaging import gossip_averaging

    biased = run(gossip_averaging(), scenario(values, nodes=9, topology=plain), jnp.zeros(0), 80, every=8).state.nodes[
        0
    ]
    assert float(consensus_distance(biased)) < 1e-4  # it agrees,
    assert np.abs(biased[0] - values.mean(0)).max() > 0.02  # but not on the mean


def _directed():
    import networkx as nx

    g = nx.DiGraph(nx.gnp_random_graph(9, 0.3, seed=5, directed=True))
    g.add_edges_from((i, (i + 1) % 9) for i in range(9))
    return g


def test_failing_edges_keep_the_mean():
    values = jnp.asarray(RNG.normal(size=(20, 3)), jnp.float32)
    from jaxfl.programs.gossip_averaging import gossip_averaging

    world = scenario(values, nodes=20, topology=topology.edge_drop(ring(20), 0.4))
    after = run(gossip_averaging(), world, jnp.zeros(0), 30).state.nodes[0]
    np.testing.assert_allclose(after.mean(0), values.mean(0), atol=1e-6)


def test_the_ledger_by_node_sums_to_the_round():
    from common import digits_world

    from jaxfl.algorithms.server.fedavg import fedavg
    from jaxfl.exchange.ledger import by_member

    task, world = digits_world(n=12, c=5)
    result = run(by_member(fedavg(task, lr=0.1, steps=1, batch=4)), world, task.init, 3)
    for name in ("sent_bits", "received_bits"):
        each = result.nodes[name][0]
        np.testing.assert_allclose(each.sum(1), 5 * 32 * 650)
        np.testing.assert_array_equal((each > 0).sum(1), 5)


def test_rows_of_a_cohort_are_read_and_put_back_where_members_are_present():
    rows = {"a": jnp.arange(12.0).reshape(6, 2), "b": jnp.arange(6)}
    who = Cohort(jnp.array([4, 1]), jnp.ones(2))
    mine = nodes.rows_of(who, rows)
    np.testing.assert_array_equal(mine["a"], [[8, 9], [2, 3]])
    np.testing.assert_array_equal(
        nodes.put_rows(who, rows, jax.tree.map(jnp.negative, mine))["b"], [0, -1, 2, 3, -4, 5]
    )
    minus = lambda _, k, mine: (k, jax.tree.map(jnp.negative, mine))
    _, put = nodes.map_memory(who, minus, (), who.ids, rows, present=jnp.array([True, False]))
    np.testing.assert_array_equal(put["b"], [0, 1, 2, 3, -4, 5])
    np.testing.assert_array_equal(put["a"][4], [-8, -9])


def test_who_is_absent_remembers_what_was_never_sent():
    net, key = Network(codec=codecs.error_feedback(codecs.top_k(1))), jax.random.key(0)
    env = env_of(n=3, ids=[0, 2], weight=[1.0, 0.0])
    mail = net.init(env, jnp.zeros(2))
    _, mail, _ = jax.jit(net.aggregate)(key, env, mail, jnp.array([[1.0, 3.0], [1.0, 3.0]]))
    np.testing.assert_array_equal(mail.nodes[0][0], [[1, 0], [0, 0], [0, 0]])
    down = env_of(ring(3))._replace(alive=jnp.array([True, False, True]))
    _, mail, _ = jax.jit(net.gossip)(key, down, mail, jnp.tile(jnp.array([5.0, 4.0]), (3, 1)))
    np.testing.assert_array_equal(mail.nodes[0][0], [[0, 4], [0, 0], [0, 4]])
