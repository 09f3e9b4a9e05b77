"""Clocks: processes that decide by simulated time who is in a round, and how long it takes.

A clock yields `(Cohort, seconds)`; give it to `world.scenario` as `cohort`. Durations do not depend on what is learned,
so the clock runs on scalars, ahead of training, and a round's members then train as one batch from the models they
read (`exchange.versions`). Durations (`world.durations`) are whole jobs with their transfers: a world with `links` too
would count transfers twice.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array, Cohort, Process, node_keys, stream
from jaxfl.errors import InputError
from jaxfl.world.cohort import base_arrays, subset
from jaxfl.world.durations import Seconds, drawing
from jaxfl.world.process import process


class Jobs(NamedTuple):
    """Who is at work. The first three fields `[concurrency]`, in order of dispatch."""

    ids: Array  # int32, node
    left: Array  # float32, seconds from the end of the last round until it is done
    age: Array  # int32, server versions since it read the model
    idle: Array  # [n - concurrency + 1] int32, the nodes without a job; the last place is scratch


def buffered(n: int, concurrency: int, goal: int, seconds: Seconds, *, weight: Any = None) -> Process:
    """`concurrency` jobs always run, and every `goal`-th arrival ends a round: the clock of FedBuff and Papaya.

    The arrivals since the last round are the cohort, in order of arrival (ties in order of dispatch); `goal = 1` is the
    clock of FedAsync. An arrival's slot goes at once to a node drawn uniformly from those that are idle and have not
    delivered in this round, so ids are distinct. It reads the current version, the one sent out by the last arrival of
    a round reads the new version: `age` counts the versions made since.

    Exact at any order of events. A round costs O(concurrency + goal^2) whatever `n` is, but for a copy of the list of
    idle nodes that XLA makes where `goal` is 1: nodes that deliver are idle again only when the round ends, so who is
    sent out in it is drawn beforehand, without rejection, and only the order of arrival is a loop. Times are kept
    relative to the end of the last round, so float32 is as good after years as at the start.

    Args:
        n: nodes.
        concurrency: jobs in progress, `C`.
        goal: arrivals that make a round, `K`, also the size of the cohort.
        seconds: how long a job takes.
        weight: base weights `[n]`, by default the number of samples (see `world.cohort`).

    Raises:
        InputError: a number below 1, fewer nodes than `concurrency + goal - 1` (one must be idle at any time), numbers
            of `seconds` that are neither `[]` nor `[n]`, or bad base weights.
    """
    base = base_arrays(n, weight)
    for name, value in (("concurrency", concurrency), ("goal", goal)):
        if not isinstance(value, int | np.integer) or value < 1:
            raise InputError(f"{name} = {value}: a whole number of at least 1 is needed.")
    free = n - concurrency
    if free < goal - 1:
        raise InputError(f"n = {n}: at least concurrency + goal - 1 = {concurrency + goal - 1} nodes are needed.")
    require_by_node(seconds, n)
    draw, near = drawing(seconds), min(goal, concurrency)

    def init(key: Array, arrays: dict) -> Jobs:
        order = jax.random.permutation(stream(key, "jobs"), n).astype(jnp.int32)
        ids, zero = order[:concurrency], jnp.zeros(concurrency, jnp.int32)
        idle = jnp.concatenate([order[concurrency:], zero[:1]])
        return Jobs(ids, lasting(draw, key, arrays, jnp.arange(concurrency), ids), zero, idle)

    def step(key: Array, arrays: dict, jobs: Jobs, t: Array) -> tuple[Jobs, tuple[Cohort, Array]]:
        which, order, last = jax.random.split(stream(key, "jobs"), 3)
        position = _scattered(which, order, free, goal - 1)
        p = jax.random.randint(last, (), 0, free + 1)
        spots = jnp.append(position, p)
        read = jobs.idle[spots]
        ids = jnp.concatenate([jobs.ids, read[:-1]])  # by number of job: those running, then those sent out
        spent = lasting(draw, key, arrays, jnp.arange(goal - 1), ids[concurrency:])

        # No other running job can be among the arrivals. Without the barrier XLA sorts them all, far slower.
        best, first = jax.lax.top_k(-jobs.left, near)
        soonest, first = jax.lax.optimization_barrier((-best, first))  # the pair itself crashes XLA on a mesh
        number = jnp.concatenate([first, concurrency + jnp.arange(goal)])

        def arrive(done: Array, sent: tuple) -> tuple[Array, tuple[Array, Array]]:
            j, seconds = sent
            i = jnp.argmin(done)  # the first of equals, which was sent out first
            now = done[i]
            return done.at[i].set(jnp.inf).at[near + j].set(now + seconds), (i, now)

        done = jnp.concatenate([soonest, jnp.full(goal, jnp.inf)])
        sent = jnp.arange(goal), jnp.concatenate([spent, jnp.full(1, jnp.inf)])
        _, (arrived, now) = jax.lax.scan(arrive, done, sent)
        arrived, over = number[arrived], now[-1]
        age = jnp.concatenate([jobs.age, jnp.zeros(goal - 1, jnp.int32)])
        c = Cohort(ids[arrived], arrays["weight"][ids[arrived]], age[arrived])

        # Those who delivered take the places of those sent out, the last of them a place that is left at the end; there
        # the next node is drawn, and the last of them takes its place. One read and one write: more would copy `idle`.
        filled = jnp.append(position, free) == p  # [goal], by whom
        chosen = jnp.where(filled.any(), c.ids[jnp.argmax(filled)], read[-1])
        back = jnp.append(jnp.where(filled[:-1], c.ids[-1], c.ids[:-1]), c.ids[-1])
        idle = jobs.idle.at[spots].set(back)
        ids = jnp.append(ids, chosen)
        finish = over + lasting(draw, key, arrays, jnp.array([goal - 1]), ids[-1:])
        left = jnp.concatenate([jobs.left, now[:-1] + spent, finish]) - over
        age = jnp.concatenate([age + 1, jnp.zeros(1, jnp.int32)])
        running = jnp.ones(concurrency + goal, bool).at[arrived].set(False)
        stay = jnp.nonzero(running, size=concurrency)[0]
        return Jobs(ids[stay], left[stay], age[stay], idle), (c, over)

    return process(step, {**base, "seconds": seconds.arrays}, init)


def lasting(draw: Callable, key: Array, arrays: dict, job: Array, ids: Array) -> Array:
    """Seconds `[c]` of the jobs of nodes `ids`, numbered by `job` within the round."""
    keys = node_keys(stream(key, "job seconds"), job)
    return jax.vmap(lambda k, i: draw(k, arrays["seconds"], i))(keys, ids)


def _scattered(which: Array, order: Array, n: int, count: int) -> Array:
    """`count` distinct numbers below `n` in random order."""
    return jax.random.permutation(order, subset(which, n, count)) if count else jnp.zeros(0, jnp.int32)


def require_by_node(seconds: Seconds, n: int) -> None:
    """Raise `InputError` unless the numbers of a law are one for all, or one a node `[n, ...]`."""
    shapes = [a.shape for a in jax.tree.leaves(seconds.arrays) if a.shape[:1] not in ((), (n,))]
    if shapes:
        raise InputError(
            f"seconds has numbers of shape {list(shapes[0])}: one for all, or one a node [{n}], is needed."
        )
