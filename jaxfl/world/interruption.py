"""The clock of clients that come and go while they work: who goes down loses its job, or takes it up again later."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array, Cohort, Process, constant, stream
from jaxfl.errors import require
from jaxfl.world.clock import require_by_node
from jaxfl.world.cohort import base_arrays
from jaxfl.world.durations import Seconds, drawing
from jaxfl.world.process import process


class Nodes(NamedTuple):
    """What all nodes are at; times in seconds from the end of the last round. All `[n]`, but for `key`."""

    key: Array  # of all durations; node i's j-th job, or session, lasts alike whatever happens elsewhere
    up: Array  # bool
    turns: Array  # float32, when it goes down or comes back
    done: Array  # float32, when its job is done; infinite where none runs
    left: Array  # float32, seconds of work that an interrupted job still needs; infinite where there is none
    age: Array  # int32, server versions since it read the model of its job
    jobs: Array  # int32, jobs it was given
    sessions: Array  # int32, sessions and absences it began
    delivered: Array  # int32, jobs that arrived
    lost: Array  # int32, jobs that ended with a session: jobs = delivered + lost + one if it has one


class _Round(NamedTuple):
    """A round as far as it has gone."""

    nodes: Nodes
    came: Array  # [n] int32, who arrived as which, from 0; `n` for all others
    count: Array  # int32
    now: Array  # float32
    ended: Array  # bool, its time is over


def interrupted(
    n: int,
    goal: int,
    seconds: Seconds,
    up: Seconds,
    down: Seconds,
    *,
    timeout: float,
    resumed: bool = False,
    weight: Any = None,
) -> Process:
    """All nodes that are up work, and a round ends with the `goal`-th answer, or after `timeout` seconds.

    A node is up for `up` seconds, down for `down`, and so on, from an up-session on; each job and session has its own
    draw. Who goes down loses its job, and reads the server's model anew when it comes back, which it never does before
    the end of a round in which it delivered; where jobs are `resumed` it goes on with the rest of the old job instead.
    At equal times jobs are done before nodes come and go, both in order of node. At the end of a round every node that
    is up without a job gets one of the new version. A cohort's places that are left hold other nodes, of weight 0.

    No job is lost unseen or counted twice: `Nodes.jobs` of the clock's state is `delivered + lost`, and one where a job
    is running or interrupted. An event costs O(n), a round O(n log n) more.

    Args:
        n: nodes.
        goal: answers that end a round, also the size of the cohort.
        seconds: how long a job takes, without interruptions.
        up: how long a session lasts, above 0.
        down: how long an absence lasts.
        timeout: longest round in seconds, finite, as all may be down: a round may be nobody's. Traced.
        resumed: whether an interrupted job goes on.
        weight: base weights `[n]`, by default the number of samples (see `world.cohort`).

    Raises:
        InputError: a number out of range, or numbers of a law that are neither `[]` nor `[n]`.
    """
    base = base_arrays(n, weight)
    require("goal", goal, least=1, most=n, whole=True)
    require("timeout", timeout, above=0)
    laws = {"seconds": seconds, "up": up, "down": down}
    for law in laws.values():
        require_by_node(law, n)
    draws, everyone = {name: drawing(law) for name, law in laws.items()}, np.arange(n)

    def lasts(key: Array, arrays: dict, name: str, i: Array, number: Array) -> Array:
        own = jax.random.fold_in(jax.random.fold_in(stream(key, f"{name} of a node"), i), number)
        return draws[name](own, arrays[name], i)

    def all_last(key: Array, arrays: dict, name: str, number: Array) -> Array:
        return jax.vmap(lambda i, j: lasts(key, arrays, name, i, j))(everyone, number)

    def init(key: Array, arrays: dict) -> Nodes:
        zero, never = jnp.zeros(n, jnp.int32), jnp.full(n, jnp.inf)
        turns, done = (all_last(key, arrays, name, zero) for name in ("up", "seconds"))
        return Nodes(key, jnp.ones(n, bool), turns, done, never, zero, zero + 1, zero + 1, zero, zero)

    def arrive(arrays: dict, r: _Round, i: Array, now: Array) -> _Round:
        s = r.nodes
        s = s._replace(done=s.done.at[i].set(jnp.inf), delivered=s.delivered.at[i].add(1))
        return _Round(s, r.came.at[i].set(r.count), r.count + 1, now, r.ended)

    def turn(arrays: dict, r: _Round, i: Array, now: Array) -> _Round:
        s, goes = r.nodes, r.nodes.up[i]
        running, rest = s.done[i] < jnp.inf, s.left[i]
        lost = goes & running & (not resumed)
        stopped = goes & running & resumed
        again = ~goes & (rest < jnp.inf)
        new = ~goes & (rest == jnp.inf) & (r.came[i] == n)
        length = jnp.where(goes, *(lasts(s.key, arrays, name, i, s.sessions[i] // 2) for name in ("down", "up")))
        job = lasts(s.key, arrays, "seconds", i, s.jobs[i])
        done = jnp.where(new, now + job, jnp.where(again, now + rest, jnp.inf))
        s = s._replace(
            up=s.up.at[i].set(~goes),
            turns=s.turns.at[i].set(now + length),
            done=s.done.at[i].set(done),
            left=s.left.at[i].set(jnp.where(stopped, s.done[i] - now, jnp.inf)),
            age=s.age.at[i].set(jnp.where(new, 0, s.age[i])),
            jobs=s.jobs.at[i].add(new),
            sessions=s.sessions.at[i].add(1),
            lost=s.lost.at[i].add(lost),
        )
        return r._replace(nodes=s, now=now)

    def step(key: Array, arrays: dict, s: Nodes, t: Array) -> tuple[Nodes, tuple[Cohort, Array]]:
        del key

        def event(r: _Round) -> _Round:
            i, j = jnp.argmin(r.nodes.done), jnp.argmin(r.nodes.turns)
            first, second = r.nodes.done[i], r.nodes.turns[j]
            now = jnp.minimum(first, second)
            kind = jnp.where(now > arrays["timeout"], 2, jnp.where(first <= second, 0, 1))
            over = lambda r, now: r._replace(now=arrays["timeout"], ended=jnp.bool_(True))
            acts = (lambda r, now: arrive(arrays, r, i, now), lambda r, now: turn(arrays, r, j, now), over)
            return jax.lax.switch(kind, acts, r, now)

        start = _Round(s, jnp.full(n, n, jnp.int32), jnp.int32(0), jnp.float32(0), jnp.bool_(False))
        r = jax.lax.while_loop(lambda r: (r.count < goal) & ~r.ended, event, start)
        s, over = r.nodes, r.now
        ids = jnp.argsort(r.came, stable=True)[:goal].astype(jnp.int32)  # in order of arrival, then others
        c = Cohort(ids, jnp.where(r.came[ids] < n, arrays["weight"][ids], 0), s.age[ids])

        free = s.up & (s.done == jnp.inf)
        done = jnp.where(free, all_last(s.key, arrays, "seconds", s.jobs), s.done - over)
        age = jnp.where(free, 0, s.age + 1)
        s = s._replace(turns=s.turns - over, done=done, age=age, jobs=s.jobs + free)
        return s, (c, over)

    arrays = {name: law.arrays for name, law in laws.items()} | {"timeout": constant(timeout, np.float32)}
    return process(step, {**base, **arrays}, init)
