"""How long a job takes: laws of the seconds between handing a node the model and having its answer.

A law draws for ONE job of ONE node; clocks (`world.clock`, `world.deadline`) map it over jobs. Its numbers are traced,
so that other values compile nothing, and each is one for all nodes or one a node `[n]`. Laws are built up:
`jittered(settled(pareto(1, 2), n), 0.1)` gives every node a speed of its own, around which its jobs vary a little;
`timed_out(by_samples(gamma(), data.size), 60)` makes jobs longer with the data and ends them after a minute. A law
remembers nothing from job to job; what changes with the rounds is `world.pace`, measured durations are `world.traces`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import erf_inv
from jax.scipy.special import ndtri

from jaxfl.core import Array, Links, Tree, constant, node_keys, stream
from jaxfl.errors import InputError, require
from jaxfl.mapping.canonical import canonical
from jaxfl.world.exponential import exponential as unit_exponential
from jaxfl.world.exponential import tail
from jaxfl.world.exponential import uniform as fraction
from jaxfl.world.links import to_server

LONGEST = 1e30  # seconds of a job; sums of them are finite in float32


class Seconds(NamedTuple):
    """The law of a job's duration."""

    draw: Callable  # (key, arrays, i) -> float32 seconds of a job of node i
    arrays: Tree = ()  # leaves [] or [n, ...], mostly float32


def drawing(seconds: Seconds) -> Callable:
    """How clocks draw a job: as the law does, but `LONGEST` at most, so that their differences are never NaN."""
    inner = seconds.draw

    def draw(key: Array, arrays: Tree, i: Array) -> Array:
        return jnp.fmin(inner(key, arrays, i), LONGEST)

    return canonical(draw)


def _number(name: str, value: Any, positive: bool = False) -> Array:
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, or 0
        values = np.asarray(value, np.float64).astype(np.float32)
    if values.ndim > 1 or not np.isfinite(values).all() or (values.min() <= 0 if positive else values.min() < 0):
        least = "above" if positive else "of at least"
        raise InputError(f"{name} = {value}: a finite number {least} 0, as float32, or one a node [n], is needed.")
    return constant(values)


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


def _uniform(key: Array, arrays: dict, i: Array) -> Array:
    low, high = _of(arrays["low"], i), _of(arrays["high"], i)
    return low + (high - low) * fraction(key)


def _shifted(key: Array, arrays: dict, i: Array) -> Array:
    return _of(arrays["shift"], i) + _exponential(key, arrays, i)


def _gamma(key: Array, arrays: dict, i: Array) -> Array:
    shape = _of(arrays["shape"], i)
    return _of(arrays["mean"], i) / shape * jax.random.gamma(key, shape)


def _pareto(key: Array, arrays: dict, i: Array) -> Array:
    return _of(arrays["least"], i) * jnp.exp(-jnp.log(fraction(key)) / _of(arrays["shape"], i))


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


def uniform(low: Any = 0.5, high: Any = 1.5) -> Seconds:
    """Evenly between `low` and `high`.

    Raises:
        InputError: `high` below `low`, for all nodes or one.
    """
    if (np.asarray(high, np.float64) < np.asarray(low, np.float64)).any():
        raise InputError(f"high = {high}: at least low = {low} is needed.")
    return Seconds(_uniform, {"low": _number("low", low), "high": _number("high", high)})


def shifted_exponential(shift: Any = 1.0, mean: Any = 1.0) -> Seconds:
    """`shift` and an exponential time of this `mean` on top: the least a job needs, and what disturbs it.

    The usual model of stragglers in coded computing (Lee et al., IEEE Trans. Information Theory 2018).
    """
    return Seconds(_shifted, {"shift": _number("shift", shift), "mean": _number("mean", mean, True)})


def gamma(mean: Any = 1.0, shape: Any = 2.0) -> Seconds:
    """Gamma of this mean; its deviation is `mean / sqrt(shape)`: the sum of `shape` exponential stages."""
    return Seconds(_gamma, {"mean": _number("mean", mean, True), "shape": _number("shape", shape, True)})


def pareto(least: Any = 1.0, shape: Any = 2.0) -> Seconds:
    """`P(T > t) = (least / t) ** shape` from `least` on: a few jobs take for ever. Up to `shape` 1 it has no mean."""
    return Seconds(_pareto, {"least": _number("least", least, True), "shape": _number("shape", shape, True)})


def on_links(links: Links, *, down_bits: float = 0.0, up_bits: float = 0.0, steps: float = 0.0) -> Seconds:
    """What a job takes over `world.links`: download, local steps, upload, each transfer with its latency.

    Raises:
        InputError: links whose uplinks are shared.
    """
    if links.trunk is not None:
        raise InputError("links share uplinks, but a clock draws each job alone: give each node an uplink of its own.")
    links = to_server(links)
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


def scaled(seconds: Seconds, by: Any) -> Seconds:
    """The law, times `by`, one number or one a node `[n]`: `scaled(lognormal(0.01), steps)` of a law of one step."""
    inner = seconds.draw

    def draw(key: Array, arrays: dict, i: Array) -> Array:
        return _of(arrays["by"], i) * inner(key, arrays["of"], i)

    return Seconds(canonical(draw), {"of": seconds.arrays, "by": _number("by", by)})


def by_samples(seconds: Seconds, sizes: Any, power: float = 1.0) -> Seconds:
    """The law, times `(size / mean size) ** power`: who has more data works longer, at `power` 1 in proportion.

    Raises:
        InputError: sizes `[n]` that are not above 0, or a power that is not finite.
    """
    require("power", power)
    amount = np.asarray(sizes, np.float64)
    if amount.ndim != 1 or not amount.size or not (np.isfinite(amount) & (amount > 0)).all():
        raise InputError(f"sizes has shape {list(amount.shape)}: numbers above 0, one a node [n], are needed.")
    with np.errstate(over="ignore", divide="ignore"):
        by = (amount / amount.mean()) ** power
    if not by.max() < 1e38:
        raise InputError(
            f"power is {power}, with which a job of {amount.min():g} or {amount.max():g} samples never ends."
        )
    return scaled(seconds, by)


def tiers(n: int, shares: Any, factors: Any, seed: int = 0) -> np.ndarray:
    """How much longer each node takes, `[n]`, for `scaled`: of `n` nodes a share of each tier has the tier's factor.

    Counts are exact to one node; who is in which tier is drawn by `seed`.

    Raises:
        InputError: as many factors as shares are needed; shares of at least 0 whose sum is 1, factors of at least 0.
    """
    require("n", n, least=1, whole=True)
    require("seed", seed, least=0, whole=True)
    share, factor = np.asarray(shares, np.float64), np.asarray(factors, np.float64)
    if share.ndim != 1 or not share.size or not (share >= 0).all() or abs(share.sum() - 1) > 1e-6:
        raise InputError(f"shares = {shares}: shares of at least 0 whose sum is 1 are needed.")
    if factor.shape != share.shape or not (np.isfinite(factor) & (factor >= 0)).all():
        raise InputError(
            f"factors = {factors}: a finite number of at least 0 for each of {share.size} tiers is needed."
        )
    ends = np.rint(np.cumsum(share) * n).astype(int)
    slot = np.random.default_rng(seed).permutation(n)
    return factor[np.minimum(np.searchsorted(ends, slot, side="right"), share.size - 1)]


def settled(seconds: Seconds, n: int, seed: int = 0) -> Seconds:
    """Every one of `n` nodes draws its time once, by `seed`, and all its jobs take that long."""
    require("n", n, least=1, whole=True)
    require("seed", seed, least=0, whole=True)
    ids = jnp.arange(n)
    keys = node_keys(stream(jax.random.key(seed), "own seconds"), ids)
    return fixed(jax.vmap(lambda key, i: seconds.draw(key, seconds.arrays, i))(keys, ids))


def jittered(seconds: Seconds, sigma: Any) -> Seconds:
    """The law, times `exp(sigma * N(0, 1))` for every job; the median stays."""
    inner = seconds.draw

    def draw(key: Array, arrays: dict, i: Array) -> Array:
        noise = jax.random.normal(stream(key, "jitter"))
        return inner(key, arrays["of"], i) * jnp.exp(_of(arrays["jitter"], i) * noise)

    return Seconds(canonical(draw), {"of": seconds.arrays, "jitter": _number("sigma", sigma)})


def timed_out(seconds: Seconds, most: Any) -> Seconds:
    """The law, but a job ends after `most` seconds, done or not, and hands in what it has.

    Whose answer is to count nothing, or in part, when it is late is a matter of the clock: `world.deadline`.
    """
    inner = seconds.draw

    def draw(key: Array, arrays: dict, i: Array) -> Array:
        return jnp.minimum(inner(key, arrays["of"], i), _of(arrays["most"], i))

    return Seconds(canonical(draw), {"of": seconds.arrays, "most": _number("most", most, True)})
