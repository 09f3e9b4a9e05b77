"""Synchronous rounds by the clock: they last until all are done, or end before, and who is late counts nothing or less.

Durations are whole jobs with their transfers, and a node's time does not depend on who else is asked.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxfl.core import ALL_STEPS, Array, Cohort, Process, constant
from jaxfl.errors import InputError, require
from jaxfl.mapping.canonical import once
from jaxfl.world.clock import lasting, require_by_node
from jaxfl.world.cohort import base_of, thinned
from jaxfl.world.durations import Seconds, drawing
from jaxfl.world.process import process, yielded


def barrier(members: Process, seconds: Seconds) -> Process:
    """Rounds that last as long as the slowest of their `members` takes; nobody to be waited for takes no time.

    Systems of all kinds run on them, as nobody is late. In gossip the members are `cohort.everyone(n)`.

    Args:
        members: who is asked: a process that yields a `Cohort`.
        seconds: how long a job takes.

    Raises:
        InputError: members of a clock, or numbers that are not by node.
    """
    first, pick, draw, _ = _asked(members, seconds)

    def step(key: Array, arrays: dict, s: Any, t: Array) -> tuple[Any, tuple[Cohort, Array]]:
        s, c = once(pick)(key, arrays["members"], s, t)
        spent = lasting(draw, key, arrays, c.ids, c.ids)
        return s, (c, jnp.max(jnp.where(c.weight > 0, spent, 0.0), initial=0.0))

    arrays = {"members": members.arrays, "seconds": seconds.arrays}
    return process(step, arrays, lambda key, arrays: first(key, arrays["members"]))


def _asked(members: Process, seconds: Seconds) -> tuple[Callable, Callable, Callable, int]:
    """How members begin and are picked, how long a job of theirs takes, and how many they are."""
    first, pick, _ = members
    value = yielded(members)
    if not isinstance(value, Cohort):
        raise InputError("members is a clock already, but a deadline needs a process that yields a Cohort alone.")
    if (base := base_of(members)) is not None:
        require_by_node(seconds, base.shape[0])
    return first, pick, drawing(seconds), value.ids.shape[0]


def deadline(
    members: Process,
    seconds: Seconds,
    limit: float = math.inf,
    *,
    keep: int | None = None,
    least: int = 1,
    partial: Any = None,
) -> Process:
    """Rounds that end when all members are done, when `keep` of them are, or after `limit` seconds.

    Who is late counts nothing and works in vain (`Cohort.selected`). With `keep` alone it is over-selection: ask 1.3
    times as many as are needed, so that nobody waits for the slowest. With `partial` a late member hands in what it has
    when the round ends: of a job of `partial` steps that takes `s` seconds, `floor(partial * end / s)` steps
    (`Cohort.steps`), and nothing if that is none.
    A round in which fewer than `least` count is void: it takes all of `limit`, and nobody counts. Nobody to be waited
    for takes no time. `limit`, `keep` and `least` are traced: other values compile nothing.

    FedAvg on such rounds is Nishio and Yonetani's FedCS without its choice of clients (ICC 2019); `keep` and `least`,
    the minimal goal count, are of Bonawitz et al. (MLSys 2019).

    Args:
        members: who is asked: a process that yields a `Cohort`.
        seconds: how long a job takes.
        limit: the longest round in seconds, above 0; infinite: none.
        keep: answers that end a round; None: all.
        least: members that must count.
        partial: local steps of a whole job, one number or by node `[n]`; members that set steps run no more than those.

    Raises:
        InputError: a number out of range, `least` above 1 without a limit, numbers that are not by node.
    """
    first, pick, draw, size = _asked(members, seconds)
    base = base_of(members)
    require("limit", limit, least=1e-37, most=math.inf)  # of less float32 makes 0
    require("keep", keep, least=1, most=size, whole=True, none=True)
    require("least", least, least=1, most=size if keep is None else keep, whole=True)
    if least > 1 and limit == math.inf:
        raise InputError(f"least is {least}, but limit is infinite: a round that is void must end some day.")
    work = None if partial is None else np.asarray(partial)
    require("partial", work, least=1, below=ALL_STEPS, whole=True, none=True)
    if work is not None and work.shape not in ((), *(() if base is None else (base.shape,))):
        raise InputError(f"partial has shape {list(work.shape)}, but must be one number, or one a node.")

    def step(key: Array, arrays: dict, s: Any, t: Array) -> tuple[Any, tuple[Cohort, Array]]:
        s, c = once(pick)(key, arrays["members"], s, t)
        spent = lasting(draw, key, arrays, c.ids, c.ids)
        present = c.weight > 0
        order = jnp.where(present, spent, jnp.inf)
        rank = jnp.argsort(jnp.argsort(order))
        last = jnp.max(jnp.where(present & (rank < arrays["keep"]), spent, 0.0), initial=0.0)
        over = jnp.minimum(last, arrays["limit"])
        counts, steps = present & (rank < arrays["keep"]) & (spent <= over), c.steps
        if partial is not None:
            whole = arrays["partial"] if arrays["partial"].ndim == 0 else arrays["partial"][c.ids]
            whole = whole if steps is None else jnp.minimum(whole, steps)
            done = jnp.floor(whole * over / jnp.maximum(spent, 1e-30)).astype(jnp.int32)
            steps = jnp.where(spent <= over, whole, jnp.minimum(done, whole - 1))
            counts = present & (steps > 0)
        void = counts.sum() < arrays["least"]
        over = jnp.where(void & present.any(), jnp.where(arrays["limit"] < jnp.inf, arrays["limit"], over), over)
        selected = present if c.selected is None else c.selected
        return s, (thinned(c, counts & ~void)._replace(selected=selected, steps=steps), over)

    arrays = {"members": members.arrays, "seconds": seconds.arrays, "limit": constant(limit, np.float32)}
    arrays |= {"keep": jnp.int32(size if keep is None else keep), "least": jnp.int32(least)}
    arrays |= {} if work is None else {"partial": constant(work, np.int32)}
    return process(step, arrays, lambda key, arrays: first(key, arrays["members"]))
