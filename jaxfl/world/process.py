"""Parts of the world: how a `core.Process` is made."""

from collections.abc import Callable

from jaxfl.core import Array, Process, Tree
from jaxfl.mapping.canonical import canonical


def _nothing(key: Array, arrays: Tree) -> tuple:
    return ()


def process(step: Callable, arrays: Tree = (), init: Callable = _nothing) -> Process:
    """A `Process`, without state unless `init` is given. `step` should close over nothing but numbers and functions."""
    return Process(canonical(init), canonical(step), arrays)
