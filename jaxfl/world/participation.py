"""How often the nodes of a clock deliver, and sums in which that makes no difference."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array, Cohort, Process, constant, node_keys
from jaxfl.errors import InputError, require
from jaxfl.world.clock import require_by_node
from jaxfl.world.cohort import base_of
from jaxfl.world.durations import Seconds, drawing
from jaxfl.world.process import process


def summed(clock: Process, factor: Any = 1.0) -> Process:
    """The clock whose members count `factor_i p_i` in a sum over them, `p_i` their share of all base weights.

    A system that takes means (`exchange.network`) then takes `sum_S factor_i p_i m_i`, whoever is in the round. With
    factor 1 that is the part of the objective that was heard, so who comes more often counts more; where `factor_i` are
    the rounds from one delivery of node `i` to the next, on average, every node counts as in the objective over time.

    Args:
        clock: yields `(Cohort, seconds)`, with base weights and without a `total` of its own.
        factor: positive, one number or `[n]`. Traced.

    Raises:
        InputError: another process, or factors that are not finite, positive and as many as nodes.
    """
    base, (first, pick, _) = base_of(clock), clock
    values = np.asarray(factor, np.float64)
    if base is None:
        raise InputError("clock has no base weights: one of world.clock or world.delivery is needed.")
    if values.shape not in ((), base.shape) or not np.isfinite(values).all() or values.min() <= 0:
        raise InputError(f"factor = {factor}: a finite number above 0, or one a node [{base.shape[0]}], is needed.")

    def step(key: Array, arrays: dict, s: Any, t: Array) -> tuple[Any, tuple[Cohort, Array]]:
        s, (c, seconds) = pick(key, arrays["clock"], s, t)
        if c.total is not None:
            raise InputError("clock has weights that are unbiased as they are (total): leave summed out.")
        everyone = base_of(clock._replace(arrays=arrays["clock"]))
        weight = arrays["factor"][c.ids] * c.weight / jnp.sum(everyone)  # type: ignore[arg-type]
        return s, (c._replace(weight=weight, total=jnp.float32(1)), seconds)

    arrays = {"clock": clock.arrays, "factor": constant(np.broadcast_to(values, base.shape), np.float32)}
    return process(step, arrays, lambda key, arrays: first(key, arrays["clock"]))


def frequency(clock: Process, rounds: int, seed: int = 0) -> np.ndarray:
    """In which share of its first rounds each node delivers, `[n]`. The clock runs ahead: nothing is trained.

    Raises:
        InputError: a number out of range, or a clock without base weights.
    """
    require("rounds", rounds, least=1, whole=True)
    require("seed", seed, least=0, whole=True)
    base = base_of(clock)
    if base is None:
        raise InputError("clock has no base weights: one of world.clock or world.delivery is needed.")
    came = _counts(clock.init, clock.step, rounds, base.shape[0])(jax.random.key(seed), clock.arrays)
    return np.asarray(came, np.float64) / rounds


@lru_cache(maxsize=16)
def _counts(init: Callable, step: Callable, rounds: int, n: int) -> Callable:
    def run(key: Array, arrays: Any) -> Array:
        def body(carry: tuple, t: Array) -> tuple[tuple, None]:
            s, came = carry
            s, value = step(jax.random.fold_in(key, t), arrays, s, t)
            c = value if isinstance(value, Cohort) else value[0]
            return (s, came.at[c.ids].add(c.weight > 0)), None

        start = init(key, arrays), jnp.zeros(n, jnp.int32)
        return jax.lax.scan(body, start, jnp.arange(rounds, dtype=jnp.int32))[0][1]

    return jax.jit(run)


def mean_seconds(seconds: Seconds, n: int, draws: int = 256, seed: int = 0) -> np.ndarray:
    """How long a job of each node takes on average, `[n]`, of so many draws."""
    return _drawn(seconds, n, draws, seed).mean(1)


def tick_periods(
    n: int, every: float, seconds: Seconds, concurrency: int | None = None, draws: int = 256, seed: int = 0
) -> np.ndarray:
    """Rounds of `delivery.ticks` from one delivery of a node to the next, on average, `[n]`: its factors for `summed`.

    A job lasts `m_i = E ceil(s_i / every)` ticks, by so many draws. With everyone at work that is all. Else a node
    waits for about `w` ticks between two jobs, alike for all as the next are drawn uniformly: `sum_i m_i / (m_i + w)`
    is the number at work, `concurrency`.

    Raises:
        InputError: a number out of range, or numbers of `seconds` that are neither `[]` nor `[n]`.
    """
    from scipy.optimize import brentq

    working = n if concurrency is None else concurrency
    require("every", every, above=0)
    require("concurrency", working, least=1, most=n, whole=True)
    m = np.maximum(np.ceil(_drawn(seconds, n, draws, seed) / every * (1 - 1e-6)), 1).mean(1)
    if working == n:
        return m
    return m + brentq(lambda w: (m / (m + w)).sum() - working, 0, 2 * n * m.max() / working)


def _drawn(seconds: Seconds, n: int, draws: int, seed: int) -> np.ndarray:
    require("draws", draws, least=1, whole=True)
    require_by_node(seconds, n)

    keys = jax.vmap(lambda k: jax.random.split(k, draws))(node_keys(jax.random.key(seed), jnp.arange(n)))
    return np.asarray(_draw_all(drawing(seconds))(jnp.arange(n), keys, seconds.arrays), np.float64)


@lru_cache(maxsize=16)
def _draw_all(draw: Callable) -> Callable:
    """`(ids [n], keys [n, draws], arrays) -> seconds [n, draws]`."""
    of = lambda i, keys, arrays: jax.vmap(lambda k: draw(k, arrays, i))(keys)
    return jax.jit(jax.vmap(of, (0, 0, None)))
