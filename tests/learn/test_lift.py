"""Lifts compute the same function, and what was lifted comes back."""

import functools

import jax
import numpy as np
import pytest

from jaxfl.errors import InputError
from jaxfl.learn import lift
from jaxfl.learn.layers import layers
from jaxfl.learn.task import classification
from jaxfl.models.networks import CNN, MLP

X = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)


def chain(*sizes):
    return classification(functools.partial(MLP, sizes), X[:1])


def drawn(task, key=0):
    """A row with biases that are not zero."""
    return task.init(jax.random.key(key)) + 0.1 * jax.random.normal(jax.random.key(key + 1), (task.dim,))


def says(task, row):
    return np.asarray(task.predict(task.unravel(row), X))


SMALL = chain(5, 4, 4, 3)
ROW = drawn(SMALL)


@pytest.mark.parametrize("kept", [(0, 1, 4), (0, 3, 4), (0, 1, 2)])
def test_identity_layers_change_no_output(kept):
    deep = chain(5, *[4] * (max(kept)), 3) if kept[-1] == 2 else chain(5, 4, 4, 4, 4, 3)
    up = lift.deeper(SMALL, ROW, deep, kept)
    np.testing.assert_allclose(says(deep, up), says(SMALL, ROW), atol=1e-6)
    np.testing.assert_array_equal(lift.shallower(deep, up, SMALL, kept), ROW)


@pytest.mark.parametrize("copies", [None, ((0, 1, 2, 3, 1, 1), (3, 2, 1, 0, 0))])
def test_copied_units_and_zeros_change_no_output(copies):
    wide = chain(5, 6, 5, 3)
    up = lift.wider(SMALL, ROW, wide, copies)
    np.testing.assert_allclose(says(wide, up), says(SMALL, ROW), atol=2e-6)
    if copies is None:
        np.testing.assert_array_equal(lift.narrower(wide, up, SMALL), ROW)
    else:  # in the first layer a copy is the unit itself; what reads it has a share
        first = next(a for a in layers(wide) if a.path == "layers/0/kernel")
        kernel = np.asarray(up[first.start : first.stop]).reshape(first.shape)
        np.testing.assert_array_equal(kernel[:, 4], kernel[:, 1])


def test_a_mean_of_lifted_models_is_that_of_their_units():
    """One list of copies for all: the mean of two lifted models is the lift of their mean."""
    wide, copies, other = chain(5, 6, 5, 3), ((0, 1, 2, 3, 1, 1), (3, 2, 1, 0, 0)), drawn(SMALL, 5)
    mean = (lift.wider(SMALL, ROW, wide, copies) + lift.wider(SMALL, other, wide, copies)) / 2
    np.testing.assert_allclose(mean, lift.wider(SMALL, (ROW + other) / 2, wide, copies), atol=1e-6)


def test_the_identity_of_a_convolution_is_its_middle():
    task = classification(functools.partial(CNN, (4, 4, 2), 3, widths=(2, 2)), np.zeros((1, 32), np.float32))
    row = lift.identity(task, "conv1/*")
    tree = task.unravel(jax.numpy.asarray(row))
    kernel = np.asarray(tree["conv1"]["kernel"])
    assert kernel.sum() == 2
    np.testing.assert_array_equal(kernel[1, 1], np.eye(2))
    assert row.sum() == 2


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: lift.identity(SMALL, "layers/0/*"), "only a square kernel"),
        (lambda: lift.deeper(SMALL, ROW, chain(5, 4, 4, 4, 3), (0, 2, 1)), "3 ascending numbers below 4"),
        (lambda: lift.deeper(SMALL, ROW, chain(5, 5, 5, 5, 3), (0, 1, 3)), "shapes must be equal"),
        (lambda: lift.wider(SMALL, ROW, chain(5, 3, 5, 3)), "as wide or wider"),
        (lambda: lift.wider(SMALL, ROW, chain(5, 4, 4, 4)), "same inputs and outputs"),
        (lambda: lift.wider(SMALL, ROW, chain(5, 5, 5, 3), ((0, 1, 2, 3, 0), (0, 1, 2, 2, 2))), "each of 4 units"),
        (lambda: lift.wider(SMALL, ROW, chain(5, 5, 5, 3), ((0, 1, 2, 3, 0),)), "copies has 1 entries"),
    ],
)
def test_what_is_no_lift_is_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()
