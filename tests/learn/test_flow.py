"""Linear flows against scipy's matrix exponential in float64, and against many small steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

from jaxfl.errors import InputError
from jaxfl.learn.flow import flowed, growth

SECONDS = np.array([0.0, 1e-6, 0.01, 0.4, 1.0, 7.0, 40.0])


@pytest.mark.parametrize("kind", ["random", "defective", "rotation", "stiff"])
def test_the_exponential_in_both_precisions(kind):
    M = {
        "random": np.random.default_rng(0).normal(size=(6, 6)) / 3 - 0.9 * np.eye(6),
        "defective": np.diag([-0.2] * 5) + np.diag(np.ones(4), 1),
        "rotation": np.array([[0.0, 1.0], [-1.0, 0.0]]),
        "stiff": np.array([[-40.0, 40.0], [0.3, -0.3]]),
    }[kind]
    want = np.stack([expm(M * t) for t in SECONDS]) - np.eye(len(M))
    for wide, tight in ((False, 2e-5), (True, 2e-13)):
        with jax.enable_x64(wide):
            got = np.asarray(jax.jit(growth)(jnp.asarray(M), jnp.asarray(SECONDS)))
        assert got.dtype == (np.float64 if wide else np.float32)
        scale = np.abs(want).max((1, 2), keepdims=True)
        assert np.abs(got - want).max(initial=0, where=scale > 0) < tight * max(1.0, scale.max())
        np.testing.assert_allclose(got[1], want[1], rtol=1e-4 if not wide else 1e-12, atol=1e-12)  # not 1 - 1
        assert (got[0] == 0).all()


def test_each_node_flows_its_own_time_and_nobody_without_one():
    r = np.random.default_rng(1)
    M, s, t = r.normal(size=(3, 3)), r.normal(size=(4, 3, 5)), np.array([0.0, 0.5, 1.0, 2.0])
    got = np.asarray(flowed(*(jnp.asarray(a, jnp.float32) for a in (M, t, s))))
    for i in range(4):
        step, x = t[i] / 4000, s[i]
        for _ in range(4000):  # the midpoint rule
            x = x + step * M @ (x + step / 2 * M @ x)
        np.testing.assert_allclose(got[i], x, rtol=2e-4, atol=2e-5)
    np.testing.assert_array_equal(got[0], s[0].astype(np.float32))
    M = jnp.asarray(M, jnp.float32)
    half = flowed(M, 0.5 * jnp.ones(1), flowed(M, 0.25 * jnp.ones(1), jnp.asarray(s[:1], jnp.float32)))
    np.testing.assert_allclose(half, flowed(M, 0.75 * jnp.ones(1), jnp.asarray(s[:1], jnp.float32)), rtol=1e-4)


def test_a_matrix_that_is_not_square_is_refused():
    with pytest.raises(InputError, match=r"matrix has shape \[2, 3\], but must be square"):
        growth(jnp.zeros((2, 3)), jnp.ones(1))
