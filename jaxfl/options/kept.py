"""The TOML file that keeps what a run was asked for, `config.toml`, and what of it decides numbers. Needs no JAX."""

import dataclasses
import textwrap
import tomllib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxfl import plugins
from jaxfl.errors import InputError
from jaxfl.options.config import Setup, unknown
from jaxfl.options.files import config_text, dump, file_ending

OWN = {"command": str, "grid": tuple[str, ...], "score": str}  # what a config keeps that is no option of a world


def saved(command: str, systems: Sequence[str], setup: Setup, filled: Setup, **own: Any) -> str:
    """The text of `config.toml`: the setup as it was given, and as a comment what defaults stood for.

    `own` is what the command has beside them, of `OWN`. The run folder is left out, as a second run goes to another.
    Files of a user are named from the root on, and `files` holds what they were: their SHA-256.
    """
    named = (*plugins.GROUPS, "topology", "trace", "availability", "links")
    places = {name: plugins.absolute(v) for name in named if (v := getattr(setup, name, None)) is not None}
    systems = [plugins.absolute(name) for name in systems]
    found = dict.fromkeys(filter(None, map(plugins.file_of, (*systems, *places.values()))))
    if file_ending(setup.data) is not None:
        places["data"] = str(Path(setup.data).resolve())
        found[Path(places["data"])] = None
    files = [f"{plugins.fingerprint(file)} {file}" for file in found]
    given, full = dataclasses.asdict(setup) | {"out": None} | places, dataclasses.asdict(filled)
    stood = {name: full[name] for name, value in given.items() if value is None and name != "out"}
    comment = "".join(f"# {line}\n" for line in dump(stood).splitlines())
    return dump({"command": command, "systems": systems, **own, "files": files or None} | given) + comment


def deciding(command: str, systems: Sequence[str], setup: Setup, **own: Any) -> dict[str, Any]:
    """The options that decide numbers, by name, as `config.toml` has them; of a path from the root the last part."""

    def last(value: Any) -> Any:
        if isinstance(value, list):
            return [last(one) for one in value]
        return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value

    values = tomllib.loads(saved(command, systems, setup, setup, **own))
    others = ("files", "data_folder", "checkpoints", "devices")
    return {name: last(value) for name, value in values.items() if name not in others}


def load(path: str | Path) -> tuple[list[str], Setup]:
    """Systems and setup of a `config.toml`.

    Raises:
        InputError: no such file, not TOML, an unknown key (with the nearest ones) or a value of another type.
    """
    try:
        values = tomllib.loads(config_text(Path(path)))
    except OSError as error:
        raise InputError(f"config: {path} cannot be read ({error.strerror}).") from error
    except RecursionError as error:
        raise InputError(f"config: {path} is not a config, but lists in lists.") from error
    except InputError:
        raise
    except ValueError as error:  # of TOML, of UTF-8, of a number with thousands of digits, of a name with NUL
        raise InputError(f"config: {str(path)!r} is not a TOML file ({str(error).splitlines()[0]}).") from error
    hints = typing.get_type_hints(Setup) | OWN | dict.fromkeys(("systems", "files"), tuple[str, ...])
    for name, value in values.items():
        if name not in hints:
            raise unknown(f"config: key of {path}", name, hints)
        if not _fits(value, hints[name]):
            says = textwrap.shorten(repr(value), 100, placeholder=" ...")
            raise InputError(f"config: {name} in {path} is {says}, which is of another type than that option.")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        values |= {k: float(v) for k, v in values.items() if type(v) is int and float in _kinds(hints[k])}
    except OverflowError:
        raise InputError(f"config: {path} has a number above 10^308.") from None
    values = {k: v for k, v in values.items() if k not in OWN}
    for mark, file in (line.split(" ", 1) for line in values.pop("files", ()) if " " in line):
        if plugins.fingerprint(Path(file)) != mark:
            raise InputError(f"config: {file} is not the file that {path} was written with; name it anew.")
    return list(values.pop("systems", ())), Setup(**values)


def own(path: str | Path) -> dict[str, Any]:
    """What a `config.toml` that `load` takes has of `OWN`."""
    values = tomllib.loads(config_text(Path(path)))
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if name in OWN}


def _fits(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is tuple:
        return isinstance(value, list) and all(isinstance(v, str) for v in value)
    if isinstance(value, bool):
        return bool in _kinds(hint)
    return isinstance(value, _kinds(hint)) or (isinstance(value, int) and float in _kinds(hint))


def _kinds(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) or (hint,)
