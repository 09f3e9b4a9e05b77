"""How a quantity is spread over nodes `[n]`.

NaN stands for a node that has none, which is left out; an infinite one, as of a model that diverged, makes all NaN.
"""

from fractions import Fraction

import jax.numpy as jnp

from jaxfl.core import Array

WORST = 0.1  # the share of nodes called worst


def worst(values: Array, share: float = WORST) -> Array:
    """Mean of the lowest `share` of `values` `[n]`, rounded down to a number of values (at least one)."""
    ratio, there = Fraction(share).limit_denominator(10_000), (~jnp.isnan(values)).sum()
    times, of = ratio.numerator, ratio.denominator
    count = jnp.maximum(1, there // of * times + there % of * times // of)
    lowest = jnp.arange(values.shape[0]) < count
    mean = jnp.where(lowest, jnp.sort(values), 0).sum() / count
    return jnp.where(jnp.isinf(values).any(), jnp.nan, mean)


def jain(values: Array) -> Array:
    """Jain's fairness index `(sum v)^2 / (n sum v^2)` of values `[n]` of at least 0: 1 where all are equal, else less.

    1 / n where one has everything (Jain, Chiu and Hawe, 1984, https://arxiv.org/abs/cs/9809099); NaN where all are 0.
    """
    there = (~jnp.isnan(values)).sum()
    return jnp.nansum(values) ** 2 / (there * jnp.nansum(values * values))


def columns(name: str, values: Array) -> dict[str, Array]:
    """The columns of `values` `[n]`: `name`, their mean; `name_worst_decile`, the mean of the lowest tenth;
    `name_spread`, their standard deviation.
    """
    values = jnp.asarray(values, jnp.float32)
    mean = jnp.where(jnp.isinf(values).any(), jnp.nan, jnp.nanmean(values))
    return {name: mean, f"{name}_worst_decile": worst(values), f"{name}_spread": jnp.nanstd(values)}
