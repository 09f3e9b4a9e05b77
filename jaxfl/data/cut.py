"""One data set cut into one shard a node by tables of indices: no sample is copied or padded."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import Shards, Tree, constant
from jaxfl.data.sets import Dataset
from jaxfl.errors import InputError


def shards(data: Dataset, owner: np.ndarray, n: int | None = None) -> Shards:
    """The shards of `n` nodes from the owner of each train sample `[N]`; -1 leaves a sample out.

    Copies the samples to the device once, unless a CPU can read them where they are; within a shard they keep their
    order. `n` is by default the largest owner
    + 1. Raises InputError for an owner out of range or a node that owns nothing.
    """
    owner = np.asarray(owner)
    if owner.shape != (len(data.y),) or owner.dtype.kind not in "iu":
        raise InputError(f"owner has shape {owner.shape} of {owner.dtype}, it must be ({len(data.y)},) of integers.")
    n = int(owner.max()) + 1 if n is None else n
    if owner.min() < -1 or owner.max() >= n:
        raise InputError(f"owner holds {owner.min()} to {owner.max()}, allowed are -1 to {n - 1}.")
    size = np.bincount(owner[owner >= 0], minlength=n)
    if n < 1 or not size.all():
        raise InputError(f"owner leaves {n - np.count_nonzero(size)} of n={n} nodes without a sample, all need one.")
    order = np.argsort(owner, kind="stable")[len(owner) - size.sum() :]
    return cut(on_device(data.x), constant(data.y), order, size)


def cut(x: jax.Array, y: jax.Array, order: np.ndarray, size: np.ndarray, room: int = 0) -> Shards:
    """The samples in `order`, node by node, `size` `[n]` each; `order` is filled up to the length `room`, if longer."""
    order = np.pad(order, (0, max(0, room - len(order))))
    table = (constant(a, np.int32) for a in (order, np.cumsum(size) - size, size))
    return Shards(x, y, *table, longest=min(bound(size), max(1, len(order))))


def in_order(y: Any, n: int, x: Tree = None) -> Shards:
    """The shards of samples that were made node by node: of `N` every one of `n` nodes has the next `N / n`.

    Args:
        y: targets `[N, ...]`.
        n: nodes.
        x: inputs, leaves `[N, ...]`; None: none, `[N, 0]`.

    Raises:
        InputError: `n` does not divide `N`.
    """
    count = len(y)
    if n < 1 or count % n:
        raise InputError(f"n = {n}: a number that divides the {count} samples is needed.")
    each, order = count // n, np.arange(count)
    table = (constant(a, np.int32) for a in (order, order[::each], np.full(n, each)))
    x = jnp.zeros((count, 0)) if x is None else jax.tree.map(jnp.asarray, x)
    return Shards(x, jnp.asarray(y), *table, longest=each)


def bound(size: np.ndarray) -> int:
    """A bound on the sizes on which most seeds of a partition agree, and then share their programs.

    The largest size, rounded up to a multiple of what they differ by, that rounded up to a power of two: that of an
    even deal is hardly rounded, that of a very uneven one becomes a power of two.
    """
    step = 1 << max(0, int(size.max() - size.min()) - 1).bit_length()
    return max(1, -(-int(size.max()) // step) * step)


def owned(data: Shards) -> tuple[np.ndarray, np.ndarray]:
    """Node and sample of everything that is owned, `[owned]` each, node by node."""
    order, start, size = (np.asarray(a) for a in (data.order, data.start, data.size))
    node = np.repeat(np.arange(len(size)), size)
    return node, order[np.arange(len(node)) - np.repeat(np.cumsum(size) - size, size) + start[node]]


def on_device(a: np.ndarray) -> jax.Array:
    """On a CPU a read-only array itself, where it is aligned; else a copy, as its owner may write to it."""
    return constant(a) if a.flags.writeable else jax.device_put(a)
