"""Clocks by which everybody who delivered waits for the round to end: at a tick, by a quorum, in groups.

As in `world.clock`, each yields `(Cohort, seconds)` and runs on scalars, ahead of training. `concurrency` jobs always
run. Who delivers sends nothing more in this round; when it ends the server has a new version, and as many nodes as
delivered are sent out with it, drawn uniformly from those without a job; with `concurrency = n` they are the same ones.
`age` counts the versions made since a member read its model.

A round takes at most `capacity` answers, those that were finished first (ties in order of node). The others wait for
the next rounds, before all that finish later, and grow older; `Cohort.waiting` says how many they are. A cohort's
places that are left hold nodes at work, of weight 0: a round may be nobody's.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array, Cohort, Process, constant, stream
from jaxfl.errors import InputError, require
from jaxfl.world.clock import lasting, require_by_node
from jaxfl.world.cohort import base_arrays
from jaxfl.world.durations import Seconds, drawing
from jaxfl.world.process import process

ROUNDING = 1e-6  # a job makes a tick that it misses by this share of its length: 5 * 0.2 is 1


class Jobs(NamedTuple):
    """Who is at work, or waits. All `[concurrency]`."""

    ids: Array  # int32, node
    spent: Array  # float32, seconds from its dispatch until it is done
    since: Array  # float32, seconds from its dispatch to the end of the last round
    age: Array  # int32, server versions since it read the model


def ticks(
    n: int,
    every: float,
    seconds: Seconds,
    *,
    concurrency: int | None = None,
    capacity: int | None = None,
    weight: Any = None,
) -> Process:
    """A round every `every` seconds, of what has arrived by then: the clock of FedFix (Fraboni et al., JMLR 2023).

    A job of `s` seconds arrives at the `ceil(s / every)`-th tick after its dispatch, at the first if it takes none.
    Its time is compared with whole ticks, so that no rounding adds up. `every` is traced. Costs O(C log C), and O(n)
    where `concurrency < n`.

    Args:
        n: nodes.
        every: seconds between two rounds, above 0.
        seconds: how long a job takes.
        concurrency: jobs in progress, `C`; None is everyone.
        capacity: most answers a round takes, the size of the cohort; None is `C`.
        weight: base weights `[n]`, by default the number of samples (see `world.cohort`).

    Raises:
        InputError: a number out of range, or numbers of `seconds` that are neither `[]` nor `[n]`.
    """
    require("every", every, above=0)
    require_by_node(seconds, n)
    limits = {"every": constant(every, np.float32)}

    def ends(left: Array, limits: dict) -> Array:
        del left
        return limits["every"]

    elapsed = lambda jobs, over: over * jobs.age.astype(jnp.float32)
    return _working(n, concurrency, capacity, seconds, weight, limits, ends, elapsed, ROUNDING)


def quorum(
    n: int,
    goal: int,
    seconds: Seconds,
    *,
    timeout: float = math.inf,
    concurrency: int | None = None,
    weight: Any = None,
) -> Process:
    """A round ends with the `goal`-th answer, or `timeout` seconds after it began with those that are there.

    With `timeout` infinite it is FedBuff whose clients wait in the buffer; `goal = 1` with everyone at work is
    asynchronous training without sampling, and `goal = n` a barrier (of systems that remember no earlier versions it is
    `deadline.barrier(cohort.everyone(n), seconds)`). `timeout` is traced. Costs as `ticks`, O(C) where `goal` is 1.

    Args:
        n: nodes.
        goal: answers that end a round, also the size of the cohort, at most `concurrency`.
        seconds: how long a job takes.
        timeout: longest round in seconds, above 0.
        concurrency: jobs in progress, `C`; None is everyone.
        weight: base weights `[n]`, by default the number of samples (see `world.cohort`).

    Raises:
        InputError: a number out of range, or numbers of `seconds` that are neither `[]` nor `[n]`.
    """
    require_by_node(seconds, n)
    return _quorum(n, goal, seconds, timeout, concurrency, weight)


def _quorum(
    n: int, goal: int, seconds: Seconds, timeout: float, concurrency: int | None = None, weight: Any = None
) -> Process:
    require("goal", goal, least=1, most=n if concurrency is None else concurrency, whole=True)
    require("timeout", timeout, above=0, most=math.inf)
    limits = {"timeout": constant(timeout, np.float32)}

    def ends(left: Array, limits: dict) -> Array:
        return jnp.clip(left[goal - 1], 0, limits["timeout"])

    elapsed = lambda jobs, over: jobs.since + over
    return _working(n, concurrency, goal, seconds, weight, limits, ends, elapsed, 0.0)


def groups(labels: Any, seconds: Seconds, *, goal: int = 1, timeout: float = math.inf, weight: Any = None) -> Process:
    """Nodes that start and report together: a round is the next `goal` groups, each as slow as its slowest member.

    With `goal = 1` the tiers of FedAT (Chai et al., SC 2021): rounds inside a group, asynchrony between groups. All
    groups are always at work. Costs O(n log n).

    Args:
        labels: the group of each node `[n]`, whole numbers from 0, none of them without a node.
        seconds: how long a job of one node takes.
        goal: groups that end a round.
        timeout: longest round in seconds, above 0; a round may then be nobody's.
        weight: base weights `[n]`, by default the number of samples (see `world.cohort`).

    Raises:
        InputError: labels with a gap, or what `quorum` refuses.
    """
    label = np.asarray(labels)
    if label.ndim != 1 or label.dtype.kind not in "iu" or not label.size or label.min() < 0:
        raise InputError(f"labels = {labels}: the group of each node [n], a whole number from 0, is needed.")
    n, sizes = len(label), np.bincount(label)
    if not sizes.all():
        raise InputError(f"labels has no node of group {int(np.argmin(sizes))}: each group needs at least one.")
    base = base_arrays(n, weight)
    require_by_node(seconds, n)
    require("goal", goal, least=1, most=len(sizes), whole=True)
    draw, members = drawing(seconds), int(np.sort(sizes)[-goal:].sum())

    def slowest(key: Array, arrays: dict, g: Array) -> Array:
        each = lasting(draw, key, arrays, jnp.arange(n), jnp.arange(n))
        return jnp.where(arrays["labels"] == g, each, 0).max()

    label = constant(label, np.int32)
    law = Seconds(slowest, {"labels": label, "seconds": seconds.arrays})
    inner = _quorum(len(sizes), goal, law, timeout, weight=np.ones(len(sizes)))
    first, pick, _ = inner

    def init(key: Array, arrays: dict) -> Jobs:
        return first(key, arrays["groups"])

    def step(key: Array, arrays: dict, jobs: Jobs, t: Array) -> tuple[Jobs, tuple[Cohort, Array]]:
        jobs, (c, over) = pick(key, arrays["groups"], jobs, t)
        zero = jnp.zeros(len(sizes), jnp.int32)
        came, age = zero.at[c.ids].set(c.weight > 0) > 0, zero.at[c.ids].set(c.age)
        mine = arrays["labels"]
        ids = jnp.argsort(~came[mine], stable=True)[:members].astype(jnp.int32)  # the members, then others
        weight = jnp.where(came[mine[ids]], arrays["weight"][ids], 0)
        return jobs, (Cohort(ids, weight, age[mine[ids]], waiting=c.waiting), over)

    return process(step, {**base, "labels": label, "groups": inner.arrays}, init)


def _working(
    n: int,
    concurrency: int | None,
    capacity: int | None,
    seconds: Seconds,
    weight: Any,
    limits: dict,
    ends: Callable,
    elapsed: Callable,
    slack: float,
) -> Process:
    """`concurrency` jobs that run until a round ends, `ends(seconds left of the capacity's soonest, limits)` later.

    `elapsed(jobs, over)` are the seconds since the dispatch of those who go on, at the end of the round; `jobs.age` has
    the new version already.
    """
    base = base_arrays(n, weight)
    working = n if concurrency is None else concurrency
    most = working if capacity is None else capacity
    for name, value, top in (("concurrency", working, n), ("capacity", most, working)):
        require(name, value, least=1, most=top, whole=True)
    draw = drawing(seconds)

    def init(key: Array, arrays: dict) -> Jobs:
        ids = jnp.arange(n) if working == n else jax.random.permutation(stream(key, "jobs"), n)[:working]
        ids, zero = ids.astype(jnp.int32), jnp.zeros(working, jnp.int32)
        return Jobs(ids, lasting(draw, key, arrays, ids, ids), zero.astype(jnp.float32), zero)

    def step(key: Array, arrays: dict, jobs: Jobs, t: Array) -> tuple[Jobs, tuple[Cohort, Array]]:
        left = jobs.spent - jobs.since
        place = _soonest(left, jobs.ids, most)
        over = ends(left[place], arrays["limits"])
        done, ids = left <= over + slack * jobs.spent, jobs.ids[place]
        came = done[place]
        c = Cohort(ids, jnp.where(came, arrays["weight"][ids], 0), jobs.age[place], waiting=done.sum() - came.sum())

        sent = ids
        if working < n:  # of those without a job, who delivered among them, the one with the largest number first
            idle = jnp.ones(n, bool).at[jobs.ids].set(False).at[ids].max(came)
            number = jax.random.uniform(stream(key, "jobs"), (n,))
            sent = jax.lax.top_k(jnp.where(idle, number, -1), most)[1].astype(jnp.int32)
            sent = sent[jnp.cumsum(came) - 1]
        older = jobs._replace(age=jobs.age + 1)
        older = older._replace(since=elapsed(older, over))
        new = Jobs(sent, lasting(draw, key, arrays, sent, sent), jnp.zeros(most), jnp.zeros(most, jnp.int32))
        put = lambda old, new: old.at[place].set(jnp.where(came, new, old[place]))
        return jax.tree.map(put, older, new), (c, over)

    return process(step, {**base, "seconds": seconds.arrays, "limits": limits}, init)


def _soonest(left: Array, ids: Array, count: int) -> Array:
    """Where the `count` jobs are that end first, of `left` seconds and nodes `ids` `[C]`; ties in order of node."""
    if count == 1:
        return jnp.argmin(jnp.where(left == left.min(), ids, jnp.iinfo(jnp.int32).max))[None]
    return jax.lax.sort((left, ids, jnp.arange(len(ids), dtype=jnp.int32)), num_keys=2)[2][:count]
