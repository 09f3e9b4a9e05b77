"""Rows mapped in blocks on one device, and how large a block is.

On a CPU a block of nodes whose rows, or whose largest matrices, fit the second-level cache runs as one vmap and the
blocks as a loop, which costs no more than a vmap of everything and bounds the memory of activations: a convolution's
windows of images put a single node in a block. On an accelerator the block is as large as memory allows, so matmuls
stay batched. What nodes keep from round to round is read and overwritten block by block, in place.

Tried, and no faster on a CPU: larger blocks for a single local step, which reuses nothing (1.2 times the time of 2 MB
at 8 MB, up to 1.5 at 32 MB); the first local step apart, whose forward matmul then has the weights of all in common.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from jaxfl.core import Array, Tree

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


def block_size(count: int, bytes_each: int) -> int:
    """Nodes of one block: as many as the budget holds, rounded down to a divisor of `count` if a near one exists."""
    budget = CACHE_BYTES if jax.default_backend() == "cpu" else ACCELERATOR_BYTES
    want = min(count, _block.get() or max(1, budget // max(bytes_each, 1)))
    near = [b for b in range(want, max(want // 2, 1) - 1, -1) if count % b == 0]
    return near[0] if near else want


def row_of(stacked: Tree) -> Tree:
    """Shape and type of a row of each leaf."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), stacked)


def in_blocks(f: Callable, stacked: Tree, kept: Tree, weight: Array | None, size: int) -> tuple[Tree, Tree]:
    """`f(row, kept) -> (result, kept)` of every row: `size` rows as one vmap, and the blocks as a loop.

    Arguments and results are those of `mapping.map_nodes`; what is kept is overwritten block by block.
    """
    blocks, left = divmod(jax.tree.leaves(stacked)[0].shape[0], size)
    mapped = jax.vmap(f) if size > 1 or blocks == 1 else _of_one(f)

    def advance(total: Array | float, rows: Tree, kept: Tree, weight: Array | None) -> tuple:
        """The sum with a block's messages, what else comes of the block, and what it keeps."""
        out, kept = mapped(rows, kept)
        if weight is None:
            return total, out, kept
        messages = jnp.where((weight != 0)[:, None], out[0], 0)
        return total + jnp.matmul(weight, messages, precision=jax.lax.Precision.HIGHEST), out[1], kept

    together = lambda total, rest: rest if weight is None else (total, rest)
    if blocks <= 1 and not left:
        total, rest, kept = advance(0.0, stacked, kept, weight)
        return together(total, rest), kept

    read = lambda kept, k: jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, k * size, size), kept)
    write = lambda kept, new, k: jax.tree.map(
        lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, k * size, 0), kept, new
    )

    def step(carry: tuple, block: tuple) -> tuple[tuple, Tree]:
        total, kept, before = carry
        k, rows, weight = block
        # what the block before keeps is written only now, so that all reading comes after it: where XLA sees a reader
        # that could come after the writing, it copies the whole of it in every step
        kept = write(kept, before, jnp.maximum(k - 1, 0))
        total, rest, new = advance(total, rows, read(kept, k), weight)
        return (total, kept, new), rest

    total = 0.0
    if weight is not None:
        message = jax.eval_shape(f, row_of(stacked), row_of(kept))[0][0]
        total = jnp.zeros(message.shape, message.dtype)
    rows = jax.tree.map(lambda a: a[: blocks * size].reshape(blocks, size, *a.shape[1:]), (stacked, weight))
    (total, kept, last), rest = jax.lax.scan(step, (total, kept, read(kept, 0)), (jnp.arange(blocks), *rows))
    kept = write(kept, last, blocks - 1)
    rest = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), rest)
    if left:
        tail = jax.tree.map(lambda a: a[blocks * size :], (stacked, kept, weight))
        total, last, new = advance(total, *tail)
        rest = jax.tree.map(lambda *a: jnp.concatenate(a), rest, last)
        kept = write(kept, new, blocks)
    return together(total, rest), kept


def _of_one(f: Callable) -> Callable:
    """`jax.vmap(f)` of a single row, without the axis inside: its matmuls stay those of one node."""
    return lambda *rows: jax.tree.map(lambda a: jnp.asarray(a)[None], f(*jax.tree.map(lambda a: a[0], rows)))
