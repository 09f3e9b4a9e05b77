"""Participation in which some nodes are there more often than others, and what is known of how often.

Who is there more often counts more in the end unless something is done about it: `corrected` weights or the memory of
the absent (`exchange.last`). Members are as in `world.cohort`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array, Cohort, Process, Strata, constant, stream
from jaxfl.errors import InputError, require
from jaxfl.world.cohort import base_arrays, base_of
from jaxfl.world.exponential import exponential, uniform
from jaxfl.world.process import process


def successive(n: int, c: int, p: Any, weight: Any = None) -> Process:
    """`c` distinct nodes drawn one after the other in proportion to `p`, with their base weights.

    The same members as `cohort.importance`, which corrects for `p`; here means are biased towards large `p`. Costs
    O(n).

    Args:
        n: number of nodes.
        c: members.
        p: positive preferences `[n]`, of any scale.
        weight: base weights `[n]`.

    Raises:
        InputError: `c` is outside 1..n, `p` is not `[n]`, finite and positive, or bad base weights.
    """
    base = base_arrays(n, weight)
    require("c", c, least=1, most=n, whole=True)
    prefer = np.asarray(p, np.float64)
    if prefer.shape != (n,) or not np.isfinite(prefer).all() or prefer.min() <= 0:
        raise InputError(f"p has shape {list(prefer.shape)}: finite positive preferences [{n}] are needed.")

    def step(key: Array, arrays: dict, s: tuple, t: Array) -> tuple[tuple, Cohort]:
        arrival = jnp.log(exponential(stream(key, "successive cohort"), (n,))) - arrays["log_p"]
        ids = jnp.sort(jax.lax.top_k(-arrival, c)[1]).astype(jnp.int32)
        return s, Cohort(ids, arrays["weight"][ids])

    return process(step, base | {"log_p": constant(np.log(prefer), np.float32)})


def independent(n: int, p: Any, *, corrected: bool = True, weight: Any = None) -> Process:
    """Every node by itself, node `i` with probability `p_i`; the absent have their slot, and weight 0: `c = n`.

    `corrected`: those there weigh `base_i / p_i`, and `total` is the sum of all base weights, so that means are
    unbiased; otherwise they weigh `base_i`, among those there. `p` is traced, other values
    (`world.arrays["cohort"] | {"p": ...}`) compile nothing.

    Args:
        n: number of nodes.
        p: probability of being there, above 0, for all or by node `[n]`.
        corrected: whether weights make up for `p`.
        weight: base weights `[n]`.

    Raises:
        InputError: a probability that is not in (0, 1], or bad base weights.
    """
    base, values = base_arrays(n, weight), np.asarray(p, np.float64)
    if values.shape not in ((), (n,)) or not ((values > 0) & (values <= 1)).all():
        raise InputError(f"p = {p}: a probability above 0 and at most 1, or one a node [{n}], is needed.")

    def step(key: Array, arrays: dict, s: tuple, t: Array) -> tuple[tuple, Cohort]:
        p, weight = arrays["p"], arrays["weight"]
        there = uniform(stream(key, "independent cohort"), (n,)) <= p
        ids, counts = jnp.arange(n, dtype=jnp.int32), weight / p if corrected else weight
        c = Cohort(ids, jnp.where(there, counts, 0), strata=Strata(n))
        return s, c._replace(total=weight.sum() if corrected else None)

    return process(step, base | {"p": constant(np.broadcast_to(values, (n,)), np.float32)})


class Intervals(NamedTuple):
    """What is known of the nodes' participation, all `[n]`."""

    last: Array  # int32, the last round in which the node was there; -1 before
    seen: Array  # int32, intervals that have ended
    mean: Array  # float32, their mean length; 1 before


def by_intervals(members: Process, cutoff: int | None = None) -> Process:
    """Weights of unknown probabilities: each member weighs its base weight times the mean interval between its rounds.

    The mean interval estimates `1 / p_i`, and `total` is the sum of all base weights: FedAU (Wang, Ji, ICLR 2024,
    https://arxiv.org/abs/2306.03401). An interval counts from the round in which it ends, `mean <- (k mean + length) /
    (k + 1)`; before a node's first one it is 1. Longer intervals than `cutoff` are cut into such.

    Args:
        members: who takes part, uncorrected.
        cutoff: the longest interval, at least 1; None for none. FedAU's theory has 50 or so.

    Raises:
        InputError: a bad cutoff, or members with corrected weights or without base weights.
    """
    require("cutoff", cutoff, least=1, whole=True, none=True)
    if (base := base_of(members)) is None:
        raise InputError("members has no base weights: a process of world.cohort or world.uneven is needed.")
    n, (first, draw, _) = base.shape[0], members

    def init(key: Array, arrays: dict) -> tuple[Any, Intervals]:
        start = Intervals(jnp.full(n, -1, jnp.int32), jnp.zeros(n, jnp.int32), jnp.ones(n, jnp.float32))
        return first(key, arrays["members"]), start

    def step(key: Array, arrays: dict, s: tuple[Any, Intervals], t: Array) -> tuple[tuple, Cohort]:
        inner, known = s
        inner, c = draw(key, arrays["members"], inner, t)
        if c.total is not None:
            raise InputError("members has corrected weights, but by_intervals corrects them: give plain ones.")
        here, last, seen, mean = c.weight > 0, known.last[c.ids], known.seen[c.ids], known.mean[c.ids]
        length = t - last
        pieces = jnp.int32(1) if cutoff is None else -(-length // cutoff)
        new = (seen * mean + length) / (seen + pieces)
        keep = lambda a, new: a.at[c.ids].set(jnp.where(here, new, a[c.ids]))
        known = Intervals(keep(known.last, t), keep(known.seen, seen + pieces), keep(known.mean, new))
        base = base_of(members._replace(arrays=arrays["members"]))
        return (inner, known), c._replace(weight=c.weight * jnp.where(here, new, 1), total=base.sum())  # type: ignore[union-attr]

    return process(step, {"members": members.arrays}, init)
