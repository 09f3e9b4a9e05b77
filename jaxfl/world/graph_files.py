"""Graphs in files: edges by round as CSV, GraphML, matrices as .npz. Reading one runs no code that is in it.

CSV: a header `round,source,target,weight`, in any order, `round` and `weight` only where there are some, then one line
an arc: in that round the target hears the source. An edge of both directions stands twice. Nodes are the numbers
0..n-1, rounds are 0, 1, ... without a gap; a round in which nobody hears anybody is one line of weight 0. GraphML: what
networkx writes; names that are whole numbers are numbers. .npz: an array called `mixing` or `adjacency`
(`numpy.savez`), or the mixing matrix that `scipy.sparse.save_npz` writes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxfl.core import Graph, Process
from jaxfl.errors import InputError
from jaxfl.world import graph, mixing, topology
from jaxfl.world.csv_files import number, rows, whole
from jaxfl.world.tiers import tiers_of

Weigh = Callable[[Graph], Graph]


class Read(NamedTuple):
    """What is in a file: a graph a round, and whether their weights are the file's own."""

    graphs: list[Graph]
    weighted: bool


def load_topology(
    path: str | Path, nodes: int | None = None, weigh: Callable[[Graph], Graph] | None = None
) -> Graph | Process:
    """The topology in a .csv, .graphml or .npz file: a graph, or, for a CSV with rounds, a process of them in turn.

    >>> import jaxfl as fl
    >>> from pathlib import Path
    >>> _ = Path("contacts.csv").write_text("round,source,target\\n0,0,1\\n0,1,0\\n1,1,2\\n1,2,1\\n")
    >>> meet = fl.load_topology("contacts.csv")  # round 0: nodes 0 and 1, round 1: nodes 1 and 2, round 2: as round 0
    >>> world = fl.scenario(fl.partition.iid(fl.data.digits(), 3), topology=meet)

    Args:
        path: the file.
        nodes: number of nodes; None: as many as the file names.
        weigh: mixing weights of graphs for which the file has none; None: `mixing.usual`.

    Raises:
        InputError: another ending; a file that cannot be read or is not what its ending says, with the line in a CSV; a
            bad round, node or weight; a node without an edge; `weigh` where the file has weights.
    """
    return weighted(read(path, nodes), path, weigh)


def weighted(found: Read, path: str | Path, weigh: Weigh | None = None) -> Graph | Process:
    """The topology of what was read; arguments and errors as in `load_topology`."""
    if found.weighted and weigh is not None:
        raise InputError(f"{path}: the file has weights of its own, and mixing weights are for graphs without.")
    try:
        graphs = [g if found.weighted else (weigh or mixing.usual)(g) for g in found.graphs]
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return graphs[0] if len(graphs) == 1 else topology.by_round(graphs)


def union(found: Read) -> Graph:
    """All arcs that ever are, as one graph without weights."""
    ends = [graph.edges(g)[:2] for g in found.graphs]
    i, j = (np.concatenate(side) for side in zip(*ends, strict=True))
    return graph.from_edges(tiers_of(found.graphs[0]).n, i, j)


def read(path: str | Path, nodes: int | None = None) -> Read:
    """The graphs of a file, with weights of 0 and 1 if it has none; arguments and errors as in `load_topology`."""
    path = Path(path)
    kinds = {".csv": _csv, ".graphml": _graphml, ".npz": _npz}
    if path.suffix not in kinds:
        raise InputError(f"{path} is no file of a graph: its name must end in {', '.join(kinds)}.")
    if not path.is_file():
        raise InputError(f"{path}: there is no such file.")
    found = kinds[path.suffix](path, nodes)
    n = tiers_of(found.graphs[0]).n
    if nodes is not None and n != nodes:
        raise InputError(f"{path} has {n} nodes, but {nodes} are needed: one a node of the world.")
    try:
        graph.require_no_hermit(union(found))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return found


def _graphml(path: Path, nodes: int | None) -> Read:
    import networkx as nx

    try:
        g = nx.read_graphml(path)
    except Exception as error:  # of the XML parser, or of networkx
        raise InputError(f"{path} is not GraphML ({type(error).__name__}: {' '.join(str(error).split())}).") from error
    if all(isinstance(name, str) and name.lstrip("-").isdecimal() for name in g):
        g = nx.relabel_nodes(g, {name: int(name) for name in g})
    try:
        has = any("weight" in more for *_, more in g.edges(data=True))
        return Read([mixing.from_networkx(g) if has else graph.from_networkx(g)], has)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _npz(path: Path, nodes: int | None) -> Read:
    import scipy.sparse

    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = list(arrays)
            known = [name for name in ("mixing", "adjacency") if name in names]
            found = arrays[known[0]] if len(known) == 1 else None
        sparse = scipy.sparse.load_npz(path) if "format" in names else None
    except Exception as error:  # of the archive, or a pickle in it
        raise InputError(f"{path} is not a .npz of numbers ({type(error).__name__}: {error}).") from error
    if sparse is None and found is None:
        raise InputError(
            f"{path} has the arrays {', '.join(names) or 'none'}: one called mixing or adjacency is needed."
        )
    try:
        if known == ["adjacency"]:
            return Read([graph.from_adjacency(found)], False)
        return Read([mixing.from_matrix(found if sparse is None else sparse)], True)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _csv(path: Path, nodes: int | None) -> Read:
    seen: dict[tuple[int, int, int], int] = {}  # round, source, target: its line
    weights, last, row = [], 0, {}
    for at, row in rows(path, ("source", "target"), ("round", "weight")):
        t = whole(path, at, "round", row["round"]) if "round" in row else 0
        if not last <= t <= last + bool(seen):
            before = f"follows round {last}" if seen else "comes first"
            raise InputError(f"{path}, line {at}: round {t} {before}, but rounds are 0, 1, 2, ... without a gap.")
        last = t
        source, target = (whole(path, at, end, row[end]) for end in ("source", "target"))
        if nodes is not None and max(source, target) >= nodes:
            raise InputError(f"{path}, line {at}: node {max(source, target)} is unknown: there are {nodes}, from 0 on.")
        weight = number(path, at, "weight", row["weight"]) if "weight" in row else 1.0
        if source == target and "weight" not in row:
            raise InputError(f"{path}, line {at}: node {source} is its own source, but hears itself in any case.")
        if (t, source, target) in seen:
            raise InputError(f"{path}, line {at}: the same arc as in line {seen[t, source, target]}.")
        seen[t, source, target] = at
        weights.append(weight)
    if not seen:
        raise InputError(f"{path}: there is no edge in it.")
    round_of, source, target = np.array(list(seen), np.int64).T
    value = np.array(weights)
    n = int(max(source.max(), target.max())) + 1
    graphs = []
    for t, part in enumerate(np.split(np.arange(value.size), np.flatnonzero(np.diff(round_of)) + 1)):
        i, j, w = target[part], source[part], value[part]
        if "weight" in row:
            graphs.append(_given(f"{path}, round {t}" if "round" in row else str(path), n, i, j, w))
        else:
            graphs.append(graph.from_edges(n, i, j))
    return Read(graphs, "weight" in row)


def _given(where: str, n: int, i: np.ndarray, j: np.ndarray, w: np.ndarray) -> Graph:
    try:
        return mixing.from_weights(n, i, j, w)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
