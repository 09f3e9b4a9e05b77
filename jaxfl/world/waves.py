"""Waves: rounds of a clock whose jobs do not depend on each other's results are one round, and train together."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxfl.core import PER_MEMBER, Array, Cohort, Process, ages
from jaxfl.errors import InputError, require
from jaxfl.world.cohort import base_of
from jaxfl.world.process import process, yielded


class Ahead(NamedTuple):
    """A clock that has been looked at one round ahead."""

    key: Array  # of all its rounds
    clock: Any  # its state
    t: Array  # int32, its rounds that have been seen
    next: tuple[Cohort, Array]  # the last of them, which no wave has taken yet


def waves(clock: Process, most: int) -> Process:
    """The rounds of `clock` in waves: the longest run of them whose members all read a model from before the wave.

    When a job ends, and what it read, does not depend on what is learned, so the clock looks ahead, for up to `most`
    rounds. Their members then train in one batch, and the server makes its updates one after the other, each with its
    own age: the same as one round at a time, to rounding. With `clock.buffered(..., goal=1)` and C jobs of random
    length at work a wave has about `sqrt(1.6 C)` of them, of equal length C.

    It yields cohorts of `most` runs of members; `Cohort.updates` says how many of them are there. Systems that know no
    updates in turn refuse it. A history has several versions of the server a round then, and logs how many `updates`.
    Which rounds come depends on the seed alone: `waves(clock, 1)` is the same schedule, one round at a time. What the
    members draw in training differs. Costs O(n) more a wave.

    Args:
        clock: yields `(Cohort, seconds)`, of a node's jobs one after the other (`world.clock`, `world.delivery`).
        most: rounds a wave may have, for which there is always room: members that are missing are trained in vain.

    Raises:
        InputError: another process, or more members a wave than nodes.
    """
    require("most", most, least=1, whole=True)
    first, pick, _ = clock
    value, base = yielded(clock), base_of(clock)
    if not isinstance(value, tuple) or isinstance(value, Cohort) or value[0].updates is not None or base is None:
        raise InputError("clock is no clock of single rounds: waves are made of one that yields (Cohort, seconds).")
    each, n = value[0].ids.shape[0], base.shape[0]
    if most * each > n:
        raise InputError(f"most = {most}: a wave of {most} rounds of {each} members has more than the n = {n} nodes.")

    def look(key: Array, arrays: Any, s: Any, t: Array) -> Ahead:
        s, value = pick(jax.random.fold_in(key, t), arrays, s, t)
        return Ahead(key, s, t + 1, value)

    def init(key: Array, arrays: dict) -> Ahead:
        return look(key, arrays["clock"], first(key, arrays["clock"]), jnp.int32(0))

    def step(key: Array, arrays: dict, s: Ahead, t: Array) -> tuple[Ahead, tuple[Cohort, Array]]:
        del key, t

        def joins(now: tuple) -> Array:
            count, s, _ = now
            c = s.next[0]
            return (count < most) & ((ages(c) >= count) | (c.weight == 0)).all()

        def take(now: tuple) -> tuple:
            count, s, taken = now
            taken = jax.tree.map(lambda a, b: a.at[count].set(b), taken, s.next)
            return count + 1, look(s.key, arrays["clock"], s.clock, s.t), taken

        none = jax.tree.map(lambda a: jnp.zeros((most, *a.shape), a.dtype), s.next)
        count, s, (c, seconds) = jax.lax.while_loop(joins, take, (jnp.int32(0), s, none))
        flat = {f: a.reshape(-1) for f, a in c._asdict().items() if f in PER_MEMBER and a is not None}
        c = c._replace(**flat, updates=jnp.arange(most) < count)
        if c.waiting is not None:
            c = c._replace(waiting=c.waiting[count - 1])
        return s, (c._replace(ids=_distinct(c, n)), seconds.sum())

    return process(step, {"clock": clock.arrays}, init)


def _distinct(c: Cohort, n: int) -> Array:
    """The ids of a cohort, in whose places of weight 0 there are nodes that have none."""
    present = c.weight > 0
    taken = jnp.zeros(n, bool).at[c.ids].max(present)
    others = jnp.nonzero(~taken, size=c.ids.shape[0], fill_value=0)[0]
    return jnp.where(present, c.ids, others[jnp.cumsum(~present) - 1]).astype(jnp.int32)
