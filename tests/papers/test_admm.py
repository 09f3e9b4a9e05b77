"""ADMM without a dual against its equations in float64, what it conserves, where it ends, and what noise does to it."""

import jax.numpy as jnp
import numpy as np
import pytest
from common import quadratics
from members import SHARE, WEIGHT, N, absent, changed, cohorts, slope, world

from jaxfl.algorithms.server.admm import admm, dual_admm
from jaxfl.engine.run import run
from jaxfl.exchange.network import Network
from jaxfl.exchange.noise import Noise
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario

RHO, LR, STEPS, D = 2.0, 0.03, 2, 3


def pull(q, i, w, z, center):
    """The gradient of `J_i + <z, .> + rho/2 |. - center|^2`, with `J_i = n p_i F_i`."""
    return N * SHARE[i] * slope(q, i, w) + z + RHO * (w - center)


def solved(q, i, w, z, center, exact):
    """Its zero, or some steps towards it."""
    if exact:
        A, share = q.A[i].astype(float), N * SHARE[i]
        return np.linalg.solve(share * A + RHO * np.eye(D), share * A @ q.b[i] - z + RHO * center)
    for _ in range(STEPS):
        w = w - LR * pull(q, i, w, z, center)
    return w


def equations(q, rounds, exact, copies=1, idle=False):
    """Clients in a list, with their own dual variables: z_k = -grad J_k(w_k)."""
    x, w, heard = np.ones(D), np.ones((N, D)), np.ones((N, D))
    u = -sum(N * SHARE[i] * slope(q, i, x) for i in range(N)) / RHO
    for members in rounds:
        m, ids = len(members), [i for i, *_ in members]
        s = x + u / m
        told = s if copies == 1 else 2 * x - (x - u / m)
        old = w.copy()
        for i in ids:
            heard[i] = told
        for i in range(N) if idle else ids:
            w[i] = solved(q, i, old[i], -N * SHARE[i] * slope(q, i, old[i]), heard[i], exact)
        x = w[ids].mean(0)
        u = u + m * (x - s)
    return x, u, w, heard


@pytest.mark.parametrize(("exact", "copies", "idle"), [(True, 1, False), (False, 1, True), (False, 2, False)])
def test_four_rounds_from_the_equations_in_float64(exact, copies, idle):
    """Unequal weights, a partial cohort, one absent."""
    q, task, w = world(absent)
    f = admm(task, lr=LR, rho=RHO, steps=STEPS, batch=None, exact=exact, copies=copies, idle=idle)
    result = run(f, w, jnp.ones(D), 4, every=1)
    x, u, rows, heard = equations(q, list(cohorts(w, 4)), exact, copies, idle)
    state = result.state
    np.testing.assert_allclose(state.shared["x"], x, atol=2e-5)
    np.testing.assert_allclose(state.shared["u"], u, atol=2e-4)
    np.testing.assert_allclose(state.nodes["w"], rows, atol=2e-5)
    if idle:
        np.testing.assert_allclose(state.nodes["heard"], heard, atol=2e-5)
    account = sum(N * SHARE[i] * slope(q, i, np.asarray(state.nodes["w"][i], float)) for i in range(N))
    if not idle:
        if exact:  # of proximal points that are exact the server's account is exact too
            np.testing.assert_allclose(account, -RHO * np.asarray(state.shared["u"]), atol=1e-3)
        members = np.array([len(m) for m in cohorts(w, 4)])
        np.testing.assert_allclose(result.history["down_bits"].iloc[1:], members * 32 * D * copies)
        assert (result.history["up_bits"].iloc[1:] == members * 32 * D).all()


@pytest.mark.parametrize("exact", [True, False])
def test_four_rounds_of_the_dual_form_which_is_the_same_where_all_take_part(exact):
    q, task, data = quadratics(n=N, d=D)
    w = scenario(data, cohort=cohort.everyone(N, WEIGHT))
    kw = {"lr": LR, "rho": RHO, "steps": STEPS, "batch": None, "exact": exact}
    state = run(dual_admm(task, **kw), w, jnp.ones(D), 4, every=4).state
    x, rows, z = np.ones(D), np.ones((N, D)), np.zeros((N, D))
    for _ in range(4):
        z = z + RHO * (rows - x)
        rows = np.stack([solved(q, i, rows[i], z[i], x, exact) for i in range(N)])
        x = (rows + z / RHO).mean(0)
    for got, want in ((state.shared["x"], x), (state.nodes["w"], rows), (state.nodes["z"], z)):
        np.testing.assert_allclose(got, want, atol=1e-4)


def optimum(q, weight):
    A, b = q.A.astype(float), q.b.astype(float)
    return np.linalg.solve(np.einsum("i,iab->ab", weight, A), np.einsum("i,iab,ib->a", weight, A, b))


def gone(c, t):
    """In every second round one of the members is absent: cohorts of unlike size."""
    return c._replace(weight=c.weight.at[2].multiply(t % 2))


def test_it_ends_at_the_weighted_optimum_from_partial_cohorts_of_unlike_size():
    n, weight = 12, np.linspace(1, 6, 12)
    q, task, w = world(gone, n=n, c=5, weight=weight)
    x = run(admm(task, rho=2.0, exact=True), w, jnp.ones(D), 400, seeds=2, every=400).state.shared["x"]
    np.testing.assert_allclose(x, np.stack([optimum(q, weight)] * 2), atol=1e-4)


def nobody(c, t):
    return c._replace(weight=jnp.where(t == 2, 0.0, c.weight))


def test_a_round_in_which_nobody_answers_changes_nothing_and_noise_is_heard():
    _, task, data = quadratics(n=N, d=D)
    w = scenario(data, cohort=changed(cohort.uniform(N, 4, weight=WEIGHT), nobody))
    two, three = (run(admm(task, exact=True), w, jnp.ones(D), rounds, every=1).state for rounds in (2, 3))
    for name in ("x", "u"):
        np.testing.assert_array_equal(three.shared[name], two.shared[name])
    np.testing.assert_array_equal(three.nodes["w"], two.nodes["w"])
    noisy = run(admm(task, Network(noise=Noise(0.1, 0.1)), exact=True), w, jnp.ones(D), 2, every=1).state
    assert not np.allclose(noisy.shared["x"], two.shared["x"], atol=1e-3)
