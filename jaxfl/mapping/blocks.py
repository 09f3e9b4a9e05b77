"""Rows mapped in blocks on one device, and how large a block is.

On a CPU a block of nodes whose rows, or whose largest matrices, fit the second-level cache runs as one vmap and the
blocks as a loop, which costs no more than a vmap of everything and bounds the memory of activations: a convolution's
windows of images put a single node in a block. On an accelerator the block is as large as memory allows, so matmuls
stay batched. What nodes keep from round to round is read and overwritten block by block, in place, and results are
written over the rows that they were made of, where these are as long.

Tried, and no faster on a CPU: larger blocks for a single local step, which reuses nothing (1.2 times the time of 2 MB
at 8 MB, up to 1.5 at 32 MB); the first local step apart, whose forward matmul then has the weights of all in common;
the gradient of weights over a batch of 4 as a sum of outer products, 1.2 to 1.5 times a matrix product's time (W5).
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from jaxfl.core import Array, Tree

CACHE_BYTES = 2 * 2**20  # rows of one block on a CPU: the L2 of a core
ACCELERATOR_BYTES = 2 * 2**30
WORTH = 256  # numbers of a row over which a result of its shape is written

_block: contextvars.ContextVar[int | None] = contextvars.ContextVar("block", default=None)


@contextlib.contextmanager
def block_of(size: int | None) -> Iterator[None]:
    """Force blocks of `size` nodes while tracing (None: choose by bytes)."""
    token = _block.set(size)
    try:
        yield
    finally:
        _block.reset(token)


def in_this_block(f: Callable) -> Callable:
    """`f`, always traced with the blocks that are forced now."""
    size = _block.get()

    def traced(*args: Tree) -> Tree:
        with block_of(size):
            return f(*args)

    return traced


def block_size(count: int, bytes_each: int) -> int:
    """Nodes of one block: as many as the budget holds, or a little fewer where that fills the last block better."""
    budget = CACHE_BYTES if jax.default_backend() == "cpu" else ACCELERATOR_BYTES
    want = min(count, _block.get() or max(1, budget // max(bytes_each, 1)))
    rows = lambda size: -(-count // size) * size
    return min(range(want, max(want // 2, 1) - 1, -1), key=rows, default=1)


def row_of(stacked: Tree) -> Tree:
    """Shape and type of a row of each leaf."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), stacked)


def taken(memory: Tree, place: Array | None) -> Tree:
    """The rows of `memory` at `place`, all of which are there; all rows in their order for None."""
    return memory if place is None else jax.tree.map(lambda a: a.at[place].get(mode="promise_in_bounds"), memory)


def placed(memory: Tree, place: Array | None, new: Tree) -> Tree:
    """`memory` with `new` rows at `place`, all of which are there and no two alike; `new` itself for None."""
    if place is None:
        return new
    put = lambda a, b: a.at[place].set(b, mode="promise_in_bounds")
    return jax.tree.map(put, memory, new)


def in_blocks(
    f: Callable, stacked: Tree, memory: Tree, place: Array | None, weight: Array | None, size: int
) -> tuple[Tree, Tree]:
    """`f(row, kept) -> (result, kept)` of every row: `size` rows as one vmap, and the blocks as a loop.

    Arguments and results are those of `mapping.map_nodes`; what is kept is overwritten block by block. Where `size`
    does not divide the rows the last block ends with the last of them, and rows of the block before are computed again.
    Results are written over rows of `stacked` of their shape, where there are such.
    """
    count = jax.tree.leaves(stacked)[0].shape[0]
    present = lambda weight, messages: jnp.where((weight != 0)[:, None], messages, 0)
    summed = lambda weight, messages: jnp.matmul(weight, present(weight, messages), precision=jax.lax.Precision.HIGHEST)
    together = lambda total, rest: rest if weight is None else (total, rest)
    if size >= count:
        out, new = jax.vmap(f)(stacked, taken(memory, place))
        return (out if weight is None else (summed(weight, out[0]), out[1])), placed(memory, place, new)

    f, stacked, over, whole = _over_rows(f, stacked, memory, weight is not None)
    memory = memory, over
    if size == 1:  # without an axis of 1, which XLA takes away again by a copy of all results
        one, sum_up = f, lambda weight, message: jnp.where(weight != 0, weight * message, 0)
        read = lambda a, start: jax.lax.dynamic_index_in_dim(a, start, keepdims=False)
        write = lambda a, b, start: jax.lax.dynamic_update_index_in_dim(a, b, start, 0)
    else:
        one, sum_up = jax.vmap(f), summed
        read = lambda a, start: jax.lax.dynamic_slice_in_dim(a, start, size)
        write = lambda a, b, start: jax.lax.dynamic_update_slice_in_dim(a, b, start, 0)
    blocks = -(-count // size)
    again = blocks * size - count  # rows of the last block that the one before has computed
    rows = lambda tree, start: jax.tree.map(lambda a: read(a, start), tree)
    put = lambda tree, new, start: jax.tree.map(lambda a, b: write(a, b, start), tree, new)
    if place is None:
        remembered, remember = rows, put
    else:
        remembered = lambda memory, start: (taken(memory[0], read(place, start)), rows(memory[1], start))
        remember = lambda memory, new, start: (
            placed(memory[0], read(place, start), new[0]),
            put(memory[1], new[1], start),
        )
    first_of = lambda k: jnp.minimum(k * size, count - size) if again else k * size
    at_first = remembered(memory, count - size) if again else None

    def step(carry: tuple, k: Array) -> tuple[tuple, None]:
        total, results, memory, before = carry
        start, last = first_of(k), k == blocks - 1
        # what the block before keeps is written only now, so that all reading comes after it: where XLA sees a reader
        # that could come after the writing, it copies the whole of it in every step
        memory = remember(memory, before, first_of(jnp.maximum(k - 1, 0)))
        mine = remembered(memory, start)
        if again:
            mine = jax.tree.map(lambda a, b: jnp.where(last, a, b), at_first, mine)
        out, new = one(rows(stacked, start), mine)
        if weight is not None:
            w = read(weight, start)
            if again:
                w = jnp.where(last & (jnp.arange(size) < again), 0, w)
            message, out = out
            total = total + sum_up(w, message)
        if not again:
            return (total, results, memory, new), out
        return (total, put(results, out, start), memory, new), None

    out = jax.eval_shape(f, row_of(stacked), row_of(memory))[0]
    total = 0.0
    if weight is not None:
        total, out = jnp.zeros(out[0].shape, out[0].dtype), out[1]
    results = jax.tree.map(lambda a: jnp.zeros((count, *a.shape), a.dtype), out) if again else ()
    start = total, results, memory, remembered(memory, 0)
    (total, results, memory, last), outs = jax.lax.scan(step, start, jnp.arange(blocks))
    if not again:
        results = outs if size == 1 else jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), outs)
    memory, over = remember(memory, last, count - size)
    return together(total, whole(results, over)), memory


def _over_rows(f: Callable, stacked: Tree, memory: Tree, summed: bool) -> tuple[Callable, list, list, Callable]:
    """`f` and its rows with those apart over which results may be written, since they have the shape of a row.

    Returns `f(row, (kept, over)) -> (result, (kept, over))` in which leaves of the result are where those rows are, the
    other rows, those rows, and how to put results together: `(results, over) -> results`.
    """
    leaves, rows = jax.tree.flatten(stacked)
    out = jax.eval_shape(f, row_of(stacked), row_of(memory))[0]
    left, results = jax.tree.flatten(out[1] if summed else out)
    of_rows, free, pairs = jax.tree.leaves(row_of(stacked)), dict.fromkeys(range(len(leaves))), {}
    for i, a in enumerate(left):
        same = [j for j in free if (of_rows[j].shape, of_rows[j].dtype) == (a.shape, a.dtype)]
        if same and a.size >= WORTH:
            pairs[i] = same[0]
            del free[same[0]]

    def apart(row: list, both: tuple) -> tuple:
        mine, over = both
        given = {**dict(zip(free, row, strict=True)), **dict(zip(pairs.values(), over, strict=True))}
        out, new = f(jax.tree.unflatten(rows, [given[j] for j in range(len(leaves))]), mine)
        message, out = out if summed else (None, out)
        found = jax.tree.leaves(out)
        rest = [a for i, a in enumerate(found) if i not in pairs]
        return ((message, rest) if summed else rest), (new, [found[i] for i in pairs])

    def whole(rest: list, over: list) -> Tree:
        others, mine = iter(rest), dict(zip(pairs, over, strict=True))
        return jax.tree.unflatten(results, [mine[i] if i in mine else next(others) for i in range(len(left))])

    return apart, [leaves[j] for j in free], [leaves[j] for j in pairs.values()], whole
