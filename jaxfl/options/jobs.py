"""How long jobs take and which clock rounds follow: of the options --durations, --trace, --deadline, and for
asynchronous systems how many clients work and how many answers make a round.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import eval_jaxpr

from jaxfl.core import Algorithm, Cohort, Env, Links, Process, Shards
from jaxfl.engine.law import alive
from jaxfl.errors import InputError
from jaxfl.learn import local
from jaxfl.mapping.canonical import canonical
from jaxfl.options import times
from jaxfl.options.config import Setup
from jaxfl.paper import Workers
from jaxfl.world import clock, deadline, durations, pace, traces
from jaxfl.world.links import to_server
from jaxfl.world.traces import Trace


class Law(NamedTuple):
    """How long jobs take: a law, and factors `[n]` by the round on it (`pace.varied`)."""

    seconds: durations.Seconds
    factors: tuple[Process, ...] = ()


def law_of(setup: Setup, trace: Trace | None, data: Any, steps: Callable[[], Any]) -> Law:
    """The law of `setup.durations`, log-normal with median 1 s unless it says otherwise.

    Args:
        setup: `config.filled`.
        trace: what `setup.trace` names.
        data: whose sizes `samples` is about.
        steps: says how many local steps a job has, `[]` or `[n]`; asked only where durations are of a step.

    Raises:
        InputError: numbers out of range, or samples by node where there are none.
    """
    n, text = setup.nodes, setup.durations
    name, given = times.durations(text, setup.trace)
    given, more = ({k: v for k, v in given.items() if (k in times.OF_ALL) == shared} for shared in (False, True))
    factors: list[Process] = []
    try:
        if name == "tiers":
            by = durations.tiers(n, given["shares"], given["factors"], setup.seed)
            seconds = durations.scaled(durations.fixed(given["seconds"]), by)
        elif name != "trace":
            seconds = getattr(durations, name)(**given)
        elif given["play"] == "random":
            seconds = traces.drawn(trace)  # type: ignore[arg-type]
        else:
            seconds = pace.by_round(durations.fixed(1.0), n)
            factors.append(traces.played(trace))  # type: ignore[arg-type]
        if more.get("per") == "step":
            seconds = durations.scaled(seconds, steps())
        if more.get("samples"):
            if not isinstance(data, Shards):
                raise InputError("samples are of shards, and these data have none.")
            seconds = durations.by_samples(seconds, data.size, more["samples"])
        if "jitter" in more:
            if name == "trace":
                raise InputError("jitter is around own speeds, and a trace has those it has.")
            seconds = durations.jittered(durations.settled(seconds, n, setup.seed), more["jitter"])
        if "begin" in more:
            factors.append(pace.bursts(n, *({**times.OF_ALL, **more}[key] for key in ("begin", "end", "slower"))))
            seconds = seconds if len(factors) > 1 else pace.by_round(seconds, n)
        if "timeout" in more:
            seconds = durations.timed_out(seconds, more["timeout"])
    except InputError as error:
        raise InputError(f"durations is {text or name}: {error}") from error
    return Law(seconds, tuple(factors))


def timed(setup: Setup) -> bool:
    """Whether options say how long jobs take, or when rounds of a server end."""
    return any(value is not None for value in (setup.durations, setup.trace, setup.deadline))


def barrier(setup: Setup, members: Process, law: Law, steps: Callable[[], Any]) -> Process:
    """Rounds that end when their members are done, or by `setup.deadline`; transfers come on top.

    Raises:
        InputError: more answers than members, or members of a clock.
    """
    if setup.deadline is None:
        return reduce(pace.varied, law.factors, deadline.barrier(members, law.seconds))
    limit, keep, least, late = times.deadline(setup.deadline)
    partial = steps() if late == "partial" else None
    try:
        rounds = deadline.deadline(members, law.seconds, limit, keep=keep, least=least, partial=partial)
    except InputError as error:
        raise InputError(f"deadline is {setup.deadline}: {error}") from error
    return reduce(pace.varied, law.factors, rounds)


def buffered(jobs: Workers) -> Process:
    """The clock of asynchronous systems that bring none."""
    return clock.buffered(jobs.nodes, jobs.concurrency, jobs.goal, jobs.seconds)


def clock_of(
    setup: Setup,
    links: Links | None,
    algorithm: Algorithm,
    data: Any,
    dim: int,
    options: Mapping[str, Any],
    law: Law,
    made: Callable[[Workers], Process] | None = None,
) -> Process:
    """What `made` makes, None: `buffered`, of jobs whose length has this law.

    Where there are `links` a job has its transfers and local steps too. The world itself then has none: a round ends
    with an arrival, not with the slowest of its members, so a transfer counts where it delays its own job. `algorithm`
    says how large messages are, for `Shards` and models `[dim]`; `options` are its `steps`, or `epochs` and `batch`.
    The setup is `config.filled`.
    """
    n, seconds, steps = setup.nodes, law.seconds, steps_of(data, options)
    if links is not None:
        near = to_server(links)
        free = np.isinf([near.up, near.down]).all() and not np.any(near.latency)
        down, up = (0.0, 0.0) if free else _message_bits(algorithm, data, dim, n)
        moved = durations.on_links(links, down_bits=down, up_bits=up, steps=steps)
        seconds = durations.total(seconds, moved)
    own = (made or buffered)(Workers(n, setup.concurrency or 1, setup.goal or 1, seconds, steps))
    return reduce(pace.varied, law.factors, own)


def _message_bits(algorithm: Algorithm, data: Any, dim: int, n: int) -> tuple[float, float]:
    """Bits one member receives and sends in a round, from what the algorithm itself logs."""
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), a.dtype), data)
    leaves, structure = jax.tree.flatten(like)
    return _bits(canonical(algorithm), structure, tuple(leaves), dim, n)


@lru_cache(maxsize=64)
def _bits(algorithm: Algorithm, structure: Any, leaves: tuple, dim: int, n: int) -> tuple[float, float]:
    """Only the cost is asked for, which shapes alone decide: nothing is trained, nor compiled."""
    alone = Cohort(jnp.zeros(1, jnp.int32), jnp.ones(1))

    def cost(key, x, data):
        env = Env(jnp.int32(0), jnp.float32(0), data, None, alone, jnp.zeros(n, bool))
        _, log = algorithm.round(key, env, algorithm.init(key, env, x))
        return jnp.float32(log["down_bits"]), jnp.float32(log["up_bits"])

    given = jax.random.key(0), jnp.zeros(dim), jax.tree.unflatten(structure, leaves)
    live, constants, used, _ = alive(cost, *given)
    zeros = *given[:2], jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), given[2])
    read = [a for a, u in zip(jax.tree.leaves(zeros), used, strict=True) if u]
    down, up = eval_jaxpr(live, constants, *read)
    return float(down), float(up)


def steps_of(data: Any, options: Mapping[str, Any]) -> Any:
    """Local steps of a job, `[]` or by node `[n]`: an epoch of a small shard has fewer."""
    if not options.get("epochs") and "steps" not in options:
        raise InputError("steps are unknown, as the system has no such option.")
    size = np.asarray(data.size) if isinstance(data, Shards) else None
    return local.steps_of(size, *map(options.get, ("steps", "epochs", "batch")))
