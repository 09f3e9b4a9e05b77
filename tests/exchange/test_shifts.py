"""Mixing by shifts on one device: rows are overwritten block by block, and are the matrix times those before."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.exchange import shifts
from jaxfl.exchange.mix import mix
from jaxfl.mapping.blocks import block_of
from jaxfl.world import graph, mixing

CIRCLES = {"ring": (23, [1, 22]), "far": (31, [1, 2, 25, 29]), "ahead": (17, [1, 3]), "behind": (17, [16])}


def circle(n, hears):
    """Who sits so many places on is heard, with weights of all kinds."""
    found = graph.circulant(n, hears)
    return dataclasses.replace(
        found, weight=jnp.asarray(np.random.default_rng(1).uniform(0.1, 0.3, found.nbr.shape), "f")
    )


def matrix(found):
    n, made = len(found.nbr), np.zeros((len(found.nbr),) * 2)
    np.add.at(made, (np.arange(n)[:, None], np.asarray(found.nbr)), np.asarray(found.weight, np.float64))
    np.fill_diagonal(made, made.diagonal() + 1 - np.asarray(found.weight, np.float64).sum(1))
    return made


@pytest.mark.parametrize("block", [1, 2, 7, None])
@pytest.mark.parametrize("name", CIRCLES)
def test_blocks_are_the_matrix(name, block, monkeypatch):
    """Of one's own rows and of others beside them, of unequal weights; NaN reaches those who hear it alone."""
    monkeypatch.setattr(shifts, "WIDE", 1)
    found = circle(*CIRCLES[name])
    assert found.shifts is not None
    n, want = len(found.nbr), matrix(found)
    x, sent = np.random.default_rng(0).normal(size=(2, n, 5)).astype("f")
    with block_of(block):
        np.testing.assert_allclose(jax.jit(lambda x: mix(found, x, x))(x), want @ x, atol=1e-6)
        apart = jax.jit(lambda x, sent: mix(found, x, sent))(x, sent)
        spoilt = x.copy()
        spoilt[3, 2] = np.nan
        reached = np.isnan(jax.jit(lambda x: mix(found, x, x))(spoilt)).any(1)
    np.testing.assert_allclose(apart, np.diag(want)[:, None] * x + (want - np.diag(np.diag(want))) @ sent, atol=1e-6)
    np.testing.assert_array_equal(reached, want[:, 3] != 0)


def test_there_is_one_copy_of_the_rows():
    """In a loop over rounds: neither the mixed rows nor those read need a second state."""
    found, x = mixing.metropolis(graph.ring(64)), jnp.ones((64, 2**12))
    rounds = lambda x: jax.lax.scan(lambda x, _: (mix(found, x, x), None), x, length=3)[0]
    with block_of(4):
        program = jax.jit(rounds, donate_argnums=0).lower(x).compile()
    assert program.memory_analysis().temp_size_in_bytes < 0.4 * x.nbytes


def test_the_gradient_does_not_depend_on_blocks():
    found, x = circle(23, [1, 22]), jnp.linspace(0, 1, 69).reshape(23, 3)
    slopes = []
    for block in (None, 2):
        with block_of(block):
            slopes.append(jax.jit(jax.grad(lambda x: (mix(found, x, x) ** 3).sum()))(x))
    np.testing.assert_allclose(slopes[1], slopes[0], rtol=1e-5)
    np.testing.assert_allclose(slopes[0], matrix(found).T @ (3 * (matrix(found) @ x) ** 2), rtol=1e-4)
