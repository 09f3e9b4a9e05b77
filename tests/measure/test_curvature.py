"""Extreme Hessian eigenvalues against NumPy on explicit matrices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lapack import stacks

from jaxfl.errors import InputError
from jaxfl.learn.task import classification, mean_loss
from jaxfl.measure.curvature import extreme_eigenvalues, hessian_product, sharpness
from jaxfl.models.networks import MLP


def random_symmetric(d, seed):
    a = np.random.default_rng(seed).normal(size=(d, d)).astype(np.float32)
    return a + a.T


def test_metric_finds_the_extreme_eigenvalues_of_an_explicit_hessian():
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(40, 4)), jnp.float32), jnp.asarray(rng.integers(0, 3, 40))
    task = classification(functools.partial(MLP, (4, 6, 3)), x)
    rows = jnp.stack([task.init(jax.random.key(s)) for s in range(3)])
    H = np.asarray(jax.jit(jax.hessian(lambda p: mean_loss(task, p, x, y)))(rows.mean(0)), np.float64)
    values = np.linalg.eigvalsh((H + H.T) / 2)
    metric = sharpness(task, x, y, steps=task.dim)
    got = jax.jit(metric.measure)(metric.arrays, rows)
    np.testing.assert_allclose(got["sharpness"], values[-1], rtol=1e-4)
    np.testing.assert_allclose(got["least_curvature"], values[0], atol=1e-4 * values[-1])
    few = sharpness(task, x, y, steps=12)
    assert 0.97 * values[-1] < jax.jit(few.measure)(few.arrays, rows.mean(0))["sharpness"] <= values[-1] * 1.0001


def test_lanczos_stays_inside_the_spectrum_and_ends_at_its_ends():
    full = jax.jit(lambda a, key: extreme_eigenvalues(lambda v: a @ v, 30, steps=50, key=key))
    short = jax.jit(lambda a: extreme_eigenvalues(lambda v: a @ v, 30, steps=8))
    for seed in range(5):
        a = random_symmetric(30, seed)
        values = np.linalg.eigvalsh(a.astype(np.float64))
        np.testing.assert_allclose(full(a, jax.random.key(seed)), values[[0, -1]], rtol=1e-4)
        low, high = short(a)
        assert values[0] - 1e-4 <= low < high <= values[-1] + 1e-4


def test_lapack_takes_one_matrix_a_call_also_for_several_models():
    ends = jax.vmap(lambda a: extreme_eigenvalues(lambda v: a @ v, 4, steps=4))
    assert stacks(jax.jit(ends).lower(jnp.zeros((3, 4, 4)))) == {1}


def test_a_spectrum_of_one_value_ends_lanczos_early():
    found = jax.jit(lambda scale: extreme_eigenvalues(lambda v: scale * v, 9, steps=5))
    for scale in (-2.0, 0.0, 3.0):
        np.testing.assert_allclose(found(scale), scale, atol=1e-5)


def test_negative_eigenvalues_of_larger_modulus_are_not_taken_for_the_largest():
    d = jnp.array([-10.0, -3.0, 1.0, 2.0])
    low, high = extreme_eigenvalues(lambda v: d * v, 4, steps=4)
    np.testing.assert_allclose([low, high], [-10, 2], rtol=1e-5)


def test_product_is_that_of_the_hessian():
    f = lambda x: jnp.sin(x[0]) * x[1] ** 2 + x[2] ** 3
    x, v = jnp.array([0.3, -1.2, 0.7]), jnp.array([1.0, 2.0, -0.5])
    np.testing.assert_allclose(hessian_product(f, x)(v), jax.hessian(f)(x) @ v, rtol=1e-5)


@pytest.mark.parametrize("bad", [{"d": 0}, {"d": 3, "steps": 0}])
def test_bad_numbers_are_refused(bad):
    with pytest.raises(InputError, match="at least 1"):
        extreme_eigenvalues(lambda v: v, **bad)
