"""Graphs whose edges come and go: snapshots, a sliding memory of them, and the process that yields them to a run.

All snapshots share one table over the union of their edges, so that a slot means the same neighbour for the whole run
and what a node remembers about a slot stays where it is. A round only picks which slots are live. Snapshots are built
on the host; every array there holds undirected edges as pairs of node numbers, `[e, 2]`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array, Graph, Process, constant
from jaxfl.errors import InputError, require
from jaxfl.world.process import process
from jaxfl.world.tiers import Tiers, layout

Edges = np.ndarray


class Room(NamedTuple):
    """The shapes of a temporal graph. Graphs of the same room share one compiled program."""

    tiers: tuple[tuple[int, int], ...]  # rows and slots of each tier
    edges: int  # edges in the union of all snapshots


def _codes(n: int, edges: Edges) -> np.ndarray:
    """Undirected edges as sorted numbers `low * n + high`, each once, without loops."""
    pairs = np.asarray(edges, np.int64)
    pairs = pairs.reshape(0, 2) if pairs.size == 0 else pairs
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise InputError(f"snapshots: edges have shape {list(pairs.shape)}, and pairs of nodes [e, 2] are needed.")
    if pairs.size and not (pairs.min() >= 0 and pairs.max() < n):
        raise InputError(f"snapshots: an edge names node {pairs.max()} or {pairs.min()}, outside 0..{n - 1}.")
    low, high = pairs.min(1), pairs.max(1)
    return np.unique((low * n + high)[low != high])


def _pairs(n: int, codes: np.ndarray) -> Edges:
    return np.stack(np.divmod(codes, n), 1)


def remembered(n: int, snapshots: Sequence[Edges], memory: int = 1, least: int = 1) -> tuple[Edges, np.ndarray]:
    """All edges that ever occur, `[E, 2]`, and which are active in each round, `[rounds, E]` bool.

    An edge is active if at least `least` of the last `memory` snapshots have it: `least` 1 is their union, `memory`
    their intersection. While fewer than `memory` snapshots have come, `least` shrinks in proportion, rounded up.

    Raises:
        InputError: no snapshot, `memory` below 1, `least` outside 1..memory, or a bad edge.
    """
    require("memory", memory, least=1, whole=True)
    require("least", least, least=1, most=memory, whole=True)
    if not len(snapshots):
        raise InputError("snapshots is empty: at least one is needed.")
    codes = [_codes(n, edges) for edges in snapshots]
    union = np.unique(np.concatenate(codes))
    present = np.stack([np.isin(union, c, assume_unique=True) for c in codes])
    total = np.concatenate([np.zeros((1, union.size), np.int64), present.cumsum(0)])
    t = np.arange(len(codes))
    stored = np.minimum(t + 1, memory)
    seen = total[t + 1] - total[t + 1 - stored]
    return _pairs(n, union), seen >= -(-least * stored // memory)[:, None]


def room(n: int, *runs: Sequence[Edges], growth: float = 4.0) -> Room:
    """The smallest room in which the snapshots of every one of the `runs` fit.

    Args:
        n: number of nodes.
        runs: sequences of snapshots.
        growth: how much wider a tier may be than its narrowest node needs; `inf` is one tier.

    Raises:
        InputError: `growth` is not above 1, or a bad edge.
    """
    require("growth", growth, above=1, most=math.inf)
    unions = [np.unique(np.concatenate([_codes(n, edges) for edges in run])) for run in runs]
    degrees = [np.bincount(_pairs(n, codes).reshape(-1), minlength=n) for codes in unions]
    return Room(layout(degrees, growth), max(max(codes.size for codes in unions), 1))


def temporal(
    n: int,
    snapshots: Sequence[Edges],
    *,
    memory: int = 1,
    least: int = 1,
    tiers: bool = True,
    room: Room | None = None,
) -> Process:
    """In round `t` the edges that `remembered` calls active, each with weight 1; the last ones stay.

    The weights say which slots are live: that is for protocols, not for averaging, as their rows do not sum to one.

    Args:
        n: number of nodes.
        snapshots: edges `[e, 2]` of each round.
        memory: how many snapshots an edge is remembered.
        least: how many of these must have it.
        tiers: yield `world.tiers.Tiers`; else one padded table, a `Graph` with reverse slots, as wide as the node of
            most neighbours over the whole run.
        room: shapes to fill, from `room` over several runs that are to share one program.

    Raises:
        InputError: see `remembered`; or the snapshots do not fit in the room.
    """
    edges, active = remembered(n, snapshots, memory, least)
    if room is None:
        room = _room(n, snapshots) if tiers else _room(n, snapshots, growth=np.inf)
    i, j = edges.T
    degree = np.bincount(edges.reshape(-1), minlength=n)
    order = np.argsort(-degree, kind="stable") if tiers else np.arange(n)
    rows, widths = np.array(room.tiers).T
    capacity = np.repeat(widths, rows)
    if len(edges) > room.edges or capacity.size != n or np.any(degree[order] > capacity):
        raise InputError(f"room {room} is too small for {n} nodes, {len(edges)} edges, {degree.max()} at one node.")
    listener, source, which = np.concatenate([i, j]), np.concatenate([j, i]), np.tile(np.arange(len(edges)), 2)
    by = np.lexsort((source, listener))
    listener, source, which = listener[by], source[by], which[by]
    slot = np.arange(listener.size) - (np.cumsum(degree) - degree)[listener]
    position = np.empty(n, np.int64)
    position[order] = np.arange(n)
    parts, last = [], 0
    for count, width in room.tiers:
        mine = (position[listener] >= last) & (position[listener] < last + count)
        at = position[listener][mine] - last, slot[mine]
        nbr = np.repeat(order[last : last + count, None], width, 1)
        edge = np.full((count, width), room.edges)
        nbr[at], edge[at] = source[mine], which[mine]
        parts.append((constant(nbr, np.int32), constant(edge, np.int32)))
        last += count
    # the bits of eight rounds in one byte; the edge of no number is never active
    padded = np.zeros((len(active), room.edges + 1), bool)
    padded[:, : active.shape[1]] = active
    bits = constant(np.packbits(padded, axis=0, bitorder="little"))
    arrays = {"bits": bits, "last": constant(len(active) - 1, np.int32), "tables": tuple(parts)}
    if tiers:
        arrays |= {"order": constant(order, np.int32), "place": constant(position, np.int32)}
        return process(_tiers_at, arrays)
    rev = np.zeros((n, widths[0]), np.int64)
    other = np.argsort(np.lexsort((listener, source)))  # where in the list the reverse of each entry stands
    rev[listener, slot] = slot[other]
    return process(_graph_at, arrays | {"rev": constant(rev, np.int32)})


_room = room  # `temporal` has an argument of this name


def _weights(arrays: dict, t: Array) -> list[Array]:
    t = jnp.minimum(t, arrays["last"])
    live = (arrays["bits"][t // 8] >> (t % 8).astype(jnp.uint8)) & 1
    return [live[edge].astype(jnp.float32) for _, edge in arrays["tables"]]


def _tiers_at(key: Array, arrays: dict, s: tuple, t: Array) -> tuple[tuple, Tiers]:
    tables = zip(arrays["tables"], _weights(arrays, t), strict=True)
    return s, Tiers(tuple(Graph(nbr, weight) for (nbr, _), weight in tables), arrays["order"], arrays["place"])


def _graph_at(key: Array, arrays: dict, s: tuple, t: Array) -> tuple[tuple, Graph]:
    ((nbr, _),), (weight,) = arrays["tables"], _weights(arrays, t)
    return s, Graph(nbr, weight, rev=arrays["rev"])


def chung_lu(n: int, degree: float, exponent: float, seed: int) -> Edges:
    """A random graph of given expected degrees: nodes `i < j` are joined with `min(1, w_i w_j / sum(w))`, `[e, 2]`.

    The weights are `w_i ~ (i + 1)^-exponent` with mean `degree`. Chung and Lu, The average distances in random graphs
    with given expected degrees, PNAS 2002. Costs O(n^2).

    Raises:
        InputError: `n` < 2, `degree` not above 0, or `exponent` outside [0, 1).
    """
    require("n", n, least=2, whole=True)
    require("degree", degree, above=0)
    require("exponent", exponent, least=0, below=1)
    rng = np.random.default_rng(seed)
    w = np.arange(1, n + 1) ** -float(exponent)
    w *= degree / w.mean()
    found = []
    for i in range(n - 1):
        j = np.flatnonzero(rng.random(n - 1 - i) < w[i] * w[i + 1 :] / w.sum()) + i + 1
        found.append(np.stack([np.full(j.size, i), j], 1))
    return np.concatenate(found)


def churned(n: int, edges: Edges, rounds: int, churn: float, seed: int) -> list[Edges]:
    """The edges themselves, then `rounds - 1` further snapshots, each with a share `churn` of the edges exchanged.

    From one snapshot to the next, `max(1, round(churn * e))` random edges go and as many come that were not there
    (nor went just now), both ends drawn in proportion to the degree + 1.

    Raises:
        InputError: `rounds` < 1, `churn` outside [0, 1], a bad edge, or no place for a new edge within reason.
    """
    require("rounds", rounds, least=1, whole=True)
    require("churn", churn, least=0, most=1)
    rng = np.random.default_rng(seed)
    codes = _codes(n, edges)
    found = [_pairs(n, codes)]
    for _ in range(rounds - 1):
        count = max(1, round(churn * codes.size)) if churn > 0 and codes.size else 0
        left = np.delete(codes, rng.choice(codes.size, count, replace=False))
        degree = np.bincount(_pairs(n, codes).reshape(-1), minlength=n) + 1.0
        fresh = np.empty(0, np.int64)
        for _ in range(1000):
            if fresh.size >= count:
                break
            drawn = rng.choice(n, (2 * count, 2), p=degree / degree.sum())
            drawn = _codes(n, drawn)
            drawn = drawn[~np.isin(drawn, codes) & ~np.isin(drawn, fresh)]
            fresh = np.concatenate([fresh, rng.permutation(drawn)])[:count]
        else:
            raise InputError(f"churn = {churn}: the graph is too dense for {count} new edges.")
        codes = np.sort(np.concatenate([left, fresh]))
        found.append(_pairs(n, codes))
    return found
