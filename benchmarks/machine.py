"""The machine's own limit: rates of its matmuls and of its memory on the shapes of a workload, by plain JAX.

`floor_seconds` is the larger of two sums: over the matrix products of a round, FLOPs over the rate measured for batched
products of that shape in cache; over its memory traffic, bytes over the bandwidth measured in an array of that size,
which a CPU's cache may hold (an accelerator's small arrays only show what a launch takes: there it is that of its
memory). All devices of the process work at once, as they do in the workload.
"""

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from workloads.work import Cost

REPEATS = 15
LIMITS = {True: (2e6, 2e8), False: (2.56e8, 1e11)}  # on a CPU or not: bytes of a block, FLOPs of a timed call, a device
LARGEST = 2.56e8  # bytes of the largest array that is streamed: no cache holds it
SMALLEST = 2**14


def _fastest(f: Callable, *args: Any) -> float:
    jax.block_until_ready(f(*args))
    took = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        jax.block_until_ready(f(*args))
        took.append(time.perf_counter() - begin)
    return min(took)


def _mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((jax.device_count(),), ("d",), axis_types=(AxisType.Auto,))


def _split(f: Callable, count: int) -> Callable:
    """`f` of each device's part of `count` arrays."""
    return jax.jit(jax.shard_map(f, mesh=_mesh(), in_specs=(P("d"),) * count, out_specs=P("d"), check_vma=False))


@cache
def matmul_rate(m: int, k: int, n: int) -> float:
    """FLOPs a second of products `[m, k] @ [k, n]`, as many at a time as a CPU's cache holds.

    So it is the rate of arithmetic alone; what must come from memory is counted apart.
    """
    block, call = LIMITS[jax.default_backend() == "cpu"]
    flops, moved = 2.0 * m * k * n, 4.0 * (m * k + k * n + m * n)
    batch = max(1, int(min(call / flops, block / moved)))
    times = max(1, int(call / (batch * flops)))
    where = NamedSharding(_mesh(), P("d"))
    shapes = ((batch * jax.device_count(), *shape) for shape in ((m, k), (k, n)))
    a, b = (jax.device_put(jnp.full(shape, 0.5), where) for shape in shapes)
    keep = jax.lax.optimization_barrier  # else XLA would see that every time is the same, and one number wanted

    def again(a, b):
        once = lambda i, seen: seen + keep(jnp.matmul(a, keep((b, seen))[0]))[:1, 0, 0]
        return jax.lax.fori_loop(0, times, once, jnp.zeros(1))

    return jax.device_count() * times * batch * flops / _fastest(_split(again, 2), a, b)


@cache
def _bandwidth(each: int) -> float:
    """The same of `each` bytes on every device."""
    sweeps = max(8, min(2000, int(4e8 / each)))
    update = lambda a: jax.lax.fori_loop(0, sweeps, lambda i, a: a * 0.5 + 1.0, a)
    in_place = jax.jit(_split(update, 1), donate_argnums=0)  # a fresh array would cost its page faults
    a = jax.device_put(jnp.ones((jax.device_count(), each // 4)), NamedSharding(_mesh(), P("d")))
    size = a.nbytes

    def sweep():
        nonlocal a
        a = in_place(a)
        return a

    return 2.0 * sweeps * size / _fastest(sweep)


def bandwidth(size: float) -> float:
    """Bytes a second, read and written, of updates in place of about `size` bytes on all devices together."""
    smallest = SMALLEST if jax.default_backend() == "cpu" else LARGEST
    each = min(max(size, smallest), LARGEST) / jax.device_count()
    return _bandwidth(2 ** round(jnp.log2(each).item()))


def floor(cost: Cost) -> dict[str, float]:
    """`floor_seconds` of a round, the parts it is the larger of, and the FLOPs and bytes it is made of."""
    arithmetic = sum(2.0 * a.m * a.k * a.n * a.count / matmul_rate(a.m, a.k, a.n) for a in cost.matmuls)
    memory = sum(s.bytes / bandwidth(s.size) for s in cost.streams)
    return {
        "floor_seconds": max(arithmetic, memory),
        "arithmetic_seconds": arithmetic,
        "memory_seconds": memory,
        "flops": cost.flops,
        "bytes": cost.bytes,
    }
