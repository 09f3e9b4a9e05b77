"""Selective averaging: of doubtful updates only what agrees with the trusted ones enters the mean.

A choice is `(doubtful [k, d], trusted [d]) -> [k, d]` bool, which numbers of each doubtful update are taken, where
`trusted` is the mean of the trusted ones. For updates of devices of few bits: Yoon, Park, Jeong, Hwang; ICML 2022;
https://arxiv.org/abs/2202.11453.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxfl.core import Array
from jaxfl.errors import require
from jaxfl.exchange.rules import mean_of, total_or_one


def everything(doubtful: Array, trusted: Array) -> Array:
    """All numbers."""
    del trusted
    return jnp.ones(doubtful.shape, bool)


def nothing(doubtful: Array, trusted: Array) -> Array:
    """None."""
    del trusted
    return jnp.zeros(doubtful.shape, bool)


def same_sign(doubtful: Array, trusted: Array) -> Array:
    """The numbers that move in the direction of the trusted mean."""
    return jnp.sign(doubtful) == jnp.sign(trusted)


def until_cosine(least: float | Array) -> Callable:
    """As many numbers as leave a cosine of `least` to the trusted mean, those with the largest product with it first.

    Raises `InputError` for a `least` outside [-1, 1].
    """
    require("least", least, least=-1, most=1)

    def choose(doubtful: Array, trusted: Array) -> Array:
        def one(move: Array) -> Array:
            product = move * trusted
            order = jnp.argsort(-product)
            size = jnp.sqrt(jnp.cumsum(move[order] ** 2)) * jnp.linalg.norm(trusted)
            good = jnp.cumsum(product[order]) >= least * size
            count = jnp.max(jnp.where(good, jnp.arange(1, move.shape[0] + 1), 0))
            return jnp.zeros(move.shape, bool).at[order].set(jnp.arange(move.shape[0]) < count)

        return jax.lax.map(one, doubtful)

    return choose


def shuffled(choose: Callable, order: Array) -> Callable:
    """What `choose` takes, but of other numbers: number `j` as `order[j]` `[d]` says. A control for `choose`."""
    return lambda doubtful, trusted: choose(doubtful, trusted)[:, order]


def selective(choose: Callable, grouped: bool = False) -> Callable:
    """A rule for messages `[update [d], update [d], doubtful]`; `doubtful` is 1 or 0.

    The first part becomes the mean over all trusted updates and what `choose` takes of the doubtful, number by number;
    the second the mean of all, or with `grouped` of the doubtful alone. Where nothing is taken it is 0.
    """

    def rule(own: Array, heard: Array, weight: Array) -> Array:
        del own

        def add(sums: tuple, row: tuple) -> tuple[tuple, None]:
            (move, count), (row, taken, weight) = sums, row
            return (move + jnp.where(taken, weight * row, 0), count + jnp.where(taken, weight, 0)), None

        d = (heard.shape[1] - 1) // 2
        move, doubtful = heard[:, :d], heard[:, -1] > 0.5
        trusted = mean_of(move, weight * ~doubtful)
        taken = ~doubtful[:, None] | choose(move, trusted)
        # row by row: on a CPU a product would make what it sums column by column
        (some, count), _ = jax.lax.scan(add, (jnp.zeros(d), jnp.zeros(d)), (move, taken, weight))
        everyone = mean_of(heard[:, d:-1], weight * (doubtful if grouped else True))
        return jnp.concatenate([some / total_or_one(count), everyone, jnp.zeros(1)])

    return rule
