"""What decides the numbers of a run, so that a checkpoint is not gone on from as another one.

Numbers and words are kept as they are, to be named where they differ. Of functions and arrays a fingerprint is kept:
the code of a function, or of those of a library its name, with all it holds (rates, steps, codecs, tasks); types,
shapes and bits of arrays. Other objects count by their class alone.
"""

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from types import CodeType, FunctionType, MethodType
from typing import Any

import jax
import numpy as np

from jaxfl.core import is_key
from jaxfl.errors import InputError
from jaxfl.mapping.canonical import LIBRARIES

PACKAGES = ("jaxfl", "jax", "jaxlib", "optax", "flax", "numpy")
SETTINGS = ("jax_enable_x64", "jax_default_prng_impl", "jax_threefry_partitionable", "jax_default_matmul_precision")


def versions() -> dict[str, str]:
    """Python and the packages whose other versions may give other numbers."""
    python = ".".join(map(str, sys.version_info[:2]))
    return {"python": python} | {name: version(name) for name in PACKAGES}


def settings() -> dict[str, Any]:
    """The settings of JAX that change numbers."""
    return {name: getattr(jax.config, name) for name in SETTINGS}


def of_run(labels: Sequence[Mapping], hyper: Mapping | None, origin: Mapping | None, **parts: Any) -> dict[str, Any]:
    """What decides a run, by name, in words of JSON.

    Args:
        labels: the runs' seeds and swept values.
        hyper: numbers that are not swept.
        origin: what else is known of the run, words and numbers.
        parts: `algorithm`, `world`, ...: functions, arrays and trees of them.
    """
    fixed = {name: float(v) for name, v in (hyper or {}).items() if np.ndim(v) == 0}
    swept = [name for name in labels[0] if name != "seed"]
    known = {"seeds": sorted({label["seed"] for label in labels})} | fixed
    known |= {name: list(dict.fromkeys(label[name] for label in labels)) for name in swept}
    return {
        "origin": dict(origin or {}),
        "given": known | settings(),
        "runs": fingerprint([list(label.values()) for label in labels]),
        **{f"the {name}": fingerprint(part) for name, part in parts.items()},
    }


def compare(where: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise InputError, which says what, where a checkpoint is of another run than the one that goes on.

    Args:
        where: the checkpoint, for the sentence.
        then: `of_run` when it was written.
        now: that of the run which goes on.
    """
    of_another = f"resume: {where} is of another run"
    for part in ("origin", "given"):
        before, after = then.get(part, {}), now.get(part, {})
        for name in {**before, **after}:
            old, new = before.get(name), after.get(name)
            if old != new:
                raise InputError(f"{of_another}: {name} was {_shown(old)} there, and is {_shown(new)} here.")
    for name in {**then, **now}:
        if then.get(name) != now.get(name):
            raise InputError(f"{of_another}: {name} {'are' if name.endswith('s') else 'is'} not the same.")


def _shown(value: Any) -> str:
    return "nothing" if value is None else str(value)[:60]


def fingerprint(value: Any) -> str:
    """16 digits that are others where what is known of `value` is another."""
    return _digest(value, (), {}).hex()[:16]


def _digest(value: Any, around: tuple, seen: dict[int, tuple]) -> bytes:
    """Of one value and what it holds; some hold themselves, or what others hold too."""
    if any(value is one for one in around):
        return b"around"
    if id(value) not in seen:
        says, holds = _parts(value)
        hashed = hashlib.sha256(repr(says).encode())
        if isinstance(value, jax.Array | np.ndarray | np.generic):
            hashed.update(_bits(value))
        for one in holds:
            hashed.update(_digest(one, (*around, value), seen))
        seen[id(value)] = hashed.digest(), value  # which lives as long as its number is known
    return seen[id(value)][0]


def _parts(value: Any) -> tuple[tuple, Sequence]:
    """What is said of a value itself, and what it holds."""
    kind = type(value)
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return ("array", str(value.dtype), value.shape), ()
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return (kind.__name__, value), ()
    if isinstance(value, FunctionType):
        library = (value.__module__ or "").partition(".")[0] in LIBRARIES
        held = [_content(cell) for cell in value.__closure__ or ()]
        code = None if library else value.__code__
        return (value.__module__, value.__qualname__), (code, held, value.__defaults__, value.__kwdefaults__)
    if isinstance(value, CodeType):
        return (value.co_name, value.co_names, value.co_code), value.co_consts
    if isinstance(value, functools.partial):
        return ("partial",), (value.func, value.args, value.keywords)
    if isinstance(value, MethodType):
        return ("method",), (value.__func__, value.__self__)
    if isinstance(value, tuple | list):
        return (kind.__name__, len(value)), value
    if isinstance(value, dict):
        return ("dict", list(map(str, value))), list(value.values())
    if isinstance(value, type):
        return ("class", value.__module__, value.__qualname__), ()
    if dataclasses.is_dataclass(value):
        holds = [getattr(value, field.name, None) for field in dataclasses.fields(value) if field.repr]
        return (kind.__module__, kind.__qualname__), holds
    if callable(getattr(value, "__wrapped__", None)):  # what `jax.jit` and `functools.cache` make of a function
        return ("wrapped",), (value.__wrapped__,)
    return (kind.__module__, kind.__qualname__), ()


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # still empty
        return None


def _bits(a: Any) -> bytes | memoryview:
    """The bits of an array; nothing of one that lives in other processes too, or of Python's objects."""
    if not getattr(a, "is_fully_addressable", True) or a.dtype == object:
        return b""
    host = np.asarray(jax.random.key_data(a) if is_key(a) else a)
    return np.ascontiguousarray(host).reshape(-1).view(np.uint8).data
