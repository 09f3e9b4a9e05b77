"""Parts of the world: how a `core.Process` is made, and what it yields."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxfl.core import Array, Process, Tree
from jaxfl.mapping.canonical import canonical, once


def _nothing(key: Array, arrays: Tree) -> tuple:
    return ()


def process(step: Callable, arrays: Tree = (), init: Callable = _nothing) -> Process:
    """A `Process`, without state unless `init` is given. `step` should close over nothing but numbers and functions."""
    return Process(canonical(init), canonical(step), arrays)


def yielded(process: Process) -> Any:
    """Shapes of what a process yields, without running it."""
    init, step, arrays = process

    def first(key: Array, arrays: Tree) -> Any:
        return once(step)(key, arrays, once(init)(key, arrays), jnp.int32(0))[1]

    return jax.eval_shape(first, jax.random.key(0), arrays)
