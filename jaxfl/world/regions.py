"""Links by region and by edge: matrices of latency and bandwidth, places on a map, draws, a CSV file.

Between two nodes lies what lies between their regions, on top of what each node has itself (`world.links`): a message
of `b` bits from `j` to `i` takes

    latency[r_j, r_i] + max(latency_j + sent_j / up_j,  latency_i + received_i / down_i,  b / rate[r_j, r_i])

where `sent_j` and `received_i` are all bits that the two move in the round. With a region a node, edges are free.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxfl.core import Between, Links, constant
from jaxfl.errors import InputError, nearest, require
from jaxfl.world import csv_files
from jaxfl.world.links import links, number, whole

COLUMNS, NODES = ("from", "to", "latency_ms", "mbit"), "nodes"
SERVER = "server"


def regions(
    n: int, latency: Any, rate: Any = math.inf, *, assignment: Any = None, server: int | None = 0, **own: Any
) -> Links:
    """Links of `n` nodes in `r` regions.

    >>> import jaxfl as fl
    >>> near, far = 0.005, 0.08  # seconds
    >>> world = fl.regions.regions(6, [[near, far], [far, near]], rate=1e8, assignment=[0, 0, 0, 0, 1, 1])

    Args:
        n: number of nodes.
        latency: seconds from the row's region to the column's, `[r, r]`.
        rate: bits a second of one message, `[r, r]` or one number.
        assignment: each node's region, `[n]`; None: equal shares of the nodes, one region after the other.
        server: the region of a server; None: it is as near to every node as can be.
        own: `up`, `down`, `latency` and so on of `links`, what each node has itself; `latency` as `access`.

    Raises:
        InputError: matrices that are not square or of unlike sizes, a bad number, a region outside 0..r-1.
    """
    square = np.shape(latency)
    if len(square) != 2 or square[0] != square[1] or not square[0]:
        raise InputError(f"latency has shape {list(square)}, but must be [r, r]: from each region to each.")
    r = square[0]
    assignment = even(n, r) if assignment is None else assignment
    if np.size(assignment) and np.max(assignment) >= r:
        raise InputError(f"assignment has region {np.max(assignment)}, but there are {r}, from 0 on.")
    require("server", server, least=0, below=r, whole=True, none=True)
    matrices = np.asarray(number("latency", latency, square)), np.asarray(number("rate", rate, square, rate=True))
    if server is None:
        matrices, server = (np.pad(m, (0, 1), constant_values=v) for m, v in zip(matrices, (0, np.inf), strict=True)), r
    seconds, rates = (constant(m, np.float32) for m in matrices)
    own = {"latency" if name == "access" else name: v for name, v in own.items()}
    between = Between(whole("assignment", assignment, (n,)), seconds, rates, constant(server, np.int32))
    return links(n, **own)._replace(between=between)


def even(n: int, r: int) -> np.ndarray:
    """Regions `[n]` of nearly equal numbers of nodes, one after the other."""
    return np.arange(n) * r // n


def by_edge(n: int, latency: Any = 0.0, rate: Any = math.inf, **own: Any) -> Links:
    """Links that differ by edge: `latency` and `rate` from node to node, `[n, n]` or one number; `own` as in `regions`.

    A server is as near as can be. The diagonal is never asked.

    Raises:
        InputError: as `regions`.
    """
    latency = np.full((n, n), latency) if np.ndim(latency) == 0 else latency
    if np.shape(latency) != (n, n):
        raise InputError(f"latency has shape {list(np.shape(latency))}, but must be [{n}, {n}]: from node to node.")
    return regions(n, latency, rate, assignment=np.arange(n), server=None, **own)


def distances(places: Any) -> np.ndarray:
    """Distances `[n, n]` between places `[n, 2]` of the plane, in their unit.

    Raises:
        InputError: another shape, or a number that is not finite.
    """
    at = np.asarray(places, np.float64)
    if at.ndim != 2 or at.shape[1] != 2 or not np.isfinite(at).all():
        raise InputError(f"places have shape {list(at.shape)}, but must be [n, 2] finite numbers.")
    return np.linalg.norm(at[:, None] - at, axis=-1)


def geography(places: Any, *, rate: Any = math.inf, per_km: float = 8.5e-6, base: float = 4e-3, **own: Any) -> Links:
    """Links by edge of nodes at `places` `[n, 2]` in km: a latency of `base + per_km * distance` seconds.

    The defaults are those of the studies of cross-silo topologies (Marfoq et al., NeurIPS 2020): 0.0085 ms a km and
    4 ms. `rate` and `own` as in `by_edge`.

    Raises:
        InputError: as `distances` and `by_edge`.
    """
    far = distances(places)
    return by_edge(len(far), base + per_km * far, rate, **own)


def lognormal(shape: int | tuple[int, int], median: float, sigma: float, seed: int = 0) -> np.ndarray:
    """Draws `median * exp(sigma * N(0, 1))`: by node `n`, or by edge `(n, n)`, then the same both ways.

    Raises:
        InputError: a median that is not above 0, a sigma below 0, or another shape.
    """
    require("median", median, above=0)
    require("sigma", sigma, least=0)
    z = np.random.default_rng(seed).standard_normal(shape)
    if z.ndim == 2:
        if z.shape[0] != z.shape[1]:
            raise InputError(f"shape = {shape}: n, or (n, n), is needed.")
        z = np.triu(z) + np.triu(z, 1).T
    return median * np.exp(sigma * z)


class _Way(NamedTuple):
    line: int
    seconds: float
    rate: float
    nodes: int | None


def links_from_csv(path: str | Path, n: int, **own: Any) -> Links:
    """Links of `n` nodes in the regions of a CSV file, in UTF-8.

    A header `from,to,latency_ms,mbit`, in any order, then one line a pair of regions: milliseconds, and Mbit/s of one
    message, from one to the other. The way back is the same unless it has a line of its own. Each region has a line to
    itself, `eu,eu,5,1000`. A further column `nodes` says there how many nodes the region has: for all regions or, left
    empty, for none, which then have equal shares, in the order of the file. A server is called `server`, and has lines
    with every region (`eu,server,20,100`) or with none: then it is in the region of the file's first line.

    >>> import jaxfl as fl
    >>> from pathlib import Path
    >>> _ = Path("regions.csv").write_text("from,to,latency_ms,mbit\\neu,eu,5,1000\\nus,us,8,1000\\neu,us,80,100\\n")
    >>> fl.regions.links_from_csv("regions.csv", 4).between.region.tolist()
    [0, 0, 1, 1]

    Args:
        path: the file.
        n: number of nodes.
        own: what each node has itself, as in `regions`.

    Raises:
        InputError: with the number of the line: bytes that are not UTF-8, a missing field, what is no number or a
            negative one, a pair that stands twice, a region without a line to itself, a pair of regions without a
            line; a file that is not there or has other columns; numbers of nodes that do not add up to `n`.
    """
    path = Path(path)
    ways = _ways(path)
    names = list(dict.fromkeys(a for a, b in ways if a == b and a != SERVER))
    for (a, b), way in ways.items():
        for name in (a, b):
            if name not in (*names, SERVER):
                hint = nearest(name, names)
                raise InputError(
                    f"{path}, line {way.line}: region {name!r} is unknown, as it has no line to itself; {hint}"
                )
    served = any(SERVER in pair for pair in ways)
    everywhere = [*names, *[SERVER] * served]
    size = len(everywhere)
    seconds, rate = np.zeros((size, size)), np.full((size, size), np.inf)
    for i, a in enumerate(everywhere):
        for j, b in enumerate(everywhere):
            way = ways.get((a, b)) or ways.get((b, a))
            if way is not None:
                seconds[i, j], rate[i, j] = way.seconds, way.rate
            elif a != SERVER or b != SERVER:
                line = max(w.line for pair, w in ways.items() if a in pair or b in pair)
                raise InputError(f"{path}, line {line}: no line says what lies between {a} and {b}.")
    here = [ways[a, a].nodes for a in names]
    return regions(
        n,
        seconds,
        rate,
        assignment=_assigned(path, names, here, n),
        server=everywhere.index(SERVER if served else next(iter(ways))[0]),
        **own,
    )


def _assigned(path: Path, names: list[str], here: list[int | None], n: int) -> np.ndarray:
    if all(count is None for count in here):
        return even(n, len(names))
    for name, count in zip(names, here, strict=True):
        if count is None:
            raise InputError(f"{path}: region {name} says no number of nodes, but others do.")
    counts = np.array(here, int)
    if counts.sum() != n:
        raise InputError(f"{path}: the regions have {counts.sum()} nodes, but {n} are needed: one a node of the world.")
    return np.repeat(np.arange(len(names)), counts)


def _ways(path: Path) -> dict[tuple[str, str], _Way]:
    """What the lines of the file say, by (from, to)."""
    found: dict[tuple[str, str], _Way] = {}
    for at, row in csv_files.rows(path, COLUMNS, (NODES,)):
        pair = row["from"], row["to"]
        if not all(pair):
            raise InputError(f"{path}, line {at}: {'to' if pair[0] else 'from'} is empty.")
        if pair in found:
            raise InputError(f"{path}, line {at}: the same pair as in line {found[pair].line}.")
        seconds, mbit = (csv_files.number(path, at, name, row[name]) for name in COLUMNS[2:])
        if mbit == 0:
            raise InputError(f"{path}, line {at}: mbit is {row['mbit']!r}, but must be above 0.")
        found[pair] = _Way(at, seconds / 1e3, 1e6 * mbit, _count(path, at, pair, row.get(NODES, "")))
    return found


def _count(path: Path, at: int, pair: tuple[str, str], text: str) -> int | None:
    if text and (pair[0] != pair[1] or pair[0] == SERVER):
        raise InputError(f"{path}, line {at}: nodes is {text!r}, but only the line of a region to itself has some.")
    return csv_files.whole(path, at, NODES, text) if text else None
