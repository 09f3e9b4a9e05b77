"""Mixing weights of a graph, and what they promise: stochasticity, the spectral gap.

Every weighting maps a `Graph` to the same `Graph` with other weights, on the host, in float64 and stored as float32.
The matrix of a graph is `W[i, j]` = how much `i` hears `j`, with the own weights on the diagonal.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxfl.core import ROUNDING, Array, Graph, constant
from jaxfl.errors import InputError, require
from jaxfl.world.graph import directed, entries, from_edges, names, require_connected, require_symmetric
from jaxfl.world.graph import from_networkx as graph_of
from jaxfl.world.tiers import Tiers, by_node, degrees, edges, in_tiers, tables, tiers_of

TOLERANCE = 1e-6  # of a row or column sum: weights are stored in float32
DENSE = 2000  # nodes up to which spectra come from a dense matrix


def _weigh(graph: Graph, of: Callable[[np.ndarray, np.ndarray, np.ndarray], Any]) -> Any:
    """The graph, or its tiers, with the weights `of(listeners [n_b, 1], sources [n_b, k_b], weights so far)`."""
    parts = []
    for ids, part in tables(graph):
        before = np.asarray(part.weight, np.float64)
        new = constant(np.where(before != 0, of(ids[:, None], np.asarray(part.nbr), before), 0), np.float32)
        parts.append(dataclasses.replace(part, weight=new, own=None, column_stochastic=False))
    return graph._replace(parts=tuple(parts)) if isinstance(graph, Tiers) else parts[0]


def _own(graph: Graph) -> np.ndarray:
    """`core.own_weight` in float64."""
    if graph.own is not None:
        return np.asarray(graph.own, np.float64)
    own = 1 - by_node(graph, lambda weight: weight.sum(1))
    return np.where(np.abs(own) < ROUNDING, 0, own)


def metropolis(graph: Graph) -> Graph:
    """Metropolis-Hastings weights `1 / (1 + max(deg_i, deg_j))`: symmetric, doubly stochastic on any graph.

    Xiao, Boyd and Kim, Distributed average consensus with least-mean-square deviation, 2007.

    Raises:
        InputError: the graph is directed.
    """
    degree = degrees(require_symmetric(graph))
    return _weigh(graph, lambda i, j, _: 1 / (1 + np.maximum(degree[i], degree[j])))


def uniform(graph: Graph) -> Graph:
    """A node and all it hears count the same, `1 / (1 + deg_i)`: row stochastic, doubly so on regular graphs."""
    degree = degrees(graph)
    return _weigh(graph, lambda i, *_: 1 / (1 + degree[i]))


def max_degree(graph: Graph) -> Graph:
    """One weight for every edge, `1 / (1 + the largest degree)`: symmetric on undirected graphs."""
    share = 1 / (1 + degrees(graph).max())
    return _weigh(graph, lambda *_: share)


def optimal_constant(graph: Graph) -> Graph:
    """The one weight for every edge that mixes fastest, `2 / (l_max + l_2)` of the Laplacian's eigenvalues.

    Xiao and Boyd, Fast linear iterations for distributed averaging, Systems and Control Letters 2004. The own weight
    of a node of high degree may come out negative (a star's hub), which `check` refuses.

    Raises:
        InputError: the graph is directed or disconnected.
    """
    require_connected(require_symmetric(graph))
    n = tiers_of(graph).n
    if n == 1:
        return graph
    # I - Laplacian is the matrix of the graph with weights 1; its extremes away from consensus are 1 - l_2, 1 - l_max.
    low, high = _extremes(_weigh(graph, lambda *_: 1.0))
    return _weigh(graph, lambda *_: 2 / (2 - low - high))


def lazy(graph: Graph, own: float = 0.5) -> Graph:
    """Keep `own` of oneself and mix the rest: `own * I + (1 - own) * W`.

    Raises:
        InputError: `own` is outside 0..1, or the graph is not row stochastic.
    """
    require("own", own)
    if not 0 <= own <= 1:
        raise InputError(f"own = {own}: a share between 0 and 1 is needed.")
    check(graph)
    mixed = _weigh(graph, lambda i, j, weight: (1 - own) * weight)
    return mixed if graph.own is None else dataclasses.replace(mixed, own=own + (1 - own) * graph.own)


def usual(graph: Graph) -> Graph:
    """The weights of a graph for which nobody chose any: `metropolis`, or `uniform` where an edge has no reverse."""
    return uniform(graph) if directed(graph) else metropolis(graph)


def from_matrix(w: Any) -> Graph:
    """The graph of a row stochastic matrix `[n, n]` (NumPy, scipy sparse or lists), `w[i, j]` = how much `i` hears `j`.

    >>> import jaxfl as fl
    >>> w = [[0.5, 0.5, 0], [0.25, 0.5, 0.25], [0, 0.5, 0.5]]
    >>> world = fl.scenario(fl.partition.iid(fl.data.digits(), 3), topology=w)  # the same as mixing.from_matrix(w)
    >>> path = fl.mixing.metropolis(fl.graph.from_adjacency([[0, 1, 0], [1, 0, 1], [0, 1, 0]]))  # of 0 and 1
    >>> fl.mixing.matrix(path).round(2).tolist()
    [[0.67, 0.33, 0.0], [0.33, 0.33, 0.33], [0.0, 0.33, 0.67]]

    Raises:
        InputError: see `graph.entries`; or a row that does not sum to one.
    """
    n, i, j, value = entries("w", w)
    total = np.bincount(i, value, n)
    if np.all(value == 1) and np.any(total > 1):
        raise InputError(
            f"w is of 0 and 1, and row {int(np.argmax(total))} sums to {total.max():g}, but rows of a mixing matrix "
            "sum to 1; an adjacency matrix is read by mixing.metropolis(graph.from_adjacency(a))."
        )
    _refuse("row", "sums to", np.abs(total - 1), total, "1")
    return from_weights(n, i, j, value)


def from_networkx(g: Any, nodelist: Sequence | None = None) -> Graph:
    """A networkx graph with its weights: `weight` of an arc u -> v is how much v counts u, of an edge both ways.

    Where edges have no `weight` they get the `usual` ones. Weights of parallel edges are summed. What the weights of
    a node leave of 1 is its own weight, unless a self-loop says it. Nodes are numbered as in `graph.names`.

    >>> import networkx as nx
    >>> import jaxfl as fl
    >>> shards = fl.partition.iid(fl.data.digits(), 4)
    >>> world = fl.scenario(shards, topology=nx.cycle_graph(4))  # no weights: Metropolis
    >>> g = nx.DiGraph()
    >>> g.add_weighted_edges_from([("a", "b", 0.5), ("b", "a", 0.25)])
    >>> fl.mixing.matrix(fl.mixing.from_networkx(g)).tolist()  # b hears a with 0.5
    [[0.75, 0.25], [0.5, 0.5]]

    Raises:
        InputError: see `graph.names`; weights on some edges alone, a weight that is no finite number of at least 0, or
            weights of a node that sum to more than 1, or, with a self-loop, to another number.
    """
    order = names(g, nodelist)
    arcs = [(u, v, more.get("weight")) for u, v, more in g.edges(data=True)]
    bare = [(u, v) for u, v, w in arcs if w is None]
    if len(bare) == len(arcs):
        return usual(graph_of(g, order))
    if bare:
        raise InputError(f"g: the edge {bare[0]} has no weight, but others have: all or none must have one.")
    for u, v, w in arcs:
        if isinstance(w, bool) or not isinstance(w, int | float | np.number) or not 0 <= float(w) < np.inf:
            raise InputError(
                f"g: the edge ({u!r}, {v!r}) has the weight {w!r}: a finite number of at least 0 is needed."
            )
    index = {name: at for at, name in enumerate(order)}
    both = [(v, u, w) for u, v, w in arcs if u != v] if not g.is_directed() else []
    i, j = (np.array([index[e[side]] for e in arcs + both], np.int64) for side in (1, 0))
    try:
        return from_weights(len(order), i, j, np.array([e[2] for e in arcs + both], np.float64), order)
    except InputError as error:
        raise InputError(
            f"g: {error} Other weights are left out by mixing.metropolis(graph.from_networkx(g))."
        ) from error


def from_weights(n: int, i: np.ndarray, j: np.ndarray, value: np.ndarray, order: Sequence | None = None) -> Any:
    """The graph in which `i[e]` hears `j[e]` with the weight `value[e]`; what a row leaves of 1 is its own weight.

    Weights of a pair that stands several times are summed; with a pair `i = j` the row must sum to 1. `order` has the
    names of the nodes for errors.

    Raises:
        InputError: a row that sums to more than 1, or with an own weight to another number.
    """
    total, own = np.bincount(i, value, n), np.bincount(i[i == j], value[i == j], n)
    off = np.where(own > 0, np.abs(total - 1), total - 1)
    worst = int(np.argmax(off))
    if off[worst] > TOLERANCE:
        raise InputError(
            f"the weights with which node {worst if order is None else repr(order[worst])} hears sum to "
            f"{total[worst]:g}, but must sum to {'1, its own included' if own[worst] > 0 else 'at most 1'}."
        )
    codes, place = np.unique(i * n + j, return_inverse=True)
    i, j, value = *np.divmod(codes, n), np.bincount(place, value)
    other = (i != j) & (value > 0)
    i, j, value = i[other], j[other], value[other]
    graph = from_edges(n, i, j)
    if isinstance(graph, Tiers):
        return in_tiers(n, i, j, value)
    table = np.zeros(graph.weight.shape, np.float32)
    table[np.asarray(graph.weight) != 0] = value  # slots too are in ascending order of listener, then source
    return dataclasses.replace(graph, weight=constant(table))


def push_weights(graph: Graph) -> Graph:
    """Column stochastic weights for push-sum: node `j` splits evenly over itself and all who hear it.

    Rows need not sum to one, so `own` is given. Traceable, for graphs that change by the round. Kempe, Dobra and
    Gehrke, Gossip-based computation of aggregate information, FOCS 2003.
    """
    live = graph.weight != 0
    heard_by = jnp.zeros(graph.nbr.shape[0], jnp.float32).at[graph.nbr].add(live.astype(jnp.float32))
    share = 1 / (1 + heard_by)
    return dataclasses.replace(graph, weight=jnp.where(live, share[graph.nbr], 0), own=share, column_stochastic=True)


def proportional(graph: Any, v: Array) -> Any:
    """The graph, or its tiers: a node and those it hears over a live edge count in proportion to `v` `[n]`, 0 or more.

    Traceable, for edges that come and go: what is lost with an edge is shared by all who are left, where a mask alone
    (`topology.between`) adds it to the own weight. A node that hears nothing but zeros keeps its own message.
    """

    def part(g: Graph, mine: Array) -> Graph:
        heard = jnp.where(g.weight != 0, v[g.nbr], 0)
        total = mine + heard.sum(1)
        weight = heard / jnp.where(total > 0, total, 1)[:, None]
        return dataclasses.replace(g, weight=weight, own=None, shifts=None, column_stochastic=False)

    if isinstance(graph, Tiers):
        return graph._replace(parts=tuple(map(part, graph.parts, graph.split(v))))
    return part(graph, v)


def _sparse(graph: Graph) -> Any:
    from scipy.sparse import coo_array, diags_array

    n = tiers_of(graph).n
    i, j, w = edges(graph)
    return (coo_array((w, (i, j)), shape=(n, n)) + diags_array(_own(graph))).tocsr()


def matrix(graph: Graph) -> np.ndarray:
    """The matrix `[n, n]` float64, own weights on the diagonal (on weights of 0 and 1: identity minus Laplacian)."""
    return _sparse(graph).toarray()


def _refuse(what: str, does: str, off: np.ndarray, value: np.ndarray, allowed: str) -> None:
    worst = int(np.argmax(np.where(np.isnan(off), np.inf, off)))
    if not off[worst] <= TOLERANCE:
        raise InputError(f"{what} {worst} of the mixing matrix {does} {value[worst]:.7g}: {allowed} is needed.")


def check(
    graph: Graph, symmetric: bool = False, rows: bool = True, doubly: bool = False, connected: bool = False
) -> Graph:
    """The graph, or an InputError with the worst offending row.

    Args:
        graph: weighted graph.
        symmetric: `W[i, j] == W[j, i]`.
        rows: no negative weight, the own weight included, and rows sum to one (by construction where `own` is None).
        doubly: columns sum to one (with `rows=False`: a push matrix).
        connected: every node reaches every other.
    """
    if rows:
        least, total = by_node(graph, lambda weight: weight.min(1)), by_node(graph, lambda weight: weight.sum(1))
        _refuse("row", "has the weight", -least, least, "at least 0")
        _refuse("row", "hears others with", total - 1, total, "at most 1")
        own = _own(graph)
        _refuse("row", "keeps the own weight", -own, own, "at least 0")
        _refuse("row", "sums to", np.abs(own + total - 1), own + total, "1")
    if symmetric:
        w = _sparse(graph)
        gap = abs(w - w.T).max(axis=1).toarray().reshape(-1)
        _refuse("row", "differs from its column by", gap, gap, "a symmetric matrix")
    if doubly:
        sums = np.asarray(_sparse(graph).sum(axis=0)).reshape(-1)
        _refuse("column", "sums to", np.abs(sums - 1), sums, "1")
    return require_connected(graph) if connected else graph


def second_eigenvalue(graph: Graph) -> float:
    """The factor by which one mixing step shrinks disagreement, from the matrix `W` of the graph.

    Symmetric `W`: the second largest modulus of an eigenvalue. Doubly stochastic but not symmetric: the second
    largest singular value, the norm of `W - 11'/n` (a bound for every single step). Otherwise: the modulus of the
    second eigenvalue, the asymptotic rate towards a weighted mean (of push-sum, for column stochastic `W`). Dense up
    to 2,000 nodes, iterative above.

    Raises:
        InputError: iteration does not tell the leading eigenvalues of a large `W` apart, which is neither symmetric nor
            doubly stochastic.
    """
    n = tiers_of(graph).n
    if n == 1:
        return 0.0
    w = _sparse(graph)
    if abs(w - w.T).max() <= TOLERANCE:
        low, high = _extremes(graph)
        return float(max(abs(low), abs(high)))
    doubly = max(np.abs(np.asarray(w.sum(axis=axis)) - 1).max() for axis in (0, 1)) <= TOLERANCE
    if n <= DENSE:
        away = w.toarray() - 1 / n
        return float(np.linalg.norm(away, 2) if doubly else np.abs(np.linalg.eigvals(away)).max())
    linalg, away = _linalg(), lambda x: w @ x - x.mean()
    try:
        if doubly:  # (W - J)'(W - J) = W'(W - J), J = 11'/n
            return float(np.sqrt(_largest(linalg.eigsh, lambda x: w.T @ away(x), n)))
        return _largest(linalg.eigs, away, n)
    except linalg.ArpackNoConvergence:
        if not doubly:
            raise InputError(
                f"graph: the mixing matrix of {n} nodes has so many eigenvalues of nearly the second largest modulus "
                f"that iteration does not tell them apart; a symmetric or doubly stochastic one is needed."
            ) from None
        return float(np.sqrt(_by_factors((w.T @ w).tocsc(), "LA", np.random.default_rng(0).standard_normal(n), 1)))


def _largest(solve: Callable, product: Callable, n: int) -> float:
    """The largest modulus of an eigenvalue. Ten are asked for: a search for one may settle on the second or third."""
    start = np.random.default_rng(0).standard_normal(n)
    few = {"k": min(10, n - 2), "ncv": min(100, n), "maxiter": 100}
    return float(np.abs(solve(_operator(product, n), v0=start, return_eigenvectors=False, **few)).max())


def _operator(product: Callable, n: int) -> Any:
    return _linalg().LinearOperator((n, n), matvec=lambda x: product(x.reshape(-1)), dtype=np.float64)


def _linalg() -> Any:
    import scipy.sparse.linalg

    return scipy.sparse.linalg


def _extremes(graph: Graph) -> tuple[float, float]:
    """Smallest and largest eigenvalue of a symmetric `W` on the space orthogonal to consensus, n > 1."""
    n = tiers_of(graph).n
    w = _sparse(graph)
    if n <= DENSE:
        values = np.linalg.eigvalsh(w.toarray())
        values = np.delete(values, np.argmin(np.abs(values - 1)))  # consensus itself
        return float(values[0]), float(values[-1])
    linalg, start = _linalg(), np.random.default_rng(0).standard_normal(n)
    bound = float(abs(w).sum(axis=1).max())
    ends = []
    # Consensus is moved from 1 to the other end of the spectrum, far from what is sought.
    for which, far in (("SA", bound), ("LA", -bound)):
        away = _operator(lambda x, far=far: w @ x + (far - 1) * x.mean(), n)
        try:
            found = linalg.eigsh(
                away, k=1, which=which, v0=start, ncv=32, maxiter=200, tol=1e-8, return_eigenvectors=False
            )
            ends.append(float(found[0]))
        except linalg.ArpackNoConvergence:
            ends.append(_by_factors(w, which, start, bound))
    return ends[0], ends[1]


def _by_factors(w: Any, which: str, start: np.ndarray, bound: float) -> float:
    """An end of the spectrum by shift-invert: poor expanders defeat Lanczos, but factorise with little fill."""
    eigsh = _linalg().eigsh
    if which == "LA":  # consensus, eigenvalue 1, comes along and is the larger of the two
        return float(eigsh(w, k=2, sigma=1 + 1e-7, v0=start, return_eigenvectors=False).min())
    rough = eigsh(w, k=1, sigma=-bound * (1 + 1e-7), v0=start, tol=1e-4, return_eigenvectors=False)[0]
    below = float(rough) - 0.01 * bound
    return float(eigsh(w, k=1, sigma=below, v0=start, tol=1e-7, return_eigenvectors=False)[0])


def spectral_gap(graph: Graph) -> float:
    """`1 - second_eigenvalue(graph)`: 1 on a complete graph, 0 where consensus is never reached."""
    return 1 - second_eigenvalue(graph)
