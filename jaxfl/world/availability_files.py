"""Availability from a CSV file.

A CSV with the header `node,from,to` has a line for every stay: the node is up in the rounds `from <= t < to`; where
`to` is empty it stays. A node without a line is never up. A CSV with the header `round,0,1,...`, one column a node, has
a line for every round 0, 1, 2, ... without a gap, of 1 (up) and 0 (down); after the last it begins anew.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np

from jaxfl.core import Process
from jaxfl.errors import InputError
from jaxfl.world.churn import FOREVER, intervals, trace
from jaxfl.world.csv_files import cells, lines, whole


def from_csv(path: str | Path, n: int) -> Process:
    """Who of `n` nodes is up, as the file says.

    Raises:
        InputError: no such file; and with its line: bad encoding, an unknown column or node, a cell that is no whole
            number, an empty or negative stay, two stays of a node in one round, a gap in the rounds, other than 0 or 1.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file.")
    rows = [(at, cells(path, at, line)) for at, line in lines(path)]
    if len(rows) < 2:
        raise InputError(f"{path}: a header and at least one line are needed.")
    (at, head), *rows = rows
    head = [name.lower() for name in head]
    for line, row in rows:
        if len(row) != len(head):
            raise InputError(f"{path}, line {line}: {len(row)} cells, but there are {len(head)} columns.")
    if sorted(head) == ["from", "node", "to"]:
        return _stays(path, n, [(line, dict(zip(head, row, strict=True))) for line, row in rows])
    if head == ["round", *map(str, range(n))]:
        return _rounds(path, rows)
    wide = len(head) - 1
    if head == ["round", *map(str, range(wide))]:
        raise InputError(f"{path}, line {at}: there are columns of {wide} nodes, but {n} are needed, one a node.")
    said = ",".join(head)
    said = said if len(said) <= 60 else f"{said[:57]}..."
    raise InputError(f"{path}, line {at}: the columns are {said}, but must be node,from,to or round,0,...,{n - 1}.")


def _stays(path: Path, n: int, rows: list[tuple[int, dict[str, str]]]) -> Process:
    stays: list[list[tuple[int, int, int]]] = [[] for _ in range(n)]  # first round, round after the last, line
    for line, row in rows:
        node, first = (whole(path, line, name, row[name]) for name in ("node", "from"))
        last = FOREVER if row["to"] == "" else whole(path, line, "to", row["to"])
        if node >= n:
            raise InputError(f"{path}, line {line}: node {node} is unknown: there are {n}, from 0 on.")
        if not first < last <= FOREVER:
            raise InputError(f"{path}, line {line}: a stay from {first} to {last}, but it must end after it begins.")
        stays[node].append((first, last, line))
    for node, mine in enumerate(stays):
        mine.sort()
        for (_, end, other), (begin, _, line) in pairwise(mine):
            if begin < end:
                raise InputError(
                    f"{path}, line {max(line, other)}: node {node} is up by line {min(line, other)} already."
                )
    ends = np.zeros((n, max(map(len, stays)), 2), np.int64)
    for node, mine in enumerate(stays):
        ends[node, : len(mine)] = [stay[:2] for stay in mine] or np.zeros((0, 2))
    return intervals(ends[:, :, 0], ends[:, :, 1])


def _rounds(path: Path, rows: list[tuple[int, list[str]]]) -> Process:
    for t, (line, row) in enumerate(rows):
        now = whole(path, line, "round", row[0])
        if now != t:
            raise InputError(f"{path}, line {line}: round {now} comes where {t} is due: 0, 1, ... without a gap.")
        odd = next((i for i, cell in enumerate(row[1:]) if cell not in ("0", "1")), None)
        if odd is not None:
            raise InputError(f"{path}, line {line}: node {odd} has {row[1 + odd]!r}, but 1 (up) or 0 (down) is needed.")
    return trace(np.array([row[1:] for _, row in rows]) == "1")
