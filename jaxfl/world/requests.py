"""Requests of several tasks to one pool of clients: each client works off its requests one after the other.

A clock of scalars that a system steps itself, once a version (`algorithms.server.fedast`): what it asks next may depend
on what was learned, so that it cannot run ahead of training as those of `world.clock` do. A `draw` is
`(key, task, client) -> float32`, the seconds of one request.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxfl.core import Array


class Requests(NamedTuple):
    """What clients have to do, and what they have answered. Times in seconds from the last version of any task."""

    task: Array  # [R] int32
    client: Array  # [R] int32
    age: Array  # [R] int32, versions of the task made since its model was read
    left: Array  # [R] float32, until the request is done; inf: this place is free
    busy: Array  # [n] float32, until the client has done all it was asked; below 0: it is idle
    kept: Array  # [M, B] int32, clients whose answers wait in the buffer of a task, in order of arrival
    kept_age: Array  # [M, B] int32
    count: Array  # [M] int32, how many wait


def first(key: Array, draw: Callable, n: int, targets: Array, places: int, room: int) -> Requests:
    """Every task `m` asks `targets[m]` `[M]` clients, distinct within a task; `places` in all, `room` in a buffer."""
    tasks, empty = targets.shape[0], jnp.zeros(places, jnp.int32)
    buffers = jnp.zeros((tasks, room), jnp.int32)
    s = Requests(
        empty, empty, empty, jnp.full(places, jnp.inf), jnp.zeros(n), buffers, buffers, jnp.zeros(tasks, jnp.int32)
    )
    task = jnp.searchsorted(jnp.cumsum(targets), jnp.arange(places), side="right")

    def ask(j: Array, s: Requests) -> Requests:
        asked = lambda s: _asked(jax.random.fold_in(key, j), draw, s, task[j], jnp.float32(0))
        return jax.lax.cond(task[j] < tasks, asked, lambda s: s, s)

    return jax.lax.fori_loop(0, places, ask, s)


def until_full(key: Array, draw: Callable, s: Requests, targets: Array, goals: Array) -> tuple:
    """Time passes until a task has `goals[m]` answers: `(Requests, (task, clients [B], ages [B], count), seconds, n)`.

    An answer is followed by up to two new requests of its task, as long as it has fewer than `targets[m]` and a place
    is free, to random clients of whom it has asked nothing; that of a full buffer by requests that read the new version
    (of age 0). `n` is the number of answers. Ties go to the lower place.
    """

    def answer(carry: tuple) -> tuple:
        s, _, _, number, _ = carry
        i = jnp.argmin(s.left)
        now, m = s.left[i], s.task[i]
        at = m, s.count[m]
        s = s._replace(
            left=s.left.at[i].set(jnp.inf),
            kept=s.kept.at[at].set(s.client[i]),
            kept_age=s.kept_age.at[at].set(s.age[i]),
            count=s.count.at[m].add(1),
        )
        full = s.count[m] >= goals[m]
        s = jax.lax.cond(full, lambda s: s, lambda s: again(s, m, now, number), s)
        return s, m, now, number + 1, full

    def again(s: Requests, m: Array, now: Array, number: Array) -> Requests:
        for j in range(2):
            due = (((s.task == m) & (s.left < jnp.inf)).sum() < targets[m]) & (s.left == jnp.inf).any()
            asked = lambda s, j=j: _asked(jax.random.fold_in(key, 2 * number + j), draw, s, m, now)
            s = jax.lax.cond(due, asked, lambda s: s, s)
        return s

    start = s, jnp.int32(0), jnp.float32(0), jnp.int32(0), jnp.bool_(False)
    s, m, over, number, _ = jax.lax.while_loop(lambda carry: ~carry[4], answer, start)
    full = m, s.kept[m], s.kept_age[m], s.count[m]
    s = s._replace(age=s.age + (s.task == m), left=s.left - over, busy=s.busy - over, count=s.count.at[m].set(0))
    return again(s, m, jnp.float32(0), number), full, over, number


def _asked(key: Array, draw: Callable, s: Requests, m: Array, now: Array) -> Requests:
    """One more request of task `m`, to a client with nothing of it to do and no answer in its buffer."""
    n, (who, lasts) = s.busy.shape[0], jax.random.split(key)
    mine = jnp.where((s.task == m) & (s.left < jnp.inf), s.client, n)
    waits = jnp.where(jnp.arange(s.kept.shape[1]) < s.count[m], s.kept[m], n)
    free = jnp.ones(n, bool).at[jnp.concatenate([mine, waits])].set(False, mode="drop")
    i = jnp.argmax(jnp.where(free, jax.random.uniform(who, (n,)), -1.0)).astype(jnp.int32)
    done = jnp.maximum(now, s.busy[i]) + draw(lasts, m, i)
    j = jnp.argmax(s.left)  # a free one
    return s._replace(
        task=s.task.at[j].set(m.astype(jnp.int32)),
        client=s.client.at[j].set(i),
        age=s.age.at[j].set(0),
        left=s.left.at[j].set(done),
        busy=s.busy.at[i].set(done),
    )
