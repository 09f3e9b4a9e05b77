"""Random numbers whose small values are as exact as their large ones."""

import jax
import jax.numpy as jnp

from jaxfl.core import Array


def uniform(key: Array, shape: tuple[int, ...] = ()) -> Array:
    """Uniform on (0, 1], float32: `P(u < p) = p` to rounding for any p from 1e-18 up.

    `jax.random.uniform` has a grain of 2^-23, so that what should happen once in 1e9 draws happens 119 times.
    """
    high, low = jax.random.bits(key, (2, *shape), jnp.uint32)
    return _fraction(high, low)


def tail(key: Array, shape: tuple[int, ...] = ()) -> tuple[Array, Array]:
    """A uniform number as its distance on (0, 1/2] from the nearer end of (0, 1), and whether that end is 1 (bool)."""
    high, low = jax.random.bits(key, (2, *shape), jnp.uint32)
    return high & 1 == 1, _fraction(high >> 1, low)


def exponential(key: Array, shape: tuple[int, ...] = ()) -> Array:
    """Exponential draws of mean 1, float32: exact to rounding from 1e-18 up, and up to 44, never 0.

    `-log1p(-u)` of `jax.random.exponential` has a grain of 2^-23 and ends at 16.
    """
    late, u = tail(key, shape)
    return jnp.where(late, -jnp.log(u), -jnp.log1p(-u))


def _fraction(high: Array, low: Array) -> Array:
    """Two words as one fraction, never 0: where the first is small, the second fills the mantissa."""
    return high.astype(jnp.float32) * 2.0**-32 + low.astype(jnp.float32) * 2.0**-64 + 2.0**-65
