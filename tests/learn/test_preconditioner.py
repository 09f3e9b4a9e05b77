"""Preconditioners against their closed forms in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from common import one_sample_each, quadratics

from jaxfl.errors import InputError
from jaxfl.learn import preconditioner as scale
from jaxfl.learn import server
from jaxfl.learn.hooks import scaled
from jaxfl.learn.local import local_curvature, local_gradient, local_sgd

H = np.random.default_rng(0).normal(size=(4, 3))
BETA, ALPHA = 0.8, 0.3


def diagonals(p):
    """What is divided by after each of the statistics, and as a tree of two leaves the same."""
    state, tree = p.init(jnp.zeros(3)), p.init({"a": jnp.zeros(2), "b": jnp.zeros(1)})
    out = []
    for h in H.astype(np.float32):
        state, tree = p.refresh(state, h), p.refresh(tree, {"a": h[:2], "b": h[2:]})
        out.append(p.diagonal(state))
        np.testing.assert_array_equal(jnp.concatenate(list(p.diagonal(tree).values())), out[-1])
    return np.stack(out)


def test_corrected_means_are_adams():
    """sum_s (1 - beta) beta^(t - s) H_s^2 / (1 - beta^(t + 1)), the root of it, at least alpha."""
    for p in (scale.adam(BETA, ALPHA), scale.adahessian(BETA, ALPHA)):
        want = []
        for t in range(4):
            w = (1 - BETA) * BETA ** np.arange(t, -1, -1.0) / (1 - BETA ** (t + 1))
            want.append(np.maximum(ALPHA, np.sqrt(w @ H[: t + 1] ** 2)))
        np.testing.assert_allclose(diagonals(p), want, rtol=1e-5)
    tx = optax.scale_by_adam(b1=0.0, b2=BETA, eps=0.0)
    state = tx.init(jnp.zeros(3))
    for h, d in zip(H, diagonals(scale.adam(BETA, 1e-9)), strict=True):
        u, state = tx.update(jnp.asarray(h, jnp.float32), state)
        np.testing.assert_allclose(u, h / d, rtol=1e-5)


@pytest.mark.parametrize(("p", "power"), [(scale.rmsprop(BETA, ALPHA), 2), (scale.oasis(BETA, ALPHA), 1)])
def test_plain_means_start_at_the_first_statistic(p, power):
    mean, want = H[0] ** power, []
    for t, h in enumerate(H):
        mean = BETA * mean + (1 - BETA) * h**power if t else mean
        want.append(np.maximum(ALPHA, np.abs(mean) ** (1 / power)))
    np.testing.assert_allclose(diagonals(p), want, rtol=1e-5)


def test_a_server_divides_by_the_same_block():
    tx, p = (
        server.scale_by_moments(server.adam_moment(0.7), 0.0, 0.1),
        scale.second_moment(server.adam_moment(0.7), 0.1),
    )
    opt, state = tx.init(jnp.zeros(3)), p.init(jnp.zeros(3))
    for h in jnp.asarray(H, jnp.float32):
        u, opt = tx.update(h, opt)
        state = p.refresh(state, h)
        np.testing.assert_array_equal(u, scale.divided(h, p.diagonal(state)))
    assert (diagonals(scale.identity()) == 1).all()


def test_hutchinson_is_the_diagonal_of_a_diagonal_hessian_and_its_mean_of_any():
    q, square, data = quadratics(n=2, d=3)
    look = jax.jit(jax.vmap(lambda key: local_curvature(square)(key, data, 1, jnp.ones(3))[0]))
    found = np.asarray(look(jax.random.split(jax.random.key(0), 4000)))
    np.testing.assert_allclose(found.mean(0), np.diag(q.A[1]), atol=0.1)
    assert found.std(0).min() > 0.1
    own = np.array([1.0, 5.0, 0.2])
    _, log = (
        out := local_curvature(square)(jax.random.key(1), one_sample_each(np.diag(own)[None], q.b[:1]), 0, jnp.ones(3))
    )
    np.testing.assert_allclose(out[0], own, rtol=1e-6)
    slope, seen = local_gradient(square)(jax.random.key(1), data, 1, jnp.ones(3))
    np.testing.assert_allclose(slope, q.A[1] @ (1 - q.b[1]), rtol=1e-5)
    assert (log["gradients"], seen["gradients"]) == (2, 1)


def test_dividing_by_a_constant_is_gradient_descent_in_other_coordinates():
    """x <- x - lr G / D is descent in z = sqrt(D) x on f(z / sqrt(D))."""
    q, square, data = quadratics(n=1, d=3)
    d = np.array([0.5, 2.0, 8.0])
    step = local_sgd(square, optax.chain(scaled(), optax.sgd(0.05)), steps=7)
    got, _ = step(jax.random.key(0), data, 0, jnp.ones(3), diagonal=jnp.asarray(d, jnp.float32))
    root = np.sqrt(d)
    z = root * np.ones(3)
    for _ in range(7):
        z -= 0.05 * (q.A[0].astype(float) @ (z / root - q.b[0])) / root
    np.testing.assert_allclose(got, z / root, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: scale.by_name("adma", 0.9, 0.1), "did you mean adam"),
        (lambda: scale.adam(beta=1.0), "beta"),
        (lambda: scale.oasis(alpha=0.0), "alpha"),
    ],
)
def test_bad_numbers_are_refused(make, says):
    with pytest.raises(InputError, match=says):
        make()
