"""FedDyn against its equations in float64, in both forms of its server; where it ends."""

import jax.numpy as jnp
import numpy as np
import pytest
from common import quadratics
from members import SHARE, N, absent, cohorts, idle, slope, world

from jaxfl.algorithms.server.feddyn import feddyn, with_duals
from jaxfl.algorithms.server.fedprox import fedprox
from jaxfl.engine.run import run
from jaxfl.learn.server import parameters_alone
from jaxfl.learn.task import from_functions
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario

KW = {"lr": 0.03, "steps": 2, "batch": None}
ALPHA = 0.3


def equations(q, rounds, present_alone=False, weighted=False):
    """The paper's loop over lists of members: x, h, all duals."""
    x, h, dual = np.ones(3), np.zeros(3), np.zeros((N, 3))
    for members in rounds:
        sent, moved = np.zeros(3), np.zeros(3)
        for i, p, steps in members:
            share = p / sum(p for _, p, _ in members) if weighted else 1 / len(members)
            y, a = x.copy(), ALPHA / (N * SHARE[i])
            for _ in range(steps):
                y = y - 0.03 * (slope(q, i, y) - dual[i] + a * (y - x))
            dual[i] -= a * (y - x)
            moved += y - x
            sent += (y - dual[i] / a if present_alone else y) * share
        h = h - ALPHA / N * moved
        x = sent if present_alone else sent - h / ALPHA
    return x, h, dual


@pytest.mark.parametrize(("present_alone", "weighted"), [(False, False), (True, False), (False, True), (True, True)])
def test_four_rounds_from_the_equations(present_alone, weighted):
    """Unequal weights, members of none, one and two steps, one absent; and h is the mean of all duals."""
    q, task, w = world(idle)
    made = with_duals(task, alpha=ALPHA, present_alone=present_alone, weighted=weighted, **KW)
    done = run(made, w, jnp.ones(3), 4, every=1)
    s = done.state
    x, h, dual = equations(q, cohorts(w, 4), present_alone, weighted)
    assert done.history["up_bits"].max() == 3 * 32 * 3, "a model each of the three who are there"
    np.testing.assert_allclose(s.shared["x"], x, atol=1e-5)
    np.testing.assert_allclose(s.nodes, dual, atol=1e-5)
    assert set(s.shared) == ({"x"} if present_alone else {"x", "h"})
    if not present_alone:
        np.testing.assert_allclose(s.shared["h"], h, atol=1e-5)
        np.testing.assert_allclose(s.shared["h"], SHARE @ np.asarray(s.nodes), atol=1e-5)


def test_with_all_clients_both_servers_are_one_and_the_first_round_doubles_that_of_fedprox():
    """Of equal weights: from duals of 0, x + 2 times the mean move of FedProx with mu = alpha."""
    _, task, data = quadratics(n=N, d=3)
    alike = scenario(data, cohort=cohort.everyone(N, np.ones(N)))
    both = [with_duals(task, alpha=ALPHA, present_alone=only, **KW) for only in (False, True)]
    a, b = (run(f, alike, jnp.ones(3), 4, every=1).state for f in both)
    np.testing.assert_allclose(a.shared["x"], b.shared["x"], atol=1e-5)
    np.testing.assert_allclose(a.nodes, b.nodes, atol=1e-5)
    a, b = (run(f, alike, jnp.ones(3), 1, every=1).state.shared["x"] for f in (both[0], fedprox(task, mu=ALPHA, **KW)))
    np.testing.assert_allclose(a - 1, 2 * (b - 1), atol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_it_ends_at_the_weighted_optimum_from_partial_cohorts(weighted):
    """4 of 10 clients of weights 1 to 10, one of them absent: the optimum of sum p_i F_i, for every seed."""
    n, weight = 10, np.linspace(1, 10, 10)
    q, task, w = world(absent, n=n, c=4, weight=weight)
    A, b = q.A.astype(float), q.b.astype(float)
    optimum = np.linalg.solve(np.einsum("i,iab->ab", weight, A), np.einsum("i,iab,ib->a", weight, A, b))
    f = feddyn(task, lr=0.1, alpha=0.5, weighted=weighted, steps=30, batch=None)
    x = run(f, w, jnp.ones(3), 800, seeds=2, every=800).state.shared["x"]
    np.testing.assert_allclose(x, np.stack([optimum] * 2), atol=2e-4)


def test_statistics_are_averaged_and_have_no_dual():
    """Of a row of four the second is one that no optimizer moves."""
    init = lambda key: {"mean": jnp.zeros(1), "w": jnp.ones(3)}
    loss = lambda p, x, y: 0.5 * ((p["w"] - x[:, 0]) ** 2).sum(1)
    train = lambda p, x, y, key, mask: (loss(p, x, y), p | {"mean": x[:, 0, :1].mean(0)})
    task = from_functions(init, loss, train=train, untrained=(True, False))
    _, _, w = world()
    s = run(feddyn(task, alpha=ALPHA, **KW), w, task.init, 3, every=1).state
    at = int(np.flatnonzero(np.asarray(parameters_alone(task)(jnp.ones(4))) == 0)[0])
    (*_, last) = cohorts(w, 3)
    np.testing.assert_array_equal(s.nodes[:, at], 0)
    seen = np.asarray(w.data.x)[:, 0, 0]
    np.testing.assert_allclose(s.shared["x"][at], np.mean([seen[i] for i, _, _ in last]), rtol=1e-5)
    assert s.shared["h"][at] == 0
    assert np.abs(s.nodes).max() > 0
