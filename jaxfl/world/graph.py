"""Communication graphs, built once on the host as the neighbour tables of `core.Graph`.

Every generator returns weights of 0 and 1 (1 = edge); a padded slot points at the node itself, with `rev` 0.
`mixing` turns a graph into mixing weights. The own weight is implicit, so no graph here has a self-loop.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxfl.core import Graph, constant
from jaxfl.errors import InputError, require
from jaxfl.world.tiers import Tiers, edges, in_tiers, tiers_of, wasteful


def _count(name: str, value: int, least: int) -> int:
    require(name, value, whole=True)
    if isinstance(value, bool) or int(value) != value or value < least:
        raise InputError(f"{name} = {value}: an integer of at least {least} is needed.")
    return int(value)


def _probability(p: float) -> float:
    require("p", p)
    if not 0 <= p <= 1:
        raise InputError(f"p = {p}: a probability between 0 and 1 is needed.")
    return float(p)


def from_edges(n: int, listeners: Sequence | np.ndarray, sources: Sequence | np.ndarray, both: bool = False) -> Any:
    """The graph in which node `listeners[e]` hears node `sources[e]`; slots are in ascending order of the source.

    A `Graph`, or, where hubs would make its table large and mostly empty, `world.tiers.Tiers`.

    Args:
        n: number of nodes.
        listeners: `[edges]` node ids.
        sources: `[edges]` node ids. Repeated edges count once, self-loops are dropped.
        both: add the reverse of every edge.

    Raises:
        InputError: lengths differ, or an id lies outside 0..n-1.
    """
    n = _count("n", n, 1)
    i, j = (np.asarray(a, np.int64).reshape(-1) for a in (listeners, sources))
    if i.size != j.size:
        raise InputError(f"listeners and sources have {i.size} and {j.size} entries, and need equally many.")
    if i.size and (min(i.min(), j.min()) < 0 or max(i.max(), j.max()) >= n):
        raise InputError(f"an edge names node {max(i.max(), j.max())} or {min(i.min(), j.min())}, outside 0..{n - 1}.")
    if both:
        i, j = np.concatenate([i, j]), np.concatenate([j, i])
    code = np.unique((i * n + j)[i != j])  # sorted by listener, then source
    i, j = np.divmod(code, n)
    degree = np.bincount(i, minlength=n)
    if wasteful(n, degree):
        return in_tiers(n, i, j)
    slot = np.arange(code.size) - (np.cumsum(degree) - degree)[i]
    k = max(int(degree.max()), 1)
    nbr = np.repeat(np.arange(n, dtype=np.int32)[:, None], k, axis=1)
    weight, rev = np.zeros((n, k), np.float32), np.zeros((n, k), np.int32)
    nbr[i, slot], weight[i, slot] = j, 1
    at = np.searchsorted(code, j * n + i)
    symmetric = bool(np.all(code[np.minimum(at, code.size - 1)] == j * n + i))
    if symmetric:
        rev[i, slot] = slot[at]
    return Graph(constant(nbr), constant(weight), rev=constant(rev) if symmetric else None)


def circulant(n: int, shifts: Sequence[int]) -> Graph:
    """Node `i` hears `(i + shift) % n` for every shift, in the order given.

    Raises:
        InputError: a shift is repeated or lies outside 1..n-1.
    """
    n, shifts = _count("n", n, 1), tuple(int(s) for s in shifts)
    if not shifts:
        return from_edges(n, [], [])
    if len(set(shifts)) < len(shifts) or min(shifts) < 1 or max(shifts) >= n:
        raise InputError(f"shifts = {shifts}: distinct shifts between 1 and {n - 1} are needed.")
    slot = {s: at for at, s in enumerate(shifts)}
    nbr = (np.arange(n)[:, None] + np.array(shifts)) % n
    rev = None
    if all(n - s in slot for s in shifts):
        rev = constant(np.broadcast_to([slot[n - s] for s in shifts], nbr.shape), np.int32)
    return Graph(
        constant(nbr, np.int32),
        constant(np.ones(nbr.shape, np.float32)),
        rev=rev,
        shifts=shifts,
        reach=max(min(s, n - s) for s in shifts),
    )


def ring(n: int) -> Graph:
    """A circle: node `i` hears `i + 1` and `i - 1` (one edge for n = 2, none for n = 1)."""
    n = _count("n", n, 1)
    return circulant(n, sorted({1 % n, -1 % n} - {0}))


def exponential(n: int) -> Graph:
    """The static exponential graph: node `i` hears `i + 1, i + 2, i + 4, ...` below a full turn. Directed.

    Ying et al., Exponential graph is provably efficient for decentralized deep training, NeurIPS 2021.
    """
    n = _count("n", n, 1)
    return circulant(n, [2**j for j in range((n - 1).bit_length())])


def complete(n: int) -> Graph:
    """Everyone hears everyone: `n - 1` slots, so `n` squared memory."""
    n = _count("n", n, 1)
    return circulant(n, range(1, n))


def _lattice(rows: int, cols: int, wrap: bool) -> Graph:
    rows, cols = _count("rows", rows, 1), _count("cols", cols, 1)
    ids = np.arange(rows * cols).reshape(rows, cols)
    if wrap:
        pairs = [(ids, np.roll(ids, -1, 0)), (ids, np.roll(ids, -1, 1))]
    else:
        pairs = [(ids[:-1], ids[1:]), (ids[:, :-1], ids[:, 1:])]
    i, j = (np.concatenate([pair[side].reshape(-1) for pair in pairs]) for side in (0, 1))
    return dataclasses.replace(from_edges(rows * cols, i, j, both=True), reach=cols)


def torus(rows: int, cols: int) -> Graph:
    """A grid whose borders meet: node `r * cols + c` hears its four neighbours."""
    return _lattice(rows, cols, wrap=True)


def grid(rows: int, cols: int) -> Graph:
    """A grid with borders: node `r * cols + c` hears two to four neighbours."""
    return _lattice(rows, cols, wrap=False)


def hypercube(n: int) -> Graph:
    """Node `i` hears the nodes whose number differs from `i` in one bit; slot `s` is bit `s`.

    Raises:
        InputError: `n` is not a power of two.
    """
    n = _count("n", n, 1)
    if n & (n - 1):
        raise InputError(f"n = {n}: a hypercube needs a power of two.")
    if n == 1:
        return from_edges(1, [], [])
    nbr = np.arange(n)[:, None] ^ (1 << np.arange(n.bit_length() - 1))
    rev = np.broadcast_to(np.arange(nbr.shape[1]), nbr.shape)
    return Graph(constant(nbr, np.int32), constant(np.ones(nbr.shape, np.float32)), rev=constant(rev, np.int32))


def star(n: int) -> Graph:
    """Node 0 and every other node hear each other; of thousands of nodes in tiers, as `from_edges`."""
    n = _count("n", n, 1)
    return from_edges(n, np.zeros(n - 1), np.arange(1, n), both=True)


def random_regular(n: int, degree: int, seed: int) -> Graph:
    """A random graph in which every node has `degree` neighbours.

    Raises:
        InputError: `degree` is outside 0..n-1 or `degree * n` is odd.
    """
    n, degree = _count("n", n, 1), _count("degree", degree, 0)
    if degree >= n or degree * n % 2:
        raise InputError(f"degree = {degree}, n = {n}: the degree must be below n and degree * n even.")
    import networkx as nx

    return _labelled(nx.random_regular_graph(degree, n, seed=seed), n)


def erdos_renyi(n: int, p: float, seed: int) -> Graph:
    """Every pair of nodes is an edge independently with probability `p`; may be disconnected."""
    n, p = _count("n", n, 1), _probability(p)
    import networkx as nx

    return _roomy(_labelled(nx.fast_gnp_random_graph(n, p, seed=seed), n))


def barabasi_albert(n: int, m: int, seed: int) -> Graph:
    """Scale-free: nodes join one by one and attach to `m` earlier ones, drawn in proportion to their degree."""
    n, m = _count("n", n, 2), _count("m", m, 1)
    if m >= n:
        raise InputError(f"m = {m}: a node can attach to fewer than n = {n} nodes.")
    import networkx as nx

    return _roomy(_labelled(nx.barabasi_albert_graph(n, m, seed=seed), n))


def watts_strogatz(n: int, k: int, p: float, seed: int) -> Graph:
    """Small world: a ring of `k` (even) nearest neighbours, each edge rewired with probability `p`."""
    n, k, p = _count("n", n, 3), _count("k", k, 2), _probability(p)
    if k >= n or k % 2:
        raise InputError(f"k = {k}: an even number below n = {n} is needed.")
    import networkx as nx

    return _roomy(_labelled(nx.watts_strogatz_graph(n, k, p, seed=seed), n))


def random_geometric(n: int, radius: float, seed: int) -> Graph:
    """Nodes at random places of the unit square; those within `radius` hear each other. May be disconnected."""
    n = _count("n", n, 1)
    require("radius", radius)
    if not radius > 0 or not math.isfinite(radius):
        raise InputError(f"radius = {radius}: a positive length is needed (the square has side 1).")
    import networkx as nx

    return _roomy(_labelled(nx.random_geometric_graph(n, radius, seed=seed), n))


def caveman(groups: int, size: int) -> Graph:
    """Connected caveman graph: cliques in a circle, one edge of each turned to the clique before it.

    Watts, Networks, dynamics, and the small-world phenomenon, 1999. `size` is at least 3: turning the only edge of
    a pair would cut it apart.
    """
    groups, size = _count("groups", groups, 2), _count("size", size, 3)
    import networkx as nx

    return _labelled(nx.connected_caveman_graph(groups, size), groups * size)


def two_level(groups: int, size: int) -> Graph:
    """Complete groups whose heads (nodes `0, size, 2 * size, ...`) form a ring."""
    groups, size = _count("groups", groups, 1), _count("size", size, 1)
    heads = size * np.arange(groups)
    a, b = np.triu_indices(size, 1)
    i = np.concatenate([(heads[:, None] + a).reshape(-1), heads])
    j = np.concatenate([(heads[:, None] + b).reshape(-1), np.roll(heads, -1)])
    return from_edges(groups * size, i, j, both=True)


def _labelled(g: Any, n: int) -> Graph:
    """A networkx graph whose labels are the node numbers 0..n-1, in whatever order it holds them."""
    edges = np.array(g.edges, np.int64).reshape(-1, 2)
    return from_edges(n, edges[:, 0], edges[:, 1], both=True)


def _roomy(graph: Graph) -> Graph:
    """The graph with room for a larger degree, so that most seeds share programs: 4, 6, 8, 12, 16, 20, 24, ..."""
    if isinstance(graph, Tiers):
        return graph
    n, k = graph.nbr.shape
    step = max(2 if k <= 8 else 4, 1 << k.bit_length() >> 3)
    room = ((0, 0), (0, min(-(-k // step) * step, max(1, n - 1)) - k))
    nbr, weight = np.pad(np.asarray(graph.nbr), room, "edge"), np.pad(np.asarray(graph.weight), room)
    nbr[:, k:] = np.arange(n)[:, None]
    rev = None if graph.rev is None else constant(np.pad(np.asarray(graph.rev), room))
    return dataclasses.replace(graph, nbr=constant(nbr), weight=constant(weight), rev=rev)


def names(g: Any, nodelist: Sequence | None = None) -> list:
    """The nodes of a networkx graph in the order of their numbers 0..n-1.

    Names that are whole numbers stand in ascending order, so that names 0..n-1 are the numbers; other names in the
    order of `g.nodes`. A `nodelist` says another order, as in networkx.

    Raises:
        InputError: the graph has no nodes, or `nodelist` does not have each of them once.
    """
    known = list(g.nodes)
    if not known:
        raise InputError("g has no nodes: a graph needs at least one.")
    if nodelist is not None:
        given = list(nodelist)
        if len(given) != len(known) or set(given) != set(known):
            odd = next(iter(set(given) ^ set(known)), None)
            what = "a node stands twice" if odd is None else f"{odd!r} is not in both"
            raise InputError(f"nodelist has {len(given)} names for {len(known)} nodes of g, each once, and {what}.")
        return given
    whole = all(isinstance(name, int | np.integer) and not isinstance(name, bool) for name in known)
    return sorted(known) if whole else known


def from_networkx(g: Any, nodelist: Sequence | None = None) -> Graph:
    """Any networkx graph; node `i` is the i-th of `names`, and an arc u -> v means that v hears u.

    Weights are ignored (`mixing.from_networkx` reads them), parallel edges count once, self-loops are dropped, as every
    node hears itself.

    Raises:
        InputError: see `names`.
    """
    index = {name: i for i, name in enumerate(names(g, nodelist))}
    edges = np.array([(index[e[0]], index[e[1]]) for e in g.edges], np.int64).reshape(-1, 2)
    return from_edges(len(index), edges[:, 1], edges[:, 0], both=not g.is_directed())


def from_adjacency(a: Any) -> Graph:
    """The graph of a matrix `[n, n]` of 0 and 1 (NumPy, scipy sparse or lists): `a[i, j]` is 1 where `i` hears `j`.

    networkx writes u -> v, by which v hears u, in row u of `to_numpy_array`: transpose that of a directed graph.
    The diagonal is dropped, as every node hears itself.

    Raises:
        InputError: see `entries`; or another entry than 0 and 1 (weights are read by `mixing.from_matrix`).
    """
    n, i, j, value = entries("a", a)
    if value.size and np.any(value != 1):
        at = int(np.argmax(value != 1))
        raise InputError(
            f"a has {value[at]:g} in row {i[at]}, column {j[at]}, but an adjacency matrix is of 0 and 1 "
            "(mixing.from_matrix reads weights)."
        )
    return from_edges(n, i, j)


def entries(name: str, w: Any) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """A square matrix (NumPy, scipy sparse or lists) as its size and, row by row, its entries (row, column, value).

    Raises:
        InputError: not square, not of numbers, an entry that is negative or not finite; `name` is what it is called.
    """
    if hasattr(w, "tocsr"):  # scipy's sparse arrays; entries that stand twice are summed
        sparse = w.tocsr()
        sparse.sum_duplicates()
        shape, kind, sparse = sparse.shape, sparse.dtype.kind, sparse.tocoo()
        i, j, value = sparse.row.astype(np.int64), sparse.col.astype(np.int64), sparse.data
    else:
        try:
            w = np.asarray(w)
        except ValueError:
            raise InputError(f"{name} has rows of different lengths: a square matrix [n, n] is needed.") from None
        shape, kind = w.shape, w.dtype.kind
        i, j = np.nonzero(w) if w.ndim == 2 else (np.zeros(0, int),) * 2
        value = w[i, j] if w.ndim == 2 else np.zeros(0)
    if len(shape) != 2 or shape[0] != shape[1] or not shape[0]:
        raise InputError(f"{name} has shape {list(shape)}: a square matrix [n, n] is needed.")
    if kind in "OUSc":
        raise InputError(f"{name} has entries of type {value.dtype}, and numbers are needed.")
    value = value.astype(np.float64)
    bad = ~np.isfinite(value) | (value < 0)
    if bad.any():
        at = int(np.argmax(bad))
        raise InputError(f"{name} has {value[at]:g} in row {i[at]}, column {j[at]}: numbers of at least 0 are needed.")
    by = np.lexsort((j, i))[value[np.lexsort((j, i))] != 0]
    return shape[0], i[by], j[by], value[by]


def to_networkx(graph: Graph) -> Any:
    """The networkx graph of the edges with a weight: arc j -> i where `i` hears `j`, attribute `weight`.

    A `networkx.Graph` where every edge has a reverse of the same weight, else a `networkx.DiGraph`.
    """
    import networkx as nx

    i, j, w = edges(graph)
    arc = {(a, b): v for a, b, v in zip(j.tolist(), i.tolist(), w.tolist(), strict=True)}
    symmetric = all(arc.get((b, a)) == v for (a, b), v in arc.items())
    g: Any = nx.Graph() if symmetric else nx.DiGraph()
    g.add_nodes_from(range(tiers_of(graph).n))
    g.add_weighted_edges_from((a, b, v) for (a, b), v in arc.items())
    return g


def require_symmetric(graph: Graph) -> Graph:
    """The graph, or an InputError naming an edge without a reverse."""
    if alone := one_way(graph):
        says = "node {0} hears {1}, but {1} not {0}".format(*alone)
        raise InputError(f"graph is directed ({says}): an undirected graph is needed.")
    return graph


def one_way(graph: Graph) -> tuple[int, int] | None:
    """The first edge without a reverse, (listener, source); None where there is none."""
    (i, j, _), n = edges(graph), tiers_of(graph).n
    alone = np.flatnonzero(~np.isin(j * n + i, i * n + j))
    return (int(i[alone[0]]), int(j[alone[0]])) if alone.size else None


def directed(graph: Graph) -> bool:
    """Whether it has, or does not deny to have, an edge without a reverse."""
    return graph.rev is None and (isinstance(graph, Graph) or one_way(graph) is not None)


def require_no_hermit(graph: Graph) -> Graph:
    """The graph, or an InputError naming a node that hears nobody and is heard by nobody."""
    (i, j, _), n = edges(graph), tiers_of(graph).n
    alone = np.setdiff1d(np.arange(n), np.union1d(i, j))
    if n > 1 and alone.size:
        raise InputError(
            f"node {alone[0]} is isolated: it hears nobody and nobody hears it ({alone.size} of {n} nodes)."
        )
    return graph


def require_connected(graph: Graph) -> Graph:
    """The graph, or an InputError with its number of (strongly connected) components where that is not one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    (i, j, w), n = edges(graph), tiers_of(graph).n
    parts, _ = connected_components(coo_array((np.ones_like(w), (j, i)), shape=(n, n)), connection="strong")
    if parts > 1:
        raise InputError(f"a disconnected graph where consensus is promised: {n} nodes in {parts} components.")
    return graph
