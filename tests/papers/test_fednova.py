"""FedNova against its equations in float64: members of 1, 2 and 3 steps, one absent; and where it ends."""

import jax.numpy as jnp
import numpy as np
import pytest
from common import same
from members import SHARE, WEIGHT, N, absent, cohorts, slope, world

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.fednova import fednova
from jaxfl.algorithms.server.fedprox import fedprox
from jaxfl.engine.run import run
from jaxfl.measure.theory import quadratic_optimum

LR, KW = 0.03, {"lr": 0.03, "steps": 3, "batch": None}


def uneven(c, t):
    """One to three steps, and the third is absent."""
    return absent(c, t)._replace(steps=jnp.array([1, 2, 3, 3]))


def weights_of(tau, rho, mu):
    """`a_i` of the paper: how much each gradient weighs in `(x - y) / lr`, from the matrix of the recursion."""
    if mu:
        return (1 - LR * mu) ** np.arange(tau - 1, -1, -1.0)
    return (1 - rho ** np.arange(tau, 0, -1.0)) / (1 - rho)


@pytest.mark.parametrize(("rho", "mu"), [(0.0, 0.0), (0.7, 0.0), (0.0, 4.0)])
def test_three_rounds_from_the_equations(rho, mu):
    q, task, w = world(uneven)
    x = np.ones(3)
    for members in cohorts(w, 3, steps=3):
        total, tau, direction = sum(p for _, p, _ in members), 0.0, np.zeros(3)
        for i, p, steps in members:
            y, v, seen = x.copy(), np.zeros(3), []
            for _ in range(steps):
                seen.append(slope(q, i, y))
                v = rho * v + seen[-1] + mu * (y - x)
                y -= LR * v
            a = weights_of(steps, rho, mu)
            np.testing.assert_allclose((x - y) / LR, a @ np.array(seen), rtol=1e-9)
            direction += p / total * (a @ np.array(seen)) / a.sum()
            tau += p / total * a.sum()
        x = x - LR * tau * direction
    got = run(fednova(task, momentum=rho, mu=mu, **KW), w, jnp.ones(3), 3, every=1).state.shared["x"]
    np.testing.assert_allclose(got, x, atol=1e-5)


@pytest.mark.parametrize("other", [fedavg, fedprox])
def test_where_all_run_alike_it_is_fedavg(other):
    _, task, w = world()
    mu = {"mu": 4.0} if other is fedprox else {}
    a, b = (run(f(task, **KW, **mu), w, jnp.ones(3), 3).state.shared["x"] for f in (fednova, other))
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_it_ends_at_the_objective_s_optimum_where_fedavg_leans_to_who_runs_more():
    """At a small rate; steps go by the slot and so by the node, as all take part."""
    steps = jnp.array([1, 20, 2, 10, 1, 5])
    q, task, w = world(lambda c, t: c._replace(steps=steps), c=N)
    optimum = quadratic_optimum(q.A, q.b, WEIGHT)
    away = {}
    for f in (fednova, fedavg):
        x = run(f(task, lr=0.002, steps=20, batch=None), w, jnp.ones(3), 1500, every=1500).state.shared["x"]
        away[f] = np.linalg.norm(x - optimum)
    leaning = quadratic_optimum(q.A, q.b, SHARE * np.asarray(steps))
    assert away[fednova] < 0.06
    assert away[fedavg] == pytest.approx(np.linalg.norm(leaning - optimum), rel=0.2)
    assert away[fedavg] > 10 * away[fednova]


def test_who_runs_no_step_and_nobody():
    none = lambda c, t: absent(c, t)._replace(steps=jnp.zeros(4, jnp.int32))
    _, task, w = world(none)
    assert same(run(fednova(task, **KW), w, jnp.ones(3), 2).state.shared["x"], np.ones(3, np.float32))
