"""What all nodes of a graph hear, combined at once: above all linear mixing, by the structure of the graph.

    z_i = w_ii x_i + sum_s w_is x_nbr(i,s)

Three formulations, the same result to rounding: shifts round the circle (one contiguous read a slot; a
collective-permute between devices; on a CPU only where they are short), one dense matmul, a loop over rows gathered
slot by slot. In each a row that is not finite reaches those who hear it and nobody else: a weight of 0 is no link,
though `0 * nan` is not 0 (graphs with `shifts` have no such weight).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxfl.core import Array, Graph, heard_weight, own_weight
from jaxfl.exchange import rules
from jaxfl.exchange.ranks import written_out
from jaxfl.exchange.shifts import borders, by_shifts, near, nodes_here, widest_border
from jaxfl.mapping.shards import AXIS, fill, node_shards, over_shards, unfill
from jaxfl.world.tiers import Tiers

PIECE_BYTES = 128 * 2**20  # what a device gathers of all rows at a time, or a quarter of its own rows if that is more
DENSE_RATIO = 64  # on an accelerator a matmul over n nodes costs what about n / 64 gathered slots cost
DENSE_RATIO_CPU = 3  # on a CPU it costs what n / 3 slots cost at some 100 nodes, n / 8 at 1,000
FEW = 8  # shifts that cost less than a matmul whatever the number of nodes
TOGETHER = 16  # slots whose rows are added up in one pass
MANY = 64  # slots above which rows are mixed as differences: a sum of 10,000 weights may be off by 5e-5 in float32


def mix(graph: Graph | Tiers, own: Array, sent: Array) -> Array:
    """Mix rows: each node weighs its `own` row `[n, m]` and the rows `sent` `[n, m]` by those it hears."""
    if isinstance(graph, Tiers):
        own, sent = _settled(own, sent)
        return graph.join([_of_tier(g, mine, sent) for g, mine in zip(graph.parts, graph.split(own), strict=True)])
    n, k = graph.nbr.shape
    if k == 0:
        return own
    on_cpu = jax.default_backend() == "cpu"
    shifts = graph.shifts if (near(graph.shifts, n) if on_cpu else k <= FEW or 8 * k < n) else None
    if shifts is None or not on_cpu:
        own, sent = _settled(own, sent)
    own_share, own, sent = _differences(graph, own, sent)
    if shifts is not None:
        return by_shifts(graph.weight, shifts, sent, own_share, own)
    devices = node_shards()
    if devices == 1:
        return _by_table(graph.nbr, graph.weight, sent, own_share * own)
    reach = n if graph.reach is None else graph.reach

    def local(nbr: Array, weight: Array, own_share: Array, own: Array, sent: Array) -> Array:
        if reach > widest_border(n) or sent.shape[0] + 2 * reach >= n:  # as many rows as there are, or more
            return _by_gather(nbr, weight, own_share, own, sent, devices)
        start = sent.shape[0] * jax.lax.axis_index(AXIS) - reach
        return _by_table((nbr - start) % n, weight, _with_border(sent, reach, n), own_share * own)

    return over_shards(local, n, (P(AXIS),) * 5, P(AXIS))(graph.nbr, graph.weight, own_share, own, sent)


def _differences(graph: Graph, own: Array, sent: Array) -> tuple[Array, Array, Array]:
    """Shares of own rows, these and what is sent: of many slots what rows have in common is taken away, weighed."""
    own_share = own_weight(graph)[:, None]
    if graph.nbr.shape[1] <= MANY:
        return own_share, own, sent
    centre = _common(sent)
    return jnp.ones_like(own_share), own_share * own + heard_weight(graph)[:, None] * centre, sent - centre


def _of_tier(graph: Graph, own: Array, sent: Array) -> Array:
    """What the nodes of a tier hear of all rows that are `sent`; `own` are theirs."""
    own_share, own, sent = _differences(graph, own, sent)
    return _by_table(graph.nbr, graph.weight, sent, own_share * own)


def everywhere(rule: Callable, graph: Graph | Tiers, m: int) -> Callable | None:
    """`rule` of all receivers at once, `(own [n, m], sent [n, m]) -> [n, m]`; None if it has no such form.

    The mean is `mix`; a coordinate rule is one loop over rows gathered slot by slot, where these are few.
    """
    if rule is rules.mean:
        return partial(mix, graph)
    of_all = getattr(rule, "everywhere", None)
    if of_all is None or isinstance(graph, Tiers) or not written_out(1 + graph.nbr.shape[1], m):
        return None

    def combine(own: Array, sent: Array) -> Array:
        own, sent = _settled(own, sent)
        weight = jnp.c_[own_weight(graph), graph.weight]
        spread = over_shards(of_all, len(own), (P(AXIS), P(AXIS), P(AXIS), P()), P(AXIS))
        return spread(own, weight, graph.nbr, fill(sent))

    return combine


def _settled(own: Array, sent: Array) -> tuple[Array, Array]:
    """The rows as they stand in memory: XLA would take the local step once for each slot that hears it.

    On an accelerator it would also copy all rows in every round, as what is mixed would be read from those that a scan
    replaces.
    """
    together = (own,) if own is sent else (own, sent)
    together = unfill(jax.lax.optimization_barrier(fill(together)), len(own))  # phantom rows would else be made anew
    return together[0], together[-1]


def _common(rows: Array) -> Array:
    """What all finite `rows` `[n, m]` have in common, `[m]`: in each coordinate the value nearest to 0 in their range.

    Taking it away makes no number larger, and equal rows 0.
    """
    finite = jnp.isfinite(rows)
    low, high = jnp.where(finite, rows, jnp.inf).min(0), jnp.where(finite, rows, -jnp.inf).max(0)
    return jax.lax.stop_gradient(jnp.where(low > high, 0, jnp.maximum(low, 0) + jnp.minimum(high, 0)))


def _with_border(sent: Array, reach: int, n: int) -> Array:
    """A device's rows between the `reach` last of the device before and the `reach` first of the one after.

    These follow the last row that is a node's: what follows them means nothing.
    """
    before, after = borders(sent, reach, reach, n)
    wide, here = jnp.concatenate([*before, sent, *after]), reach + nodes_here(sent.shape[0], n)
    return wide if n % node_shards() == 0 or not reach else jax.lax.dynamic_update_slice_in_dim(wide, after[0], here, 0)


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
    ratio = DENSE_RATIO_CPU if jax.default_backend() == "cpu" else DENSE_RATIO
    if heard.shape[0] <= ratio * nbr.shape[1]:
        return _by_matmul(nbr, weight, heard, total)
    return _by_slots(nbr, weight, heard, total)


def _by_matmul(nbr: Array, weight: Array, heard: Array, total: Array) -> Array:
    row = jnp.broadcast_to(jnp.arange(nbr.shape[0])[:, None], nbr.shape)
    matrix = jnp.zeros((nbr.shape[0], heard.shape[0]), weight.dtype).at[row, nbr].add(weight)
    times = lambda heard, total: total + jnp.matmul(matrix, heard, precision=jax.lax.Precision.HIGHEST)
    return jax.lax.cond(jnp.isfinite(heard).all(), times, partial(_by_slots, nbr, weight), heard, total)


def _by_slots(nbr: Array, weight: Array, heard: Array, total: Array) -> Array:
    """Some slots at a time, of which XLA makes one loop: what they gather is never stored."""

    def add(total: Array, slots: tuple) -> tuple[Array, None]:
        for nbr, weight in zip(*slots, strict=True):
            total = total + jnp.where(weight[:, None] != 0, weight[:, None] * heard[nbr], 0.0)
        return total, None

    k = nbr.shape[1]
    if k <= TOGETHER:
        return add(total, (nbr.T, weight.T))[0]
    grouped = lambda a: jnp.pad(a, ((0, 0), (0, -k % TOGETHER))).T.reshape(-1, TOGETHER, a.shape[0])
    return jax.lax.scan(add, total, (grouped(nbr), grouped(weight)))[0]
