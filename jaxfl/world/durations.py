"""How long a job takes: laws of the seconds between handing a node the model and having its answer.

A law draws for ONE job of ONE node; clocks (`world.clock`) map it over jobs. Its numbers are traced, so that other
values compile nothing, and each is one for all nodes or one a node `[n]`: `lognormal(median=size / size.mean())` is a
population in which the nodes with more data are the slower ones.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import erf_inv
from jax.scipy.special import ndtri

from jaxfl.core import Array, Links, Tree, constant
from jaxfl.errors import InputError
from jaxfl.mapping.canonical import canonical
from jaxfl.world.exponential import exponential as unit_exponential
from jaxfl.world.exponential import tail


class Seconds(NamedTuple):
    """The law of a job's duration."""

    draw: Callable  # (key, arrays, i) -> float32 seconds of a job of node i
    arrays: Tree = ()  # leaves [] or [n] float32


def _number(name: str, value: Any, positive: bool = False) -> Array:
    values = np.asarray(value, np.float64)
    if values.ndim > 1 or not np.isfinite(values).all() or (values.min() <= 0 if positive else values.min() < 0):
        least = "above" if positive else "of at least"
        raise InputError(f"{name} = {value}: a finite number {least} 0, or one a node [n], is needed.")
    return constant(values, np.float32)


def _of(value: Array, i: Array) -> Array:
    return value[i] if value.ndim else value


def _fixed(key: Array, arrays: dict, i: Array) -> Array:
    del key
    return _of(arrays["seconds"], i)


def _lognormal(key: Array, arrays: dict, i: Array) -> Array:
    return _of(arrays["median"], i) * jnp.exp(_of(arrays["sigma"], i) * jax.random.normal(key))


def _exponential(key: Array, arrays: dict, i: Array) -> Array:
    return _of(arrays["mean"], i) * unit_exponential(key)


def _half_normal(key: Array, arrays: dict, i: Array) -> Array:
    late, u = tail(key)
    x = jnp.where(late, -ndtri(u / 2), math.sqrt(2) * erf_inv(u))  # P(|N| > x) = u, or P(|N| < x) = u
    return _of(arrays["scale"], i) * x


def fixed(seconds: Any = 1.0) -> Seconds:
    """Always the same, for all nodes or by node `[n]`.

    Raises:
        InputError: a time below 0 or not finite (of this law and all others).
    """
    return Seconds(_fixed, {"seconds": _number("seconds", seconds)})


def lognormal(median: Any = 1.0, sigma: Any = 1.0) -> Seconds:
    """`median * exp(sigma * N(0, 1))`: many fast, a long tail of slow (what Papaya reports of its clients)."""
    return Seconds(_lognormal, {"median": _number("median", median, True), "sigma": _number("sigma", sigma)})


def exponential(mean: Any = 1.0) -> Seconds:
    """Without memory: the next arrival is any of the running jobs in proportion to `1 / mean`."""
    return Seconds(_exponential, {"mean": _number("mean", mean, True)})


def half_normal(scale: Any = 1.0) -> Seconds:
    """`scale * |N(0, 1)|`, of the experiments of FedBuff (Nguyen et al., AISTATS 2022)."""
    return Seconds(_half_normal, {"scale": _number("scale", scale, True)})


def on_links(links: Links, *, down_bits: float = 0.0, up_bits: float = 0.0, steps: float = 0.0) -> Seconds:
    """What a job takes over `world.links`: download, local steps, upload, each transfer with its latency."""
    down, up = (
        jnp.where(v > 0, links.latency + v / rate, 0)
        for v, rate in ((_number("down_bits", down_bits), links.down), (_number("up_bits", up_bits), links.up))
    )
    return fixed(down + _number("steps", steps) * links.step + up)


def total(*parts: Seconds) -> Seconds:
    """One after the other, independent: `total(lognormal(), on_links(links, up_bits=32 * d))`.

    Raises:
        InputError: there is no part.
    """
    if not parts:
        raise InputError("parts is empty: at least one law is needed.")
    draws = tuple(p.draw for p in parts)

    def draw(key: Array, arrays: tuple, i: Array) -> Array:
        each = [f(jax.random.fold_in(key, j), a, i) for j, (f, a) in enumerate(zip(draws, arrays, strict=True))]
        return jnp.stack(each).sum()

    return Seconds(canonical(draw), tuple(p.arrays for p in parts))
