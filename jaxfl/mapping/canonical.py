"""One object for all that are made alike, so that a system built twice is compiled once.

A compiled program is keyed by the identity of its functions, and every call of a constructor makes new ones.
`canonical` gives the first that was made by the same code over the same values. Only closures of libraries are looked
into: code of a user may read names that change between two calls, so a local function of another module is left as it
is, and what holds it too. Numbers are told apart by type and bits, arrays are left as they are.
"""

import functools
import threading
from types import FunctionType, MethodType
from typing import Any

import numpy as np
from jax.core import Tracer

LIBRARIES = ("jaxfl", "optax", "flax", "jax")  # whose local functions follow from their closures alone
MOST = 4096  # objects remembered

_known: dict[Any, Any] = {}
_lock = threading.Lock()


def canonical(made: Any) -> Any:
    """The first object like `made`: a function, a `partial`, or a tuple of them such as an `Algorithm`."""
    try:
        key = _key(made, ())
    except (TypeError, ValueError):  # of what cannot be hashed, a user's closure, a cell that is still empty
        return made
    with _lock:
        found = _known.setdefault(key, made)
        if len(_known) > MOST:
            del _known[next(iter(_known))]
    return found


def _key(value: Any, inside: tuple) -> Any:
    """Equal for two values only if nothing tells them apart. Raises TypeError where that cannot be said."""
    if isinstance(value, FunctionType):
        return _function(value, inside)
    if isinstance(value, MethodType):
        return MethodType, _key(value.__func__, inside), _key(value.__self__, inside)
    if isinstance(value, functools.partial):
        return functools.partial, *(_key(part, inside) for part in (value.func, value.args, value.keywords))
    if isinstance(value, tuple | list):
        return type(value), *(_key(part, inside) for part in value)
    if isinstance(value, dict):
        return dict, *((name, _key(part, inside)) for name, part in value.items())
    if isinstance(value, np.generic):  # before float, of which np.float64 is one
        return type(value), value.tobytes()
    if isinstance(value, float):
        return float, value.hex()  # 0.0 == -0.0, nan != nan
    if isinstance(value, Tracer):
        raise TypeError("a traced value is another one in every trace")
    hash(value)
    return type(value), value


def _function(f: FunctionType, inside: tuple) -> Any:
    if "<locals>" not in f.__qualname__:
        return f
    if (f.__module__ or "").partition(".")[0] not in LIBRARIES or f in inside:
        raise TypeError(f"{f.__qualname__} may read names that change, or itself")
    held = (*(cell.cell_contents for cell in f.__closure__ or ()), f.__defaults__, f.__kwdefaults__)
    return id(f.__code__), *(_key(part, (*inside, f)) for part in held)
