"""What is said of bad input, in one sentence. Needs no JAX."""

import difflib
import operator
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """A bad argument. The message is one sentence: the argument, its value, what is allowed."""


def require(name: str, value: Any, *, above=None, least=None, below=None, most=None) -> None:
    """Raise `InputError` for a str or a Python number outside its range; traced values, schedules and None pass."""
    if isinstance(value, str):
        raise InputError(f"{name} is {value!r}, but must be a number.")
    if not isinstance(value, int | float):
        return
    bounds = (
        (above, "above", operator.gt),
        (least, "at least", operator.ge),
        (below, "below", operator.lt),
        (most, "at most", operator.le),
    )
    limits = [(word, bound, holds(value, bound)) for bound, word, holds in bounds if bound is not None]
    if not all(holds for *_, holds in limits):
        raise InputError(f"{name} is {value}, but must be {' and '.join(f'{w} {b}' for w, b, _ in limits)}.")


def require_rows(name: str, a: Any, n: int) -> None:
    """Raise `InputError` for an array that is not `[n, m]`."""
    if a.ndim != 2 or a.shape[0] != n:
        raise InputError(f"{name} has shape {list(a.shape)}, but must be [{n}, m]: one row each.")


def nearest(name: str, known: Iterable[str]) -> str:
    """What to say beside an unknown name: the nearest of the `known`, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known) or 'none'}."
