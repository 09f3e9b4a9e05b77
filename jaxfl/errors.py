"""What is said of bad input, in one sentence. Needs no JAX."""

import difflib
import math
import operator
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """A bad argument. The message is one sentence: the argument, its value, what is allowed."""


def require(
    name: str, value: Any, *, above=None, least=None, below=None, most=None, whole: bool = False, none: bool = False
) -> None:
    """Raise `InputError` for what is no number, not `whole`, NaN, or outside its range; inf passes where `most` is inf.

    Numbers are those of Python, NumPy and JAX; of an array all must be sound. None passes where `none` says so, a
    schedule (any function) unless a whole number is asked for, and a traced value always, as nobody knows it.
    """
    if (value is None and none) or (callable(value) and not whole and not hasattr(value, "shape")):
        return
    bounds = (
        (above, "above", operator.gt),
        (least, "at least", operator.ge),
        (below, "below", operator.lt),
        (most, "at most", operator.le),
    )
    limits = [(word, bound, holds) for bound, word, holds in bounds if bound is not None]
    allowed = " and ".join(f"{word} {bound}" for word, bound, _ in limits if bound != math.inf)
    kind = " ".join([f"a {'whole ' * whole}number", *["of"] * allowed.startswith("at"), *[allowed] * bool(allowed)])
    each = _numbers(value)
    if each is None:
        return
    for v in each:
        if type(v) is not int and (whole or type(v) is not float):
            raise InputError(f"{name} is {v if type(v) is float else _short(value)}, but must be {kind}.")
        if type(v) is float and (math.isnan(v) or (math.isinf(v) and most != math.inf)):
            raise InputError(f"{name} is {v}, but must be {' and '.join(['finite', *[allowed] * bool(allowed)])}.")
        if not all(holds(v, bound) for _, bound, holds in limits):
            raise InputError(f"{name} is {v}, but must be {allowed}.")


def _numbers(value: Any) -> list | None:
    """The numbers of an array or a scalar of NumPy or JAX, as those of Python; the value alone if it is none of them,
    None if it is traced.
    """
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        return [value]
    import numpy as np

    try:
        a = np.asarray(value)
    except (TypeError, RuntimeError):  # traced, or on the devices of other processes
        return None
    return np.ravel(a.astype(np.float64) if a.dtype.kind == "V" else a).tolist()


def _short(value: Any) -> str:
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 60 else f"{text[:57]}..."


def require_rows(name: str, a: Any, n: int) -> None:
    """Raise `InputError` for an array that is not `[n, m]`."""
    if a.ndim != 2 or a.shape[0] != n:
        raise InputError(f"{name} has shape {list(a.shape)}, but must be [{n}, m]: one row each.")


def nearest(name: str, known: Iterable[str]) -> str:
    """What to say beside an unknown name: the nearest of the `known`, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known) or 'none'}."
