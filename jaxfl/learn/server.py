"""Adaptive server optimizers of FedOpt (Reddi et al., ICLR 2021, Algorithm 2) as optax transformations.

They differ from optax's in the paper's details: no bias correction, the second moment starts at `tau^2`, and `tau` is
added outside the root. Any other optax optimizer may serve as a server optimizer too.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxfl.core import Array


class MomentsState(NamedTuple):
    """First and second moment, trees like the parameters."""

    m: optax.Params
    v: optax.Params


def scale_by_moments(second: Callable, b1: float | Array, tau: float | Array) -> optax.GradientTransformation:
    """`m / (sqrt(v) + tau)` with `m <- b1 m + (1 - b1) g` and `v <- second(v, g^2)`, `v_0 = tau^2`."""

    def init(params):
        return MomentsState(optax.tree.zeros_like(params), jax.tree.map(lambda p: jnp.full_like(p, tau**2), params))

    def update(updates, state, params=None):
        del params
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.m, updates)
        v = jax.tree.map(lambda v, g: second(v, g * g), state.v, updates)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + tau), m, v), MomentsState(m, v)

    return optax.GradientTransformation(init, update)


def adagrad_moment() -> Callable:
    """`v + g^2`."""
    return lambda v, square: v + square


def adam_moment(b2: float | Array) -> Callable:
    """`b2 v + (1 - b2) g^2`."""
    return lambda v, square: b2 * v + (1 - b2) * square


def yogi_moment(b2: float | Array) -> Callable:
    """`v - (1 - b2) g^2 sign(v - g^2)`: the step never exceeds `(1 - b2) g^2` (Zaheer et al., NeurIPS 2018)."""
    return lambda v, square: v - (1 - b2) * square * jnp.sign(v - square)
