"""CyCP against its equations in float64, where a cycle ends, and what the worlds of its claim promise."""

import jax.numpy as jnp
import numpy as np
import pytest
from common import quadratics, same
from members import WEIGHT, N, changed, cohorts, drawn, slope

from jaxfl.algorithms.server.cycp import cycp
from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.claims import cycp as claim
from jaxfl.engine.run import run
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario

GROUP = np.array([0, 1, 0, 1, 1, 0])


def absent(c, t):
    """The second member never answers in even rounds, and always runs one step less."""
    gone = jnp.where(t % 2 == 0, c.weight.at[1].set(0.0), c.weight)
    return c._replace(weight=gone, steps=jnp.array([2, 1]))


def test_four_rounds_from_the_equations_in_float64():
    """Two of the three of each group in turn, unequal weights, an absent member, unequal steps."""
    q, task, data = quadratics(n=N, d=3)
    w = scenario(data, cohort=changed(cohort.in_turn(N, 2, GROUP, weight=WEIGHT), absent))
    x = np.ones(3)
    for t, members in enumerate(cohorts(w, 4)):
        assert {GROUP[i] for i, *_ in members} == {t % 2}
        total = np.zeros(3)
        for i, p, steps in members:
            y = x.copy()
            for _ in range(steps):
                y -= 0.03 * slope(q, i, y)
            total += p * y
        x = total / sum(p for _, p, _ in members)
    state = run(cycp(task, lr=0.03, steps=2, batch=None), w, jnp.ones(3), 4, every=1).state
    np.testing.assert_allclose(state.shared["x"], x, atol=1e-6)
    assert set(drawn(w, 4).ids[0].tolist()) < set(np.flatnonzero(np.isin(GROUP, 0)).tolist())


def test_one_group_is_fedavg_and_whole_blocks_are_a_walk_through_the_nodes():
    _, task, data = quadratics(n=N, d=3)
    go = lambda f, who: run(f(task, lr=0.03, steps=2, batch=1), scenario(data, cohort=who), jnp.ones(3), 5).state
    assert same(go(cycp, cohort.in_turn(N, N, 1)), go(fedavg, cohort.everyone(N)))
    assert same(go(cycp, cohort.in_turn(N, 2, 3)), go(fedavg, cohort.cyclic(N, 2)))


@pytest.mark.parametrize("lr", [0.1, 0.05])
def test_a_cycle_ends_where_its_map_stays(lr):
    """Whole groups, full gradients: the fixed point of the product of the rounds, a step of O(lr) off the optimum."""
    q, task, data = quadratics(n=N, d=3)
    A, b = q.A.astype(float), q.b.astype(float)
    M, v = np.eye(3), np.zeros(3)
    for g in range(2):
        mine = np.isin(GROUP, g)
        step = np.eye(3) - lr * A[mine].mean(0)
        M, v = step @ M, step @ v + lr * np.einsum("iab,ib->a", A[mine], b[mine]) / mine.sum()
    fixed = np.linalg.solve(np.eye(3) - M, v)
    w = scenario(data, cohort=cohort.in_turn(N, 3, GROUP))
    x = run(cycp(task, lr=lr, steps=1, batch=None), w, jnp.ones(3), 1000, every=1000).state.shared["x"]
    np.testing.assert_allclose(x, fixed, atol=1e-5)
    optimum = np.linalg.solve(A.sum(0), np.einsum("iab,ib->a", A, b))
    assert 1e-3 < np.linalg.norm(fixed - optimum) / lr < 10


def test_the_claims_groups_are_alike_and_its_optimum_is_one():
    """A fifth of the variance of the optima within the groups where 0.8 is between them; the mean gradient is 0."""
    shards, measure = claim.bowls(0, 0.8)
    A, b = np.asarray(shards.x, float), np.asarray(shards.y, float)
    best = np.asarray(measure.arrays, float)
    np.testing.assert_allclose(np.einsum("iab,ib->a", A, best - b) / len(b), 0, atol=1e-5)
    grouped = b.reshape(claim.GROUPS, -1, claim.D)
    assert grouped.var(1, ddof=1).mean() == pytest.approx(0.2, rel=0.15)
    assert grouped.mean(1).var(0, ddof=1).mean() == pytest.approx(0.8 + 0.02, rel=0.4)
    assert measure.measure(measure.arrays, jnp.asarray(best + 1.0))["error"] == pytest.approx(claim.D, rel=1e-5)
