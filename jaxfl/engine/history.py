"""What was recorded: a tidy table of one row a run (seed, swept values) and round, and a JSON-lines log."""

import contextlib
import errno
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxfl.core import InputError

TOTALS = {"seconds": "time"} | {name: f"total_{name}" for name in ("up_bits", "down_bits", "gradients")}


class Recorder:
    """Collects the logs of a run on the host, chunk by chunk, and writes each to `log.jsonl` as it comes.

    Of several processes each collects all, and only the one that `writes` does write.
    """

    def __init__(self, labels: list[dict], log: Path | None, writes: bool = True):
        self.labels, self.log, self.writes = labels, log, writes
        self.rows: list[dict[str, Any]] = []
        self.nodes: dict[str, list[np.ndarray]] = {}

    def add(self, start: int, logs: dict[str, np.ndarray], scores: dict[str, np.ndarray]) -> None:
        """Add the rounds after round `start`.

        Args:
            start: rounds finished before the chunk.
            logs: leaves `[r, rounds]` (table columns) or `[r, rounds, n]` (kept apart, by node), `r` runs.
            scores: what was evaluated after the last of them, leaves `[r]`.
        """
        flat = {name: a for name, a in logs.items() if a.ndim == 2}
        for name in logs.keys() - flat.keys():
            self.nodes.setdefault(name, []).append(logs[name])
        count = next(iter(logs.values())).shape[1] if logs else 1
        fresh = []
        for i, label in enumerate(self.labels):
            for r in range(count):
                row = label | {"round": start + r + bool(logs)} | {k: float(a[i, r]) for k, a in flat.items()}
                if r == count - 1:
                    row |= {k: float(a[i]) for k, a in scores.items()}
                fresh.append(row)
        self.rows += fresh
        if self.log is not None and self.writes:
            append(self.log, "".join(json.dumps(_finite(row)) + "\n" for row in fresh))

    def go_on(self, t: int) -> None:
        """Take up the log of a run that was cut off: rows after round `t` are dropped from the file too."""
        if self.log is None:
            return
        self.rows = _read_rows(self.log, t)
        if not self.writes:
            return
        whole = self.log.with_suffix(".part")
        append(whole, "".join(json.dumps(_finite(row)) + "\n" for row in self.rows))
        whole.replace(self.log)

    def frame(self):
        """All rows as a pandas frame sorted by run and round, with running totals in float64.

        `time` is the sum of `seconds`: when the round was over, in simulated seconds.
        """
        import pandas as pd

        names = list(self.labels[0])
        table = pd.DataFrame(self.rows) if self.rows else pd.DataFrame(columns=[*names, "round"])
        table = table.sort_values([*names, "round"], kind="stable").reset_index(drop=True)
        for name, total in TOTALS.items():
            if name in table:
                table[total] = table[name].fillna(0.0).groupby([table[name] for name in names]).cumsum()
        return table


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in row.items()}


def _read_rows(path: Path, last: int) -> list[dict[str, Any]]:
    """The rows of a log up to and with round `last`; a line cut off by a crash is passed over."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            if row["round"] <= last:
                rows.append({k: float("nan") if v is None else v for k, v in row.items()})
    return rows


def append(path: Path, text: str) -> None:
    """Append to a file; a full disk gets a sentence and leaves what was written."""
    try:
        with path.open("a") as file:
            file.write(text)
    except OSError as error:
        raise disk_error(path, error) from error


def disk_error(path: Path, error: OSError) -> Exception:
    """An `InputError` for a full disk, the error itself otherwise."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputError(f"out: the disk of {path} is full; what was written before is kept.")
    return error
