"""D-SGD, DFedAvgM, DFedSAM and MGS against their equations in float64 with a node down, and the worlds of a claim."""

import dataclasses
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from common import quadratics

from jaxfl.algorithms.gossip.dfedsam import dfedsam, dfedsam_mgs
from jaxfl.algorithms.gossip.dsgd import dfedavgm, dsgd
from jaxfl.claims import dfedsam as claim
from jaxfl.engine.run import run
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


@pytest.mark.parametrize("exchanges", [1, 4])
def test_a_mixing_phase_contracts_as_its_second_eigenvalue_says(exchanges):
    """The distance after a round over that after the same round without links: of W^Q, and at most lambda^Q."""
    _, task, data = quadratics(n=8, d=3)
    ring = mixing.metropolis(graph.ring(8))
    no_links = dataclasses.replace(ring, weight=jnp.zeros_like(ring.weight), shifts=None)
    worlds = [scenario(data, topology=t) for t in (ring, no_links)]
    make = dfedsam_mgs(task, rho=0.3, steps=2, gossip_steps=exchanges, **KW)
    mixed, alone = (np.asarray(run(make, w, jnp.ones(3), 1).state.nodes, np.float64) for w in worlds)
    np.testing.assert_allclose(mixed, np.linalg.matrix_power(mixing.matrix(ring), exchanges) @ alone, atol=1e-5)
    ratio = consensus_distance(jnp.asarray(mixed)) / consensus_distance(jnp.asarray(alone))
    assert 0 < ratio < mixing.second_eigenvalue(ring) ** exchanges


def test_the_claim_s_seeds_are_other_splits():
    """Whole ones, and the arms of twice the steps and four times the rounds are DFedAvg otherwise."""
    (found,) = claim.studies()
    worlds = [found.stand_in(seed)["ring"].world for seed in (0, 1)]
    assert not np.array_equal(worlds[0].data.size, worlds[1].data.size)
    assert all(int(w.data.size.sum()) == len(w.data.y) for w in worlds)
    plain, twice, longer = (found.arms[f"DFedAvg{more}"] for more in ("", ", 2 x steps", ", 4 x rounds"))
    assert twice.make.keywords == plain.make.keywords | {"steps": 2 * plain.make.keywords["steps"]}
    assert (longer.make, longer.rounds) == (plain.make, claim.GOSSIP)
