"""Linear mixing `z_i = w_ii x_i + sum_s w_is x_nbr(i,s)` by the structure of the graph.

Three formulations, the same result to rounding: shifts round the circle (one contiguous read a slot; a
collective-permute between devices), one dense matmul, a scan over slots of gathered rows. In each a row that is not
finite reaches those who hear it and nobody else: a weight of 0 is no link, though `0 * nan` is not 0 (graphs with
`shifts` have no such weight).
"""

import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxfl.core import Array, Graph, own_weight
from jaxfl.mapping import AXIS, node_shards

DENSE_RATIO = 64  # a matmul over n nodes costs what about n / 64 gathered slots cost, on CPU as on GPU


def mix(graph: Graph, own: Array, sent: Array) -> Array:
    """Mix rows: each node weighs its `own` row `[n, m]` and the rows `sent` `[n, m]` by those it hears."""
    n, k = graph.nbr.shape
    chex.assert_shape([own, sent], (n, None))
    if k == 0:
        return own
    first = own_weight(graph)[:, None] * own
    if graph.shifts is not None and 8 * k < n:
        return first + _by_shifts(graph.weight, graph.shifts, sent)
    if n <= DENSE_RATIO * k:
        return first + _by_matmul(graph, sent)
    return first + _by_slots(graph, sent)


def _by_shifts(weight: Array, shifts: tuple[int, ...], sent: Array) -> Array:
    n = sent.shape[0]
    devices = node_shards()
    near = [s if 2 * s <= n else s - n for s in shifts]
    if devices > 1 and n % devices == 0 and max(map(abs, near)) <= n // devices:
        return _by_halo(weight, sent, near, devices)
    total = jnp.zeros_like(sent)
    for slot, shift in enumerate(shifts):
        total = total + weight[:, slot, None] * jnp.roll(sent, -shift, axis=0)
    return total


def _by_halo(weight: Array, sent: Array, shifts: list[int], devices: int) -> Array:
    """Each device receives only the border rows of its two neighbours."""
    ahead, behind = max(0, *shifts), max(0, *(-s for s in shifts))

    def local(weight, sent):
        size = sent.shape[0]
        parts = [sent]
        if ahead:
            ring = [((r + 1) % devices, r) for r in range(devices)]
            parts.append(jax.lax.ppermute(sent[:ahead], AXIS, ring))
        if behind:
            ring = [(r, (r + 1) % devices) for r in range(devices)]
            parts.insert(0, jax.lax.ppermute(sent[size - behind :], AXIS, ring))
        wide = jnp.concatenate(parts)
        total = jnp.zeros_like(sent)
        for slot, shift in enumerate(shifts):
            total = total + weight[:, slot, None] * jax.lax.dynamic_slice_in_dim(wide, behind + shift, size)
        return total

    return jax.shard_map(local, in_specs=(P(AXIS), P(AXIS)), out_specs=P(AXIS), check_vma=False)(weight, sent)


def _by_matmul(graph: Graph, sent: Array) -> Array:
    n, k = graph.nbr.shape
    row = jnp.broadcast_to(jnp.arange(n)[:, None], (n, k))
    matrix = jnp.zeros((n, n), graph.weight.dtype).at[row, graph.nbr].add(graph.weight)
    sound = jnp.isfinite(sent).all(1)

    def spoilt(sent: Array) -> Array:
        hears = (matrix != 0) @ (~sound).astype(matrix.dtype) > 0
        return jnp.where(hears[:, None], jnp.nan, times(jnp.where(sound[:, None], sent, 0.0)))

    def times(sent: Array) -> Array:
        return jnp.matmul(matrix, sent, precision=jax.lax.Precision.HIGHEST)

    return jax.lax.cond(sound.all(), times, spoilt, sent)


def _by_slots(graph: Graph, sent: Array) -> Array:
    def add(total, slot):
        nbr, weight = slot
        return total + jnp.where(weight[:, None] != 0, weight[:, None] * sent[nbr], 0.0), None

    return jax.lax.scan(add, jnp.zeros_like(sent), (graph.nbr.T, graph.weight.T))[0]
