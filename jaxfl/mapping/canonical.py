"""One object for all that are made alike, so that a system built twice is compiled once.

A compiled program is keyed by the identity of its functions, and every call of a constructor makes new ones.
`canonical` gives the first that was made by the same code over the same values. Only closures of libraries are looked
into: code of a user may read names that change between two calls, so a local function of another module is left as it
is, and what holds it too. Numbers are told apart by type and bits, and so are small arrays that cannot change, those of
JAX and NumPy's read-only ones; all other arrays are left as they are. A function is traced `once` for all made alike.
"""

import functools
import threading
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

LIBRARIES = ("jaxfl", "optax", "flax", "jax")  # whose local functions follow from their closures alone
MOST = 2**15  # objects remembered
SMALL = 2**16  # bytes of an array that is looked into
TRACES = 256  # traces remembered; some hundred kilobytes each

_known: dict[Any, Any] = {}
_firsts: dict[int, Any] = {}  # what `_known` holds, by identity: it is not looked into again
_traced: dict[Any, Callable] = {}
_traces: list[None] = []
_lock = threading.Lock()


def canonical(made: Any) -> Any:
    """The first object like `made`: a function, a `partial`, or a tuple of them such as an `Algorithm`."""
    if _is_first(made):
        return made
    try:
        return _first(made, _key(made, {}))
    except (TypeError, ValueError):  # of what cannot be hashed, a user's closure, a cell that is still empty
        return made


def once(f: Callable) -> Callable:
    """`f`, for a program that is being traced: what all made alike do with arguments of some shapes is found out once.

    The program is what it would be with `f` itself. After `TRACES` of them all are forgotten.
    """

    def traced(*args: Any) -> Any:
        _traces.append(None)
        return f(*args)

    made = jax.jit(traced, inline=True)
    try:
        key = _key(f, {})
    except (TypeError, ValueError):
        return made
    with _lock:
        if len(_traces) > TRACES:
            _traces.clear()
            _traced.clear()
        return _traced.setdefault(key, made)


def _first(made: Any, key: Any) -> Any:
    with _lock:
        found = _known.setdefault(key, made)
        _firsts[id(found)] = found
        if len(_known) > MOST:
            _firsts.pop(id(_known.pop(next(iter(_known)))), None)
    return found


def _is_first(made: Any) -> bool:
    return _firsts.get(id(made)) is made is not None


def _key(value: Any, seen: dict) -> Any:
    """Equal for two values only if nothing tells them apart. Raises TypeError where that cannot be said.

    `seen` has the first function like each that was met on the way, and None for those that are being looked into.
    """
    if isinstance(value, FunctionType):
        return _function(value, seen)
    if isinstance(value, MethodType):
        return MethodType, _key(value.__func__, seen), _key(value.__self__, seen)
    if isinstance(value, functools.partial):
        return functools.partial, *(_key(part, seen) for part in (value.func, value.args, value.keywords))
    if isinstance(value, tuple | list):
        return type(value), *(_key(part, seen) for part in value)
    if isinstance(value, dict):
        return dict, *((name, _key(part, seen)) for name, part in value.items())
    if isinstance(value, np.generic):  # before float, of which np.float64 is one
        return type(value), value.tobytes()
    if isinstance(value, float):
        return float, value.hex()  # 0.0 == -0.0, nan != nan
    if isinstance(value, Tracer):
        raise TypeError("a traced value is another one in every trace")
    if isinstance(value, jax.Array | np.ndarray):
        return _bits(value)
    hash(value)
    return type(value), value


def _function(f: FunctionType, seen: dict) -> FunctionType:
    """The first function like `f`."""
    if "<locals>" not in f.__qualname__ or _is_first(f):
        return f
    if f not in seen:
        if (f.__module__ or "").partition(".")[0] not in LIBRARIES:
            raise TypeError(f"{f.__qualname__} may read names that change")
        seen[f] = None
        held = (*(cell.cell_contents for cell in f.__closure__ or ()), f.__defaults__, f.__kwdefaults__)
        seen[f] = _first(f, (id(f.__code__), *(_key(part, seen) for part in held)))
    if seen[f] is None:
        raise TypeError(f"{f.__qualname__} holds itself")
    return seen[f]


def _bits(a: jax.Array | np.ndarray) -> Any:
    """What tells an array from others that cannot change. Raises TypeError of one that can, or is large or far."""
    here = not a.flags.writeable if isinstance(a, np.ndarray) else a.is_fully_addressable and not a.is_deleted()
    if not here or a.nbytes > SMALL:
        raise TypeError("this array is left as it is")
    return type(a), a.shape, a.dtype, getattr(a, "weak_type", False), np.asarray(a).tobytes()
