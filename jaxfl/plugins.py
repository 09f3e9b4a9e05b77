"""What is not in the package: systems, data sets, models, rules, attacks and codecs of a user, by name.

Where such a thing is named, `./my_mifa.py:my_mifa` and `my.package:feddyn` load it from a file or a module. Names given
to `register`, and those of installed packages in the entry-point groups `jaxfl.systems`, `jaxfl.data`, `jaxfl.models`,
`jaxfl.rules`, `jaxfl.attacks` and `jaxfl.codecs`, count as well. Naming a file runs it, as `python FILE` would.
"""

import contextlib
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxfl.errors import InputError, nearest

# what is named, in the words of the command line, and the group of its entry points
GROUPS = {
    "system": "jaxfl.systems",
    "data": "jaxfl.data",
    "model": "jaxfl.models",
    "rule": "jaxfl.rules",
    "attack": "jaxfl.attacks",
    "codec": "jaxfl.codecs",
}
GRAPH_FILES = (".csv", ".graphml", ".npz")  # how names of files of a topology end
_registered: dict[str, dict[str, Any]] = {what: {} for what in GROUPS}


def register(what: str, name: str, thing: Any) -> None:
    """Let the command line and `fl.system` know `thing` by a name, in this process; a second time replaces the first.

    Args:
        what: "system", "data", "model", "rule", "attack" or "codec".
        name: letters, digits, `_` and `-`.
        thing: a `System` or its constructor; a function without arguments that makes a `data.Dataset`, a rule, an
            attack or a codec; for a model a function of the shape of one input and the number of classes that makes
            what `fl.classification` takes: a flax module or its constructor.

    Raises:
        InputError: another `what`, a bad name, or what cannot be called.
    """
    if what not in GROUPS:
        raise InputError(f"what is {what!r}: {nearest(str(what), GROUPS)}")
    if not re.fullmatch(r"[\w-]+", name):
        raise InputError(f"name is {name!r}, but must be made of letters, digits, _ and -.")
    if not _makes(thing):
        raise InputError(f"thing is a {type(thing).__name__}, but must be a {what} that can be made: a function.")
    _registered[what][spelt(name)] = thing


def spelt(name: str) -> str:
    """A name as it is kept: small letters, and `_` for `-`."""
    return name.lower().replace("-", "_")


def known(what: str) -> list[str]:
    """The names that were registered, or that installed packages have."""
    return [*_registered[what], *_entry_points(what)]


def is_place(name: str) -> bool:
    """Whether a name says where a thing is, as `FILE.py:NAME` or `MODULE:NAME` do."""
    return ":" in name


def is_graph_file(name: str) -> bool:
    """Whether a topology is named as a file of one."""
    return Path(name).suffix in GRAPH_FILES


def split(typed: str) -> tuple[str, str]:
    """A system and the settings behind it: `fedprox:mu=0.1,lr=0.3`, `./extra.py:extra:lr=1`; "" where none are."""
    name, _, settings = typed.rpartition(":")
    return (name, settings) if "=" in settings else (typed, "")


def join(name: str, settings: str) -> str:
    """What `split` splits."""
    return f"{name}:{settings}" if settings else name


def find(what: str, name: str) -> Any:
    """The thing of this name or at this place; None for a name that nobody gave.

    Raises:
        InputError: no such file, module or name in it, or a file that does not run.
    """
    if is_place(name):
        return _load(what, name)
    name = spelt(name)
    if name in _registered[what]:
        return _registered[what][name]
    entry = _entry_points(what).get(name)
    if entry is None:
        return None
    try:
        return _entry_of(entry.load(), entry.attr or name)
    except Exception as error:
        raise InputError(f"{what} {name!r}: {entry.value} cannot be loaded ({_said(error)}).") from error


@contextlib.contextmanager
def making(what: str, name: str) -> Iterator[None]:
    """While a thing of this name is made: what one of a user raises becomes an InputError with the line it is from."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not is_place(name) and spelt(name) not in known(what):
            raise
        raise InputError(f"{what} {name!r} cannot be made ({_said(error)}).") from error


def absolute(name: str) -> str:
    """The name, with the file in it from the root on, so that it means the same in any folder."""
    if is_graph_file(name):
        return str(Path(name).resolve())
    name, settings = split(name)
    where, _, rest = name.rpartition(":")
    return join(f"{Path(where).resolve()}:{rest}" if where.endswith(".py") else name, settings)


def file_of(name: str) -> Path | None:
    """The file that a name points into, or is; None for other names, and where there is none."""
    where = Path(name) if is_graph_file(name) else Path(split(name)[0].rpartition(":")[0])
    return where if where.suffix in (".py", *GRAPH_FILES) and where.is_file() else None


def fingerprint(path: Path) -> str | None:
    """The SHA-256 of a file, or of the names and contents of all files in a folder; None where there is neither."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        return None
    inside = sorted(p for p in path.rglob("*") if p.is_file())
    lines = (f"{file.relative_to(path).as_posix()} {fingerprint(file)}\n" for file in inside)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@cache
def _entry_points(what: str) -> dict[str, Any]:
    import importlib.metadata  # late: `jaxfl --help` needs none

    return {spelt(e.name): e for e in importlib.metadata.entry_points(group=GROUPS[what])}


def _load(what: str, place: str) -> Any:
    where, _, name = place.rpartition(":")
    module = _file(what, place, Path(where)) if where.endswith(".py") else _module(what, place, where)
    found = _entry_of(module, name)
    if found is None:
        names = [*getattr(module, "SYSTEMS", {}), *(n for n, v in vars(module).items() if callable(v) and n[0] != "_")]
        raise InputError(f"{what} {place!r}: {where} has no {name!r}, {nearest(name, names)}")
    if not _makes(found):
        raise InputError(f"{what} {place!r} is of type {type(found).__name__}, but must be a function that makes one.")
    return found


def _makes(thing: Any) -> bool:
    """Whether it is a constructor, or a `System` of one."""
    return callable(getattr(thing, "make", thing))


def _entry_of(module: Any, name: str) -> Any:
    """The entry of a module's `SYSTEMS`, or else what it calls so; the thing itself if it is no module."""
    if not isinstance(module, ModuleType):
        return module
    return getattr(module, "SYSTEMS", {}).get(name, getattr(module, name, None))


def _file(what: str, place: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"{what} {place!r}: there is no file {path}.")
    name = f"jaxfl_plugin_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))  # what lies beside it can be imported, as for a script
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InputError(f"{what} {place!r}: {path} does not run ({_said(error)}).") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def _module(what: str, place: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise InputError(f"{what} {place!r}: {name} cannot be imported ({_said(error)}).") from error


def _said(error: Exception) -> str:
    """An error on one line, with the line of the file where it happened."""
    line = error.__traceback__
    while line is not None and line.tb_next is not None:
        line = line.tb_next
    where = "" if line is None else f", line {line.tb_lineno} of {Path(line.tb_frame.f_code.co_filename).name}"
    if isinstance(error, SyntaxError):
        where = f", line {error.lineno}"
    return f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.')}{where}"
