"""How an option is spelt that is a name and numbers of its own behind it: `NAME:KEY=VALUE,KEY=VALUE`. Needs no JAX."""

import math
from collections.abc import Mapping
from typing import Any

from jaxfl.errors import InputError, nearest


def spelt(option: str, what: str, text: str, known: Mapping[str, Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The name in `text`, and what is said behind it.

    Args:
        option: as a field of the setup, for sentences.
        what: what its names are, for sentences.
        text: what was typed.
        known: by name the keys, each with a value as an example of what it takes: a float (0 to 1e38, where the example
            is below 0 from -1e38 on), a whole number (at least 1), words of which one is chosen (a tuple of names), or
            several numbers, as in 0.3/0.7 (a tuple of numbers).

    Raises:
        InputError: another name or key (with the nearest), a key twice, or a value of another kind.
    """
    name, colon, settings = text.partition(":")
    if name not in known:
        raise InputError(f"{option} is {text!r}, but the {what} {name!r} is unknown: {nearest(name, known)}")
    return name, values(option, text, name, settings if colon else None, known[name])


def values(option: str, text: str, name: str, settings: str | None, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `KEY=VALUE,KEY=VALUE`; arguments and errors as in `spelt`, `settings` None where there are none."""
    found: dict[str, Any] = {}
    for setting in () if settings is None else settings.split(","):
        key, _, value = (part.strip() for part in setting.partition("="))
        if key not in keys or key in found:
            raise InputError(f"{option} is {text!r}, but {name} has {', '.join(keys) or 'no number'}, each once.")
        found[key] = _value(f"{option} is {text!r}, but {key}", value, keys[key])
    return found


def _value(says: str, text: str, like: Any) -> Any:
    if isinstance(like, tuple) and isinstance(like[0], str):
        if text not in like:
            raise InputError(f"{says} is {text!r}: {nearest(text, like)}")
        return text
    if isinstance(like, tuple):
        return tuple(_value(says, part, 0.0) for part in text.split("/"))
    if isinstance(like, int):
        if not (text.isascii() and text.isdecimal() and 1 <= int(text[:10]) < 2**31):
            raise InputError(f"{says} must be a whole number of at least 1 and below 2^31.")
        return int(text)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    least = 0 if like >= 0 else -1e38
    if not least <= value <= 1e38:  # kept in float32
        raise InputError(f"{says} must be a finite number of at least {least:g} and at most 1e38.")
    return value
