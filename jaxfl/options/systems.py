"""Options of single systems: what `--set` and `--grid` say, and the settings of `NAME:KEY=VALUE,KEY=VALUE`.

A system with settings goes under this whole label in a comparison, beside the same system with others.
"""

import dataclasses
import inspect
import math
import typing
from collections.abc import Callable, Hashable, Sequence
from types import NoneType
from typing import Any, NamedTuple

from jaxfl import plugins, zoo
from jaxfl.core import Algorithm, Array
from jaxfl.errors import InputError
from jaxfl.options.config import Setup, unknown

COUNTS = ("steps", "epochs", "batch")  # what the workhorses take beside their own options


class Option(NamedTuple):
    """An option of a system that a command line can give."""

    default: Any
    kinds: frozenset  # the types it may have; with `Array` among them it may be traced


def takes(make: Callable) -> dict[str, Option]:
    """The options a system takes, by name: those that are numbers, names or true and false.

    Where it hands on further ones (`**kw`) they are those of the systems it calls, be it by a private helper, but for
    those it gives these itself.
    """
    parameters = inspect.signature(make).parameters.values()
    own = {
        p.name: Option(p.default, _kinds(p)) for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    }
    if make.__name__.startswith("_") or any(p.kind is p.VAR_KEYWORD for p in parameters):
        code = make.__code__
        given = {c for const in code.co_consts for c in (const if isinstance(const, tuple) else (const,))}
        for inner in (make.__globals__.get(name) for name in code.co_names):
            if inspect.isfunction(inner) and inner.__annotations__.get("return") is Algorithm:
                own = {name: option for name, option in takes(inner).items() if name not in given} | own
    return {
        name: option
        for name, option in own.items()
        if option.kinds & {int, float, bool, str} and option.default is not inspect.Parameter.empty
    }


def _kinds(parameter: inspect.Parameter) -> frozenset:
    """The types in a parameter's annotation; without one a number may be traced."""
    hint = parameter.annotation
    if hint is not parameter.empty:
        return frozenset(a for a in typing.get_args(hint) or (hint,) if isinstance(a, Hashable))  # no list of arguments
    kind = type(parameter.default)
    return frozenset({float, NoneType, Array} if kind in (float, NoneType) else {kind})


def accepted(make: Callable) -> dict[str, Any]:
    """The options a system takes, by name, with their defaults."""
    return {name: option.default for name, option in takes(make).items()}


def own_options(setup: Setup, systems: Sequence[str], earlier: tuple[Sequence[str], Setup] | None) -> Setup:
    """The setup without what an earlier run's `--set` said of systems that do not run now.

    Args:
        setup: its `options`.
        systems: those that run.
        earlier: the systems and the setup of the config a run began with, if any.
    """
    if earlier is None:
        return setup
    there, given = [label_of(name) for name in earlier[0]], earlier[1].options

    def stays(option: str) -> bool:
        return option not in given or _heard_by(option, systems) or not _heard_by(option, there)

    return dataclasses.replace(setup, options=tuple(filter(stays, setup.options)))


def label_of(typed: str) -> str:
    """The name under which a system goes from here on, `zoo.adopt`, with its settings."""
    name, settings = plugins.split(typed)
    return plugins.join(zoo.adopt(name), settings)


def takes_of(label: str) -> dict[str, Option]:
    """What the system of a label takes."""
    return takes(zoo.find(plugins.split(label)[0]).make)


def settings_of(label: str) -> dict[str, Any]:
    """The settings in a label.

    Raises:
        InputError: not `KEY=VALUE`, a key twice or that the system has not (with the nearest), a value of another type.
    """
    known, found, settings = takes_of(label), {}, plugins.split(label)[1]
    for setting in settings.split(",") if settings else ():
        key, _, value = (part.strip() for part in setting.partition("="))
        if not (key and value) or key in found:
            raise InputError(f"system is {label!r}, but must read NAME:KEY=VALUE,KEY=VALUE, each key once.")
        if key not in known:
            raise unknown(f"system is {label!r}: option", key, known)
        found[key] = _value(f"system is {label!r}", key, value, known[key])
    return found


def _heard_by(option: str, systems: Sequence[str]) -> bool:
    """Whether one of the `systems` takes what `--set` says, and has no setting of its own for it."""
    system, dot, key = option.partition("=")[0].strip().rpartition(".")
    who = [label for label in systems if not dot or plugins.split(label)[0] == plugins.spelt(system)]
    return any(key in takes_of(label) and key not in settings_of(label) for label in who)


def system_options(setup: Setup, systems: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What `--set` and settings say, by the system's label.

    An option of one system outweighs the same option of all, a later an earlier one, and a setting both.

    Raises:
        InputError: not `key=value`, a key no system of the run has (with the nearest) or that all set themselves, a
            value of another type.
    """
    known, own = {name: takes_of(name) for name in systems}, {name: settings_of(name) for name in systems}
    found: dict[str, dict[str, Any]] = {name: {} for name in systems}
    for option in sorted(setup.options, key=lambda o: "." in o.partition("=")[0]):
        path, _, value = (part.strip() for part in option.partition("="))
        system, dot, key = path.rpartition(".")
        system = plugins.spelt(system)
        if not (key and value):
            raise InputError(f"set is {option!r}, but must read KEY=VALUE or SYSTEM.KEY=VALUE.")
        names = [plugins.split(label)[0] for label in known]
        if dot and system not in names:
            raise unknown(f"set is {option!r}: system", system, names)
        who = [label for label, name in zip(known, names, strict=True) if not dot or name == system]
        keys = sorted({k for name in who for k in known[name]})
        if key not in keys:
            raise unknown(f"set is {option!r}: option", key, keys)
        if not _heard_by(option, systems):
            raise InputError(f"set is {option!r}, but {' and '.join(who)} gives its own {key}.")
        for name in who:
            if key in known[name]:
                found[name][key] = _value(f"set is {option!r}", key, value, known[name][key])
    return {name: found[name] | own[name] for name in systems}


def _value(says: str, key: str, written: str, known: Option) -> Any:
    """The value of an option, of one of its types; `says` begins the sentence if it is of another one."""
    value: Any = {"true": True, "false": False, "none": None}.get(written.lower(), written)
    for kind in (float, int):
        if isinstance(value, str | float):
            try:
                value = kind(written)
            except ValueError:
                continue
    if key == "batch" and value == 0:
        value = None
    least, kinds = int(key in COUNTS), known.kinds
    if value is None:
        good, allowed = known.default is None or key == "batch", "a number"
    elif str in kinds:
        good, allowed = isinstance(value, str), "a name"
    elif bool in kinds:
        good, allowed = isinstance(value, bool), "true or false"
    elif float in kinds:
        good, allowed = type(value) in (int, float) and math.isfinite(value), "a finite number"
    else:
        good, allowed = type(value) is int and least <= value < 2**31, f"a whole number of at least {least}, below 2^31"
    if not good:
        raise InputError(f"{says}, but {key} must be {allowed}.")
    return value


def grid_values(name: str, options: Sequence[str]) -> dict[str, list[float]]:
    """What `--grid KEY=V,V` says: the values to try by option of the system, ascending.

    Raises:
        InputError: none, not `key=value,value`, an option the system has not, one that shapes the program (a count).
    """
    known, found = takes(zoo.find(name).make), {}
    if not options:
        raise InputError("grid is missing: sweep needs numbers to try, such as --grid lr=0.03,0.1,0.3.")
    for option in options:
        key, _, written = (part.strip() for part in option.partition("="))
        if key not in known:
            raise unknown(f"grid is {option!r}: option", key, known)
        if key in found:
            raise InputError(f"grid has {key} twice, but all its values go into one --grid {key}=V,V,...")
        if Array not in known[key].kinds:
            raise InputError(f"grid is {option!r}, but {key} shapes the program: numbers such as lr can be swept.")
        try:
            values = sorted({float(v) for v in written.split(",")})
        except ValueError:
            raise InputError(f"grid is {option!r}, but must read KEY=NUMBER,NUMBER,...") from None
        if not all(map(math.isfinite, values)):
            raise InputError(f"grid is {option!r}, but numbers must be finite.")
        found[key] = values
    return found
