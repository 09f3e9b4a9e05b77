"""Trust in workers, earned and lost by what their messages were worth, and heads elected by it.

All that is known is public (a ledger), so that everybody who computes it agrees.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxfl.core import Array
from jaxfl.errors import require
from jaxfl.exchange.membership import public_hash


class Terms(NamedTuple):
    """How trust moves, in [0, 1]."""

    gain: float | Array = 0.02  # by a good message
    loss: float | Array = 0.2  # by a bad one
    late: float | Array = 0.01  # by one that comes late, good or bad
    least: float | Array = 0.5  # below it a worker is heard, but does not count


def require_terms(terms: Terms) -> Terms:
    """The terms; `InputError` for one outside [0, 1]."""
    for name, value in terms._asdict().items():
        require(name, value, least=0, most=1)
    return terms


def moved(trust: Array, good: Array, bad: Array, late: Array, terms: Terms) -> Array:
    """`trust` `[n]` after a round in which messages were `good`, `bad` and `late`, all `[n]` bool."""
    return jnp.clip(trust + terms.gain * good - terms.loss * bad - terms.late * late, 0, 1)


def groups_of(group: Array, count: int) -> Array:
    """Which members are in which of `count` groups, `[count, c]` bool, from each one's group `[c]`."""
    return group == jnp.arange(count)[:, None]


def median_of(values: Array, inside: Array) -> Array:
    """The median of the `values` `[c]` of each group `inside` `[g, c]` bool, `[g]`; NaN where nobody is inside."""
    value = jnp.sort(jnp.where(inside, values, jnp.inf), axis=1)
    count = inside.sum(1)
    at = lambda rank: jnp.take_along_axis(value, jnp.maximum(rank, 0)[:, None], 1)[:, 0]
    both = (at((count - 1) // 2) + at(count // 2)) / 2
    return jnp.where(count > 0, both, jnp.nan)


def bad_by_loss(loss: Array, inside: Array, factor: float | Array) -> Array:
    """Whose loss is above `factor` times the median of its group, `[c]` bool; what is not finite is bad.

    `inside` `[g, c]` says who delivered, by group; the others are not bad.
    """
    finite = jnp.isfinite(loss)
    middle = median_of(jnp.where(finite, loss, jnp.inf), inside)
    mine = (inside * jnp.where(jnp.isfinite(middle), middle, 0)[:, None]).sum(0)
    return inside.any(0) & ~(finite & (loss <= factor * mine))


def elected(salt: Array, t: Array, trust: Array, last: Array, inside: Array, rest: int, count: int = 1) -> Array:
    """The first `count` of each group in the order of election, `[g, count]` int32: its head, then further judges.

    By trust, then by the public hash of the round; those who were head in the `rest` rounds before, `last` `[n]`, come
    after all others. `inside` `[g, n]` has at least `count` members a group.
    """
    ready = t - last > rest
    tie = jnp.argsort(jnp.argsort(public_hash(salt, t, trust.shape[0])))
    order = jnp.lexsort((tie, -trust, ~ready))  # best first
    place = jnp.argsort(order)
    first = jax.lax.top_k(jnp.where(inside, -place, -(2**30)), count)[1]
    return first.astype(jnp.int32)
