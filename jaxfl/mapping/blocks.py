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
from functools import partial

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


def in_blocks(f: Callable, stacked: Tree, memory: Tree, weight: Array | None, size: int) -> tuple[Tree, Tree]:
    """`f(row, kept) -> (result, kept)` of every row: `size` rows as one vmap, and the blocks as a loop.

    Arguments and results are those of `mapping.map_nodes`; what is kept is overwritten block by block.
    """
    count = jax.tree.leaves(stacked)[0].shape[0]

    def add(
        f: Callable, sum_up: Callable, total: Array | float, rows: Tree, memory: Tree, weight: Array | None
    ) -> tuple:
        """The sum with a block's messages, what else comes of the block, and what it keeps."""
        out, memory = f(rows, memory)
        return (total, out, memory) if weight is None else (total + sum_up(weight, out[0]), out[1], memory)

    present = lambda weight, messages: jnp.where((weight != 0)[:, None], messages, 0)
    summed = lambda weight, messages: jnp.matmul(weight, present(weight, messages), precision=jax.lax.Precision.HIGHEST)
    one = partial(add, f, lambda weight, message: jnp.where(weight != 0, weight * message, 0))
    several = partial(add, jax.vmap(f), summed)
    blocks, left = divmod(count, size)
    together = lambda total, rest: rest if weight is None else (total, rest)
    if blocks <= 1 and not left:
        total, rest, memory = several(0.0, stacked, memory, weight)
        return together(total, rest), memory

    if size == 1:  # without an axis of 1, which XLA takes away again by a copy of all results
        advance = one
        read = lambda a, k: jax.lax.dynamic_index_in_dim(a, k, keepdims=False)
        write = lambda a, b, k: jax.lax.dynamic_update_index_in_dim(a, b, k, 0)
    else:
        advance = several
        read = lambda a, k: jax.lax.dynamic_slice_in_dim(a, k * size, size)
        write = lambda a, b, k: jax.lax.dynamic_update_slice_in_dim(a, b, k * size, 0)

    def step(carry: tuple, block: tuple) -> tuple[tuple, Tree]:
        total, memory, before = carry
        k, rows, weight = block
        # what the block before keeps is written only now, so that all reading comes after it: where XLA sees a reader
        # that could come after the writing, it copies the whole of it in every step
        memory = jax.tree.map(lambda a, b: write(a, b, jnp.maximum(k - 1, 0)), memory, before)
        total, rest, new = advance(total, rows, jax.tree.map(lambda a: read(a, k), memory), weight)
        return (total, memory, new), rest

    total = 0.0
    if weight is not None:
        message = jax.eval_shape(f, row_of(stacked), row_of(memory))[0][0]
        total = jnp.zeros(message.shape, message.dtype)
    rows = jax.tree.map(lambda a: a[: blocks * size], (stacked, weight)) if left else (stacked, weight)
    if size > 1:
        rows = jax.tree.map(lambda a: a.reshape(blocks, size, *a.shape[1:]), rows)
    first = jax.tree.map(lambda a: read(a, 0), memory)
    (total, memory, last), rest = jax.lax.scan(step, (total, memory, first), (jnp.arange(blocks), *rows))
    memory = jax.tree.map(lambda a, b: write(a, b, blocks - 1), memory, last)
    if size > 1:
        rest = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), rest)
    if left:
        tail = jax.tree.map(lambda a: a[blocks * size :], (stacked, memory, weight))
        total, last, new = several(total, *tail)
        rest = jax.tree.map(lambda *a: jnp.concatenate(a), rest, last)
        memory = jax.tree.map(lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, blocks * size, 0), memory, new)
    return together(total, rest), memory
