"""MATCHA: matchings that make up the graph, probabilities that connect it best, a step that contracts best."""

import jax
import networkx as nx
import numpy as np
import pytest

from jaxfl.errors import InputError
from jaxfl.world import graph, mixing
from jaxfl.world import matcha as m


def test_matchings_make_up_the_graph():
    g = graph.from_networkx(nx.gnp_random_graph(9, 0.5, seed=1))
    partner = m.matchings(g)
    np.testing.assert_array_equal(np.take_along_axis(partner, partner, 1), np.broadcast_to(np.arange(9), partner.shape))
    adjacency = np.eye(9)[partner].sum(0)
    np.fill_diagonal(adjacency, 0)
    want = nx.to_numpy_array(nx.gnp_random_graph(9, 0.5, seed=1))
    np.testing.assert_array_equal(adjacency, want)
    assert len(partner) <= want.sum(0).max() + 1


def test_probabilities_connect_best():
    """A bridge between two cliques must be active most; a search over a grid finds nothing better."""
    g = graph.from_networkx(nx.barbell_graph(3, 0))
    partner = m.matchings(g)
    p = m.activation(partner, 0.5)
    laplacian = [np.diag((row != np.arange(6)).astype(float)) - np.where(np.eye(6)[row] * (1 - np.eye(6)), 1, 0)
                 for row in partner]  # fmt: skip
    of = lambda p: np.linalg.eigvalsh(sum(q * L for q, L in zip(p, laplacian, strict=True)))[1]
    assert p.mean() == pytest.approx(0.5)
    assert p.min() >= 0
    assert p.max() <= 1
    draws = np.random.default_rng(0).dirichlet(np.ones(len(p)), 2000) * 0.5 * len(p)
    assert of(p) >= max(of(q) for q in draws if q.max() <= 1) - 2e-3
    assert p[[row[2] == 3 for row in partner].index(True)] == p.max()


def test_weights_of_a_round_are_symmetric_and_contract():
    walk = m.matcha(graph.complete(6), 0.4)
    drawn = jax.vmap(lambda k: walk.step(k, walk.arrays, (), 0)[1])(jax.random.split(jax.random.key(0), 300))
    W = [mixing.matrix(jax.tree.map(lambda a, r=r: a[r], drawn)).astype(float) for r in range(300)]
    np.testing.assert_allclose(W[0], W[0].T)
    np.testing.assert_allclose(W[0].sum(1), 1, rtol=1e-6)
    live = np.asarray(drawn.weight != 0).any(1).mean()
    assert live == pytest.approx(0.4, abs=0.05)
    of = lambda a, b: np.linalg.norm(np.mean([w @ w for w in a], 0) - 1 / 6, 2) < b
    assert of(W, 0.75)


def test_bad_graphs():
    for make, words in (
        (lambda: m.matcha(graph.ring(4), 0.0), "budget is 0.0"),
        (lambda: m.matchings(graph.exponential(8)), "in one direction alone"),
        (lambda: m.matchings(graph.from_edges(3, [], [])), "graph has no edges"),
    ):
        with pytest.raises(InputError, match=words):
            make()
