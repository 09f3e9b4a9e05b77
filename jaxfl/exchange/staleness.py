"""What an update counts that was computed from an old model.

A discount is `s(age [c]) -> [c]` float32 with `s(0) = 1`, `age` in versions of the server. Constant, polynomial and
hinge are the families of FedAsync (Xie, Koyejo, Gupta, 2019, arXiv 1903.03934, section 5.2), the threshold is of FLSim,
Meta's simulator of FedBuff.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from jaxfl.core import Array, Cohort, ages
from jaxfl.errors import require
from jaxfl.mapping.sums import count


def constant() -> Callable:
    """Old updates count as much as new ones."""
    return lambda age: jnp.ones(age.shape, jnp.float32)


def polynomial(a: float | Array = 0.5) -> Callable:
    """`(1 + age)^-a`; a = 1/2 is FedBuff's `1 / sqrt(1 + age)`."""
    require("a", a, least=0)
    return lambda age: (1.0 + age.astype(jnp.float32)) ** -a


def threshold(cut: int | Array, rest: float | Array = 0.0) -> Callable:
    """1 up to age `cut`, `rest` above."""
    require("cut", cut, least=0)
    require("rest", rest, least=0)
    return lambda age: jnp.where(age <= cut, 1.0, rest).astype(jnp.float32)


def hinge(a: float | Array = 10.0, b: int | Array = 4) -> Callable:
    """1 up to age `b`, then `1 / (a (age - b) + 1)`."""
    require("a", a, least=0)
    require("b", b, least=0)
    return lambda age: 1 / (a * jnp.maximum(age - b, 0).astype(jnp.float32) + 1)


class Staleness(NamedTuple):
    """How a server treats old updates."""

    longest: int = 0  # an update older than this is dropped; so many earlier versions are remembered
    discount: Callable = constant()
    normalised: bool = False  # divide by the sum of discounted weights; else by the sum of weights, as FedBuff
    mixing: bool = False  # updates lead to the member's model from the current model, not from the one it read


FRESH = Staleness()


def counted(rule: Staleness, cohort: Cohort) -> tuple[Cohort, Array | None, dict]:
    """As `weighed`; where no earlier version counts, without scale and log, as who is fresh is not discounted."""
    cohort, scale, log = weighed(rule, cohort)
    return (cohort, scale, log) if rule.longest else (cohort, None, {})


def weighed(rule: Staleness, cohort: Cohort) -> tuple[Cohort, Array | None, dict]:
    """The cohort with discounted weights, 0 where too old, what its weighted mean is to be scaled by, and a log.

    The scale is `sum of discounted weights / sum of weights` over those who are not too old: 1 if nothing is stale.
    None: no scale. The log holds the mean `age` of those asked and how many of them were `dropped`.
    """
    selected = cohort.weight > 0 if cohort.selected is None else cohort.selected
    age = ages(cohort)
    old = age > rule.longest
    weight = jnp.where(old, 0, cohort.weight)
    discounted = weight * rule.discount(age)
    mean = jnp.where(selected, age, 0.0).sum() / jnp.maximum(count(selected), 1)
    log = {"age": mean, "dropped": count(selected & old)}
    scale = None if rule.normalised or cohort.total is not None else discounted.sum() / jnp.maximum(weight.sum(), 1e-12)
    return cohort._replace(weight=discounted, selected=selected), scale, log
