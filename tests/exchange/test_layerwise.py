"""Mixing layer by layer, against loops in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.errors import InputError
from jaxfl.exchange.layerwise import kinds_of, mix_layers, shared_means

RNG = np.random.default_rng(0)


def test_each_layer_has_a_matrix_of_its_own():
    layer, rows, weight = np.array([0, 2, 1, 0, 2]), RNG.normal(size=(3, 5)), RNG.random((3, 4, 3))
    want = np.stack([[weight[layer[j], i] @ rows[:, j] for j in range(5)] for i in range(4)])
    np.testing.assert_allclose(mix_layers(jnp.asarray(weight), layer, jnp.asarray(rows)), want, rtol=1e-5)


def test_a_broken_row_reaches_only_those_who_hear_it():
    rows = jnp.asarray(RNG.normal(size=(3, 2))).at[1].set(jnp.inf)
    weight = jnp.asarray([[[0.5, 0, 0.5], [0, 1, 0], [0, 0, 1]]])
    got = mix_layers(weight, np.zeros(2, int), rows)
    assert np.isfinite(got[0]).all()
    assert np.isnan(got[1]).all()
    with pytest.raises(InputError, match="weight has 1 matrices"):
        mix_layers(weight, np.array([0, 1]), rows)


def test_means_are_over_those_who_share_and_count():
    share = np.array([[[True, True], [True, True]], [[True, False], [False, False]]])
    kind, count = jnp.asarray([0, 1, 0, 0]), jnp.asarray([1.0, 2.0, 3.0, 0.0])
    got = shared_means(share, kind, count)
    np.testing.assert_allclose(got[0], np.tile([1 / 6, 1 / 3, 1 / 2, 0], (4, 1)), rtol=1e-6)
    np.testing.assert_allclose(got[1], [[0.25, 0, 0.75, 0], [0, 1, 0, 0], [0.25, 0, 0.75, 0], [0.25, 0, 0.75, 0]])
    np.testing.assert_array_equal(kinds_of((4, 1, 4, 2))[1], [2, 0, 2, 1])
