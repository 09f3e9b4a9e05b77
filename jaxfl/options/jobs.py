"""The clock of asynchronous systems: how many clients work, how many answers make a round, how long a job takes."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import eval_jaxpr

from jaxfl.core import Algorithm, Cohort, Env, Links, Process
from jaxfl.engine.law import alive
from jaxfl.mapping.canonical import canonical
from jaxfl.options.config import Setup
from jaxfl.paper import Pace
from jaxfl.world import clock, durations


def buffered(pace: Pace) -> Process:
    """The clock of asynchronous systems that bring none."""
    return clock.buffered(pace.nodes, pace.concurrency, pace.goal, pace.seconds)


def clock_of(
    setup: Setup,
    links: Links | None,
    algorithm: Algorithm,
    data: Any,
    dim: int,
    options: Mapping[str, Any],
    made: Callable[[Pace], Process] | None = None,
) -> Process:
    """What `made` makes, None: `buffered`, of jobs of log-normal length, median 1 s.

    Where there are `links` a job has its transfers and local steps too. The world itself then has none: a round ends
    with an arrival, not with the slowest of its members, so a transfer counts where it delays its own job. `algorithm`
    says how large messages are, for `Shards` and models `[dim]`; `options` are its `steps`, or `epochs` and `batch`.
    The setup is `config.filled`.
    """
    n, steps = setup.nodes, _steps(data, options)
    seconds = durations.lognormal()
    if links is not None:
        down, up = _message_bits(algorithm, data, dim, n)
        moved = durations.on_links(links, down_bits=down, up_bits=up, steps=steps)
        seconds = durations.total(seconds, moved)
    return (made or buffered)(Pace(n, setup.concurrency or 1, setup.goal or 1, seconds, steps))


def _message_bits(algorithm: Algorithm, data: Any, dim: int, n: int) -> tuple[float, float]:
    """Bits one member receives and sends in a round, from what the algorithm itself logs."""
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), a.dtype), data)
    leaves, structure = jax.tree.flatten(like)
    return _bits(canonical(algorithm), structure, tuple(leaves), dim, n)


@lru_cache(maxsize=64)
def _bits(algorithm: Algorithm, structure: Any, leaves: tuple, dim: int, n: int) -> tuple[float, float]:
    """Only the cost is asked for, which shapes alone decide: nothing is trained, nor compiled."""
    zero = jnp.zeros(1, jnp.int32)
    alone = Cohort(zero, jnp.ones(1), zero)

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


def _steps(data: Any, options: Mapping[str, Any]) -> Any:
    """Local steps of a job, `[]` or by node `[n]`: an epoch of a small shard has fewer."""
    epochs, batch = options.get("epochs"), options.get("batch")
    if not epochs:
        return options["steps"]
    return epochs if batch is None else epochs * -(-np.asarray(data.size) // batch)
