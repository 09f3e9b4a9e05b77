"""Graphs that change by the round, and the parts of a scenario."""

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
import scipy.sparse
from common import rounds

from jaxfl.core import Graph, Process, Shards, stream
from jaxfl.errors import InputError
from jaxfl.world import cohort as C
from jaxfl.world import graph as G
from jaxfl.world import mixing as M
from jaxfl.world import topology as T
from jaxfl.world.scenario import byzantine, scenario


def matrices(process, count, seed=0):
    """[count, n, n] float64 mixing matrices."""
    stacked = jax.tree.map(np.asarray, rounds(process, count, seed))
    return np.stack([M.matrix(jax.tree.map(lambda a, t=t: a[t], stacked)) for t in range(count)])


def assert_reversible(stacked):
    for t in range(stacked.nbr.shape[0]):
        nbr, rev, weight = (np.asarray(a[t]) for a in (stacked.nbr, stacked.rev, stacked.weight))
        me = np.arange(len(nbr))[:, None]
        np.testing.assert_array_equal(np.where(weight > 0, nbr[nbr, rev], me), np.broadcast_to(me, nbr.shape))


def test_static_is_the_graph():
    g = M.metropolis(G.torus(3, 4))
    process = T.static(g)
    s, out = process.step(jax.random.key(0), process.arrays, process.init(jax.random.key(1), process.arrays), 5)
    assert out is g
    assert s == ()
    assert T.as_process(process) is process


@pytest.mark.parametrize("n", [2, 16])
def test_one_peer_exponential_averages_exactly(n):
    tau = n.bit_length() - 1
    w = matrices(T.one_peer_exponential(n), 2 * tau)
    for start in range(tau):  # any tau rounds in a row
        np.testing.assert_array_equal(np.linalg.multi_dot([np.eye(n), *w[start : start + tau]]), np.full((n, n), 1 / n))
    np.testing.assert_array_equal(w[0], (np.eye(n) + np.roll(np.eye(n), 1, 1)) / 2)


def test_one_peer_exponential_of_any_size():
    w = matrices(T.one_peer_exponential(6), 4)
    for t, shift in enumerate([1, 2, 4, 1]):
        np.testing.assert_array_equal(w[t], (np.eye(6) + np.roll(np.eye(6), shift, 1)) / 2)


@pytest.mark.parametrize("n", [2, 7])
def test_random_matching(n):
    process = T.random_matching(n)
    stacked, w = rounds(process, 300), matrices(process, 300)
    np.testing.assert_array_equal(w, w.transpose(0, 2, 1))
    assert_reversible(stacked)
    pairs = (w == 0.5) & ~np.eye(n, dtype=bool)
    assert (pairs.sum((1, 2)) == 2 * (n // 2)).all()
    assert (pairs.sum(2) <= 1).all()
    # every pair equally often: n // 2 of the n (n - 1) / 2 pairs a round
    share = pairs.mean(0)[~np.eye(n, dtype=bool)]
    expected = (n // 2) / (n * (n - 1) / 2)
    assert np.abs(share - expected).max() < 4.5 * np.sqrt(expected * (1 - expected) / 300) + 1e-12


@pytest.mark.parametrize(("n", "k"), [(2, 1), (9, 8), (11, 3)])
def test_random_k_out_is_doubly_stochastic_and_regular(n, k):
    w = matrices(T.random_k_out(n, k), 5, seed=n)
    np.testing.assert_allclose(w.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(w.sum(2), 1, atol=1e-6)
    heard = (w > 0) & ~np.eye(n, dtype=bool)
    assert (heard.sum(1) == k).all()  # heard by k, all of them different
    assert (heard.sum(2) == k).all()
    np.testing.assert_allclose(w[:, np.eye(n, dtype=bool)], 1 / (1 + k), atol=1e-6)


@pytest.mark.parametrize("make", [T.random_k_out, T.random_k_local])
def test_every_ordered_pair_is_equally_likely(make):
    n, k, count = 7, 3, 1500
    stacked = rounds(make(n, k), count)
    share = np.zeros((n, n))
    nbr = np.asarray(stacked.nbr)
    for i in range(n):
        share[i] = np.bincount(nbr[:, i].reshape(-1), minlength=n) / count
    assert (np.diag(share) == 0).all()
    expected = k / (n - 1)
    off = share[~np.eye(n, dtype=bool)]
    assert np.abs(off - expected).max() < 4.5 * np.sqrt(expected * (1 - expected) / count)


@pytest.mark.parametrize(("n", "k"), [(2, 1), (9, 8), (40, 5)])
def test_random_k_local_hears_k_distinct_others(n, k):
    stacked = rounds(T.random_k_local(n, k), 20)
    nbr = np.sort(np.asarray(stacked.nbr), axis=2)
    assert (np.diff(nbr, axis=2) > 0).all()
    assert (nbr != np.arange(n)[:, None]).all()
    assert nbr.min() == 0
    assert nbr.max() == n - 1
    np.testing.assert_allclose(stacked.weight, 1 / (1 + k))
    if k < n - 1:  # choices are independent, so how many hear a node varies: binomial
        heard = np.stack([np.bincount(r.reshape(-1), minlength=n) for r in nbr])
        assert heard.var() == pytest.approx(k * (1 - k / (n - 1)), rel=0.2)


def test_edge_drop_is_symmetric_and_of_the_right_frequency():
    g, p, count = M.metropolis(G.watts_strogatz(12, 4, 0.4, seed=0)), 0.3, 400
    process = T.edge_drop(g, p)
    w = matrices(process, count)
    full = M.matrix(g)
    np.testing.assert_array_equal(w, w.transpose(0, 2, 1))
    np.testing.assert_allclose(w.sum(2), 1, atol=1e-12)
    edge = (full > 0) & ~np.eye(12, dtype=bool)
    memory = w[:, edge] > 0
    np.testing.assert_array_equal(np.where(memory, full[edge], 0), w[:, edge])
    total = memory.size / 2
    assert abs(memory.mean() - (1 - p)) < 4 * np.sqrt(p * (1 - p) / total)
    upper = w[:, np.triu(edge)] > 0  # different edges fail independently
    corr = np.corrcoef(upper.T)
    assert np.abs(corr - np.eye(len(corr))).max() < 4.5 / np.sqrt(count)
    assert_reversible(rounds(process, count))


def test_edge_drop_at_its_ends_and_over_processes():
    g = M.metropolis(G.ring(6))
    never, always = T.edge_drop(g, 0.0), T.edge_drop(g, 1.0)
    np.testing.assert_allclose(matrices(never, 2), np.stack([M.matrix(g)] * 2))
    never = never._replace(arrays=always.arrays)  # the probability is an argument of the compiled program
    np.testing.assert_array_equal(matrices(never, 2), np.stack([np.eye(6)] * 2))
    w = matrices(T.edge_drop(T.random_matching(20), 0.5), 50)
    np.testing.assert_array_equal(w, w.transpose(0, 2, 1))
    assert abs((w[:, ~np.eye(20, dtype=bool)] > 0).sum() / (50 * 20) - 0.5) < 0.1
    twice = matrices(T.edge_drop(T.edge_drop(G.complete(20), 0.5), 0.5), 20)  # independent of each other
    assert abs((twice[:, ~np.eye(20, dtype=bool)] != 0).mean() - 0.25) < 0.03
    # both directions of a directed pair fail together
    heard = matrices(T.edge_drop(T.random_k_out(8, 7), 0.5), 5) > 0
    np.testing.assert_array_equal(heard, heard.transpose(0, 2, 1))


def test_dropped_pushes_stay_with_the_sender():
    g = M.push_weights(G.from_edges(4, [0, 0, 1, 2, 3], [1, 2, 0, 0, 2]))
    for process in (T.edge_drop(g, 0.5), T.asleep(g, C.availability(4, 0.5, 0.5))):
        w = matrices(process, 20)
        np.testing.assert_allclose(w.sum(1), 1, atol=1e-6)
        assert w.min() >= 0
        assert len(np.unique(w.round(5), axis=0)) > 3


def test_asleep_cuts_the_edges_of_sleepers():
    g = M.metropolis(G.complete(10))
    chain = C.availability(10, 0.6, 0.7)
    w = matrices(T.asleep(g, chain), 40)
    key = jax.random.key(0)
    on = chain.init(stream(key, "sleep"), chain.arrays)
    for t in range(40):
        on, _ = chain.step(stream(jax.random.fold_in(key, t), "sleep"), chain.arrays, on, t)
        both = np.outer(on, on) & ~np.eye(10, dtype=bool)
        np.testing.assert_array_equal((w[t] > 0) & ~np.eye(10, dtype=bool), both)
    np.testing.assert_array_equal(w, w.transpose(0, 2, 1))


def test_graphs_in_turn_cycle_and_are_padded():
    graphs = [M.metropolis(g) for g in (G.ring(8), G.star(8), G.hypercube(8))]
    process = T.by_round(graphs)
    stacked = rounds(process, 7)
    assert stacked.nbr.shape == (7, 8, 7)
    assert_reversible(stacked)
    for t, w in enumerate(matrices(process, 7)):
        np.testing.assert_allclose(w, M.matrix(graphs[t % 3]), atol=1e-12)
    rings = T.by_round([M.metropolis(G.ring(8)), M.lazy(M.metropolis(G.ring(8)), own=0.9)])
    assert rings.arrays.shifts == (1, 7)
    np.testing.assert_allclose(matrices(rings, 2)[1][0, 0], 0.9 + 0.1 / 3, atol=1e-6)
    mixed = T.by_round([M.uniform(G.exponential(8)), M.metropolis(G.ring(8)), M.push_weights(G.star(8))])
    assert mixed.arrays.rev is None
    w = matrices(mixed, 3)
    np.testing.assert_allclose(w[1], M.matrix(M.metropolis(G.ring(8))), atol=1e-6)
    np.testing.assert_allclose(w[2], M.matrix(M.push_weights(G.star(8))), atol=1e-6)


def test_graphs_of_others_where_a_topology_is_expected():
    data, g, w = shards([1] * 4), nx.cycle_graph(4), np.full((4, 4), 0.25)
    ring = M.matrix(M.metropolis(G.ring(4)))

    def seen(topology, t=0):
        graph = world(scenario(data, topology=topology), t)[0]
        return M.matrix(jax.tree.map(np.asarray, graph))

    for topology in (
        g,
        nx.to_numpy_array(g) / 3 + np.eye(4) / 3,
        scipy.sparse.csr_array(ring),
        ring.tolist(),
        list(ring),
    ):
        np.testing.assert_allclose(seen(topology), ring, atol=1e-7)
    turns = ([g, w], [w.tolist(), ring.tolist()], (M.metropolis(G.ring(4)), nx.complete_graph(4)), np.stack([w, ring]))
    for topology in turns:
        both = [seen(topology, t) for t in (0, 1, 2)]
        np.testing.assert_allclose(both[0], both[2])
        np.testing.assert_allclose(sorted([both[0][0, 2], both[1][0, 2]]), [0, 0.25], atol=1e-7)
    star = nx.star_graph(3)
    asked = T.by_round(lambda t: star if t % 2 else g, rounds=3)
    for t, of in enumerate([g, star, g, g]):
        np.testing.assert_allclose(seen(asked, t), M.matrix(M.metropolis(G.from_networkx(of))), atol=1e-7)
    drop = T.edge_drop(g, 0.0)
    np.testing.assert_allclose(matrices(drop, 1)[0], ring, atol=1e-7)
    one = nx.empty_graph(1)
    np.testing.assert_array_equal(M.matrix(T.as_graph(one)), [[1]])


RANDOM = {
    "matching": T.random_matching(8),
    "k_out": T.random_k_out(8, 2),
    "k_local": T.random_k_local(8, 2),
    "drop": T.edge_drop(M.metropolis(G.complete(8)), 0.5),
    "asleep": T.asleep(M.metropolis(G.complete(8)), C.availability(8, 0.5, 0.5)),
}


@pytest.mark.parametrize("name", RANDOM)
def test_the_key_decides(name):
    first, again, other = (matrices(RANDOM[name], 4, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len(np.unique(first, axis=0)) > 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: T.one_peer_exponential(1), "n = 1"),
        (lambda: T.random_matching(1), "n = 1"),
        (lambda: T.random_k_out(5, 5), "k = 5"),
        (lambda: T.random_k_local(5, 0), "k = 0"),
        (lambda: T.edge_drop(G.ring(3), 1.1), "p = 1.1"),
        (lambda: T.by_round([]), r"sizes \[\]"),
        (lambda: T.by_round([M.uniform(G.ring(3)), M.uniform(G.ring(4))]), r"sizes \[3, 4\]"),
    ],
)
def test_bad_input_is_refused(call, says):
    with pytest.raises(InputError, match=says):
        call()


def shards(sizes):
    sizes = np.array(sizes)
    total = int(sizes.sum())
    return Shards(
        x=jnp.arange(total, dtype=jnp.float32)[:, None],
        y=jnp.zeros(total, jnp.int32),
        order=jnp.arange(total, dtype=jnp.int32),
        start=jnp.asarray(np.cumsum(sizes) - sizes, jnp.int32),
        size=jnp.asarray(sizes, jnp.int32),
        longest=int(sizes.max()),
    )


def world(s, t, seed=0):
    key = jax.random.key(seed)
    return s.step(jax.random.fold_in(key, t), s.arrays, s.init(key, s.arrays), jnp.int32(t))[1]


def test_scenario_defaults():
    s = scenario(shards([3, 1, 2]))
    graph, cohort, seconds, alive, _ = world(s, 4)
    assert graph is None
    np.testing.assert_array_equal(cohort.ids, [0, 1, 2])
    np.testing.assert_array_equal(cohort.weight, [3, 1, 2])  # everyone, by the number of samples
    assert float(seconds) == 1
    assert alive is None
    np.testing.assert_array_equal(s.byz, [False] * 3)


def test_scenario_composes_its_parts():
    data = shards([2] * 8)
    drop = T.edge_drop(M.metropolis(G.complete(8)), 0.5)
    s = scenario(data, nodes=8, topology=drop, cohort=C.markov(8, 3, 0.7, 0.7), byz=2, round_seconds=2.5)
    graph, cohort, seconds, *_ = jax.jit(lambda: world(s, 3))()
    assert graph.nbr.shape == (8, 7)
    assert cohort.ids.shape == (3,)
    assert float(seconds) == 2.5
    np.testing.assert_array_equal(s.byz, [True, True] + [False] * 6)
    key = jax.random.fold_in(jax.random.key(0), 3)  # each part has its own key
    _, alone = drop.step(stream(key, "topology"), drop.arrays, (), 3)
    np.testing.assert_array_equal(graph.weight, alone.weight)
    assert isinstance(world(scenario(data, topology=M.uniform(G.ring(8))), 0)[0], Graph)
    assert not np.array_equal(world(s, 3, seed=1)[0].weight, graph.weight)


def test_scenario_without_shards():
    s = scenario(jnp.ones((5, 2)), nodes=5, cohort=C.cyclic(5, 2))
    np.testing.assert_array_equal(world(s, 0)[1].ids, [0, 1])
    np.testing.assert_array_equal(world(scenario((), nodes=4), 0)[1].weight, np.ones(4))


def test_byzantine_nodes():
    np.testing.assert_array_equal(byzantine(4), [False] * 4)
    np.testing.assert_array_equal(byzantine(3, [False, True, False]), [False, True, False])
    np.testing.assert_array_equal(byzantine(3, 3), [True] * 3)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: scenario(shards([2, 0, 1])), "node 1 has no sample"),
        (lambda: scenario(shards([2, 1]), nodes=3), "nodes = 3: data has 2 shards"),
        (lambda: scenario(()), "nodes = None"),
        (lambda: scenario((), nodes=0), "nodes = 0"),
        (lambda: scenario((), nodes=4, topology=G.ring(5)), "topology has 5 nodes"),
        (lambda: scenario((), nodes=4, topology=G.ring(4)), "node 0 sum to 2, but .*; give the graph mixing"),
        (lambda: scenario((), nodes=4, topology=T.random_matching(6)), "topology has 6 nodes"),
        (lambda: scenario((), nodes=4, topology=nx.path_graph(5)), "topology has 5 nodes"),
        (lambda: scenario((), nodes=4, topology=nx.empty_graph(4)), "node 0 is isolated: it hears nobody"),
        (lambda: scenario((), nodes=2, topology=np.eye(2)), "node 0 is isolated"),
        (lambda: scenario((), nodes=2, topology=[[0, 1], [1, 1]]), "adjacency matrix is read by mixing.metropolis"),
        (lambda: scenario((), nodes=2, topology=[]), r"w has shape \[0\]"),
        (lambda: scenario((), nodes=2, topology=[0.5, 0.5]), r"w has shape \[2\]"),
        (lambda: scenario((), nodes=2, topology=0.5), "topology is a builtins.float, but must be a Graph"),
        (lambda: scenario((), nodes=2, topology="ring"), "topology is a builtins.str"),
        (lambda: scenario((), nodes=2, topology=lambda t: None), r"topology.by_round\(f, rounds\)"),
        (lambda: scenario((), nodes=2, topology=[nx.path_graph(2), 3]), r"graphs\[1\]: topology is a builtins.int"),
        (
            lambda: scenario((), nodes=2, topology=[nx.path_graph(2), G.complete(3)]),
            r"graphs\[1\]: the weights of node",
        ),
        (lambda: T.by_round(nx.path_graph), "rounds = None"),
        (lambda: T.by_round(lambda t: nx.path_graph(3), rounds=0), "rounds is 0"),
        (lambda: T.by_round([nx.path_graph(3)], rounds=2), "rounds = 2: it is for a function"),
        (lambda: scenario((), nodes=4, cohort=C.uniform(9, 2)), "not drawn from 4 nodes"),
        (lambda: scenario((), nodes=4, cohort=Process(lambda k, a: (), lambda k, a, s, t: (s, 1.0))), "not drawn"),
        (lambda: scenario((), nodes=4, byz=5), "byz = 5"),
        (lambda: scenario((), nodes=4, byz=[True]), "byz"),
        (lambda: scenario((), nodes=4, round_seconds=-1.0), "round_seconds = -1"),
    ],
)
def test_bad_worlds_are_refused(call, says):
    with pytest.raises(InputError, match=says):
        call()
