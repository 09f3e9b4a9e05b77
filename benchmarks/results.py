"""The file of results: JSON lines, of which a run replaces those of its own workloads."""

import importlib.metadata
import json
import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from workloads import ORDER


def read(path: Path) -> list[dict[str, Any]]:
    """All rows, in the order of the workloads; none where there is no file."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(rows, key=lambda row: ORDER.index(row["suite"]))


def replace(
    path: Path, name: str, rows: Sequence[dict[str, Any]], *, parts: bool = False, alone: bool = False
) -> list[dict[str, Any]]:
    """`rows` in the place of those of the suite's workload `name`; returns what the file then holds.

    With `parts` rows of `name` stay where none of `rows` has their `workload`, or in `round` their system; `alone`:
    those of other libraries stay.
    """
    part = lambda row: (row.get("workload"), row.get("round"))
    new = {part(row) for row in rows}
    left_out = lambda row: (parts and part(row) not in new) or (alone and "peer" in row)
    stays = lambda row: row["suite"] != name or left_out(row)
    kept = [row for row in read(path) if stays(row)] + list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return read(path)


def missing() -> list[str]:
    """What jaxfl requires and is not installed, as `pyproject.toml` names it."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[^\w-]", line, maxsplit=1)[0] for line in project["dependencies"]]
    return [name for name in names if not _installed(name)]


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def ours(rows: Iterable[dict], workload: str, **where: Any) -> list[dict]:
    """jaxfl's rows of a workload (`W1`, in any suite but `gpu`) whose entries are `where`."""
    want = {"workload": workload, **where}
    good = lambda row: row["suite"] != "gpu" and "peer" not in row and "seconds" in row
    return [row for row in rows if good(row) and all(row.get(k) == v for k, v in want.items())]


def peers(rows: Iterable[dict], workload: str, **where: Any) -> list[dict]:
    """Rows of other libraries that ran."""
    want = {"workload": workload, **where}
    return [r for r in rows if "peer" in r and "seconds" in r and all(r.get(k) == v for k, v in want.items())]


def over_held(row: dict, column: str) -> float | None:
    """A memory of `row` over its state and data, which no run can do without; None if that was not measured."""
    return row[column] / (row["state_mb"] + row["data_mb"]) if column in row else None
