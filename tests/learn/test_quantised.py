"""Rounded models: the grid of each matrix, gradients straight through, bits; and what raises them again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxfl.errors import InputError
from jaxfl.learn import dequantise, quantised
from jaxfl.learn.layers import layers
from jaxfl.learn.task import classification
from jaxfl.models.networks import MLP

TASK = classification(functools.partial(MLP, (5, 7, 3)), np.zeros((1, 5), np.float32))
X = TASK.init(jax.random.key(0)) + 0.1
RNG = np.random.default_rng(0)
BATCH = jnp.asarray(RNG.normal(size=(4, 5)), jnp.float32), jnp.asarray([0, 1, 2, 1])


def by_hand(row, bits):
    """Float64, matrix by matrix."""
    out = np.asarray(row, np.float64).copy()
    for a in layers(TASK):
        if len(a.shape) < 2 or bits >= 32:
            continue
        w = out[a.start : a.stop]
        if bits == 2:
            kept = np.abs(w) > 0.7 * np.abs(w).mean()
            out[a.start : a.stop] = np.abs(w[kept]).mean() * np.sign(w) * kept
        else:
            top = 2 ** (bits - 1) - 1
            step = np.abs(w).max() / top
            out[a.start : a.stop] = np.round(w / step) * step
    return out


@pytest.mark.parametrize("bits", [2, 3, 8, 32])
def test_matrices_are_rounded_and_vectors_are_not(bits):
    got = quantised.rounded_row(TASK, X, bits)
    np.testing.assert_allclose(got, by_hand(X, bits), rtol=1e-5, atol=1e-6)
    traced = jax.jit(lambda b: quantised.rounded_row(TASK, X, b))(jnp.int32(bits))
    np.testing.assert_allclose(traced, got, atol=1e-7)
    if bits == 2:
        for a in layers(TASK):
            if len(a.shape) == 2:
                assert len(np.unique(np.asarray(got[a.start : a.stop]))) == 3
    matrices = 5 * 7 + 7 * 3
    assert float(quantised.model_bits(TASK, bits)) == (32 * TASK.dim if bits == 32 else bits * matrices + 64 + 320)


@pytest.mark.parametrize("bits", [2, 8, 32])
def test_the_gradient_is_that_at_the_rounded_weights(bits):
    few = quantised.quantised(TASK, bits)
    at = lambda task, row: jax.value_and_grad(lambda p: task.loss(p, *BATCH).mean())(task.unravel(row))
    (got, slope), (want, there) = at(few, X), at(TASK, quantised.rounded_row(TASK, X, bits))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), slope, there)
    known = TASK.unravel(jnp.asarray(by_hand(X, bits), jnp.float32))
    np.testing.assert_allclose(
        few.predict(few.unravel(X), BATCH[0]), TASK.predict(known, BATCH[0]), rtol=1e-4, atol=1e-5
    )
    if bits == 32:
        assert got == want
    with pytest.raises(InputError, match="bits is 1"):
        quantised.quantised(TASK, 1)


def test_networks_that_raise_precision_learn_to():
    phi = dequantise.blocks(jax.random.key(1))
    few = quantised.rounded_row(TASK, X, 2)
    np.testing.assert_array_equal(dequantise.dequantised(TASK, phi, few, 2), few)
    tx = optax.adam(3e-3)
    fitted = jax.jit(lambda: dequantise.fit(TASK, phi, tx.init(phi), X, tx, 300, BATCH[0])[0])()
    assert dequantise.loss(TASK, fitted, X, BATCH[0]) < 0.2 * dequantise.loss(TASK, phi, X, BATCH[0])
    raised = dequantise.dequantised(TASK, fitted, few, 2)
    assert jnp.abs(raised - X).sum() < 0.5 * jnp.abs(few - X).sum()
    vectors = ~np.asarray(dequantise.matrices(TASK))
    np.testing.assert_array_equal(np.asarray(raised)[vectors], np.asarray(few)[vectors])
    np.testing.assert_array_equal(dequantise.dequantised(TASK, fitted, X, 32), X)
    eight = dequantise.dequantised(TASK, fitted, few, 8)
    assert not np.array_equal(eight, raised), "fewer blocks from a higher level on"
