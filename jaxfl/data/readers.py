"""Data sets from files: arrays in .npz, tables in .csv and .parquet, folders of images."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxfl.data.folders import from_image_folder
from jaxfl.data.frames import from_pandas
from jaxfl.data.sets import Dataset, from_arrays
from jaxfl.errors import InputError

TABLES = (".csv", ".parquet")
ENDINGS = (".npz", *TABLES)
ARRAYS = ("x", "y", "test_x", "test_y", "clients", "test_clients")


def from_file(
    path: str | Path,
    target: Any = None,
    clients: Any = None,
    features: Sequence | None = None,
    *,
    task: str | None = None,
    size: int | tuple[int, int] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """A data set from `my.npz`, `my.csv`, `my.parquet` or a folder of class folders; nothing in a file is run.

    >>> import pathlib, tempfile, jaxfl as fl
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "flats.csv"
    >>> _ = path.write_text("rooms,city,rent\\n2,Bonn,610.5\\n3,Kiel,720\\n1,Bonn,480\\n4,Ulm,990\\n")
    >>> d = fl.data.from_file(path, target="rent")
    >>> d.task, d.x.shape
    ('regression', (3, 4))

    A .npz holds the arrays `x` and `y`, and may hold `test_x`, `test_y`, `clients` and `test_clients` (`from_arrays`;
    inputs of 8 bits are divided by 255, integers x and y of one shape `[N, length]` are tokens and those that follow).
    Tables are read by `from_pandas`, which says what `target`, `clients` and `features` are; folders by
    `from_image_folder`.

    Args:
        path: the file or folder.
        target: column of the target, or a list of them; tables need it.
        clients: column of the natural key, in tables.
        features: columns of the inputs, in tables.
        task: what the target is (`from_arrays`, `from_pandas`).
        size: to which images are resized.
        test_fraction: share split off where there is no test set.
        seed: of the split.

    Raises:
        InputError: a file that is missing or damaged, an argument that this kind of file does not read, and what the
            loader refuses, with the name of the file.
    """
    path = Path(path)
    kind = "folder" if path.is_dir() else path.suffix.lower()
    if kind not in ("folder", *ENDINGS):
        raise InputError(f"{path} is neither a folder nor a file that ends in {', '.join(ENDINGS)}.")
    if kind != "folder" and not path.is_file():
        raise InputError(f"there is no file {path}.")
    table = {"target": target, "clients": clients, "features": features}
    for argument, value in table.items() if kind not in TABLES else ():
        if value is not None:
            raise InputError(f"{argument} is {value}, but {path.name} has no columns: {' and '.join(TABLES)} have.")
    if size is not None and kind != "folder":
        raise InputError(f"size is {size}, but {path.name} holds no image files: a folder of class folders does.")
    how: dict[str, Any] = {"test_fraction": test_fraction, "seed": seed}
    if kind == "folder":
        if task not in (None, "classification"):
            raise InputError(f"task is {task}, but {path} is a folder of classes: a classification.")
        return from_image_folder(path, size, **how)
    if kind == ".npz":
        return _npz(path, task, how)
    frame = read_table(path)
    if target is None:
        raise InputError(f"target is missing: it names a column of {path.name}: {_listed(frame.columns)}.")
    return from_pandas(frame, target, clients, features, task=task, name=path.name, **how)


def _listed(names: Any) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown[:12]) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "")


def _said(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _npz(path: Path, task: str | None, how: dict[str, Any]) -> Dataset:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{path} cannot be read as arrays of numbers ({_said(error)}).") from error
    if missing := [name for name in ARRAYS[:2] if name not in arrays]:
        raise InputError(f"{path.name} has no array {missing[0]!r}, only {_listed(arrays)}.")
    if unknown := [name for name in arrays if name not in ARRAYS]:
        raise InputError(f"{path.name} has an array {unknown[0]!r}, allowed are {', '.join(ARRAYS)}.")
    x, y = arrays["x"], arrays["y"]
    follows = x.ndim == 2 and x.shape == y.shape and {x.dtype.kind, y.dtype.kind} <= set("iu")
    tokens = task == "language_model" or (task is None and follows and x.max(initial=0) > 1)
    for name in ("x", "test_x"):
        if name in arrays and arrays[name].dtype == np.uint8 and not tokens:
            arrays[name] = arrays[name] / np.float32(255)
    try:
        return from_arrays(**arrays, task=task, tokens=tokens, name=path.name, **how)
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from error


def read_table(path: Path) -> Any:
    """The frame in a .csv or .parquet file. Raises InputError for a file that is no table."""
    return _csv(path) if path.suffix.lower() == ".csv" else _parquet(path)


def _csv(path: Path) -> Any:
    import pandas as pd

    try:
        frame = pd.read_csv(path, encoding="utf-8-sig", low_memory=False)
        titles = pd.read_csv(path, encoding="utf-8-sig", header=None, nrows=1, dtype=str).iloc[0]
        with path.open("rb") as file:
            lines = sum(1 for _ in file)
    except (OSError, ValueError, UnicodeDecodeError) as error:  # what pandas raises are ValueErrors
        raise InputError(f"{path} cannot be read as a table with a header ({_said(error)}).") from error
    twice = sorted(set(titles[titles.duplicated() & titles.notna()]))
    if twice:
        raise InputError(f"{path} has two columns {twice[0]!r}, but each name can be there once.")
    one_each = lines == len(frame) + 1  # no blank lines, no line breaks in a value
    frame.index = pd.RangeIndex(
        2 if one_each else 1, len(frame) + (2 if one_each else 1), name="line" if one_each else None
    )
    return frame


def _parquet(path: Path) -> Any:
    import pandas as pd

    try:
        return pd.read_parquet(path).reset_index(drop=True)
    except ImportError as error:
        raise InputError(f"{path.name} needs pyarrow, which is not installed: pip install 'jaxfl[data]'.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a parquet table ({_said(error)}).") from error
