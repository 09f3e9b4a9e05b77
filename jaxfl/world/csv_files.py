"""Tables in text: CSV whose cells are checked line by line. Reading one runs no code that is in it.

A header names the columns, in any order; then one line a row, of as many cells. Empty lines are skipped.
"""

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxfl.errors import InputError, nearest

LARGEST = 2**30  # bytes of a table
MOST = 1e38  # numbers are kept in float32


def rows(path: str | Path, needed: Sequence[str], others: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV file: the number of the line, from 1, and its cells by column, without blanks around them.

    Args:
        path: the file.
        needed: columns that must be there.
        others: columns that may be there.

    Raises:
        InputError: no such file or too large a one, not UTF-8, a column that is unknown, missing or there twice, a line
            with more or fewer cells, no row; with the number of the line.
    """
    path, known = Path(path), (*needed, *others)
    if not path.is_file() or path.stat().st_size > LARGEST:
        raise InputError(f"{path}: there is no such file, or none of at most {LARGEST:,} bytes.")
    found = lines(path)
    _, head = next(found, (1, ""))
    columns = [name.lower() for name in cells(path, 1, head)]
    for name in columns:
        if name not in known:
            raise InputError(f"{path}, line 1: column {name!r} is unknown; {nearest(name, known)}")
    if len(set(columns)) < len(columns) or not set(needed) <= set(columns):
        form = ",".join((*needed, *(f"[{name}]" for name in others)))
        raise InputError(f"{path}, line 1: the columns are {head.strip() or 'none'}, but must be {form}.")
    at = 1
    for at, text in found:
        row = cells(path, at, text)
        if len(row) != len(columns):
            raise InputError(f"{path}, line {at}: {len(row)} cells, but there are {len(columns)} columns.")
        yield at, dict(zip(columns, row, strict=True))
    if at == 1:
        raise InputError(f"{path}: there is no row in it.")


def whole(path: str | Path, at: int, column: str, text: str, below: int | None = None) -> int:
    """A cell as a whole number of at least 0, and `below` a bound, else InputError."""
    if not (text.isascii() and text.isdecimal() and len(text) < 19) or (below is not None and int(text) >= below):
        bound = "of at least 0" if below is None else f"from 0 to {below - 1}"
        raise InputError(f"{path}, line {at}: {column} is {text!r}, but must be a whole number {bound}.")
    return int(text)


def number(path: str | Path, at: int, column: str, text: str) -> float:
    """A cell as a number from 0 to `MOST`, in the digits and letters of ASCII, else InputError."""
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not 0 <= value <= MOST:
        said = "must be a finite number of at least 0 and at most 1e38"
        raise InputError(f"{path}, line {at}: {column} is {text!r}, but {said}.")
    return value


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text that are not empty, with their numbers from 1."""
    for at, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{path}, line {at}: not text in UTF-8.") from None
        if text.strip():
            yield at, text


def cells(path: Path, at: int, text: str) -> list[str]:
    """The cells of one line of CSV, without blanks around them, else InputError."""
    try:
        return [cell.strip() for cell in next(csv.reader([text], strict=True), [])]
    except csv.Error as error:
        raise InputError(f"{path}, line {at}: not a line of CSV ({error}).") from None
