"""Clocks of nodes that wait for their neighbours alone: recursions of max and plus over the graph of each round.

Without one, all wait for the slowest after every round. Here node `i` ends round `k` at the time

    f_i^k = max(f_i^{k-1} + c_i^k,  max_{j heard} s_j^k + D_ji),    s_j^k = f_j^{k-1} + c_j^k: trained, then sent,
                                                                    s_j^k = f_j^{k-1} where sending overlaps training,

with `c_i^k` the seconds of its local work and `D_ji` those of a message (Baccelli, Cohen, Olsder, Quadrat,
Synchronization and Linearity, 1992). A round lasts as long as the last node's time moves on, so time never runs
backwards and a run ends when its last node does. Kept are the times behind the last node's (`lags`), which rounding
cannot wear away however long a run is.

>>> import jaxfl as fl
>>> work = fl.durations.exponential(0.1)
>>> world = fl.scenario(
...     fl.partition.iid(fl.data.digits(), 8),
...     topology=fl.mixing.metropolis(fl.graph.ring(8)),
...     clocks=fl.max_plus.neighbours(work, 0.05),
... )
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array, Graph, Links, Tree, constant, node_keys, stream
from jaxfl.errors import InputError, require
from jaxfl.mapping.canonical import canonical
from jaxfl.world.durations import Seconds, drawing
from jaxfl.world.links import number, ways
from jaxfl.world.process import process
from jaxfl.world.tiers import Tiers, tiers_of
from jaxfl.world.topology import as_process


class Clocks(NamedTuple):
    """Times of nodes. `lag` `[n]` of a state, at most 0, is how far each is behind the last of them."""

    init: Callable  # (n, graph, None where the world has none) -> state with `lag` [n]
    step: Callable  # (key, arrays, s, t, graph, alive) -> (s, seconds by which the last node's time moves on)
    arrays: Tree = ()
    graph: bool = True  # whether they need one


class State(NamedTuple):
    """Where the clocks stand; all times are relative to the last node's."""

    lag: Array  # [n]
    launch: Any = ()  # [n, k], when what is under way to slot `s` was sent, of edges in the background
    live: Any = ()  # [n, k] bool, who was heard in the round before


def neighbours(
    work: Seconds, way: Any = 0.0, *, bits: float = 0.0, overlap: bool = False, background: bool = False
) -> Clocks:
    """Each node waits for those it hears in this round, by the graph of the round.

    Args:
        work: law of the seconds of a node's local work, one draw a node and round.
        way: seconds of a message: one number, from sender to listener `[n, n]`, or `Links` (`world.links`,
            `world.regions`) that carry `bits`, all of a round at once.
        bits: of a message, where `way` is `Links`.
        overlap: models are sent before the round's training and arrive while it runs (adapt while communicating).
        background: over an edge that is missing from rounds one message is under way, sent in the first of them, and
            it is what is heard in the round in which the edge is back. For topologies of one neighbour table.

    Raises:
        InputError: a time below 0 or not finite, another shape, links without bits or bits without links.
    """
    linked = isinstance(way, Links)
    require("bits", bits, least=0)
    if linked != (bits > 0):
        raise InputError(f"bits = {bits}: the bits of a message are needed where way is Links, and nowhere else.")
    shape = np.shape(0.0 if linked else way)
    if len(shape) not in (0, 2) or len(set(shape)) > 1:
        raise InputError(f"way has shape {list(shape)}: one number, [n, n], or Links are needed.")
    seconds, draw = way if linked else number("way", way, shape), drawing(work)

    def init(n: int, graph: Any) -> State:
        if not background:
            return State(jnp.zeros(n))
        return State(jnp.zeros(n), jnp.zeros(graph.nbr.shape), jnp.ones(graph.nbr.shape, bool))

    def step(key: Array, arrays: dict, s: State, t: Array, graph: Graph | Tiers, alive: Array | None):
        done = s.lag + _work(key, arrays["work"], draw, s.lag, alive)
        sent, tiers = s.lag if overlap else done, tiers_of(graph)
        tables = list(zip(tiers.split(jnp.arange(s.lag.shape[0])), tiers.parts, strict=True))
        if linked:
            took = ways(arrays["way"], [(i, g, jnp.where(g.weight != 0, bits, 0.0)) for i, g in tables])
        else:
            D = arrays["way"]
            took = [D[g.nbr, i[:, None]] if D.ndim else D for i, g in tables]
        launch: Any = [sent[g.nbr] for _, g in tables]
        if background:
            live = graph.weight != 0
            launch = [jnp.where(s.live, launch[0], s.launch)]
        heard = [
            jnp.where(g.weight != 0, at + D, -jnp.inf).max(1, initial=-jnp.inf)
            for (_, g), at, D in zip(tables, launch, took, strict=True)
        ]
        lag, seconds = _moved_on(jnp.maximum(done, tiers.join(heard)), alive)
        if background:
            return State(lag, launch[0] - seconds, live), seconds
        return State(lag), seconds

    return Clocks(canonical(init), canonical(step), {"work": work.arrays, "way": seconds})


def grouped(work: Seconds, labels: Any, cost: Any = 0.0, *, overlap: bool = True) -> Clocks:
    """Each node waits for its group alone, whose members average in `cost` seconds: an all-reduce in every group.

        f_i^k = max(f_i^{k-1} + c_i^k,  max_{j in g} f_j^{k-1} + A_g),
        f_i^k = max_{j in g} (f_j^{k-1} + c_j^k) + A_g without overlap

    One group of all, without overlap, is the barrier of an all-reduce; if `h` seconds of it can be hidden behind the
    backward pass, its cost is `max(0, A - h)`.

    Args:
        work: law of the seconds of a node's local work, one draw a node and round.
        labels: the group of each node, whole numbers from 0, `[n]` or in turn `[period, n]`.
        cost: seconds of a group's averaging, one number, or by round of the period and group `[period, groups]`.
        overlap: averaging of the models of the round before runs beside the training.

    Raises:
        InputError: labels of another shape or below 0, a cost below 0 or of another shape.
    """
    groups = np.atleast_2d(np.asarray(labels))
    require("labels", groups, least=0, whole=True)
    if groups.ndim != 2 or not groups.size:
        raise InputError(f"labels have shape {list(np.shape(labels))}, but must be [n] or [period, n].")
    (period, n), most = groups.shape, int(groups.max()) + 1
    seconds, draw = number("cost", cost, (period, most)), drawing(work)

    def init(nodes: int, graph: Any) -> State:
        del graph
        if nodes != n:
            raise InputError(f"clocks have groups of {n} nodes, but the world has {nodes}.")
        return State(jnp.zeros(n))

    def step(key: Array, arrays: dict, s: State, t: Array, graph: Any, alive: Array | None):
        del graph
        done = s.lag + _work(key, arrays["work"], draw, s.lag, alive)
        mine, A = arrays["labels"][t % period], arrays["cost"][t % period]
        ready = s.lag if overlap else done
        ready = ready if alive is None else jnp.where(alive, ready, -jnp.inf)
        together = jnp.full(most, -jnp.inf).at[mine].max(ready) + A
        lag, seconds = _moved_on(jnp.maximum(done, together[mine]), alive)
        return State(lag), seconds

    arrays = {"work": work.arrays, "labels": constant(groups, np.int32), "cost": seconds}
    return Clocks(canonical(init), canonical(step), arrays, graph=False)


def _work(key: Array, arrays: Tree, draw: Callable, lag: Array, alive: Array | None) -> Array:
    """Seconds of local work `[n]`; 0 of those that are down."""
    ids = jnp.arange(lag.shape[0])
    took = jax.vmap(lambda key, i: draw(key, arrays, i))(node_keys(stream(key, "work"), ids), ids)
    return took if alive is None else jnp.where(alive, took, 0.0)


def _moved_on(ends: Array, alive: Array | None) -> tuple[Array, Array]:
    """Lags after a round that ends at these times `[n]`, and its seconds. Who is down comes back with the last node."""
    last = ends.max()
    return ends - last if alive is None else jnp.where(alive, ends - last, 0.0), last


def lags(carry: Any) -> np.ndarray:
    """How far each node is behind the last one, `[n]`, with seeds `[s, n]`, at most 0: add it to the history's `time`.

    `carry` is that of a `Result` of a world with clocks.
    """
    found = [s for s in carry.state[0] if isinstance(s, State)]
    if not found:
        raise InputError("carry is of a world without clocks: scenario(clocks=) has some.")
    return np.asarray(found[0].lag)


def alone(clocks: Clocks, n: int, rounds: int, *, topology: Any = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The clocks without learning: seconds of each round `[rounds]`, and `lags` `[n]` after the last.

    Args:
        clocks: `neighbours` or `grouped`.
        n: number of nodes.
        rounds: how many.
        topology: as in `scenario`, where the clocks need one.
        seed: of the draws.

    Raises:
        InputError: clocks that need a topology without one.
    """
    if clocks.graph and topology is None:
        raise InputError("topology is None, but clocks of nodes that wait for their neighbours need a graph.")
    where = as_process(topology if clocks.graph else process(lambda key, arrays, s, t: (s, None)))
    found = _alone(where[:2], clocks[:2], n, rounds, where.arrays, clocks.arrays, jax.random.key(seed))
    seconds, lag = jax.device_get(found)
    return seconds.astype(np.float64), lag.astype(np.float64)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _alone(where: tuple, clocks: tuple, n: int, rounds: int, arrays: Tree, own: Tree, key: Array) -> tuple:
    (first, walk), (init, tick) = where, clocks

    def body(s: tuple, t: Array) -> tuple[tuple, Array]:
        mine = jax.random.fold_in(key, t)
        at, graph = walk(stream(mine, "topology"), arrays, s[0], t)
        at_clocks, seconds = tick(stream(mine, "clocks"), own, s[1], t, graph, None)
        return (at, at_clocks), seconds

    at = first(key, arrays)
    graph = jax.eval_shape(lambda: walk(key, arrays, at, jnp.int32(0))[1])
    (_, s), seconds = jax.lax.scan(body, (at, init(n, graph)), jnp.arange(rounds))
    return seconds, s.lag
