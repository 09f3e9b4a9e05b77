"""Who hears whom in round `t`: graphs as processes, fixed or drawn anew every round.

Each yields a weighted `core.Graph`, ready to mix. Randomness comes from the key of the step alone.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array, Graph, Process, constant, own_weight, stream
from jaxfl.errors import InputError, require
from jaxfl.world.cohort import subset
from jaxfl.world.graph import require_no_hermit
from jaxfl.world.mixing import from_matrix, from_networkx, push_weights
from jaxfl.world.process import process, yielded
from jaxfl.world.promises import require_weights
from jaxfl.world.tiers import Tiers


def _nodes(n: int) -> int:
    require("n", n, whole=True)
    if n < 2:
        raise InputError(f"n = {n}: at least two nodes are needed.")
    return int(n)


def _sources(n: int, k: int) -> int:
    require("k", k, whole=True)
    if not 1 <= k < n:
        raise InputError(f"k = {k}: a node hears between 1 and n - 1 = {n - 1} others.")
    return int(k)


def static(graph: Graph) -> Process:
    """The same graph in every round, its weights as they are."""
    return process(lambda key, arrays, s, t: (s, arrays), graph)


def as_graph(topology: Any) -> Graph:
    """A graph as it is, a networkx graph by `mixing.from_networkx`, and any other matrix by `mixing.from_matrix`.

    Raises:
        InputError: none of these; see there.
    """
    if isinstance(topology, Graph | Tiers):
        return topology  # type: ignore[return-value]
    if hasattr(topology, "is_directed") and hasattr(topology, "edges"):
        return from_networkx(topology)
    if hasattr(topology, "shape") or isinstance(topology, list | tuple):
        return from_matrix(topology)
    what = f"{type(topology).__module__}.{type(topology).__qualname__}"
    raise InputError(
        f"topology is a {what}, but must be a Graph, a networkx graph, a mixing matrix [n, n] or a Process."
    )


def as_process(topology: Any) -> Process:
    """A process as it is; what `as_graph` reads, the same in every round; a list of graphs in turn, by `by_round`.

    Raises:
        InputError: see `as_graph` and `by_round`; or a networkx graph or matrix with a node that hears nobody and is
            heard by nobody (a `Graph` may have such nodes).
    """
    if isinstance(topology, Process):
        return topology
    if callable(topology):
        raise InputError(
            "topology is a function, but must be a graph or a Process: topology.by_round(f, rounds) is one."
        )
    if not isinstance(topology, Tiers) and _is_series(topology):
        return by_round(topology)
    graph = as_graph(topology)
    if not isinstance(topology, Graph | Tiers):
        require_no_hermit(graph)
    return static(graph)


def _is_series(topology: Any) -> bool:
    """Whether it is a list of graphs or matrices, and not the list of a matrix's rows; or an array `[rounds, n, n]`."""
    if not isinstance(topology, list | tuple):
        return getattr(topology, "ndim", 2) == 3
    first = topology[0] if len(topology) else 0
    if isinstance(first, list | tuple):
        return len(first) > 0 and isinstance(first[0], list | tuple)
    return not isinstance(first, int | float) and getattr(first, "ndim", 2) == 2


def pushed(topology: Graph | Process) -> Process:
    """The topology with the column stochastic weights of push-sum (`mixing.push_weights`)."""
    init, walk, arrays = as_process(topology)

    def step(key: Array, arrays: Any, s: Any, t: Array) -> tuple[Any, Graph]:
        s, graph = walk(key, arrays, s, t)
        return s, push_weights(graph)

    return process(step, arrays, init)


def one_peer_exponential(n: int) -> Process:
    """Node `i` averages with `i + 2^(t mod tau)`, `tau = ceil(log2 n)`: one slot, directed, doubly stochastic.

    For `n` a power of two, `tau` rounds in a row average exactly. Ying et al., Exponential graph is provably
    efficient for decentralized deep training, NeurIPS 2021.
    """
    n = _nodes(n)
    shifts = constant([2**j for j in range((n - 1).bit_length())], np.int32)

    def step(key: Array, arrays: Array, s: tuple, t: Array) -> tuple[tuple, Graph]:
        nbr = (jnp.arange(n, dtype=jnp.int32) + arrays[t % arrays.size]) % n
        return s, Graph(nbr[:, None], jnp.full((n, 1), 0.5, jnp.float32))

    return process(step, shifts)


def random_matching(n: int) -> Process:
    """A uniformly random perfect matching a round; partners average. With `n` odd, one random node is left out."""
    n = _nodes(n)
    half = n // 2

    def step(key: Array, arrays: tuple, s: tuple, t: Array) -> tuple[tuple, Graph]:
        order = jax.random.permutation(stream(key, "matching"), n).astype(jnp.int32)
        a, b = order[:half], order[half : 2 * half]
        nbr = jnp.arange(n, dtype=jnp.int32).at[a].set(b).at[b].set(a)[:, None]
        weight = jnp.where(nbr == jnp.arange(n)[:, None], 0.0, 0.5)
        return s, Graph(nbr, weight, rev=jnp.zeros((n, 1), jnp.int32))

    return process(step)


def random_k_out(n: int, k: int) -> Process:
    """A random digraph a round in which every node hears `k` others and is heard by `k`, all with `1 / (1 + k)`.

    Nodes sit in random order on a circle and hear those at `k` random distances, so each round's graph is a circulant
    with shuffled names: doubly stochastic, every ordered pair equally likely. The oracle of Epidemic Learning (De Vos
    et al., NeurIPS 2023) draws from all k-regular digraphs; here, the edges of one round depend more on each other.

    Raises:
        InputError: `k` is outside 1..n-1.
    """
    n, k = _nodes(n), _sources(n, k)

    def step(key: Array, arrays: tuple, s: tuple, t: Array) -> tuple[tuple, Graph]:
        order_key, distance_key = jax.random.split(stream(key, "random k-out"))
        order = jax.random.permutation(order_key, n).astype(jnp.int32)
        far = 1 + subset(distance_key, n - 1, k)
        heard = order[(jnp.arange(n)[:, None] + far) % n]
        nbr = jnp.zeros((n, k), jnp.int32).at[order].set(heard)
        return s, Graph(nbr, jnp.full((n, k), 1 / (1 + k), jnp.float32))

    return process(step)


def random_k_local(n: int, k: int) -> Process:
    """Every node hears `k` distinct others of its own random choice, all with `1 / (1 + k)`: rows sum to one.

    How many hear a node is binomial with mean `k`, so a round keeps the mean of the models in expectation only.

    Raises:
        InputError: `k` is outside 1..n-1.
    """
    n, k = _nodes(n), _sources(n, k)

    def step(key: Array, arrays: tuple, s: tuple, t: Array) -> tuple[tuple, Graph]:
        # Floyd's algorithm for every node at once, over the n - 1 others: slot r draws from the first n - k + r, and
        # takes the last of these where what it drew is taken.
        last = jnp.arange(n - 1 - k, n - 1, dtype=jnp.int32)
        drawn = jax.random.randint(stream(key, "random k-local"), (n, k), 0, last + 1, jnp.int32)

        def take(r: Array, chosen: Array) -> Array:
            taken = (chosen == drawn[:, r, None]).any(1)
            return chosen.at[:, r].set(jnp.where(taken, last[r], drawn[:, r]))

        chosen = jax.lax.fori_loop(0, k, take, jnp.full((n, k), -1, jnp.int32))
        nbr = chosen + (chosen >= jnp.arange(n, dtype=jnp.int32)[:, None])
        return s, Graph(nbr, jnp.full((n, k), 1 / (1 + k), jnp.float32))

    return process(step)


def kept(graph: Graph, live: Array) -> Graph:
    """The graph with the slots `live` `[n, k]` alone."""
    own = graph.own
    if own is not None:  # column stochastic: the sender keeps what it could not hand over
        own = own.at[graph.nbr].add(jnp.where(live, 0, graph.weight))
    return dataclasses.replace(graph, weight=jnp.where(live, graph.weight, 0), own=own, shifts=None)


def between(graph: Any, on: Array) -> Any:
    """The graph, or its tiers: only edges between two nodes that are `on` `[n]` carry weight."""
    if isinstance(graph, Tiers):
        rows = zip(graph.parts, graph.split(on), strict=True)
        return graph._replace(parts=tuple(kept(part, mine[:, None] & on[part.nbr]) for part, mine in rows))
    return kept(graph, on[:, None] & on[graph.nbr])


def within(graph: Any, group: Array) -> Any:
    """The graph, or its tiers: only edges between two nodes of one `group` `[n]` carry weight."""
    if isinstance(graph, Tiers):
        rows = zip(graph.parts, graph.split(group), strict=True)
        return graph._replace(parts=tuple(kept(part, mine[:, None] == group[part.nbr]) for part, mine in rows))
    return kept(graph, group[:, None] == group[graph.nbr])


def edge_drop(topology: Graph | Process, p: float) -> Process:
    """Every unordered pair of nodes is cut off independently with probability `p` a round, in both directions.

    The own weight rises by what is lost, so symmetric weights stay symmetric and keep the mean; where `own` is given
    (push-sum), the sender's rises and columns go on summing to one. Directed doubly stochastic weights keep the mean
    in neither way.

    Raises:
        InputError: `p` is outside 0..1.
    """
    require("p", p)
    if not 0 <= p <= 1:
        raise InputError(f"p = {p}: a probability between 0 and 1 is needed.")
    start, walk, below = as_process(topology)

    def step(key: Array, arrays: dict, s: Any, t: Array) -> tuple[Any, Graph]:
        s, graph = walk(stream(key, "below edge drop"), arrays["inner"], s, t)
        mine = jnp.broadcast_to(jnp.arange(graph.nbr.shape[0], dtype=jnp.int32)[:, None], graph.nbr.shape)
        base = stream(key, "edge drop")

        def draw(low: Array, high: Array) -> Array:
            return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(base, low), high))

        u = jax.vmap(jax.vmap(draw))(jnp.minimum(mine, graph.nbr), jnp.maximum(mine, graph.nbr))
        return s, kept(graph, u >= arrays["p"])

    arrays = {"inner": below, "p": constant(p, np.float32)}
    return process(step, arrays, lambda key, arrays: start(key, arrays["inner"]))


def lossy(topology: Graph | Process, loss: Any) -> Process:
    """Every message is lost with probability `loss`, independently of all others: who should hear it keeps its weight.

    Nothing is sent again, and what is lost counts no bits. One direction fails without the other, so of symmetric
    weights the mean is kept in expectation only; where `own` is given (push-sum) the sender keeps what is lost.

    Args:
        topology: the graph, or the process of graphs.
        loss: a probability for all, by sender `[n]`, or from sender to listener `[n, n]`.

    Raises:
        InputError: a number outside 0..1, or another shape.
    """
    start, walk, below = inner = as_process(topology)
    p = np.asarray(loss, np.float64)
    n = yielded(inner).nbr.shape[0]
    if p.shape not in ((), (n,), (n, n)) or not ((p >= 0) & (p <= 1)).all():
        raise InputError(
            f"loss = {loss}: a probability from 0 to 1, one a sender [{n}] or an edge [{n}, {n}], is needed."
        )

    def step(key: Array, arrays: dict, s: Any, t: Array) -> tuple[Any, Graph]:
        s, graph = walk(stream(key, "below loss"), arrays["inner"], s, t)
        mine, p = jnp.arange(n, dtype=jnp.int32)[:, None], arrays["loss"]
        base = stream(key, "loss")
        draw = lambda i, j: jax.random.uniform(jax.random.fold_in(jax.random.fold_in(base, i), j))
        u = jax.vmap(jax.vmap(draw))(jnp.broadcast_to(mine, graph.nbr.shape), graph.nbr)
        return s, kept(graph, u >= (p[graph.nbr, mine] if p.ndim == 2 else p[graph.nbr] if p.ndim else p))

    arrays = {"inner": below, "loss": constant(p, np.float32)}
    return process(step, arrays, lambda key, arrays: start(key, arrays["inner"]))


def asleep(topology: Graph | Process, awake: Process) -> Process:
    """Only edges between two nodes that are awake carry weight; `awake` yields `[n]` bool (`cohort.availability`)."""
    start, walk, inner = as_process(topology)
    wake_first, wake, others = awake

    def init(key: Array, arrays: dict) -> tuple[Any, Any]:
        below = start(stream(key, "below sleep"), arrays["inner"])
        return below, wake_first(stream(key, "sleep"), arrays["awake"])

    def step(key: Array, arrays: dict, s: tuple, t: Array) -> tuple[tuple, Graph]:
        below, graph = walk(stream(key, "below sleep"), arrays["inner"], s[0], t)
        above, on = wake(stream(key, "sleep"), arrays["awake"], s[1], t)
        return (below, above), between(graph, on)

    return process(step, {"inner": inner, "awake": others}, init)


def _widen(graph: Graph, k: int) -> Graph:
    n, more = graph.nbr.shape[0], k - graph.nbr.shape[1]
    own = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32)[:, None], (n, more))
    rev = None if graph.rev is None else jnp.pad(graph.rev, ((0, 0), (0, more)))
    return Graph(
        jnp.concatenate([graph.nbr, own], 1),
        jnp.pad(graph.weight, ((0, 0), (0, more))),
        rev=rev,
        own=graph.own,
        column_stochastic=graph.column_stochastic,
    )


def by_round(graphs: Sequence | Callable[[int], Any], rounds: int | None = None) -> Process:
    """The graphs in turn, `graphs[t mod len(graphs)]`, each as `as_graph` reads it, padded to the widest table.

    A function of the round is called on the host for t = 0, ..., rounds - 1, and may return what `as_graph` reads.

    >>> import networkx as nx
    >>> import jaxfl as fl
    >>> shards = fl.partition.iid(fl.data.digits(), 6)
    >>> world = fl.scenario(shards, topology=[nx.cycle_graph(6), nx.star_graph(5)])  # a list is by_round(list)
    >>> meet = fl.topology.by_round(lambda t: nx.gnp_random_graph(6, 0.5, seed=t), rounds=10)
    >>> world = fl.scenario(shards, topology=meet)

    Raises:
        InputError: no graph, graphs of different sizes, one that `as_graph` refuses, a function without `rounds`.
    """
    if callable(graphs):
        if rounds is None:
            raise InputError("rounds = None: how many graphs the function is asked for must be said.")
        require("rounds", rounds, least=1, whole=True)
        graphs = [graphs(t) for t in range(rounds)]
    elif rounds is not None:
        raise InputError(f"rounds = {rounds}: it is for a function of the round, and graphs are given.")
    tables: list[Any] = []
    for t, g in enumerate(graphs):
        try:
            tables.append(require_weights(as_graph(g)))
        except InputError as error:
            raise InputError(f"graphs[{t}]: {error}") from error
    sizes = sorted({g.nbr.shape[0] for g in tables})
    if len(sizes) != 1:
        raise InputError(f"graphs have sizes {sizes}: one or more graphs of the same number of nodes are needed.")
    if len({g.shifts for g in tables}) > 1 or tables[0].shifts is None:
        k = max(g.nbr.shape[1] for g in tables)
        tables = [_widen(g, k) for g in tables]
    if any(g.rev is None for g in tables):
        tables = [dataclasses.replace(g, rev=None) for g in tables]
    if any(g.own is not None for g in tables):
        columns = any(g.column_stochastic for g in tables)
        tables = [dataclasses.replace(g, own=own_weight(g), column_stochastic=columns) for g in tables]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *tables)

    def step(key: Array, arrays: Graph, s: tuple, t: Array) -> tuple[tuple, Graph]:
        return s, jax.tree.map(lambda a: a[t % a.shape[0]], arrays)

    return process(step, stacked)
