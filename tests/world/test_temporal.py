"""Temporal graphs against sets of edges: memory, tables, tiers, generators."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import rounds
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxfl.core import Graph
from jaxfl.errors import InputError
from jaxfl.world import graph as G
from jaxfl.world.temporal import Room, chung_lu, churned, remembered, room, temporal
from jaxfl.world.tiers import layout, tiers_of

EDGES = [
    np.array(e).reshape(-1, 2) for e in ([[0, 1], [2, 1]], [[1, 2], [1, 2], [3, 3]], [], [[3, 0], [0, 1]], [[0, 1]])
]


def pairs(edges):
    return {(min(a, b), max(a, b)) for a, b in np.asarray(edges).tolist() if a != b}


def active(n, snapshots, **kw):
    union, on = remembered(n, snapshots, **kw)
    return [pairs(union[row]) for row in on]


def links(process, count):
    """By round: the set of arcs (listener, source) with a weight."""
    out = []
    for t in range(count):
        g = tiers_of(process.step(jax.random.key(0), process.arrays, (), jnp.int32(t))[1])
        order = np.arange(g.n) if g.order is None else np.asarray(g.order)
        at, arcs = 0, []
        for part in g.parts:
            i, s = np.nonzero(np.asarray(part.weight))
            arcs += zip(order[at + i].tolist(), np.asarray(part.nbr)[i, s].tolist(), strict=True)
            at += len(part.nbr)
        assert len(set(arcs)) == len(arcs)
        out.append(set(arcs))
    return out


def both_ways(edges):
    return {(a, b) for a, b in edges} | {(b, a) for a, b in edges}


def test_memory_by_hand():
    """The card's three rules with a memory of three snapshots."""
    a, b, c = (0, 1), (1, 2), (0, 3)
    assert active(4, EDGES) == [{a, b}, {b}, set(), {a, c}, {a}]
    assert active(4, EDGES, memory=3, least=1) == [{a, b}, {a, b}, {a, b}, {a, b, c}, {a, c}]
    assert active(4, EDGES, memory=3, least=3) == [{a, b}, {b}, set(), set(), set()]
    assert active(4, EDGES, memory=3, least=2) == [{a, b}, {b}, {b}, set(), {a}]


@pytest.mark.parametrize("tiers", [False, True])
@given(seed=st.integers(0, 10_000), memory=st.integers(1, 4), least=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_the_table_shows_what_is_remembered(tiers, seed, memory, least):
    rng = np.random.default_rng(seed)
    n, least = 9, min(least, memory)
    snapshots = [rng.integers(0, n, (rng.integers(0, 9), 2)) for _ in range(11)]
    same = Room(((4, 8), (5, 8)) if tiers else ((9, 8),), 40)  # of all examples
    process = temporal(n, snapshots, memory=memory, least=least, tiers=tiers, room=same)
    want = []
    for t in range(len(snapshots)):
        window = [pairs(e) for e in snapshots[max(0, t - memory + 1) : t + 1]]
        need = -(-least * len(window) // memory)
        want.append({e for e in set().union(*window) if sum(e in w for w in window) >= need})
    got = links(process, len(snapshots) + 1)
    assert got[:-1] == [both_ways(w) for w in want]
    assert got[-1] == got[-2]  # the last one stays


def test_slots_stay_and_reverse_slots_lead_back():
    snapshots = churned(30, chung_lu(30, 5, 0.5, 0), 9, 0.3, 1)
    stacked = rounds(temporal(30, snapshots, tiers=False), 9)
    nbr, rev, weight = (np.asarray(a) for a in (stacked.nbr, stacked.rev, stacked.weight))
    assert (nbr == nbr[0]).all()
    assert (weight[1:] != weight[:-1]).any()
    me = np.broadcast_to(np.arange(30)[:, None], nbr[0].shape)
    union = weight.any(0)
    np.testing.assert_array_equal(nbr[0][nbr[0], rev[0]][union], me[union])
    np.testing.assert_array_equal(weight[:, nbr[0], rev[0]][:, union], weight[:, union])
    g = Graph(stacked.nbr[4], stacked.weight[4], rev=stacked.rev[4])
    i, j, _ = G.edges(g)
    assert set(zip(i.tolist(), j.tolist(), strict=True)) == both_ways(pairs(snapshots[4]))


def test_tiers_are_narrow_and_hold_their_nodes():
    n = 1000
    edges = chung_lu(n, 10, 0.6, 0)
    need = room(n, [edges])
    degree = np.sort(np.bincount(edges.reshape(-1), minlength=n))[::-1]
    assert sum(rows for rows, _ in need.tiers) == n
    slots = sum(rows * width for rows, width in need.tiers)
    assert 2 * len(edges) <= slots <= 5 * len(edges)
    assert slots < n * degree[0] / 10  # of one table
    at = 0
    for rows, width in need.tiers:
        assert width == degree[at]
        assert degree[at + rows - 1] * 4 >= width or width <= 8
        at += rows
    degrees = [np.array([1, 9, 9, 40]), np.array([12, 12, 0, 0])]  # at most 40, 12, 9, 1 by rank
    assert layout(degrees, 2.0) == ((1, 40), (2, 12), (1, 1))
    assert layout(degrees, np.inf) == ((4, 40),)
    g = temporal(n, [edges]).step(jax.random.key(0), temporal(n, [edges]).arrays, (), jnp.int32(0))[1]
    rows = jnp.arange(3 * n).reshape(n, 3)
    np.testing.assert_array_equal(g.join(g.split(rows)), rows)


def test_runs_in_one_room_have_the_same_shapes():
    runs = [churned(40, chung_lu(40, 6, 0.5, seed), 4, 0.2, seed) for seed in range(3)]
    need = room(40, *runs)
    worlds = [temporal(40, run, room=need) for run in runs]
    assert len({str(jax.tree.map(lambda a: (a.shape, a.dtype), w.arrays)) for w in worlds}) == 1
    for run, world in zip(runs, worlds, strict=True):
        assert links(world, 4) == [both_ways(pairs(e)) for e in run]
    with pytest.raises(InputError, match="too small"):
        temporal(40, runs[0], room=room(40, [runs[0][0][:20]]))


def test_chung_lu_has_the_degrees_it_was_asked_for():
    n, draws = 60, 300
    w = np.arange(1, n + 1) ** -0.4
    w *= 6 / w.mean()
    p = np.minimum(1, np.outer(w, w) / w.sum())
    np.fill_diagonal(p, 0)
    total = np.zeros(n)
    for seed in range(draws):
        edges = chung_lu(n, 6, 0.4, seed)
        assert len(pairs(edges)) == len(edges)
        total += np.bincount(edges.reshape(-1), minlength=n)
    deviation = np.sqrt((p * (1 - p)).sum(1) / draws)
    assert np.abs((total / draws - p.sum(1)) / deviation).max() < 4.5
    assert len(chung_lu(50, 4, 0.0, 1)) == len(chung_lu(50, 4, 0.0, 1))


def test_churn_exchanges_the_share_it_was_asked_for():
    edges = chung_lu(200, 8, 0.5, 3)
    snapshots = churned(200, edges, 6, 0.05, 0)
    count = round(0.05 * len(edges))
    for before, after in itertools.pairwise(snapshots):
        assert len(pairs(before) - pairs(after)) == len(pairs(after) - pairs(before)) == count
        assert len(after) == len(edges)
    assert pairs(snapshots[0]) == pairs(edges)
    assert all(pairs(s) == pairs(edges) for s in churned(200, edges, 3, 0.0, 0))


def test_new_edges_prefer_high_degrees():
    """A star's hub, half of all degrees, gets about its share of the new ends."""
    n = 200
    star = np.stack([np.zeros(n // 2, int), np.arange(1, n // 2 + 1)], 1)
    hits = [len(pairs(churned(n, star, 2, 0.02, seed)[1]) - pairs(star)) for seed in range(5)]
    assert hits == [2] * 5
    hub = np.mean([[0 in e for e in pairs(churned(n, star, 2, 0.02, seed)[1]) - pairs(star)] for seed in range(150)])
    share = 101 / (n + n)  # degree + 1 over the total
    leaf = 2 / (n + n)
    # pairs that are free to come: hub with a node outside the star, or two nodes that are not the hub
    with_hub = 2 * share * (n // 2 - 1) / (n + n)
    without = (1 - share) ** 2 - (n // 2) * leaf**2 - (n // 2 - 1) * (1 / (n + n)) ** 2
    want = with_hub / (with_hub + without)
    assert abs(hub - want) < 4 * np.sqrt(want * (1 - want) / 300)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: temporal(4, []), "snapshots is empty"),
        (lambda: temporal(4, [np.array([[0, 4]])]), "outside 0..3"),
        (lambda: temporal(4, [np.array([0, 1, 2])]), "pairs of nodes"),
        (lambda: temporal(4, EDGES, memory=0), "memory is 0"),
        (lambda: temporal(4, EDGES, memory=2, least=3), "least is 3"),
        (lambda: room(4, EDGES, growth=1.0), "growth is 1"),
        (lambda: chung_lu(1, 2, 0.5, 0), "n is 1"),
        (lambda: chung_lu(9, 0, 0.5, 0), "degree is 0"),
        (lambda: chung_lu(9, 2, 1.0, 0), "exponent is 1"),
        (lambda: churned(4, EDGES[0], 0, 0.1, 0), "rounds is 0"),
        (lambda: churned(4, EDGES[0], 2, 1.5, 0), "churn is 1.5"),
        (lambda: churned(3, np.array([[0, 1], [1, 2], [0, 2]]), 2, 0.4, 0), "too dense"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(InputError, match=says):
        call()
