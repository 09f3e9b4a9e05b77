"""D-SGD, DFedAvgM, DFedSAM and MGS against their equations in float64 with a node down, and DFedSAM's claim."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from common import quadratics

from jaxfl.algorithms.gossip.dfedsam import dfedsam, dfedsam_mgs
from jaxfl.algorithms.gossip.dsgd import dfedavgm, dsgd
from jaxfl.claims import dfedsam as claim
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.measure.metrics import consensus_distance
from jaxfl.world import churn, graph, mixing
from jaxfl.world.scenario import scenario

N, DOWN = 5, {1: 3}  # in round 1 node 3 is down
LINKS = mixing.metropolis(graph.from_edges(N, [0, 0, 1, 2, 3], [1, 4, 2, 3, 4], both=True))
UP = churn.events(N, leaves=[(1, [3])], joins=[(2, [3])])
KW = {"lr": 0.05, "batch": None}


@pytest.mark.parametrize(
    ("make", "steps", "momentum", "rho", "exchanges"),
    [
        (partial(dsgd, steps=2), 2, 0.0, 0.0, 1),
        (partial(dfedavgm, momentum=0.6, steps=3), 3, 0.6, 0.0, 1),
        (partial(dfedsam, rho=0.3, steps=2), 2, 0.0, 0.3, 1),
        (partial(dfedsam_mgs, rho=0.3, steps=2, gossip_steps=3), 2, 0.0, 0.3, 3),
    ],
)
def test_three_rounds_from_the_papers_equations_in_float64(make, steps, momentum, rho, exchanges):
    """On an irregular graph. Who is down keeps its model, and its listeners give its weight to themselves."""
    q, task, data = quadratics(n=N, d=3)
    result = run(make(task, **KW), scenario(data, topology=LINKS, churn=UP), jnp.ones(3), 3, every=1)
    A, b, whole = q.A.astype(float), q.b.astype(float), mixing.matrix(LINKS).astype(float)
    slope = lambda y: np.einsum("nij,nj->ni", A, y - b)
    x, sent = np.ones((N, 3)), []
    for t in range(3):
        up = np.arange(N) != DOWN.get(t, -1)
        y, v = x.copy(), np.zeros((N, 3))
        for _ in range(steps):
            g = slope(y)
            g = slope(y + rho * g / np.linalg.norm(g, axis=1, keepdims=True))
            v = momentum * v + g
            y = y - 0.05 * v
        y = np.where(up[:, None], y, x)
        W = whole * up[:, None] * up
        W += np.diag(1 - W.sum(1))
        x = np.linalg.matrix_power(W, exchanges) @ y
        sent.append(exchanges * 32 * 3 * ((W > 0).sum() - N))
    np.testing.assert_allclose(result.state.nodes, x, atol=1e-5)
    np.testing.assert_array_equal(result.history["up_bits"].iloc[1:], sent)


def test_the_claim_s_contraction_is_that_of_the_mixing_phase():
    """Against the distance before and after a multiplication by the matrix, and below the second eigenvalue."""
    task, worlds = claim.setting(seeds=2, nodes=8)
    assert worlds[0].data.longest == worlds[1].data.longest
    assert not np.array_equal(worlds[0].data.order, worlds[1].data.order)
    assert all(int(w.data.size.sum()) == len(w.data.y) for w in worlds)
    factory = partial(dfedsam_mgs, task, gossip_steps=2, steps=1, batch=4)
    hyper = {"lr": 0.1, "rho": 0.1}
    result = run(factory, worlds[1], task.init, 1, seeds=1, hyper=hyper)
    ratio = claim.contraction(factory, worlds[1], result, hyper)
    ring = mixing.metropolis(graph.ring(8))
    assert 0 < ratio < mixing.second_eigenvalue(ring) ** 2
    links = worlds[1].arrays["topology"]
    silent = worlds[1].arrays | {"topology": claim.dataclasses.replace(links, weight=jnp.zeros_like(links.weight))}
    apart = run(factory, worlds[1]._replace(arrays=silent), task.init, 2, seeds=1, hyper=hyper, carry=result.carry)
    z = np.asarray(apart.state.nodes[0], np.float64)
    W = mixing.matrix(ring)
    expected = consensus_distance(jnp.asarray(W @ W @ z, jnp.float32)) / consensus_distance(jnp.asarray(z, jnp.float32))
    assert ratio == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.long
def test_a_tiny_reproduction_gives_a_whole_table_every_check_and_a_picture():
    found = claim.reproduce(1, rates=(0.3,), rounds=3, long=6, every=2)
    assert len(found.table) == 8
    assert not found.table[["rate", "accuracy", "sharpness"]].isna().any(axis=None)
    assert len(found.checks) == len({c.what for c in found.checks}) == 13
    assert len(found.figure.axes) == 3


def test_a_horizon_before_the_card_s_is_refused():
    with pytest.raises(InputError, match="rounds is 5 and long 5"):
        claim.reproduce(1, rounds=5, long=5)
