"""How fast this machine is, measured when a plan asks: matrix products of given shapes, memory traffic, arithmetic.

All devices work at once, as they do in a run, and share what they share: on a CPU each has its part of the cores.
Every rate is of one device.
"""

import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxfl.engine.hlo import Dot, Work

START_SECONDS = 1e-7  # to start one instruction of a compiled CPU program
SIZES = (2**18, 2**21, 2**24, 2**27)  # bytes an instruction touches: in the caches of a core, of all cores, in memory
TIMED = 2e7  # FLOPs or bytes of one timed loop, at least
SMALL = 0.01  # products that together make less than this part of the FLOPs take the rate of the others


def seconds(found: Iterable[Work], devices: int) -> float:
    """Predicted seconds of what a program starts.

    An instruction takes as long as the slowest of its product, its memory traffic and its elementwise arithmetic, and
    on a CPU the time to start it.
    """
    found = list(found)
    start = START_SECONDS if jax.default_backend() == "cpu" else 0.0
    speed = _product_rates([(w.dot, w.times) for w in found if w.dot is not None], devices)
    total = 0.0
    for w in found:
        size = min(SIZES, key=lambda s: max(s / max(w.bytes, 1.0), w.bytes / s))
        takes = [w.bytes / bandwidth(size, devices), w.operations / arithmetic(devices)]
        takes += [w.dot.flops / speed[w.dot]] if w.dot is not None else []
        total += w.times * (max(takes) + start * (not w.small))
    return total


def _product_rates(dots: list[tuple[Dot, float]], devices: int) -> dict[Dot, float]:
    """FLOPs a second of each product; what hardly matters takes the rate of the largest."""
    share: dict[Dot, float] = {}
    for dot, times in dots:
        share[dot] = share.get(dot, 0.0) + times * dot.flops
    order = sorted(share, key=lambda d: share[d])
    rates: dict[Dot, float] = {}
    left = SMALL * sum(share.values())
    for dot in order:
        left -= share[dot]
        if left < 0:
            rates[dot] = product(dot, devices)
    return {dot: rates.get(dot, rates[order[-1]]) for dot in order}


def _split(devices: int, f: Callable, *rows: jax.Array) -> float:
    """Least seconds of `f(*rows)` on every device at once."""
    mesh = jax.make_mesh((devices,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    local = lambda *a: jax.tree.map(lambda v: v[None], f(*(v[0] for v in a)))
    each = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P("d"), out_specs=P("d"), check_vma=False))
    spread = [jax.device_put(jnp.stack([a] * devices), NamedSharding(mesh, P("d"))) for a in rows]
    return _fastest(each, *spread)


def _fastest(f: Callable, *args: Any) -> float:
    jax.block_until_ready(f(*args))
    took = []
    for _ in range(5):
        began = time.perf_counter()
        jax.block_until_ready(f(*args))
        took.append(time.perf_counter() - began)
    return min(took)


@cache
def product(dot: Dot, devices: int) -> float:
    """FLOPs a second of one device in products of this shape."""
    again = max(2, min(1000, int(TIMED / dot.flops)))
    batch, where = ((dot.batch,), ((0,), (0,))) if dot.batch > 1 else ((), ((), ()))
    left, right = jnp.full((*batch, dot.m, dot.k), 0.01), jnp.full((*batch, dot.k, dot.n), 0.01)
    axis = len(batch)

    def many(a: jax.Array, b: jax.Array) -> jax.Array:
        def once(_: Any, carry: tuple) -> tuple:
            a, _ = carry
            out = jax.lax.dot_general(a, b, (((axis + 1,), (axis,)), where))
            return a.at[(0,) * a.ndim].set(out[(0,) * out.ndim] * 1e-3), out  # the next product needs this one

        return jax.lax.fori_loop(0, again, once, (a, jnp.zeros((*batch, dot.m, dot.n))))[1]

    return again * dot.flops / _split(devices, many, left, right)


@cache
def bandwidth(size: int, devices: int) -> float:
    """Bytes a second that one device reads and writes in place in an array of `size / 2` bytes."""
    again = max(6, min(1000, int(4 * TIMED / size)))  # so often that pages of a new array hardly count
    update = lambda a: jax.lax.fori_loop(0, again, lambda i, a: a * 0.5 + 1.0, a)
    return again * size / _split(devices, update, jnp.ones(size // 8))


@cache
def arithmetic(devices: int) -> float:
    """Additions or multiplications a second of one device, elementwise and in cache."""
    count, again, deep = 2**15, 50, 16

    def chain(_: Any, a: jax.Array) -> jax.Array:
        for i in range(deep):
            a = a * 0.5 + float(i)
        return a

    return again * 2 * deep * count / _split(devices, lambda a: jax.lax.fori_loop(0, again, chain, a), jnp.ones(count))
