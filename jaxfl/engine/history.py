"""What was recorded: a tidy table of one row a run (seed, swept values) and round, and a JSON-lines log."""

import hashlib
import io
import json
import math
import operator
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxfl.engine.disk import sync, write_whole, writing
from jaxfl.errors import InputError

LOG, NODES = "log.jsonl", "nodes"
EVALUATED = "evaluated"  # beside what a metric measures by node: after which rounds
TOTALS = {"seconds": "time"} | {name: f"total_{name}" for name in ("up_bits", "down_bits", "gradients")}


class DamagedError(InputError):
    """What a run kept is not as it was written; what it kept before may be."""


class Recorder:
    """Collects the logs of a run on the host, chunk by chunk, and writes each to files as it comes.

    Columns go to `log`, JSON lines with the words NaN, Infinity and -Infinity as Python and pandas read them; what is
    by node to one NumPy archive a chunk in the folder `nodes` beside it. Of several processes each collects all, and
    only the one that `writes` does write.

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
        self._began, self._size, self._hash, self._nodes_hash = (
            time.perf_counter(),
            0,
            hashlib.sha256(),
            hashlib.sha256(),
        )

    @property
    def seconds(self) -> float:
        """How long this run has taken, of one that was taken up with what it took up to there."""
        return time.perf_counter() - self._began

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
        if self.log is not None:
            if by_node:
                self._write_nodes(f"{start}-{end}.npz", by_node)
            self._write("".join(json.dumps(row) + "\n" for row in fresh).encode())

    def _write(self, text: bytes) -> None:
        self._size += len(text)
        self._hash.update(text)
        if self.writes and self.log is not None:
            with writing(self.log), self.log.open("ab") as file:
                file.write(text)

    def _write_nodes(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        made, given = io.BytesIO(), {f"_{name}": a for name, a in arrays.items()}  # no name is one of savez's own
        np.savez(made, **given)  # type: ignore[arg-type]
        self._nodes_hash.update(made.getbuffer())
        if self.writes:
            with writing(self._archives):
                self._archives.mkdir(exist_ok=True)
            write_whole(self._archives / name, made.getvalue())

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
        return Path(str(self.log)).parent / NODES

    def begin(self) -> None:
        """Start the log and the archives anew."""
        if self.log is not None and self.writes:
            with writing(self.log):
                self.log.unlink(missing_ok=True)
                for _, path in _archives(self._archives):
                    path.unlink()

    def mark(self) -> dict[str, Any]:
        """Where the record stands, for a checkpoint; what it holds is on the disk when this returns."""
        if self.log is not None and self.writes:
            with writing(self.log), self.log.open("ab") as file:
                sync(file)
        kept = {"bytes": self._size, "log": self._hash.hexdigest(), "nodes": self._nodes_hash.hexdigest()}
        return kept | {"seconds": self.seconds}

    def go_on(self, t: int, mark: Mapping[str, Any]) -> None:
        """Take up the record of a run that was cut off; what was written after round `t` goes from the files too.

        Args:
            t: the round that is gone on from.
            mark: what `mark` said then.

        Raises:
            DamagedError: it is not as it was then.
        """
        if self.log is None:
            return
        try:
            text = self.log.read_bytes()[: mark["bytes"]]
        except OSError as error:
            raise DamagedError(f"resume: {self.log} cannot be read ({error.strerror}).") from error
        rows = read_rows(self.log, text, self.labels, t)
        if hashlib.sha256(text).hexdigest() != mark["log"]:
            raise DamagedError(f"resume: {self.log} is not as it was at round {t}: a value in it is another.")
        nodes, hashed = _read_nodes(self._archives, t)
        if hashed.hexdigest() != mark["nodes"]:
            raise DamagedError(f"resume: {self._archives} is not as it was at round {t}: a file there is another.")
        self.rows, self.nodes, self._nodes_hash = rows, nodes, hashed
        self._size, self._hash = len(text), hashlib.sha256(text)
        last = [next(row for row in reversed(rows) if label.items() <= row.items()) for label in self.labels]
        self.spent = {total: np.array([row[total] for row in last]) for total in TOTALS.values() if total in last[0]}
        self._began = time.perf_counter() - mark["seconds"]
        if self.writes:
            with writing(self.log):
                os.truncate(self.log, len(text))
                for (_, end), path in _archives(self._archives):
                    if end > t:
                        path.unlink()

    def by_node(self) -> dict[str, np.ndarray]:
        """What was logged by node, `[r, rounds, n]`, of the rounds in the table; what a metric measured by node,
        `[r, evaluations, n]`, and then as `evaluated` the rounds after which that was, `[r, evaluations]`.
        """
        return {name: np.concatenate(parts, 1) for name, parts in self.nodes.items()}

    def frame(self):
        """All rows as a pandas frame sorted by run and round, running totals last."""
        import pandas as pd

        keys = [*self.labels[0], "round"]
        names = dict.fromkeys(name for row in self.rows for name in row) or dict.fromkeys(keys)
        totals = dict.fromkeys((total for total in TOTALS.values() if total in names), 0.0)
        rows = sorted(self.rows, key=operator.itemgetter(*keys))
        ordered = [*(name for name in names if name not in totals), *totals]
        return pd.DataFrame({name: [row.get(name, totals.get(name, math.nan)) for row in rows] for name in ordered})


def _archives(folder: Path) -> list[tuple[tuple[int, int], Path]]:
    """The archives there by (rounds before, rounds after), in order."""
    found = (
        [(re.fullmatch(r"(\d+)-(\d+)\.npz", name), folder / name) for name in os.listdir(folder)]
        if folder.is_dir()
        else []
    )
    return sorted(((int(m[1]), int(m[2])), path) for m, path in found if m)


def _read_nodes(folder: Path, t: int) -> tuple[dict[str, list[np.ndarray]], Any]:
    """What is by node up to and with round `t`, and the checksum of its archives."""
    nodes: dict[str, list[np.ndarray]] = {}
    hashed = hashlib.sha256()
    for path in [path for (_, end), path in _archives(folder) if end <= t]:
        try:
            data = path.read_bytes()
            hashed.update(data)
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                for name in archive.files:
                    nodes.setdefault(name[1:], []).append(archive[name])
        except Exception as error:  # of a file of any bytes
            raise DamagedError(f"resume: {path} is damaged.") from error
    return nodes, hashed


def read_rows(path: Path, text: bytes, labels: list[dict], last: int) -> list[dict[str, Any]]:
    """The rows of a log, of every run one a round without a gap, up to and with round `last`.

    Raises:
        DamagedError: they are not; it names the line.
    """
    runs = {tuple(label.values()): label for label in labels}
    rows, first = [], None
    ends: dict[tuple, int | None] = dict.fromkeys(runs)
    for i, line in enumerate(text.splitlines(), 1):
        bad = lambda says, i=i: DamagedError(f"resume: line {i} of {path} {says}.")
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise bad("is no JSON") from error
        if not isinstance(row, dict) or not all(type(v) in (int, float) for v in row.values()):
            raise bad("is no row of numbers by name")
        run, t = tuple(row.get(name) for name in labels[0]), row.get("round")
        if run not in runs:
            raise bad(f"is of no seed or value asked for ({json.dumps(dict(zip(labels[0], run, strict=True)))})")
        first, before = t if first is None else first, ends[run]
        due = first if before is None else before + 1
        if type(t) is not int or t != due:
            raise bad(f"is of round {t} where round {due} is due")
        ends[run] = t
        rows.append(row)
    for run, end in ends.items():
        if end != last:
            raise DamagedError(f"resume: {path} ends at round {end or 0} of {runs[run]}, before round {last}.")
    return rows


def unused(log: Path) -> bool:
    """Whether no round was logged there: no such file, or nothing in it but what was measured at the start."""
    try:
        rows = [json.loads(line) for line in log.read_bytes().splitlines()] if log.exists() else []
        return all(row["round"] == 0 for row in rows)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False
