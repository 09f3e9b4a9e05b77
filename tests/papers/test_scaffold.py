"""SCAFFOLD against its equations in float64: unequal weights, a partial cohort, an absent member."""

import jax.numpy as jnp
import numpy as np
import pytest
from common import quadratics
from members import SHARE, WEIGHT, N, absent, cohorts, idle, slope, world

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.momentum_fl import fedavg_m, scaffold_m
from jaxfl.algorithms.server.scaffold import scaffold
from jaxfl.engine.run import run
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario

KW = {"lr": 0.03, "steps": 2, "batch": None}


def equations(q, rounds, beta=None):
    """The paper's loop over lists of members; with `beta` that of SCAFFOLD-M, server rate 0.05."""
    x, c, ci, g = np.ones(3), np.zeros(3), np.zeros((N, 3)), np.zeros(3)
    for members in rounds:
        total, change, weight = np.zeros(3), np.zeros(3), sum(p for _, p, _ in members)
        for i, p, steps in members:
            y, seen = x.copy(), []
            for _ in range(steps):
                G = slope(q, i, y)
                seen.append(G)
                d = G - ci[i] + c
                y -= 0.03 * (d if beta is None else beta * d + (1 - beta) * g)
            total += p * ((y - x) if beta is None else (x - y) / (0.03 * max(steps, 1)))
            if seen:
                change += SHARE[i] * (np.mean(seen, 0) - ci[i])
                ci[i] = np.mean(seen, 0)
        c = c + change
        if beta is None:
            x = x + total / weight
        else:
            g = total / weight
            x = x - 0.05 * g
    return x, c, ci


def system(task, beta, **kw):
    """SCAFFOLD, or with `beta` SCAFFOLD-M."""
    kw = KW | kw
    return scaffold(task, **kw) if beta is None else scaffold_m(task, beta=beta, server_lr=0.05, **kw)


def agrees(state, wanted):
    for got, want in zip((state.shared["x"], state.shared["c"], state.nodes), wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("beta", [None, 0.3])
def test_four_rounds_from_the_equations(beta):
    """Members of none, one and two steps; then the server's control is the mean of all clients'."""
    q, task, w = world(idle)
    four = run(system(task, beta), w, jnp.ones(3), 4, every=1)
    agrees(four.state, equations(q, cohorts(w, 4), beta))
    late = run(system(task, beta), w, jnp.ones(3), 40, every=1, carry=four.carry).state
    np.testing.assert_allclose(late.shared["c"], SHARE @ np.asarray(late.nodes), atol=1e-5)
    if beta is None:  # the first round is FedAvg
        a, b = (run(f(task, **KW), w, jnp.ones(3), 1, every=1).state.shared["x"] for f in (scaffold, fedavg))
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("beta", [None, 0.3])
def test_epochs_of_members_who_all_weigh_alike(beta):
    """One sample a node: an epoch is a step."""
    q, task, data = quadratics(n=N, d=3)
    f = system(task, beta, epochs=2, batch=1, steps=7)
    everyone = scenario(data, cohort=cohort.everyone(N, WEIGHT))
    state = run(f, everyone, jnp.ones(3), 2, every=1).state
    agrees(state, equations(q, [[(i, WEIGHT[i], 2) for i in range(N)]] * 2, beta))


def test_it_stays_the_mean_under_importance_sampling():
    _, task, data = quadratics(n=N, d=3)
    w = scenario(data, cohort=cohort.importance(N, 3, np.arange(1.0, N + 1), weight=WEIGHT))
    s = run(scaffold(task, **KW), w, jnp.ones(3), 20).state
    np.testing.assert_allclose(s.shared["c"], SHARE @ np.asarray(s.nodes), atol=1e-4)


@pytest.mark.parametrize("beta", [None, 0.5])
def test_it_ends_at_the_weighted_optimum_from_partial_cohorts(beta):
    """6 of 20 clients of weights 1 to 10, one of them absent: the optimum of sum p_i F_i, for every seed."""
    n, weight = 20, np.linspace(1, 10, 20)
    q, task, w = world(absent, n=n, c=6, weight=weight)
    A, b = q.A.astype(float), q.b.astype(float)
    optimum = np.linalg.solve(np.einsum("i,iab->ab", weight, A), np.einsum("i,iab,ib->a", weight, A, b))
    f = scaffold if beta is None else scaffold_m
    algorithm = f(task, lr=0.02, steps=5, batch=None, **({} if beta is None else {"beta": beta}))
    x = run(algorithm, w, jnp.ones(3), 800, seeds=2, every=800).state.shared["x"]
    np.testing.assert_allclose(x, np.stack([optimum] * 2), atol=2e-4)


def nobody(c, t):
    return c._replace(weight=jnp.where(t == 2, 0.0, c.weight))


@pytest.mark.parametrize("make", [scaffold, scaffold_m, fedavg_m])
def test_a_round_in_which_nobody_answers_changes_nothing(make):
    """In the third of three rounds all are absent: state as after the second, momentum direction included."""
    _, task, w = world(nobody)
    two, three = (run(make(task, **KW), w, jnp.ones(3), rounds, every=1) for rounds in (2, 3))
    for name, value in two.state.shared.items():
        if name != "previous":
            np.testing.assert_array_equal(three.state.shared[name], value, err_msg=name)
    np.testing.assert_array_equal(three.state.nodes, two.state.nodes)
    assert np.isnan(three.history["loss"].iloc[-1])
    assert float(three.history["up_bits"].iloc[-1]) == 0
