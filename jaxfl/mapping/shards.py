"""Rows of nodes over the devices of a mesh, whatever their number.

Every device has a shard of as many rows. Where the devices do not divide the nodes the last shards are filled up with
phantom rows of zeros, which exist inside `over_shards` alone: before and after it arrays have a row a node, and XLA
keeps them where they are, unevenly, without copying or moving any.
"""

import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import PartitionSpec as P

from jaxfl.core import Array, Tree, is_key

AXIS = "nodes"


def node_shards() -> int:
    """Devices along the node axis of the ambient mesh (1 without a mesh)."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(AXIS, 1)


def shard_rows(count: int, devices: int) -> int:
    """Rows of a shard of `count` rows over `devices`, phantoms among them."""
    return -(-count // devices)


def full_shards(count: int, devices: int) -> int:
    """The fewest devices on which shards are no longer than on `devices`: then none has phantoms alone."""
    return shard_rows(count, shard_rows(count, devices)) if count else 1


def over_shards(f: Callable, count: int, in_specs: tuple, out_specs: Any) -> Callable:
    """`jax.shard_map` of `f` over the ambient mesh, for arrays of any number of rows; `f` itself on one device.

    What is spread by `P(AXIS)` has leaves `[count, ...]`, of which `f` sees a shard: phantom rows, at the end of the
    last shards, are zeros (of keys: their bits) or what `f` made of phantoms before, and are cut off again.
    """
    if node_shards() == 1:
        return f
    spread = jax.shard_map(f, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    if count % node_shards() == 0:
        return spread

    def call(*args: Tree) -> Tree:
        filled = (fill(tree) if spec == P(AXIS) else tree for spec, tree in zip(in_specs, args, strict=True))
        cut = lambda spec, tree: unfill(tree, count) if spec == P(AXIS) else tree
        return jax.tree.map(cut, out_specs, spread(*filled), is_leaf=lambda spec: isinstance(spec, P))

    return call


def by_rows(tree: Tree) -> Tree:
    """Inside a compiled program: leaves `[n, ...]` with their rows over the devices, evenly or not."""
    traced = lambda a: isinstance(a, Tracer)
    return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, P(AXIS)) if traced(a) else a, tree)


_whole: dict[int, tuple[weakref.ref, Array]] = {}  # of a cut array, while it lives, what it was cut from


def fill(tree: Tree) -> Tree:
    """Leaves with phantom rows at the end, as many as make them whole shards; none where the devices divide the rows.

    Where `unfill` cut a leaf off they are those that were there. Rows of zeros are cheap, not free: a pass over all
    rows, unless it is part of another.
    """

    def one(a: Array) -> Array:
        pad, known = -a.shape[0] % node_shards(), _whole.get(id(a))
        if not pad:
            return a
        if known is not None and known[0]() is a and known[1].shape[0] == a.shape[0] + pad:
            return known[1]
        a = by_rows(a)
        if is_key(a):  # joined to others, keys would be sent from device to device
            return jax.random.wrap_key_data(one(jax.random.key_data(a)), impl=jax.random.key_impl(a))
        return by_rows(jax.lax.pad(a, jnp.zeros((), a.dtype), [(0, pad, 0), *[(0, 0, 0)] * (a.ndim - 1)]))

    return jax.tree.map(one, jax.tree.map(jnp.asarray, tree))


def unfill(tree: Tree, count: int) -> Tree:
    """Leaves with their first `count` rows; themselves where they have no more."""

    def one(whole: Array) -> Array:
        if whole.shape[0] == count:
            return whole
        cut = by_rows(whole[:count])
        if isinstance(cut, Tracer):
            name = id(cut)
            _whole[name] = weakref.ref(cut, lambda _: _whole.pop(name, None)), whole
        return cut

    return jax.tree.map(one, tree)
