"""The one switch for mapping a function over nodes: blocks on a device, shards over a mesh.

An author writes a function of ONE node; `map_nodes` decides how it runs. On a CPU a block of nodes whose rows, or
whose largest matrices, fit the second-level cache runs as one vmap and the blocks as a loop, which costs no more than
a vmap of everything and bounds the memory of activations: a convolution's windows of images put a single node in a
block. On an accelerator the block is as large as memory allows, so matmuls stay batched. Where an ambient mesh has an
axis `nodes`, each device maps its own shard.

Tried, and no faster on a CPU: larger blocks for a single local step, which reuses nothing (1.2 times the time of 2 MB
at 8 MB, up to 1.5 at 32 MB); the first local step apart, whose forward matmul then has the weights of all in common.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxfl.core import Array, Cohort, Env, Tree, node_keys, stream
from jaxfl.draws import draws_apart
from jaxfl.traced import programs_in

AXIS = "nodes"
CACHE_BYTES = 2 * 2**20  # rows of one block on a CPU: the L2 of a core
ACCELERATOR_BYTES = 2 * 2**30

_block: contextvars.ContextVar[int | None] = contextvars.ContextVar("block", default=None)


@contextlib.contextmanager
def block_of(size: int | None) -> Iterator[None]:
    """Force blocks of `size` nodes while tracing (None: choose by bytes)."""
    token = _block.set(size)
    try:
        yield
    finally:
        _block.reset(token)


def node_shards() -> int:
    """Devices along the node axis of the ambient mesh (1 without a mesh)."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(AXIS, 1)


def block_size(count: int, bytes_each: int) -> int:
    """Nodes of one block: as many as the budget holds, rounded down to a divisor of `count` if a near one exists."""
    budget = CACHE_BYTES if jax.default_backend() == "cpu" else ACCELERATOR_BYTES
    want = min(count, _block.get() or max(1, budget // max(bytes_each, 1)))
    near = [b for b in range(want, max(want // 2, 1) - 1, -1) if count % b == 0]
    return near[0] if near else want


def _bytes_each(stacked: Tree, count: int) -> int:
    leaves = [a for a in jax.tree.leaves(stacked) if not jnp.issubdtype(a.dtype, jax.dtypes.extended)]
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in leaves) // max(count, 1)


def _matmul_bytes(f: Callable, shared: Tree, stacked: Tree) -> int:
    """The largest matrix that `f` multiplies for one node, in bytes: parameters, activations, windows of images."""

    def largest(jaxpr: Any) -> int:
        found = [0]
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                found += [math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in (*eqn.invars, *eqn.outvars)]
            found += [largest(inner) for inner in programs_in(eqn)]
        return max(found)

    return largest(jax.make_jaxpr(f)(shared, _one_of(stacked)).jaxpr)


def _one_of(stacked: Tree) -> Tree:
    """The shapes of a row."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), stacked)


def map_nodes(f: Callable, shared: Tree, stacked: Tree, *, bytes_each: int = 0, weight: Array | None = None) -> Tree:
    """`f(shared, row)` for every row of `stacked` (leaves `[c, ...]`), results stacked `[c, ...]`.

    Args:
        f: function of one node.
        shared: what every node sees (replicated over devices).
        stacked: pytree with leading axis `c`.
        bytes_each: memory of one node's work where it exceeds its row in `stacked`.
        weight: `[c]`; then `f` returns a message `[m]` and something else, and of the messages only the sum by weight
            is kept, `[m]`: added up while they are in cache, they never exist all at once. What weighs 0 need not be
            finite.
    """
    count = jax.tree.leaves(stacked)[0].shape[0]
    devices = node_shards()
    row, matrix = max(bytes_each, _bytes_each(stacked, count)), _matmul_bytes(f, shared, stacked)
    # a matrix larger than the row is made of activations, which are in cache together with their gradient
    each = 2 * matrix if matrix > row else row

    def local(shared: Tree, stacked: Tree, weight: Array | None) -> Tree:
        here = jax.tree.leaves(stacked)[0].shape[0]
        size = block_size(here, each)
        if size >= here:
            return _in_blocks(lambda row: f(shared, row), stacked, weight, size)
        draw, rest = draws_apart(f, shared, _one_of(stacked))
        drawn = jax.vmap(lambda row: draw(shared, row))(stacked)
        return _in_blocks(lambda row: rest(shared, *row), (stacked, drawn), weight, size)

    if devices == 1:
        return local(shared, stacked, weight)
    pad = -count % devices
    if pad:
        index = jnp.concatenate([jnp.arange(count), jnp.zeros(pad, jnp.int32)])
        stacked = jax.tree.map(lambda a: a[index], stacked)
        weight = None if weight is None else jnp.pad(weight, (0, pad))

    def share(shared: Tree, stacked: Tree, weight: Array | None) -> Tree:
        out = local(shared, stacked, weight)
        return out if weight is None else (jax.lax.psum(out[0], AXIS), out[1])

    whole = P(AXIS) if weight is None else (P(), P(AXIS))
    spread = jax.shard_map(share, in_specs=(P(), P(AXIS), P(AXIS)), out_specs=whole, check_vma=False)
    out = spread(shared, stacked, weight)
    cut = lambda tree: jax.tree.map(lambda a: a[:count], tree) if pad else tree
    return cut(out) if weight is None else (out[0], cut(out[1]))


def _in_blocks(f: Callable, stacked: Tree, weight: Array | None, size: int) -> Tree:
    """`map_nodes` on one device: `size` nodes as one vmap, and the blocks as a loop."""
    if weight is None:
        if size >= jax.tree.leaves(stacked)[0].shape[0]:
            return jax.vmap(f)(stacked)
        return jax.lax.map(f, stacked, batch_size=size if size > 1 else None)

    def add(total: Array | float, block: Tree) -> tuple[Array, Tree]:
        weight, rows = block
        if size == 1:
            message, rest = f(jax.tree.map(lambda a: a[0], rows))
            total = total + jnp.where(weight[0] != 0, weight[0] * message, 0)
            return total, jax.tree.map(lambda a: a[None], rest)
        messages, rest = jax.vmap(f)(rows)
        messages = jnp.where((weight != 0)[:, None], messages, 0)
        return total + jnp.matmul(weight, messages, precision=jax.lax.Precision.HIGHEST), rest

    count = weight.shape[0]
    blocks, left = divmod(count, size)
    cut = lambda start, stop: jax.tree.map(lambda a: a[start:stop], (weight, stacked))
    if blocks == 1 and not left:
        return add(0.0, (weight, stacked))
    whole = jax.tree.map(lambda a: a.reshape(blocks, size, *a.shape[1:]), cut(0, blocks * size))
    message = jax.eval_shape(f, jax.tree.map(lambda a: a[0], stacked))[0]
    total, rest = jax.lax.scan(add, jnp.zeros(message.shape, message.dtype), whole)
    rest = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), rest)
    if left:
        total, last = add(total, cut(blocks * size, count))
        rest = jax.tree.map(lambda *a: jnp.concatenate(a), rest, last)
    return total, rest


def _at_home(c: Cohort, f: Callable, rows: Tree, *stacked: Tree) -> Tree:
    """`f(ids, rows, *stacked)`, on each device with its own rows and their members where it owns whole strata.

    `f` puts leaves `[n, ...]` of `rows` and `[c, ...]` of `stacked` together, row by row.
    """
    leaves, devices = jax.tree.leaves(rows), node_shards()
    if not leaves or c.strata.count == leaves[0].shape[0]:
        return f(slice(None), rows, *stacked)
    if devices == 1 or c.strata.count % devices:
        return f(c.ids, rows, *stacked)
    each = leaves[0].shape[0] // devices

    def local(ids: Array, rows: Tree, *stacked: Tree) -> Tree:
        return f(ids - each * jax.lax.axis_index(AXIS), rows, *stacked)

    return jax.shard_map(local, in_specs=P(AXIS), out_specs=P(AXIS), check_vma=False)(c.ids, rows, *stacked)


def rows_of(c: Cohort, rows: Tree) -> Tree:
    """What the members of a cohort hold: leaves `[n, ...]` to `[c, ...]`."""
    return _at_home(c, lambda ids, rows: jax.tree.map(lambda a: a[ids], rows), rows)


def put_rows(c: Cohort, rows: Tree, new: Tree, present: Array | None = None) -> Tree:
    """Leaves `[n, ...]` with the members' rows replaced by `new` `[c, ...]` where `present` `[c]` (None: all)."""

    def put(ids: Array | slice, rows: Tree, new: Tree, present: Array | None) -> Tree:
        def one(a: Array, v: Array) -> Array:
            if present is not None:
                v = jnp.where(present.reshape(present.shape + (1,) * (v.ndim - 1)), v, a[ids])
            return a.at[ids].set(v)

        return jax.tree.map(one, rows, new)

    return _at_home(c, put, rows, new, present)


def at(ids: Array, learn: Callable, weight: Array | None = None) -> Callable:
    """Lift `learn(key, data, i, x, **named)` of ONE node to the nodes `ids` `[c]`.

    The lifted function is `(key, env, x, shared=None, **own) -> ([c, d], dict of [c, ...])`. `x` is one row for all
    (`[d]`) or one row a node (`[c, d]`). The dict `shared` holds named arguments that all nodes see alike, `own` those
    with a leading axis `[c]`, each an array or a tree; what is None is left out. With a `weight` `[c]` the first
    result is the nodes' sum by weight, `[d]` (`map_nodes`).
    """

    def lifted(key: Array, env: Env, x: Array, shared: dict | None = None, **own: Tree):
        keys = node_keys(stream(key, "learn"), ids)
        common = dict(shared or {})
        own = {name: v for name, v in own.items() if v is not None}
        (common if x.ndim == 1 else own)["x"] = x

        def one(shared, row):
            (data, common), (key, i, own) = shared, row
            args = common | own
            return learn(key, data, i, args.pop("x"), **args)

        return map_nodes(one, (env.data, common), (keys, ids, own), bytes_each=4 * x.shape[-1], weight=weight)

    return lifted
