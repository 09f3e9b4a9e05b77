"""Targeted removal and networks that fall apart: who goes, what they keep, what is left."""

import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from common import digits_world, quadratics, rounds, same
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.world import availability, churn, cohort, graph, mixing, removal
from jaxfl.world.scenario import scenario
from jaxfl.world.tiers import edges, in_tiers
from jaxfl.world.topology import within

GRAPH = mixing.uniform(graph.barabasi_albert(8, 2, seed=0))


def small():
    """Groups in turn under correlated churn; a network that falls apart, with relays and nodes that vanish."""
    task, here = digits_world(n=16)
    turns = cohort.in_turn(16, 4, 2, reshuffle=True)
    apart = removal.partition(mixing.metropolis(graph.ring(16)), 16, 2, 1, 3)
    parts = {
        "topology": removal.cut_off(apart, 16, [3], 2),
        "cohort": removal.without_data(cohort.everyone(16), 16, [5], 1),
        "churn": removal.vanish(16, [8], 2),
    }
    bursts = availability.markov(16, 0.6, 0.5, 0.5, groups=4)
    kw = {"lr": 0.1, "steps": 2, "batch": 4}
    return {
        "turns": (fedavg(task, **kw), scenario(here.data, cohort=turns, churn=bursts), task.init, 4),
        "apart": (dsgd(task, **kw), scenario(here.data, **parts), task.init, 4),
    }


@settings(max_examples=20)
@given(st.integers(2, 30), st.integers(1, 3), st.integers(0, 99), st.floats(0, 1))
def test_hubs_and_components_are_those_of_networkx(n, m, seed, share):
    g = nx.barabasi_albert_graph(n, min(m, n - 1), seed=seed)
    ours, count = graph.from_networkx(g), int(share * n)
    gone = removal.hubs(ours, count)
    assert gone.tolist() == sorted(g, key=lambda i: (-g.degree(i), i))[:count]
    left = g.copy()
    left.remove_nodes_from(gone.tolist())
    up = ~np.isin(np.arange(n), gone)
    want = max(map(len, nx.connected_components(left)), default=0) / max(n - count, 1)
    assert removal.giant_share(ours, up) == pytest.approx(want)


def test_who_goes():
    assert sorted(removal.at_random(6, 6, 1)) == list(range(6))
    assert len(set(removal.at_random(60, 9, 2).tolist())) == 9
    assert removal.of_regions(["eu", "us", "eu", "asia"], "eu").tolist() == [0, 2]
    assert removal.of_regions([0, 1, 2, 1], [1, 2]).tolist() == [1, 2, 3]
    assert removal.giant_share(graph.ring(5)) == 1


def test_vanishing_is_a_crash_of_those():
    up = rounds(removal.vanish(5, [1, 3], 2), 5)
    np.testing.assert_array_equal(up, rounds(churn.events(5, leaves=[(2, [1, 3])]), 5))
    assert np.asarray(rounds(removal.vanish(3, [], 0), 2)).all()


def models(t, **parts):
    """Models of D-SGD after `t` rounds on quadratics, all at different points of their way."""
    q, task, data = quadratics(n=8, d=3)
    parts = {"topology": GRAPH} | parts
    state = run(dsgd(task, lr=0.05, steps=2, batch=1), scenario(data, **parts), jnp.ones(3), t, every=1).state
    return q, np.asarray(state.nodes, np.float64)


def trained(q, x, who):
    """Two local steps of those in `who`, in float64."""
    x = x.copy()
    for _ in range(2):
        step = 0.05 * np.einsum("nij,nj->ni", q.A.astype(np.float64), x - q.b)
        x[who] -= step[who]
    return x


def matrix(live):
    """The uniform weights of the graph with the edges `live(i, j)` alone; the own weight takes what is lost."""
    i, j, w = edges(GRAPH)
    W = np.zeros((8, 8))
    W[i, j] = np.where(live(i, j), w, 0)
    return W + np.diag(1 - W.sum(1))


def test_what_the_removed_keep():
    """The factorial in one world: what one round after the removal is, from float64."""
    gone = removal.hubs(GRAPH, 2)
    out = np.isin(np.arange(8), gone)
    q, before = models(3)
    everyone = cohort.everyone(8)
    cut = matrix(lambda i, j: ~(out[i] | out[j]))
    nothing = models(4, churn=removal.vanish(8, gone, 3))[1]
    np.testing.assert_allclose(nothing[~out], (cut @ trained(q, before, ~out))[~out], atol=1e-5)
    np.testing.assert_array_equal(nothing[out], before[out])
    links = models(4, cohort=removal.without_data(everyone, 8, gone, 3))[1]
    np.testing.assert_allclose(links, matrix(lambda i, j: i == i) @ trained(q, before, ~out), atol=1e-5)
    data = models(4, topology=removal.cut_off(GRAPH, 8, gone, 3))[1]
    np.testing.assert_allclose(data, cut @ trained(q, before, np.ones(8, bool)), atol=1e-5)
    np.testing.assert_array_equal(models(3, topology=removal.cut_off(GRAPH, 8, gone, 3))[1], before)


def test_who_never_had_data_counts_nothing_at_a_server():
    _, task, data = quadratics(n=8, d=3)
    for made in (cohort.everyone(8), cohort.importance(8, 8, np.ones(8))):
        world = scenario(data, cohort=removal.without_data(made, 8, [0, 5]))
        history = run(fedavg(task, lr=0.1, steps=1, batch=1), world, jnp.ones(3), 1).history
        assert history["gradients"].iloc[1] == 6
        assert history["up_bits"].iloc[1] == 6 * 96
    drawn = rounds(removal.without_data(cohort.importance(8, 8, np.ones(8)), 8, [0, 5]), 1)
    assert float(drawn.total[0]) == pytest.approx(6)  # a mean stays a mean of those who are left


def test_a_network_falls_apart_and_heals():
    """Means of the halves stay apart during the cut, the mean of all afterwards is one: weights are symmetric."""
    ring = mixing.metropolis(graph.ring(8))
    cut = removal.partition(ring, 8, 2, 2, 5)
    seen = rounds(cut, 7)
    for t in range(7):
        live = np.asarray(seen.weight[t]) > 0
        g = nx.Graph((i, int(j)) for i in range(8) for j in np.asarray(seen.nbr[t, i])[live[i]])
        assert nx.number_connected_components(g) == (2 if 2 <= t < 5 else 1)
    both = rounds(removal.partition(cut, 8, [0, 1, 2, 3] * 2, 6, 7), 7)
    assert same(both.weight[:6], seen.weight[:6])
    assert not both.weight[6].any()


def test_tiers_are_cut_as_tables_are():
    i, j, w = edges(GRAPH)
    tiers, group = in_tiers(8, i, j, w), jnp.arange(8) % 2
    a, b = edges(within(GRAPH, group)), edges(within(tiers, group))
    for left, right in zip(a, b, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: removal.hubs(GRAPH, 9), "count is 9"),
        (lambda: removal.at_random(3, 4), "count is 4"),
        (lambda: removal.of_regions(["eu", "us"], "asia"), "which = asia: regions of the nodes"),
        (lambda: removal.vanish(3, [3], 0), r"nodes = \[3\]: a list of ids from 0 to 2"),
        (lambda: removal.vanish(3, [0.5], 0), "nodes = "),
        (lambda: removal.vanish(3, [0], -1), "at is -1"),
        (lambda: removal.cut_off(None, 3, [0], 0), "topology is a"),
        (lambda: removal.partition(GRAPH, 8, 9, 0, 1), "groups is 9"),
        (lambda: removal.partition(GRAPH, 8, 2, 3, 1), "end is 1"),
    ],
)
def test_bad_input_gets_a_sentence(call, says):
    with pytest.raises(InputError, match=says):
        call()
