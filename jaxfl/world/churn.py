"""Who is up in a round: processes that yield `[n]` bool, for `scenario(churn=...)`.

A world says when a node is down, not how it went: whether a departure is announced or a silent crash is a matter of
the protocol (`announced` of `algorithms.modest`), and most protocols cannot tell the two apart. `cohort.availability`
is churn in discrete time, `sessions` below the same in continuous time.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np

from jaxfl.core import Array, Process, Tree, constant, stream
from jaxfl.errors import InputError, require
from jaxfl.world.cohort import availability
from jaxfl.world.process import process

FOREVER = 2**31 - 1


def always(n: int) -> Process:
    """Every node, in every round."""
    return intervals(np.zeros((n, 1), int), np.full((n, 1), FOREVER))


def intervals(up_from: Any, up_to: Any) -> Process:
    """Node `i` is up in the rounds `up_from[i, e] <= t < up_to[i, e]` of any of its intervals; both are `[n, e]`.

    Fewer than `e` intervals are padded with empty ones. Arrays of one shape share a compiled program.

    Raises:
        InputError: two shapes, or not whole numbers from 0 to 2^31 - 1.
    """
    first, last = np.asarray(up_from), np.asarray(up_to)
    if first.ndim != 2 or first.shape != last.shape or not first.size:
        raise InputError(f"up_from has shape {list(first.shape)}, up_to {list(last.shape)}: both must be [n, e].")
    for name, a in (("up_from", first), ("up_to", last)):
        if a.dtype.kind not in "iu" or a.min() < 0 or a.max() > FOREVER:
            raise InputError(f"{name} runs from {a.min()} to {a.max()}: whole numbers from 0 to 2^31 - 1 are needed.")

    def step(key: Array, arrays: tuple, s: tuple, t: Array) -> tuple[tuple, Array]:
        first, last = arrays
        return s, ((first <= t) & (t < last)).any(1)

    return process(step, (constant(first, np.int32), constant(last, np.int32)))


def events(n: int, *, leaves: Iterable[tuple[int, Any]] = (), joins: Iterable[tuple[int, Any]] = ()) -> Process:
    """A script of pairs `(round, ids)`: from that round on, these nodes are down (`leaves`) or up (`joins`).

    A node whose first event is a join is down before it, all others are up from the start.

    Raises:
        InputError: an id outside 0..n-1, a negative round, a leave of who is down or a join of who is up.
    """
    require("n", n, whole=True)
    if n < 1:
        raise InputError(f"n = {n}: at least one node is needed.")
    story: list[list[tuple[int, bool]]] = [[] for _ in range(n)]
    for up, pairs in ((False, leaves), (True, joins)):
        for t, ids in pairs:
            for i in np.atleast_1d(np.asarray(ids)).tolist():
                if not 0 <= i < n or t < 0:
                    raise InputError(f"node {i} in round {t}: ids from 0 to {n - 1} and rounds from 0 are needed.")
                story[i].append((int(t), up))
    spans = []
    for i, changes in enumerate(story):
        changes = sorted(changes)
        for (_, before), (t, now) in pairwise(changes):
            if before == now:
                verb, state = ("joins", "up") if now else ("leaves", "down")
                raise InputError(f"node {i} {verb} in round {t}, but is {state} already.")
        if len({t for t, _ in changes}) < len(changes):
            raise InputError(f"node {i} leaves and joins in the same round: one event a node and round is allowed.")
        if not changes or not changes[0][1]:
            changes = [(0, True), *changes]
        if changes[-1][1]:
            changes = [*changes, (FOREVER, False)]
        spans.append([t for t, _ in changes])
    most = max(map(len, spans))
    ends = np.array([s + [0] * (most - len(s)) for s in spans]).reshape(n, -1, 2)
    return intervals(ends[:, :, 0], ends[:, :, 1])


def crash(n: int, share: float, at: int, seed: int = 0) -> Process:
    """From round `at` on, `round(share * n)` nodes drawn at random are down for good.

    Raises:
        InputError: `share` is outside 0..1, or `at` or `seed` is negative.
    """
    require("n", n, least=1, whole=True)
    require("share", share, least=0, most=1)
    require("at", at, least=0, whole=True)
    require("seed", seed, least=0, whole=True)
    return events(n, leaves=[(at, np.random.default_rng(seed).permutation(n)[: round(share * n)])])


def sessions(n: int, up: Any, down: Any) -> Process:
    """Nodes come and go by themselves: exponential sessions of mean `up` rounds, absences of mean `down` rounds.

    Arrivals among those absent are a Poisson process. This is the two-state Markov chain in continuous time, looked
    at once a round (a visit between two looks goes unseen), begun in its stationary law: up for a share
    `up / (up + down)` of the time.

    Args:
        n: number of nodes.
        up: mean rounds of a session, above 0, one for all or `[n]`.
        down: mean rounds of an absence, likewise.

    Raises:
        InputError: a mean that is not finite and above 0, or of another shape.
    """
    on, off = np.asarray(up, np.float64), np.asarray(down, np.float64)
    for name, a in (("up", on), ("down", off)):
        if a.shape not in ((), (n,)) or not (np.isfinite(a) & (a > 0)).all():
            raise InputError(f"{name} = {a.tolist()}: a finite mean above 0, or one a node [{n}], is needed.")
    share, memory = on / (on + off), np.exp(-1 / on - 1 / off)
    return availability(n, share + (1 - share) * memory, 1 - share + share * memory)


def trace(up: Any) -> Process:
    """Recorded availability `[rounds, n]` bool; after the last round it begins anew.

    Raises:
        InputError: not a table of bool.
    """
    table = np.asarray(up)
    if table.ndim != 2 or table.dtype != bool or not table.size:
        raise InputError(f"up has shape {list(table.shape)} of {table.dtype}: a table [rounds, n] of bool is needed.")

    def step(key: Array, arrays: Array, s: tuple, t: Array) -> tuple[tuple, Array]:
        return s, arrays[t % arrays.shape[0]]

    return process(step, constant(table))


def both(a: Process, b: Process) -> Process:
    """Up is who is up in `a` and in `b`: a crash on top of sessions, say."""
    (first_a, next_a, _), (first_b, next_b, _) = a, b

    def init(key: Array, arrays: tuple) -> tuple[Tree, Tree]:
        return first_a(stream(key, "churn a"), arrays[0]), first_b(stream(key, "churn b"), arrays[1])

    def step(key: Array, arrays: tuple, s: tuple, t: Array) -> tuple[tuple, Array]:
        at_a, up_a = next_a(stream(key, "churn a"), arrays[0], s[0], t)
        at_b, up_b = next_b(stream(key, "churn b"), arrays[1], s[1], t)
        return (at_a, at_b), up_a & up_b

    return process(step, (a.arrays, b.arrays), init)
