"""Mixing by shifts: everyone hears who sits so many places on, round a circle of nodes.

A device needs the border rows of its two neighbours and no others. On a CPU rows that are mixed with others of their
kind are overwritten block by block, while these are in cache: nothing is copied, and no second state is held.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxfl.core import Array
from jaxfl.mapping.blocks import block_size
from jaxfl.mapping.shards import AXIS, node_shards, over_shards, shard_rows

WIDE = 4  # a block of rows that are overwritten is at least so many times as long as its borders


def by_shifts(weight: Array, shifts: tuple[int, ...], sent: Array, own_share: Array, own: Array) -> Array:
    """What nodes make of their `own` rows and of those `sent`, `[n, m]`, by one circulant graph.

    Node `i` weighs its own by `own_share[i]` (`[n, 1]`) and what node `i + shifts[s]` sent, counted round the circle,
    by `weight[i, s]` (`[n, k]`).
    """
    n = sent.shape[0]
    signed = _signed(shifts, n)
    if sum(_reach(signed)) <= widest_border(n):
        if own is sent and jax.default_backend() == "cpu":
            spread = over_shards(partial(_in_place, signed, n), n, (P(AXIS),) * 3, P(AXIS))
            return spread(weight, own_share, sent)
        if node_shards() > 1:
            return _by_halo(weight, sent, signed, own_share, own)
    total = own_share * own
    for slot, shift in enumerate(shifts):
        total = total + weight[:, slot, None] * jnp.roll(sent, -shift, axis=0)
    return total


def near(shifts: tuple[int, ...] | None, n: int) -> bool:
    """Whether a device's rows are many beside the borders that it needs for these shifts (None: the graph has none)."""
    return shifts is not None and WIDE * sum(_reach(_signed(shifts, n))) <= widest_border(n)


def _signed(shifts: tuple[int, ...], n: int) -> list[int]:
    """Round the circle the shorter way, backwards where that is below 0."""
    return [s if 2 * s <= n else s - n for s in shifts]


def _reach(shifts: list[int]) -> tuple[int, int]:
    """How many rows behind and ahead of its own a node hears."""
    return max(0, *(-s for s in shifts)), max(0, *shifts)


def _heard(shifts: list[int], weight: Array, wide: Array, total: Array) -> Array:
    """`total` `[r, m]` and what is heard, weighed, of rows that are `wide` by the borders."""
    behind, _ = _reach(shifts)
    for slot, shift in enumerate(shifts):
        total = total + weight[:, slot, None] * jax.lax.dynamic_slice_in_dim(wide, behind + shift, total.shape[0])
    return total


def widest_border(n: int) -> int:
    """The most rows that every shard of `n` rows can lend its neighbours; phantoms are none."""
    devices = node_shards()
    return n - (devices - 1) * shard_rows(n, devices)


def nodes_here(rows: int, n: int) -> Array | int:
    """How many of this device's `rows` are nodes; the others, on the last device, are phantoms."""
    last = widest_border(n)
    return rows if last == rows else jnp.where(jax.lax.axis_index(AXIS) == node_shards() - 1, last, rows)


def borders(sent: Array, behind: int, ahead: int, n: int) -> tuple[list[Array], list[Array]]:
    """The `behind` last rows of the device before and the `ahead` first of the one after, none where these are 0."""
    devices = node_shards()
    if devices == 1:
        return [sent[n - behind :]] if behind else [], [sent[:ahead]] if ahead else []
    before, after = [], []
    if behind:
        ring = [(r, (r + 1) % devices) for r in range(devices)]
        last = jax.lax.dynamic_slice_in_dim(sent, nodes_here(sent.shape[0], n) - behind, behind)
        before = [jax.lax.ppermute(last, AXIS, ring)]
    if ahead:
        ring = [((r + 1) % devices, r) for r in range(devices)]
        after = [jax.lax.ppermute(sent[:ahead], AXIS, ring)]
    return before, after


def _in_place(shifts: list[int], n: int, weight: Array, own_share: Array, rows: Array) -> Array:
    """A device's `rows` mixed with each other and with the borders, written over themselves."""
    (behind, ahead), count, phantoms = _reach(shifts), len(rows), len(rows) - widest_border(n)
    border = jnp.concatenate([rows[:0], *(side for sides in borders(rows, behind, ahead, n) for side in sides)])
    size = max(block_size(count, 4 * rows.shape[1]), WIDE * (behind + ahead))
    blocks = max(0, count - ahead - phantoms) // size
    cut = jax.lax.dynamic_slice_in_dim
    put = lambda rows, new, start: jax.lax.dynamic_update_slice_in_dim(rows, new, start, 0)

    def mixed(wide: Array, weight: Array, share: Array) -> Array:
        return _heard(shifts, weight, wide, share * wide[behind : behind + len(weight)])

    def step(carry: tuple, k: Array) -> tuple[tuple, None]:
        rows, border, new = carry
        rows, start = put(rows, new, jnp.maximum(k - 1, 0) * size), k * size  # all reading comes after the writing
        # near each other, so that one loop reads them without asking of every number where it is
        wide = jax.lax.optimization_barrier(jnp.concatenate([border[:behind], cut(rows, start, size + ahead)]))
        border = jnp.concatenate([wide[size : size + behind], border[behind:]])
        return (rows, border, mixed(wide, cut(weight, start, size), cut(own_share, start, size))), None

    start = blocks * size
    if blocks:
        # carried along: the rows behind a block as they were, and those after the last row, which XLA would otherwise
        # read only when all are written over, and copy all for it; what the block before becomes
        (rows, border, new), _ = jax.lax.scan(step, (rows, border, rows[:size]), jnp.arange(blocks))
        rows = put(rows, new, start - size)
    wide = jnp.concatenate([border[:behind], rows[start:], border[behind:]])
    if phantoms and ahead:  # which the last shard has before what is ahead
        wide = put(wide, border[behind:], behind + nodes_here(count, n) - start)
    return put(rows, mixed(jax.lax.optimization_barrier(wide), weight[start:], own_share[start:]), start)


def _by_halo(weight: Array, sent: Array, shifts: list[int], own_share: Array, own: Array) -> Array:
    """Each device receives only the border rows of its two neighbours."""
    (behind, ahead), n = _reach(shifts), sent.shape[0]
    heard = partial(_heard, shifts)

    def local(weight: Array, sent: Array, own_share: Array, own: Array) -> Array:
        total = own_share * own
        before, after = borders(sent, behind, ahead, n)
        out = heard(weight, jnp.concatenate([*before, sent, *after]), total)
        if n % node_shards() == 0 or not ahead:
            return out
        # the last shard has phantoms before what is ahead: the rows that hear these are mixed once more
        start = nodes_here(sent.shape[0], n) - ahead
        cut = lambda a, first, count: jax.lax.dynamic_slice_in_dim(a, first, count)
        near = jnp.concatenate([cut(sent, start - behind, ahead + behind), *after])
        again = heard(cut(weight, start, ahead), near, cut(total, start, ahead))
        out = jax.lax.optimization_barrier(out)  # or one loop would ask of every number whether it is mixed again
        return jax.lax.dynamic_update_slice_in_dim(out, again, start, 0)

    return over_shards(local, n, (P(AXIS),) * 4, P(AXIS))(weight, sent, own_share, own)
