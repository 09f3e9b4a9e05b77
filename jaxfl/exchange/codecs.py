"""Codecs: what a message becomes on the wire, and how many bits it takes."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax


class Codec(NamedTuple):
    """An optax transformation on one message `[m]` (None: it arrives as it is) and the bits of its encoded form."""

    link: optax.GradientTransformation | None  # init(message) -> memory, update(message, memory) -> (decoded, memory)
    bits: Callable  # (m) -> bits of one message


def plain() -> Codec:
    """Every number as a 32-bit float."""
    return Codec(None, lambda m: 32.0 * m)


def half() -> Codec:
    """Every number rounded to a 16-bit bfloat."""

    def round_off(message, params):
        del params
        return jnp.asarray(message, jnp.bfloat16).astype(jnp.float32)

    return Codec(optax.stateless(round_off), lambda m: 16.0 * m)
