"""Diagonal preconditioners: what a step is divided by, coordinate by coordinate.

One thing for clients who share a diagonal (`algorithms.savic`) and for adaptive servers (`learn.server`): `init` at a
model, `refresh` with a statistic, `diagonal` says what to divide by. Models, statistics and diagonals are rows `[d]` or
trees. Of the statistic H of a refresh,

    mean square  D^2 <- beta_t D^2 + (1 - beta_t) H^2        mean  D <- beta D + (1 - beta) H

with D = H at first; a corrected beta_t = (beta - beta^(t+1)) / (1 - beta^(t+1)) is Adam's, t = 0, 1, ... refreshes
before. What is divided by is max(alpha, |D|).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxfl.core import Array, Tree
from jaxfl.errors import InputError, nearest, require


class Preconditioner(NamedTuple):
    """`statistic` is what `refresh` wants: "gradient", "curvature" (`learn.local.local_curvature`), "" for nothing."""

    init: Callable  # (model) -> state
    refresh: Callable  # (state, statistic) -> state
    diagonal: Callable  # (state) -> what to divide by, above 0
    statistic: str = "gradient"


class Averaged(NamedTuple):
    """State of what averages statistics."""

    count: Array  # int32, refreshes
    mean: Tree  # of the squares, or of the statistics themselves


def divided(gradient: Tree, diagonal: Tree) -> Tree:
    """`gradient / diagonal`."""
    return jax.tree.map(lambda g, d: g / d, gradient, diagonal)


def identity() -> Preconditioner:
    """Divides by 1."""
    return Preconditioner(
        lambda x: jax.tree.map(jnp.ones_like, x), lambda state, h: state, lambda state: state, statistic=""
    )


def second_moment(second: Callable, tau: float | Array) -> Preconditioner:
    """`sqrt(v) + tau` with `v <- second(v, g^2)` from `tau^2`: that of FedOpt's servers (`learn.server`)."""
    return Preconditioner(
        lambda x: jax.tree.map(lambda p: jnp.full_like(p, tau**2), x),
        lambda v, g: jax.tree.map(lambda v, g: second(v, g * g), v, g),
        lambda v: jax.tree.map(lambda v: jnp.sqrt(v) + tau, v),
    )


def adam(beta: float | Array = 0.999, alpha: float | Array = 1e-2) -> Preconditioner:
    """Corrected mean square of gradients (Kingma and Ba, ICLR 2015)."""
    return _averaged("gradient", beta, alpha, square=True, corrected=True)


def rmsprop(beta: float | Array = 0.999, alpha: float | Array = 1e-2) -> Preconditioner:
    """Mean square of gradients (Tieleman and Hinton, 2012)."""
    return _averaged("gradient", beta, alpha, square=True, corrected=False)


def oasis(beta: float | Array = 0.999, alpha: float | Array = 1e-2) -> Preconditioner:
    """Mean of Hutchinson's diagonals of the Hessian (Jahani et al., ICLR 2022, https://arxiv.org/abs/2109.05198)."""
    return _averaged("curvature", beta, alpha, square=False, corrected=False)


def adahessian(beta: float | Array = 0.999, alpha: float | Array = 1e-2) -> Preconditioner:
    """Corrected mean square of them (Yao et al., AAAI 2021, https://arxiv.org/abs/2006.00719, without blocks)."""
    return _averaged("curvature", beta, alpha, square=True, corrected=True)


RULES = {"adam": adam, "rmsprop": rmsprop, "oasis": oasis, "adahessian": adahessian}


def by_name(rule: str, beta: float | Array, alpha: float | Array) -> Preconditioner:
    """One of `RULES`, or "identity", which needs no numbers. Raises `InputError` for another name."""
    if rule == "identity":
        return identity()
    if rule not in RULES:
        raise InputError(f"rule is {rule!r}: {nearest(rule, ['identity', *RULES])}")
    return RULES[rule](beta, alpha)


def _averaged(statistic: str, beta, alpha, *, square: bool, corrected: bool) -> Preconditioner:
    """Of the module's two means, with Adam's correction or without."""
    require("beta", beta, least=0, below=1)
    require("alpha", alpha, above=0)

    def init(x: Tree) -> Averaged:
        return Averaged(jnp.int32(0), jax.tree.map(jnp.zeros_like, x))

    def refresh(state: Averaged, h: Tree) -> Averaged:
        old = beta**state.count
        keep = beta * (1 - old) / (1 - beta * old) if corrected else jnp.where(state.count == 0, 0.0, beta)
        new = jax.tree.map(lambda m, h: keep * m + (1 - keep) * (h * h if square else h), state.mean, h)
        return Averaged(state.count + 1, new)

    def diagonal(state: Averaged) -> Tree:
        size = lambda m: jnp.sqrt(m) if square else jnp.abs(m)
        return jax.tree.map(lambda m: jnp.maximum(alpha, size(m)), state.mean)

    return Preconditioner(init, refresh, diagonal, statistic)
