"""The multigraph topology against its equations in float64 with a site down, and against an event simulation."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from common import quadratics
from scipy.sparse.csgraph import minimum_spanning_tree

from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.algorithms.gossip.multigraph import latencies, multigraph
from jaxfl.claims import multigraph as claim
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange.network import Network
from jaxfl.world import churn, graph, mixing, overlay
from jaxfl.world.scenario import scenario

N, ROUNDS, DOWN = 6, 7, {1: 3}  # in round 1 site 3 is down
ORDER, EVERY = [0, 2, 5, 1, 3, 4], np.array([3, 1, 2, 4, 1, 2])  # by the site that hears
SHARE = np.array([0.7, 0.5, 0.6, 0.8, 0.55, 0.65])  # own weights
RING = overlay.directed_ring(ORDER)
UP = churn.events(N, leaves=[(1, [3])], joins=[(2, [3])])


def weighted():
    return dataclasses.replace(RING, weight=jnp.asarray(1 - SHARE, jnp.float32)[:, None])


def test_seven_rounds_from_the_papers_equations_in_float64():
    q, task, data = quadratics(n=N, d=3)
    where = overlay.every(weighted(), EVERY[:, None])
    world = scenario(data, topology=where, churn=UP)
    result = run(multigraph(task, lr=0.05, steps=2, batch=None), world, jnp.ones(3), ROUNDS, every=1)
    A, b = q.A.astype(float), q.b.astype(float)
    ahead = {i: ORDER[k - 1] for k, i in enumerate(ORDER)}
    x, before, way = np.ones((N, 3)), np.ones(N, bool), np.ones((N, 3))
    bits, lonely = [], []
    for t in range(ROUNDS):
        up = np.arange(N) != DOWN.get(t, -1)
        y = x.copy()
        for _ in range(2):
            y = np.where(up[:, None], y - 0.05 * np.einsum("nij,nj->ni", A, y - b), y)
        new, live = y.copy(), np.zeros(N, bool)
        for i in range(N):
            j = ahead[i]
            live[i] = t % EVERY[i] == 0 and up[i] and up[j]
            if not live[i] and before[i] and up[i]:
                way[i] = y[j]
            z = y[j] if before[i] else way[i]
            if live[i]:
                new[i] = SHARE[i] * y[i] + (1 - SHARE[i]) * z
        before = np.where(up, live, before)
        x = np.where(up[:, None], new, x)
        bits.append(96 * live.sum())
        lonely.append(1 - live.mean())
    for name, want in (("x", x), ("under_way", way)):
        np.testing.assert_allclose(result.state.nodes[name], want, atol=1e-5)
    np.testing.assert_array_equal(result.state.nodes["strong"], before)
    np.testing.assert_array_equal(result.history["up_bits"].iloc[1:], bits)
    np.testing.assert_allclose(result.history["alone"].iloc[1:], lonely, rtol=1e-6)


def test_where_all_edges_are_strong_it_is_dsgd():
    _, task, data = quadratics(n=N, d=3)
    always = scenario(data, topology=overlay.every(weighted(), np.ones((N, 1), int)))
    ours, theirs = (
        run(make(task, lr=0.1, batch=None), always, jnp.ones(3), 4).state.nodes for make in (multigraph, dsgd)
    )
    np.testing.assert_allclose(ours["x"], theirs, rtol=1e-5)  # two programs, which round apart


def test_a_ring_through_all_sites_and_other_overlays():
    delay = latencies(9, seed=1)
    order = overlay.tour(delay)
    assert sorted(order) == list(range(9))
    length = lambda order: delay[order, np.roll(order, 1)].sum()
    rng = np.random.default_rng(0)
    assert length(order) < np.mean([length(rng.permutation(9)) for _ in range(50)])
    ring = overlay.halves(overlay.directed_ring(order))
    W = mixing.matrix(ring)
    np.testing.assert_allclose(W.sum(0), 1)
    np.testing.assert_allclose(overlay.by_slot(ring, delay)[order, 0], delay[np.roll(order, 1), order])
    i, j, _ = graph.edges(overlay.tree(delay))
    assert delay[i, j].sum() / 2 == pytest.approx(minimum_spanning_tree(delay).sum())
    assert overlay.multiplicity([2.0, 3.1, 9.0, 30], 5).tolist() == [1, 2, 4, 5]
    assert overlay.tour(np.zeros((2, 2))).tolist() == [0, 1]


def test_the_clocks_are_those_of_the_code_s_formula_and_of_a_ring():
    """A ring turns at its mean delay; both formulas of the multigraph agree; equal delays bring nothing."""
    ring, ours, code, mean = claim.cycles(11, seed=0, rounds=400)
    assert ring == pytest.approx(mean, rel=0.02)
    assert ours == pytest.approx(code, rel=0.15)
    assert ours < ring


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: overlay.tour(np.zeros((2, 3))), "delay has shape"),
        (lambda: overlay.tree(-np.ones((3, 3))), "delay has numbers that are negative"),
        (lambda: overlay.directed_ring([0, 0, 1]), "order must name every site"),
        (lambda: overlay.multiplicity([0.0]), "delays is 0.0"),
        (lambda: overlay.multiplicity([1.0], 0), "most is 0"),
        (lambda: overlay.every(weighted(), [1]), r"rounds have shape \[1\]"),
        (lambda: overlay.every(weighted(), np.zeros((N, 1))), "rounds is 0.0"),
        (lambda: short(mixing.metropolis(graph.ring(N))), "topology has 2 slots"),
        (lambda: short(weighted(), Network(repeats=2)), "net.repeats is 2"),
        (lambda: multigraph(quadratics()[1], lr=-1.0), "lr is -1.0"),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(InputError, match=words):
        make()


def short(topology, net=Network()):
    _, task, data = quadratics(n=N, d=3)
    return run(multigraph(task, net, batch=None), scenario(data, topology=topology), jnp.ones(3), 1, progress=False)
