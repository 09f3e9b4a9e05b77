"""Who hears whom in round `t`: graphs as processes, fixed or drawn anew every round.

Each yields a weighted `core.Graph`, ready to mix. Randomness comes from the key of the step alone.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxfl.core import Array, Graph, Process, own_weight, stream
from jaxfl.errors import InputError
from jaxfl.world.cohort import subset
from jaxfl.world.mixing import push_weights
from jaxfl.world.process import process
from jaxfl.world.tiers import Tiers


def _nodes(n: int) -> int:
    if n < 2:
        raise InputError(f"n = {n}: at least two nodes are needed.")
    return int(n)


def _sources(n: int, k: int) -> int:
    if not 1 <= k < n:
        raise InputError(f"k = {k}: a node hears between 1 and n - 1 = {n - 1} others.")
    return int(k)


def static(graph: Graph) -> Process:
    """The same graph in every round, its weights as they are."""
    return process(lambda key, arrays, s, t: (s, arrays), graph)


def as_process(topology: Graph | Process) -> Process:
    """A graph wrapped by `static`; a process as it is."""
    return static(topology) if isinstance(topology, Graph) else topology


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
    shifts = jnp.array([2**j for j in range((n - 1).bit_length())], jnp.int32)

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


def _keep(graph: Graph, live: Array) -> Graph:
    """The graph with the slots `live` `[n, k]` alone."""
    own = graph.own
    if own is not None:  # column stochastic: the sender keeps what it could not hand over
        own = own.at[graph.nbr].add(jnp.where(live, 0, graph.weight))
    return dataclasses.replace(graph, weight=jnp.where(live, graph.weight, 0), own=own, shifts=None)


def between(graph: Any, on: Array) -> Any:
    """The graph, or its tiers: only edges between two nodes that are `on` `[n]` carry weight."""
    if isinstance(graph, Tiers):
        rows = zip(graph.parts, graph.split(on), strict=True)
        return graph._replace(parts=tuple(_keep(part, mine[:, None] & on[part.nbr]) for part, mine in rows))
    return _keep(graph, on[:, None] & on[graph.nbr])


def edge_drop(topology: Graph | Process, p: float) -> Process:
    """Every unordered pair of nodes is cut off independently with probability `p` a round, in both directions.

    The own weight rises by what is lost, so symmetric weights stay symmetric and keep the mean; where `own` is given
    (push-sum), the sender's rises and columns go on summing to one. Directed doubly stochastic weights keep the mean
    in neither way.

    Raises:
        InputError: `p` is outside 0..1.
    """
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
        return s, _keep(graph, u >= arrays["p"])

    arrays = {"inner": below, "p": jnp.float32(p)}
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


def union_period(graphs: Sequence[Graph]) -> Process:
    """The graphs in turn, `graphs[t mod len(graphs)]`, padded to the widest table.

    Raises:
        InputError: no graph, or graphs of different sizes.
    """
    sizes = sorted({g.nbr.shape[0] for g in graphs})
    if len(sizes) != 1:
        raise InputError(f"graphs have sizes {sizes}: one or more graphs of the same number of nodes are needed.")
    if len({g.shifts for g in graphs}) > 1 or graphs[0].shifts is None:
        k = max(g.nbr.shape[1] for g in graphs)
        graphs = [_widen(g, k) for g in graphs]
    if any(g.rev is None for g in graphs):
        graphs = [dataclasses.replace(g, rev=None) for g in graphs]
    if any(g.own is not None for g in graphs):
        columns = any(g.column_stochastic for g in graphs)
        graphs = [dataclasses.replace(g, own=own_weight(g), column_stochastic=columns) for g in graphs]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *graphs)

    def step(key: Array, arrays: Graph, s: tuple, t: Array) -> tuple[tuple, Graph]:
        return s, jax.tree.map(lambda a: a[t % a.shape[0]], arrays)

    return process(step, stacked)
