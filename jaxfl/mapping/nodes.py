"""The one switch for mapping a function over nodes: blocks on a device, shards over a mesh.

An author writes a function of ONE node; `map_nodes` decides how it runs. Where an ambient mesh has an axis `nodes`,
each device maps its own shard, and on a device the nodes run in blocks (`jaxfl.mapping.blocks`).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import PartitionSpec as P

from jaxfl.core import Array, Cohort, Tree, is_key
from jaxfl.mapping.blocks import block_size, in_blocks, in_this_block, placed, row_of, taken
from jaxfl.mapping.canonical import once
from jaxfl.mapping.draws import draws_apart
from jaxfl.mapping.shards import AXIS, fill, node_shards, over_shards, unfill


def _bytes_each(stacked: Tree, count: int) -> int:
    leaves = [a for a in jax.tree.leaves(stacked) if not jnp.issubdtype(a.dtype, jax.dtypes.extended)]
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in leaves) // max(count, 1)


def _matmul_bytes(program: Any) -> int:
    """The largest matrix that one node's program multiplies, in bytes: parameters, activations, windows of images."""
    found = [0]
    for eqn in program.eqns:
        if eqn.primitive.name == "dot_general":
            found += [math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in (*eqn.invars, *eqn.outvars)]
        found += map(_matmul_bytes, programs_in(eqn))
    return max(found)


def map_nodes(
    f: Callable,
    shared: Tree,
    stacked: Tree,
    *,
    memory: Tree = None,
    place: Array | None = None,
    bytes_each: int = 0,
    weight: Array | None = None,
) -> Tree:
    """`f(shared, row)` for every row of `stacked` (leaves `[c, ...]`), results stacked `[c, ...]`.

    Args:
        f: function of one node.
        shared: what every node sees (replicated over devices).
        stacked: pytree with leading axis `c`.
        memory: pytree with leading axis `c` whose rows `f` replaces; then it is `f(shared, row, mine) -> (result,
            mine)`, and so is what is returned. Blocks write over what they read, so that there is one copy of it all.
        place: `[c]`, no two alike: then `memory` has leaves `[n, ...]`, and these are the rows that are read and
            replaced. On several devices each has the rows that its own part of `stacked` asks for.
        bytes_each: memory of one node's work where it exceeds its rows.
        weight: `[c]`; then the result of `f` is a message `[m]` and something else, and of the messages only the sum by
            weight is kept, `[m]`: added up while they are in cache, they never exist all at once. What weighs 0 need
            not be finite.
    """
    if memory is None:
        plain = lambda shared, row, memory: (f(shared, row), memory)
        return map_nodes(plain, shared, stacked, memory=(), bytes_each=bytes_each, weight=weight)[0]
    count = jax.tree.leaves(stacked)[0].shape[0]
    found = once(in_this_block(f))
    matrix = _matmul_bytes(found.trace(shared, row_of(stacked), row_of(memory)).jaxpr.jaxpr)
    if any(isinstance(a, Tracer) for a in jax.tree.leaves((shared, stacked, memory))):
        f = found
    whole = lambda shared, both: f(shared, *both)
    remembered = jax.tree.leaves(memory)
    row = _bytes_each(stacked, count) + (_bytes_each(memory, remembered[0].shape[0]) if remembered else 0)
    row = max(bytes_each, row)
    # a matrix larger than the row is made of activations, which are in cache together with their gradient
    each = 2 * matrix if matrix > row else row

    def local(shared: Tree, stacked: Tree, memory: Tree, place: Array | None, weight: Array | None) -> Tree:
        here = jax.tree.leaves(stacked)[0].shape[0]
        size = block_size(here, each)
        if size >= here:
            return in_blocks(partial(f, shared), stacked, memory, place, weight, size)
        draw, rest = draws_apart(whole, shared, (row_of(stacked), row_of(memory)))
        drawn = jax.vmap(lambda row, mine: draw(shared, (row, mine)))(stacked, taken(memory, place))
        g = lambda row, mine: rest(shared, (row[0], mine), row[1])
        return in_blocks(g, (stacked, drawn), memory, place, weight, size)

    if node_shards() == 1:
        return local(shared, stacked, memory, place, weight)

    def share(shared: Tree, stacked: Tree, memory: Tree, place: Array | None, weight: Array | None) -> Tree:
        place = None if place is None else _place(place, jax.tree.leaves(memory)[0])
        out, memory = local(shared, stacked, memory, place, weight)
        return (out if weight is None else (jax.lax.psum(out[0], AXIS), out[1])), memory

    of_all = P(AXIS) if weight is None else (P(), P(AXIS))
    in_specs = P(), P(AXIS), P(AXIS), P(AXIS), P(AXIS)
    return over_shards(share, count, in_specs, (of_all, P(AXIS)))(shared, stacked, memory, place, weight)


def rows_of(c: Cohort, rows: Tree) -> Tree:
    """What the members of a cohort hold: leaves `[n, ...]` to `[c, ...]`."""
    if _everyone(c, rows):
        return rows
    if node_shards() == 1:
        return taken(rows, c.ids)

    def own(ids: Array, rows: Tree) -> Tree:  # ids of this device's own rows
        return jax.tree.map(lambda a: a[_place(ids, a)], rows)

    def gathered(ids: Array, rows: Tree) -> Tree:  # every member's row from the device that has it
        def one(a: Array) -> Array:
            if is_key(a):
                return jax.random.wrap_key_data(one(jax.random.key_data(a)), impl=jax.random.key_impl(a))
            if a.dtype == bool:
                return one(a.astype(jnp.uint8)).astype(bool)
            found = a.at[_place(ids, a)].get(mode="fill", fill_value=0)
            return jax.lax.psum_scatter(found, AXIS, tiled=True)

        return jax.tree.map(one, rows)

    members = c.ids.shape[0]
    if _at_home(c, rows):
        return jax.shard_map(own, in_specs=P(AXIS), out_specs=P(AXIS), check_vma=False)(c.ids, rows)
    spread = jax.shard_map(gathered, in_specs=(P(), P(AXIS)), out_specs=P(AXIS), check_vma=False)
    return unfill(spread(_filled_ids(c), fill(rows)), members)


def put_rows(c: Cohort, rows: Tree, new: Tree) -> Tree:
    """Leaves `[n, ...]` with the members' rows replaced by `new` `[c, ...]`."""
    if _everyone(c, rows):
        return new
    if node_shards() == 1:
        return placed(rows, c.ids, new)

    def own(ids: Array, rows: Tree, new: Tree) -> Tree:
        return jax.tree.map(lambda a, v: a.at[_place(ids, a)].set(v, mode="drop"), rows, new)

    def of_all(ids: Array, rows: Tree, new: Tree) -> Tree:
        return own(ids, rows, jax.tree.map(lambda v: jax.lax.all_gather(v, AXIS, tiled=True), new))

    n = jax.tree.leaves(rows)[0].shape[0]
    if _at_home(c, rows):
        return jax.shard_map(own, in_specs=P(AXIS), out_specs=P(AXIS), check_vma=False)(c.ids, rows, new)
    spread = jax.shard_map(of_all, in_specs=(P(), P(AXIS), P(AXIS)), out_specs=P(AXIS), check_vma=False)
    return unfill(spread(_filled_ids(c), fill(rows), fill(new)), n)


def _everyone(c: Cohort, rows: Tree) -> bool:
    """Whether rows of members are those of nodes, in their order; also where there are no rows."""
    leaves = jax.tree.leaves(rows)
    return not leaves or c.strata.count == leaves[0].shape[0]


def _at_home(c: Cohort, rows: Tree) -> bool:
    """Whether each device has the rows of its own members: it owns whole strata."""
    return not (c.strata.count % node_shards() or jax.tree.leaves(rows)[0].shape[0] % node_shards())


def _filled_ids(c: Cohort) -> Array:
    """The ids of members, and of phantom ones -1: nobody's row."""
    return jnp.pad(c.ids, (0, -c.ids.shape[0] % node_shards()), constant_values=-1)


def _place(ids: Array, shard: Array) -> Array:
    """Where the rows of `ids` are in this device's shard; past its end if they are not there."""
    each = shard.shape[0]
    place = ids - each * jax.lax.axis_index(AXIS)
    return jnp.where((ids >= 0) & (place >= 0), place, each)


def map_memory(
    c: Cohort, f: Callable, shared: Tree, stacked: Tree, memory: Tree, *, present: Array | None = None, **more: Any
) -> tuple[Tree, Tree]:
    """`map_nodes` with what all nodes keep, leaves `[n, ...]`: `f(shared, row, kept) -> (result, kept)` of a member.

    Who is not `present` `[c]` (None: all are) keeps what it had. Returns the results, stacked `[c, ...]`, and what all
    nodes keep now; `more` as in `map_nodes`.
    """

    def one(shared: Tree, row: tuple, mine: Tree) -> tuple[Tree, Tree]:
        row, here = row
        out, new = f(shared, row, mine)
        return out, new if here is None else jax.tree.map(lambda a, b: jnp.where(here, a, b), new, mine)

    rows = stacked, present
    if _everyone(c, memory):
        return map_nodes(one, shared, rows, memory=memory, **more)
    if _at_home(c, memory):
        return map_nodes(one, shared, rows, memory=memory, place=c.ids, **more)
    out, new = map_nodes(one, shared, rows, memory=rows_of(c, memory), **more)
    return out, put_rows(c, memory, new)


def programs_in(eqn: Any) -> list[Any]:
    """The programs inside one operation of a traced program: the body of a loop, the branches of a choice."""
    parts = [v for p in eqn.params.values() for v in (p if isinstance(p, tuple | list) else [p])]
    return [getattr(v, "jaxpr", v) for v in parts if hasattr(v, "eqns")]
