"""What `--data` names: a data set of the package, a user's file, or a place of code; a config's text. Needs no JAX."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxfl import plugins
from jaxfl.errors import InputError

DATA = ("mnist5k", "digits", "fashion", "shakespeare", "topics", "smartwatch", "synthetic")
# Options that only some files of data read, by their endings; "" is a folder of images.
TABLES = (".csv", ".parquet")
FILES = (".npz", *TABLES)
READ_BY_FILES = dict.fromkeys(("target", "client_column", "features"), TABLES) | {"task": FILES, "image_size": ("",)}


LARGEST = 2**20  # bytes of a config


def config_text(path: Path) -> str:
    """What a config says. Raises InputError for what is no file of that size: a folder, a pipe, a device."""
    if path.exists() and not (path.is_file() and path.stat().st_size <= LARGEST):
        raise InputError(f"config: {path} is not a TOML file of at most {LARGEST:,} bytes.")
    return path.read_text(encoding="utf-8")


def dump(values: Mapping[str, Any]) -> str:
    """TOML of strings, numbers, bools and lists of strings; None is left out. Raises `InputError` for other types."""

    def text(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, int | float):
            return repr(value)
        if isinstance(value, str):
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        if isinstance(value, list | tuple):
            return f"[{', '.join(map(text, value))}]"
        raise InputError(f"{value!r} cannot be written as TOML: strings, numbers, bools and lists can.")

    return "".join(f"{name} = {text(value)}\n" for name, value in values.items() if value is not None)


def file_ending(name: str) -> str | None:
    """The ending of a data file of a user, small, "" of a folder; None for the names of data sets and their places."""
    if name in DATA or plugins.is_place(name) or plugins.spelt(name) in plugins.known("data"):
        return None
    ending = Path(name).suffix.lower()
    return "" if Path(name).is_dir() else ending if ending in FILES else None


def check_files(setup: Any) -> None:
    """Raise `InputError` for options that data of this name or file does not read."""
    ending, path = file_ending(setup.data), Path(setup.data)
    if ending is None and path.name != setup.data and not plugins.is_place(setup.data):
        raise InputError(f"data is {path}, but is neither a folder that exists nor a file {', '.join(FILES)}.")
    if ending and not path.is_file():
        raise InputError(f"data is {path}, but there is no such file.")
    for name, endings in READ_BY_FILES.items():
        value = getattr(setup, name)
        if value is not None and ending not in endings:
            which = "a folder of class folders does" if endings == ("",) else f"your own {', '.join(endings)} do"
            raise InputError(f"{name} is {value}, but data {setup.data} does not read it: {which}.")
    if ending in TABLES and setup.target is None:
        raise InputError(f"target is missing, but data {path.name} is a table: --target names the column to predict.")
