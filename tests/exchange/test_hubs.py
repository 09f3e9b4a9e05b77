"""Graphs of few hubs and many leaves come in tiers, which take memory by edges and are mixed as their matrix says."""

from typing import Any

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from common import quadratics

from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.core import Graph
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange import attacks, codecs, rules
from jaxfl.exchange.mix import mix
from jaxfl.exchange.network import Network
from jaxfl.options.topology import in_degree
from jaxfl.report import plots
from jaxfl.world import churn, graph, links, mixing, tiers, topology
from jaxfl.world.scenario import scenario

KINDS = {
    "star": lambda: graph.star(37),
    "wheel": lambda: graph.from_networkx(nx.wheel_graph(211)),
    "barabasi": lambda: graph.barabasi_albert(101, 2, seed=3),
}
WEIGHTS = {
    "metropolis": mixing.metropolis,
    "uniform": mixing.uniform,
    "max_degree": mixing.max_degree,
    "lazy": lambda g: mixing.lazy(mixing.metropolis(g)),
    "usual": mixing.usual,
}


@pytest.fixture
def both(monkeypatch):
    """A graph as a table, and the same in tiers, as if it were large."""

    def make(kind):
        table = KINDS[kind]()
        with monkeypatch.context() as patch:
            patch.setattr(tiers, "LARGE", 0)
            patch.setattr(tiers, "EMPTY", 1)
            hubs = KINDS[kind]()
        assert isinstance(table, Graph)
        assert isinstance(hubs, tiers.Tiers)
        return table, hubs

    return make


def test_a_star_takes_memory_by_its_edges():
    g = mixing.metropolis(graph.star(60_000))
    assert sum(a.nbytes for a in jax.tree.leaves(g)) < 30 * 60_000
    assert scenario((), nodes=60_000, topology=mixing.check(g, symmetric=True, doubly=True, connected=True)) is not None
    assert in_degree(g) == 2
    assert tiers.degrees(g)[[0, 1, -1]].tolist() == [59_999, 1, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_matrix_are_those_of_the_table(kind, both):
    table, hubs = both(kind)
    assert hubs.n == len(table.nbr)
    assert sum(part.nbr.size for part in hubs.parts) < 4 * tiers.degrees(table).sum()
    for name, weigh in WEIGHTS.items():
        np.testing.assert_array_equal(mixing.matrix(weigh(hubs)), mixing.matrix(weigh(table)), err_msg=name)
    for a, b in zip(tiers.edges(hubs), tiers.edges(table), strict=True):
        np.testing.assert_array_equal(a, b)
    assert mixing.second_eigenvalue(mixing.metropolis(hubs)) == mixing.second_eigenvalue(mixing.metropolis(table))


def test_a_weighted_matrix_with_a_hub_comes_in_tiers(monkeypatch):
    w = mixing.matrix(mixing.metropolis(graph.star(9)))
    w[0, 1:4] = w[0, 1:4] + [0.01, -0.01, 0.0]
    monkeypatch.setattr(tiers, "LARGE", 0)
    monkeypatch.setattr(tiers, "EMPTY", 1)
    made = mixing.from_matrix(w)
    assert isinstance(made, tiers.Tiers)
    np.testing.assert_allclose(mixing.matrix(made), w, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_linear_mixing_is_the_product_with_the_matrix(kind, both):
    """Of two seeds at once; a row that is not finite reaches those who hear it alone."""
    hubs: Any = mixing.metropolis(both(kind)[1])
    w, rng = mixing.matrix(hubs), np.random.default_rng(0)
    own, sent = rng.normal(1, 1, (2, 2, hubs.n, 5)).astype(np.float32)
    heard = w - np.diag(np.diag(w))
    want = np.diag(w)[:, None] * own.astype(np.float64) + heard @ sent.astype(np.float64)
    mixed = jax.jit(jax.vmap(lambda own, sent: mix(hubs, own, sent)))
    np.testing.assert_allclose(mixed(own, sent), want, atol=2e-6)
    leaf = int(np.argmin(tiers.degrees(hubs)))
    sent[0, leaf] = np.nan
    got = np.asarray(mixed(own, sent))
    hear = np.flatnonzero(heard[:, leaf])
    assert np.flatnonzero(np.isnan(got[0]).any(1)).tolist() == hear.tolist()
    np.testing.assert_allclose(np.delete(got[0], hear, 0), np.delete(want[0], hear, 0), atol=2e-6)
    np.testing.assert_allclose(got[1], want[1], atol=2e-6)


def test_a_system_computes_what_it_computes_with_the_table(both):
    """Means, a codec, a robust rule with liars; bits, seconds over links, nodes that crash."""
    table, hubs = map(mixing.metropolis, both("star"))
    _, task, data = quadratics(n=37)
    kw = {"links": links.links(37, up=1e6, latency=np.linspace(0, 1, 37)), "churn": churn.crash(37, 0.2, at=1)}
    for net in (
        Network(),
        Network(codec=codecs.error_feedback(codecs.top_k(0.5))),
        Network(rule=rules.median(), attack=attacks.sign_flip()),
        Network(rule=rules.trimmed_mean(0)),
    ):
        byz = np.arange(37) < 3 if net.attack is not None else None
        algorithm = dsgd(task, net, lr=0.1, steps=1, batch=1)
        a, b = (
            run(algorithm, scenario(data, topology=g, byz=byz, **kw), jnp.ones(3), 3, every=3) for g in (table, hubs)
        )
        np.testing.assert_allclose(b.state.nodes, a.state.nodes, atol=2e-6)
        for column in ("up_bits", "down_bits", "seconds"):
            np.testing.assert_allclose(b.history[column], a.history[column], rtol=1e-6)


def test_what_needs_one_table_says_so_and_weights_are_asked_for(both):
    hubs = both("star")[1]
    with pytest.raises(InputError, match="topology has hubs, and one table of the neighbours of 37 nodes"):
        topology.edge_drop(hubs, 0.1).step(jax.random.key(0), {"inner": hubs, "p": 0.1}, (), 0)
    with pytest.raises(InputError, match="node 0 sum to 36"):
        scenario((), nodes=37, topology=hubs)
    assert plots.topology(hubs) is not None
