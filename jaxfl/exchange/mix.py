"""Linear mixing `z_i = w_ii x_i + sum_s w_is x_nbr(i,s)` by the structure of the graph.

Three formulations, the same result to rounding: shifts round the circle (one contiguous read a slot; a
collective-permute between devices), one dense matmul, a scan over slots of gathered rows. In each a row that is not
finite reaches those who hear it and nobody else: a weight of 0 is no link, though `0 * nan` is not 0 (graphs with
`shifts` have no such weight).
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxfl.core import Array, Graph, heard_weight, own_weight
from jaxfl.mapping.nodes import AXIS, node_shards

PIECE_BYTES = 16 * 2**20  # what a device gathers of all rows at a time, or a quarter of its own rows if that is more
DENSE_RATIO = 64  # a matmul over n nodes costs what about n / 64 gathered slots cost, on CPU as on GPU
MANY = 64  # slots above which rows are mixed as differences: a sum of 10,000 weights may be off by 5e-5 in float32


def mix(graph: Graph, own: Array, sent: Array) -> Array:
    """Mix rows: each node weighs its `own` row `[n, m]` and the rows `sent` `[n, m]` by those it hears."""
    n, k = graph.nbr.shape
    chex.assert_shape([own, sent], (n, None))
    if k == 0:
        return own
    own, sent = _settled(own, sent)
    own_share = own_weight(graph)[:, None]
    if k > MANY:
        centre = _common(sent)
        own, sent, own_share = (
            own_share * own + heard_weight(graph)[:, None] * centre,
            sent - centre,
            jnp.ones_like(own_share),
        )
    if graph.shifts is not None and 8 * k < n:
        return _by_shifts(graph.weight, graph.shifts, sent, own_share * own)
    devices = node_shards()
    if devices == 1 or n % devices:
        return _by_table(graph.nbr, graph.weight, sent, own_share * own)
    each, reach = n // devices, n if graph.reach is None else graph.reach

    def local(nbr: Array, weight: Array, own_share: Array, own: Array, sent: Array) -> Array:
        if reach > each:
            return _by_gather(nbr, weight, own_share, own, sent, devices)
        start = each * jax.lax.axis_index(AXIS) - reach
        return _by_table((nbr - start) % n, weight, _with_border(sent, reach, reach, devices), own_share * own)

    spread = jax.shard_map(local, in_specs=P(AXIS), out_specs=P(AXIS), check_vma=False)
    return spread(graph.nbr, graph.weight, own_share, own, sent)


def _settled(own: Array, sent: Array) -> tuple[Array, Array]:
    """On an accelerator the rows as they stand in memory: XLA would take the local step once for each slot.

    It would also copy all rows in every round, as what is mixed would be read from those that a scan replaces.
    """
    if jax.default_backend() == "cpu":  # whose blocks of nodes are in memory anyway
        return own, sent
    if own is sent:
        own = sent = jax.lax.optimization_barrier(sent)
        return own, sent
    return jax.lax.optimization_barrier((own, sent))


def _common(rows: Array) -> Array:
    """What all finite `rows` `[n, m]` have in common, `[m]`: in each coordinate the value nearest to 0 in their range.

    Taking it away makes no number larger, and equal rows 0.
    """
    finite = jnp.isfinite(rows)
    low, high = jnp.where(finite, rows, jnp.inf).min(0), jnp.where(finite, rows, -jnp.inf).max(0)
    return jax.lax.stop_gradient(jnp.where(low > high, 0, jnp.maximum(low, 0) + jnp.minimum(high, 0)))


def _by_shifts(weight: Array, shifts: tuple[int, ...], sent: Array, total: Array) -> Array:
    n = sent.shape[0]
    devices = node_shards()
    near = [s if 2 * s <= n else s - n for s in shifts]
    if devices > 1 and n % devices == 0 and max(map(abs, near)) <= n // devices:
        return _by_halo(weight, sent, near, devices, total)
    for slot, shift in enumerate(shifts):
        total = total + weight[:, slot, None] * jnp.roll(sent, -shift, axis=0)
    return total


def _with_border(sent: Array, behind: int, ahead: int, devices: int) -> Array:
    """A device's rows between the `behind` last of the device before and the `ahead` first of the one after."""
    parts = [sent]
    if ahead:
        ring = [((r + 1) % devices, r) for r in range(devices)]
        parts.append(jax.lax.ppermute(sent[:ahead], AXIS, ring))
    if behind:
        ring = [(r, (r + 1) % devices) for r in range(devices)]
        parts.insert(0, jax.lax.ppermute(sent[sent.shape[0] - behind :], AXIS, ring))
    return jnp.concatenate(parts)


def _by_halo(weight: Array, sent: Array, shifts: list[int], devices: int, total: Array) -> Array:
    """Each device receives only the border rows of its two neighbours."""
    ahead, behind = max(0, *shifts), max(0, *(-s for s in shifts))

    def local(weight, sent, total):
        wide = _with_border(sent, behind, ahead, devices)
        for slot, shift in enumerate(shifts):
            total = total + weight[:, slot, None] * jax.lax.dynamic_slice_in_dim(wide, behind + shift, sent.shape[0])
        return total

    return jax.shard_map(local, in_specs=P(AXIS), out_specs=P(AXIS), check_vma=False)(weight, sent, total)


def _by_gather(nbr: Array, weight: Array, own_share: Array, own: Array, sent: Array, devices: int) -> Array:
    """Every device hears all rows, a few columns of them at a time: rows of all nodes would not fit where shards do."""
    each, m = sent.shape
    whole = devices * each * m * sent.dtype.itemsize
    width = max(1, m * max(PIECE_BYTES, whole // (4 * devices)) // whole)
    hear = lambda own, sent: _by_table(nbr, weight, jax.lax.all_gather(sent, AXIS, tiled=True), own_share * own)
    if width >= m:
        return hear(own, sent)

    def piece(mixed: Array, start: Array) -> tuple[Array, None]:
        new = hear(*(jax.lax.dynamic_slice_in_dim(a, start, width, axis=1) for a in (own, sent)))
        return jax.lax.dynamic_update_slice_in_dim(mixed, new, start, axis=1), None

    # the last piece may hold columns of the one before, which come out the same; what the result starts from is all
    # written over, but made of `own` it is made after it, in the memory of the rows from which `own` was trained
    starts = jnp.minimum(jnp.arange(0, m, width), m - width)
    return jax.lax.scan(piece, own_share * own, starts)[0]


def _by_table(nbr: Array, weight: Array, heard: Array, total: Array) -> Array:
    """`total` `[r, m]` and the rows `heard` `[w, m]` of which `nbr` `[r, k]` are wanted, weighed: `[r, m]`."""
    if heard.shape[0] <= DENSE_RATIO * nbr.shape[1]:
        return _by_matmul(nbr, weight, heard, total)
    return _by_slots(nbr, weight, heard, total)


def _by_matmul(nbr: Array, weight: Array, heard: Array, total: Array) -> Array:
    row = jnp.broadcast_to(jnp.arange(nbr.shape[0])[:, None], nbr.shape)
    matrix = jnp.zeros((nbr.shape[0], heard.shape[0]), weight.dtype).at[row, nbr].add(weight)
    times = lambda heard, total: total + jnp.matmul(matrix, heard, precision=jax.lax.Precision.HIGHEST)
    return jax.lax.cond(jnp.isfinite(heard).all(), times, partial(_by_slots, nbr, weight), heard, total)


def _by_slots(nbr: Array, weight: Array, heard: Array, total: Array) -> Array:
    def add(total, slot):
        nbr, weight = slot
        return total + jnp.where(weight[:, None] != 0, weight[:, None] * heard[nbr], 0.0), None

    return jax.lax.scan(add, total, (nbr.T, weight.T))[0]
