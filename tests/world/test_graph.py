"""Families of graphs against networkx."""

import networkx as nx
import numpy as np
import pytest
from families import FAMILIES, UNDIRECTED, adjacency, each
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxfl.errors import InputError
from jaxfl.world import graph as G
from jaxfl.world import mixing as M
from jaxfl.world.tiers import degrees


def relabelled(g, order):
    return nx.relabel_nodes(g, {name: i for i, name in enumerate(order)})


@pytest.mark.parametrize(
    ("graph", "known"),
    [
        (G.ring(9), nx.cycle_graph(9)),
        (G.ring(2), nx.path_graph(2)),
        (G.ring(1), nx.empty_graph(1)),
        (G.complete(7), nx.complete_graph(7)),
        (G.complete(1), nx.empty_graph(1)),
        (G.star(6), nx.star_graph(5)),
        (G.star(1), nx.empty_graph(1)),
        (G.torus(4, 3), relabelled(nx.grid_2d_graph(4, 3, periodic=True), nx.grid_2d_graph(4, 3))),
        (G.torus(2, 3), relabelled(nx.grid_2d_graph(2, 3, periodic=True), nx.grid_2d_graph(2, 3))),
        (G.grid(4, 3), relabelled(nx.grid_2d_graph(4, 3), nx.grid_2d_graph(4, 3))),
        (G.grid(1, 1), nx.empty_graph(1)),
        (G.hypercube(1), nx.empty_graph(1)),
        (G.caveman(3, 4), nx.connected_caveman_graph(3, 4)),
        (G.two_level(1, 4), nx.complete_graph(4)),
        (G.two_level(5, 1), nx.cycle_graph(5)),
    ],
)
def test_deterministic_families_equal_networkx(graph, known):
    np.testing.assert_array_equal(adjacency(graph), nx.to_numpy_array(known, nodelist=range(len(known))))


@pytest.mark.parametrize(
    ("graph", "known"),
    [
        (FAMILIES["regular"], nx.random_regular_graph(5, 14, seed=3)),
        (FAMILIES["erdos"], nx.fast_gnp_random_graph(20, 0.4, seed=1)),
        (FAMILIES["barabasi"], nx.barabasi_albert_graph(20, 2, seed=2)),
        (FAMILIES["watts"], nx.watts_strogatz_graph(20, 4, 0.3, seed=4)),
        (FAMILIES["geometric"], nx.random_geometric_graph(20, 0.5, seed=5)),
    ],
)
def test_random_families_equal_networkx_under_the_same_seed(graph, known):
    np.testing.assert_array_equal(adjacency(graph), nx.to_numpy_array(known, nodelist=range(len(known))))


def test_hypercube_flips_bits_and_slots_are_bits():
    cube = G.hypercube(32)
    np.testing.assert_array_equal(np.asarray(cube.nbr) ^ np.arange(32)[:, None], np.tile(2 ** np.arange(5), (32, 1)))


def test_two_level_is_groups_and_a_ring_of_heads():
    g = G.to_networkx(G.two_level(5, 4))
    assert g.number_of_edges() == 5 * 6 + 5
    assert set(g.neighbors(4)) == {5, 6, 7, 0, 8}
    assert set(g.neighbors(6)) == {4, 5, 7}


def test_counts_of_random_families():
    assert (degrees(G.random_regular(101, 6, seed=0)) == 6).all()
    pairs = 300 * 299 / 2
    edges = degrees(G.erdos_renyi(300, 0.1, seed=0)).sum() / 2
    assert abs(edges - 0.1 * pairs) < 5 * np.sqrt(pairs * 0.09)
    assert degrees(G.barabasi_albert(200, 3, seed=0)).sum() / 2 == 3 * (200 - 3)
    assert degrees(G.watts_strogatz(200, 6, 0.2, seed=0)).sum() / 2 == 200 * 3
    assert degrees(G.erdos_renyi(9, 1.0, seed=0)).tolist() == [8] * 9
    assert degrees(G.erdos_renyi(9, 0.0, seed=0)).tolist() == [0] * 9
    assert not np.array_equal(G.erdos_renyi(30, 0.3, seed=1).nbr, G.erdos_renyi(30, 0.3, seed=2).nbr)
    assert degrees(G.random_geometric(50, 0.2, seed=1)).sum() < degrees(G.random_geometric(50, 0.4, seed=1)).sum()


@each
def test_table_is_well_formed(name):
    g = FAMILIES[name]
    n = g.nbr.shape[0]
    nbr, weight = np.asarray(g.nbr), np.asarray(g.weight)
    me = np.arange(n)[:, None]
    assert nbr.dtype == np.int32
    assert weight.dtype == np.float32
    assert ((nbr == me) == (weight == 0)).all()
    assert set(np.unique(weight)) <= {0, 1}
    assert np.diag(adjacency(g)).max() == 0
    assert adjacency(g).max() == 1
    if name == "exponential":
        assert g.rev is None
        return
    rev = np.asarray(g.rev)
    np.testing.assert_array_equal(np.where(weight > 0, nbr[nbr, rev], me), np.broadcast_to(me, nbr.shape))
    assert (rev[weight == 0] == 0).all()


@pytest.mark.parametrize(("make", "shifts"), [(G.ring, (1, 10)), (G.exponential, (1, 2, 4, 8))])
def test_shifts_say_where_slots_point(make, shifts):
    g = make(11)
    assert g.shifts == shifts
    np.testing.assert_array_equal(g.nbr, (np.arange(11)[:, None] + np.array(shifts)) % 11)
    assert M.uniform(g).shifts == shifts
    assert G.complete(70).shifts == tuple(range(1, 70))
    assert G.torus(3, 3).shifts is None
    assert [G.ring(n).shifts for n in (1, 2, 3)] == [None, (1,), (1, 2)]
    assert G.exponential(8).shifts == (1, 2, 4)
    assert G.exponential(3).rev is not None  # shifts 1 and 2 are each other's reverse


@pytest.mark.parametrize("kind", [nx.Graph, nx.DiGraph, nx.MultiGraph])
def test_networkx_round_trip(kind):
    g = kind([("b", "a"), ("a", "c"), ("c", "c"), ("b", "a")])
    g.add_node("alone")
    ours = G.from_networkx(g)
    heard = nx.to_numpy_array(nx.DiGraph(g), nodelist=list(g.nodes)).clip(max=1).T  # v hears u for u -> v
    np.testing.assert_array_equal(adjacency(ours), heard - np.diag(np.diag(heard)))
    back = G.to_networkx(ours)
    assert back.is_directed() == g.is_directed()
    again = G.from_networkx(back)
    np.testing.assert_array_equal(again.nbr, ours.nbr)
    assert (again.rev is None) == g.is_directed()
    weights = nx.get_edge_attributes(G.to_networkx(M.uniform(G.star(3))), "weight")  # unequal weights: directed
    assert weights == pytest.approx({(1, 0): 1 / 3, (2, 0): 1 / 3, (0, 1): 1 / 2, (0, 2): 1 / 2})


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=30), st.booleans())
def test_from_edges_of_any_edges(n, pairs, both):
    pairs = [(i % n, j % n) for i, j in pairs]
    expected = np.zeros((n, n))
    for i, j in pairs:
        expected[i, j] = expected[j, i] = 1 if i != j else 0
    if not both:
        expected = np.zeros((n, n))
        for i, j in pairs:
            expected[i, j] = i != j
    g = G.from_edges(n, [p[0] for p in pairs], [p[1] for p in pairs], both=both)
    np.testing.assert_array_equal(adjacency(g), expected)
    assert (g.rev is not None) == (expected == expected.T).all()


def test_ten_thousand_nodes_by_edge_arrays():
    g = G.torus(100, 100)
    assert degrees(g).tolist() == [4] * 10_000
    gap = 1 - (1 + 2 + 2 * np.cos(2 * np.pi / 100)) / 5
    assert M.spectral_gap(M.metropolis(g)) == pytest.approx(gap, rel=1e-5)


def test_connectivity():
    for g in UNDIRECTED.values():
        assert G.require_connected(g) is g
    with pytest.raises(InputError, match="disconnected graph where consensus is promised: 7 nodes in 3 components"):
        G.require_connected(G.from_edges(7, [0, 1, 3, 4], [1, 2, 4, 5], both=True))
    G.require_connected(G.exponential(6))
    with pytest.raises(InputError, match="3 nodes in 3 components"):  # a directed path
        G.require_connected(G.from_edges(3, [1, 2], [0, 1]))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: G.ring(0), "n = 0"),
        (lambda: G.ring(2.5), "n is 2.5"),
        (lambda: G.torus(0, 3), "rows = 0"),
        (lambda: G.grid(3, -1), "cols = -1"),
        (lambda: G.hypercube(12), "n = 12: a hypercube needs a power of two"),
        (lambda: G.exponential(0), "n = 0"),
        (lambda: G.complete(0), "n = 0"),
        (lambda: G.star(0), "n = 0"),
        (lambda: G.random_regular(5, 3, seed=0), "degree = 3, n = 5"),
        (lambda: G.random_regular(4, 4, seed=0), "degree = 4"),
        (lambda: G.erdos_renyi(5, 1.2, seed=0), "p = 1.2"),
        (lambda: G.barabasi_albert(5, 5, seed=0), "m = 5"),
        (lambda: G.watts_strogatz(8, 3, 0.1, seed=0), "k = 3"),
        (lambda: G.watts_strogatz(8, 4, -0.1, seed=0), "p = -0.1"),
        (lambda: G.random_geometric(8, 0.0, seed=0), "radius = 0.0"),
        (lambda: G.caveman(3, 2), "size = 2"),
        (lambda: G.two_level(0, 2), "groups = 0"),
        (lambda: G.circulant(5, [1, 1]), r"shifts = \(1, 1\)"),
        (lambda: G.from_edges(3, [0], [3]), "names node 3"),
        (lambda: G.from_edges(3, [0, 1], [2]), "2 and 1 entries"),
        (lambda: G.from_networkx(nx.Graph()), "no nodes"),
    ],
)
def test_bad_input_is_refused(call, says):
    with pytest.raises(InputError, match=says):
        call()
