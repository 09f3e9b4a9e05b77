"""What was recorded: a tidy table of one row a run (seed, swept values) and round, and a JSON-lines log."""

import contextlib
import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxfl.errors import InputError

EVALUATED = "evaluated"  # beside what a metric measures by node: after which rounds
TOTALS = {"seconds": "time"} | {name: f"total_{name}" for name in ("up_bits", "down_bits", "gradients")}


class Recorder:
    """Collects the logs of a run on the host, chunk by chunk, and writes each to files as it comes.

    Columns go to `log`, JSON lines in which null stands for a number that is not finite; what is by node to one NumPy
    archive a chunk in the folder `nodes` beside it. Of several processes each collects all, and only the one that
    `writes` does write.

    Attributes:
        spent: running totals of each run by column, `[r]` float64: `time` is the sum of `seconds`, `total_up_bits` that
            of `up_bits` and so on. They are added up round by round, so that a run in parts has the totals of the whole
            to the bit; what is NaN counts nothing.
    """

    def __init__(
        self, labels: list[dict], log: Path | None, writes: bool = True, spent: Mapping[str, np.ndarray] | None = None
    ):
        self.labels, self.log, self.writes = labels, log, writes
        self.rows: list[dict[str, Any]] = []
        self.nodes: dict[str, list[np.ndarray]] = {}
        self.spent = {name: np.asarray(v, np.float64) for name, v in (spent or {}).items()}

    def add(
        self,
        start: int,
        logs: dict[str, np.ndarray],
        scores: dict[str, np.ndarray],
        measured: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Add the rounds after round `start`.

        Args:
            start: rounds finished before the chunk.
            logs: leaves `[r, rounds]` (table columns) or `[r, rounds, n]` (kept apart, by node), `r` runs.
            scores: what was evaluated after the last of them, leaves `[r]`.
            measured: what was evaluated then by node, leaves `[r, n]`.
        """
        flat = {name: a for name, a in logs.items() if a.ndim == 2}
        by_node = {name: a for name, a in logs.items() if a.ndim != 2}
        columns = flat | self._totals(flat)
        count = next(iter(logs.values())).shape[1] if logs else 1
        fresh = []
        for i, label in enumerate(self.labels):
            for r in range(count):
                row = label | {"round": start + r + bool(logs)} | {k: float(a[i, r]) for k, a in columns.items()}
                if r == count - 1:
                    row |= {k: float(a[i]) for k, a in scores.items()}
                fresh.append(row)
        self.rows += fresh
        end = start + count if logs else start
        if measured:
            by_node |= {name: a[:, None] for name, a in measured.items()}
            by_node[EVALUATED] = np.full((len(self.labels), 1), end)
        self._keep(by_node)
        if self.log is not None and self.writes:
            append(self.log, "".join(json.dumps(_finite(row)) + "\n" for row in fresh))
            if by_node:
                _write_nodes(self._archives / f"{start}-{end}.npz", by_node)

    def _totals(self, flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The running totals `[r, rounds]` of a chunk; the last of them are spent."""
        totals = {}
        for name, total in TOTALS.items():
            if name in flat:
                each = flat[name].astype(np.float64)
                before = self.spent.get(total, np.zeros(len(each)))
                steps = np.concatenate([before[:, None], np.where(np.isnan(each), 0.0, each)], 1)
                totals[total] = np.cumsum(steps, 1)[:, 1:]
                self.spent[total] = totals[total][:, -1]
        return totals

    def _keep(self, by_node: Mapping[str, np.ndarray]) -> None:
        for name, a in by_node.items():
            self.nodes.setdefault(name, []).append(a)

    @property
    def _archives(self) -> Path:
        return Path(str(self.log)).parent / "nodes"

    def go_on(self, t: int) -> None:
        """Take up the log of a run that was cut off: what is of rounds after `t` is dropped from the files too.

        Raises:
            InputError: the log does not reach round `t`, or is of other seeds or swept values.
        """
        if self.log is None:
            return
        self.rows = _read_rows(self.log, t)
        ends = [row for row in self.rows if row["round"] == t]
        last = [row for label in self.labels for row in ends if label.items() <= row.items()]
        if not len(ends) == len(last) == len(self.labels):
            raise InputError(f"resume: {self.log} does not hold round {t} of the seeds and values asked for.")
        self.spent = {total: np.array([row[total] for row in last]) for total in TOTALS.values() if total in ends[0]}
        self._read_nodes(t)
        if not self.writes:
            return
        whole = self.log.with_suffix(".part")
        append(whole, "".join(json.dumps(_finite(row)) + "\n" for row in self.rows))
        whole.replace(self.log)

    def _read_nodes(self, t: int) -> None:
        files = sorted((*map(int, path.stem.split("-")), path) for path in self._archives.glob("*-*.npz"))
        at = None
        for start, end, path in files:
            if end > t:
                if self.writes:
                    path.unlink()
                continue
            if at not in (None, start):
                raise InputError(f"resume: {self._archives} has no rounds {at} to {start}.")
            with np.load(path, allow_pickle=False) as archive:
                self._keep({name[1:]: archive[name] for name in archive.files})
            at = end
        if at not in (None, t):
            raise InputError(f"resume: {self._archives} ends at round {at}, before round {t}.")

    def by_node(self) -> dict[str, np.ndarray]:
        """What was logged by node, `[r, rounds, n]`, of the rounds in the table; what a metric measured by node,
        `[r, evaluations, n]`, and then as `evaluated` the rounds after which that was, `[r, evaluations]`.
        """
        return {name: np.concatenate(parts, 1) for name, parts in self.nodes.items()}

    def frame(self):
        """All rows as a pandas frame sorted by run and round, running totals last."""
        import pandas as pd

        names = list(self.labels[0])
        table = pd.DataFrame(self.rows) if self.rows else pd.DataFrame(columns=[*names, "round"])
        table = table.sort_values([*names, "round"], kind="stable").reset_index(drop=True)
        totals = [total for total in TOTALS.values() if total in table]
        return table[[c for c in table if c not in totals] + totals].fillna(dict.fromkeys(totals, 0.0))


def _write_nodes(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        arguments: dict[str, Any] = {f"_{name}": a for name, a in arrays.items()}  # no name is one of savez's own
        np.savez(path, **arguments)
    except OSError as error:
        raise disk_error(path, error) from error


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
