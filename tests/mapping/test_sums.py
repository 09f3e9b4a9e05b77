"""Sums as products: what they are in float64, under any map, and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxfl.mapping.sums import norm, total


@pytest.mark.parametrize("shape", [(), (1,), (7, 3), (3, 1009)])
def test_a_total_is_the_sum_of_all_numbers(shape):
    rows = np.random.default_rng(0).normal(size=(5, *shape)).astype(np.float32)
    exact = rows.astype(np.float64).reshape(5, -1).sum(1)
    np.testing.assert_allclose(jax.vmap(total)(jnp.asarray(rows)), exact, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(jax.grad(total)(jnp.asarray(rows)), 1)


def test_a_norm_is_that_of_all_leaves_as_one_vector():
    rng = np.random.default_rng(1)
    tree = {"kernel": rng.normal(size=(13, 7)).astype(np.float32), "bias": rng.normal(size=7).astype(np.float32)}
    exact = np.linalg.norm(np.concatenate([a.astype(np.float64).ravel() for a in tree.values()]))
    np.testing.assert_allclose(norm(tree), exact, rtol=1e-6)
    np.testing.assert_allclose(norm(tree), optax.tree.norm(tree), rtol=1e-6)
