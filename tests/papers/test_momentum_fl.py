"""The momentum methods against their equations in float64; where FedAvg-M stops; with controls: test_scaffold."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import one_sample_each
from members import SHARE, N, cohorts, idle, slope, world

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.momentum_fl import fedavg_m, fedavg_m_vr, scaffold_m_vr
from jaxfl.claims import momentum_fl as claim
from jaxfl.data import partition, synthetic
from jaxfl.engine.rollout import rollout
from jaxfl.engine.run import run
from jaxfl.learn import task as tasks
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario

KW, BETA = {"lr": 0.03, "server_lr": 0.05, "steps": 2, "batch": None}, 0.3


def equations(q, rounds, reduced, controls):
    """The paper's loop over lists of members: x, g, c and all `c_i`."""
    x, past, g, c, ci = np.ones(3), np.ones(3), np.zeros(3), np.zeros(3), np.zeros((N, 3))
    for members in rounds:
        total, change, weight = np.zeros(3), np.zeros(3), sum(p for _, p, _ in members)
        for i, p, steps in members:
            y, seen = x.copy(), []
            for _ in range(steps):
                G = slope(q, i, y)
                seen.append(G)
                if reduced:
                    d = G + (1 - BETA) * (g - slope(q, i, past)) - controls * BETA * (ci[i] - c)
                else:
                    d = BETA * G + (1 - BETA) * g
                y = y - KW["lr"] * d
            total += p * (x - y) / (KW["lr"] * max(steps, 1))
            if seen:
                change += SHARE[i] * (np.mean(seen, 0) - ci[i])
                ci[i] = np.mean(seen, 0)
        past, g, c = x, total / weight, c + change
        x = x - KW["server_lr"] * g
    return x, g, c, ci


@pytest.mark.parametrize(
    ("make", "reduced", "controls"), [(fedavg_m, False, 0), (fedavg_m_vr, True, 0), (scaffold_m_vr, True, 1)]
)
def test_four_rounds_from_the_equations_in_float64(make, reduced, controls):
    """Unequal weights, a partial cohort, members of none, one and two steps, one absent."""
    q, task, w = world(idle)
    state = run(make(task, beta=BETA, **KW), w, jnp.ones(3), 4, every=1).state
    x, g, c, ci = equations(q, cohorts(w, 4), reduced, controls)
    np.testing.assert_allclose(state.shared["x"], x, atol=1e-5)
    np.testing.assert_allclose(state.shared["g"], g, atol=1e-5)
    if controls:
        np.testing.assert_allclose(state.shared["c"], c, atol=1e-5)
        np.testing.assert_allclose(state.nodes, ci, atol=1e-5)


def test_fedavg_m_stops_where_fedavg_does_with_a_smaller_local_rate():
    """Both at `mean_i (I - (I - lr beta A_i)^K) (x - b_i) = 0`: the bias shrinks with beta at the same server rate."""
    n, d, lr, beta, steps = 20, 10, 0.02, 0.1, 10
    q = synthetic.gaussian_quadratics(n, d, seed=0)
    A, b = q.A.astype(np.float64), q.b.astype(np.float64)
    bias = {}
    for rate in (lr, lr * beta):
        pull = np.stack([np.eye(d) - np.linalg.matrix_power(np.eye(d) - rate * a, steps) for a in A])
        bias[rate] = np.linalg.solve(pull.sum(0), np.einsum("nij,nj->i", pull, b)) - q.optimum
    with jax.enable_x64(True):  # float32 stops some 1e-6 away from a fixed point
        data = one_sample_each(jnp.asarray(A), jnp.asarray(b))
        w = scenario(data, cohort=cohort.everyone(n))
        for make, fixed in ((partial(fedavg_m, beta=beta), bias[lr * beta]), (fedavg, bias[lr])):
            f = make(tasks.quadratic(d), lr=lr, steps=steps, batch=None)
            state, _ = jax.jit(lambda x, f=f: rollout(f, w, x, 600))(jnp.zeros(d, jnp.float64))
            np.testing.assert_allclose(state.shared["x"] - q.optimum, fixed, atol=1e-8)
    assert np.linalg.norm(bias[lr * beta]) < 0.15 * np.linalg.norm(bias[lr])


def test_the_objective_weighs_clients_alike():
    """`f = 1/N sum_i F_i` of unequal shards, its value and gradient in float64."""
    task = tasks.linear_regression(10)
    whole = synthetic.linear_regression_clients(5, samples=8, seed=2)
    data = partition.quantity_skew(whole, 5)
    metric, w = claim.objective(task, data), np.random.default_rng(0).normal(size=10)
    got = metric.measure(metric.arrays, jnp.asarray(w, jnp.float32))
    x, y, order = (np.asarray(v) for v in (data.x, data.y, data.order))
    value, gradient = 0.0, np.zeros(10)
    for start, size in zip(np.asarray(data.start), np.asarray(data.size), strict=True):
        own = order[start : start + size]
        gap = x[own].astype(np.float64) @ w - y[own]
        value += (gap**2).mean() / 2 / 5
        gradient += x[own].T @ gap / size / 5
    assert len(set(np.asarray(data.size).tolist())) > 1
    np.testing.assert_allclose([got["train_loss"], got["squared_gradient"]], [value, gradient @ gradient], rtol=1e-5)
