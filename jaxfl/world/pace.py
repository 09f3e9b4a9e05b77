"""Speeds that change with the rounds: factors on the durations of a clock, and estimates of speeds that were seen.

A law of durations remembers nothing (`world.durations`). What lasts from job to job, a node that is slow for a while or
a trace played in order, is a process that yields one factor a node `[n]` a round. Make the clock of a law `by_round`,
and give both to `varied`:

    factors = pace.bursts(n, begin=0.02, end=0.2, slower=10)
    clock = pace.varied(buffered(n, 50, 10, pace.by_round(lognormal(), n)), factors)
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array, Process, Tree, constant, stream
from jaxfl.errors import InputError, require
from jaxfl.mapping.canonical import canonical
from jaxfl.world.cohort import availability
from jaxfl.world.durations import Seconds
from jaxfl.world.process import process, yielded

ROUND = "factor of the round"  # marks the factors [n] of a law, as they are where nobody varies them


def by_round(seconds: Seconds, n: int) -> Seconds:
    """The law, times a factor a node that `varied` sets every round; 1 where it does not."""
    require("n", n, least=1, whole=True)
    inner = seconds.draw

    def draw(key: Array, arrays: dict, i: Array) -> Array:
        return arrays[ROUND][i] * inner(key, arrays["of"], i)

    return Seconds(canonical(draw), {"of": seconds.arrays, ROUND: constant(np.ones(n), np.float32)})


def varied(clock: Process, factors: Process) -> Process:
    """The clock, in which a job that begins in round `t` takes as many times longer as `factors` yields in `t`.

    Args:
        clock: a clock (or what wraps one) of durations that are `by_round`.
        factors: yields `[n]` float32 of at least 0: `bursts`, `traces.played`.

    Raises:
        InputError: the clock knows no durations `by_round`, or factors are not one a node.
    """
    (first, step, arrays), (first_factor, next_factor, own) = clock, factors
    shapes: list[tuple] = []
    _filled(arrays, lambda a: shapes.append(a.shape) or a)
    if not shapes:
        raise InputError("clock has no durations that change with the rounds: make it of a law `pace.by_round`.")
    like = yielded(factors)
    if getattr(like, "shape", None) != shapes[0]:
        raise InputError(f"factors do not yield {list(shapes[0])}: one factor a node of the clock is needed.")

    def now(key: Array, arrays: dict, s: Tree, t: Array) -> tuple[Tree, Tree]:
        s, factor = next_factor(stream(key, "pace"), arrays["factors"], s, t)
        return s, _filled(arrays["clock"], lambda a: a * factor)

    def init(key: Array, arrays: dict) -> tuple[Tree, Tree]:
        s = first_factor(stream(key, "pace"), arrays["factors"])
        _, there = now(key, arrays, s, jnp.int32(0))  # of jobs sent out before the first round
        return first(key, there), s

    def advance(key: Array, arrays: dict, s: tuple, t: Array) -> tuple[tuple, Any]:
        at, there = now(key, arrays, s[1], t)
        at_clock, value = step(key, there, s[0], t)
        return (at_clock, at), value

    return process(advance, {"clock": arrays, "factors": own}, init)


def _filled(arrays: Tree, put: Any) -> Tree:
    """The arrays of a process, with `put` of every factor of the round."""
    if isinstance(arrays, dict):
        return {name: put(part) if name == ROUND else _filled(part, put) for name, part in arrays.items()}
    if isinstance(arrays, tuple) and not hasattr(arrays, "_fields"):
        return tuple(_filled(part, put) for part in arrays)
    return arrays


def bursts(n: int, begin: Any, end: Any, slower: Any = 10.0) -> Process:
    """Nodes that are slow for a while: factors `[n]` of 1, and of `slower` while a burst lasts.

    The two-state chain of Gilbert (1960) and Elliott (1963), for every node on its own, looked at once a round and
    begun in its stationary law: a share `begin / (begin + end)` of the rounds is slow, in bursts of mean `1 / end`.

    Args:
        n: nodes.
        begin: probability that a burst begins in a round, above 0 or with `end` above 0, one for all or `[n]`.
        end: probability that it ends.
        slower: how many times longer jobs take in it, of at least 0, one for all or `[n]`.

    Raises:
        InputError: a number out of range or of another shape.
    """
    factor = np.asarray(slower, np.float64)
    if factor.shape not in ((), (n,)) or not (np.isfinite(factor) & (factor >= 0)).all():
        raise InputError(f"slower = {slower}: a finite number of at least 0, or one a node [{n}], is needed.")
    for name, value in (("begin", begin), ("end", end)):
        p = np.asarray(value, np.float64)
        if p.shape not in ((), (n,)) or not ((p >= 0) & (p <= 1)).all():
            raise InputError(f"{name} = {value}: a probability from 0 to 1, or one a node [{n}], is needed.")
    if ((np.asarray(begin) == 0) & (np.asarray(end) == 0)).any():
        raise InputError("begin = end = 0: one of them must be above 0 for every node.")
    first, walk, chain = availability(n, 1 - np.asarray(begin, np.float64), 1 - np.asarray(end, np.float64))

    def step(key: Array, arrays: dict, s: Array, t: Array) -> tuple[Array, Array]:
        s, fast = walk(key, arrays["chain"], s, t)
        return s, jnp.where(fast, 1.0, arrays["slower"])

    arrays = {"chain": chain, "slower": constant(factor, np.float32)}
    return process(step, arrays, lambda key, arrays: first(key, arrays["chain"]))


class Speeds(NamedTuple):
    """What was seen of each node's speed. Both `[n]`."""

    seconds: Array  # float32, estimated seconds of one local step; 0 where nothing was seen
    seen: Array  # int32, jobs seen


def unseen(n: int) -> Speeds:
    """Nothing was seen of `n` nodes yet."""
    return Speeds(jnp.zeros(n), jnp.zeros(n, jnp.int32))


def smoothed(was: Array, now: Array, first: Array, rate: float | Array) -> Array:
    """An exponential moving average: `now` where it is the `first` value, else `rate` of the way from `was` to it."""
    return jnp.where(first, now, was + rate * (now - was))


def seen(speeds: Speeds, ids: Array, seconds: Array, steps: Array, rate: float | Array = 0.3) -> Speeds:
    """Exponential moving averages of seconds a step, after jobs of `steps` `[c]` that took `seconds` `[c]`.

    A node's first job sets its estimate, each further one moves it by `rate` towards what it took. Who ran no step
    tells nothing.

    Args:
        speeds: before.
        ids: whose jobs, distinct, `[c]`.
        seconds: how long they took.
        steps: how many local steps they ran.
        rate: from 0 to 1; 1 is the last job alone.
    """
    told = steps > 0
    now = seconds / jnp.maximum(steps, 1)
    was, count = speeds.seconds[ids], speeds.seen[ids]
    new = smoothed(was, now, count == 0, rate)
    return Speeds(speeds.seconds.at[ids].set(jnp.where(told, new, was)), speeds.seen.at[ids].add(told))
