"""Several tasks on one input: an encoder that they share, a decoder each, and groups of tasks that part ways.

A model has `g` encoders; each of its `T` tasks uses one of them. With one encoder all tasks share it, with several the
row says whose each task is (`group`, which no optimizer moves). Tasks of different encoders have nothing in common in
the joint loss, so that one gradient of it is that of every group on its own.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array, Tree
from jaxfl.errors import InputError, require
from jaxfl.learn.task import Task, from_functions, require_task

MOST = 10  # tasks of a search through all partitions
TINY = 1e-30


class MultiTask(NamedTuple):
    """`T` tasks: `multi_task` makes one, `joint` is what is trained."""

    encoder: Task  # predicts the embedding [b, ...]
    decoders: tuple[Task, ...]  # decoder i learns the targets y[:, i] from the embedding


def multi_task(encoder: Task, decoders: Sequence[Task], sample_x: Tree) -> MultiTask:
    """Tasks on one encoder; the targets of a sample are `[T, ...]`, those of task `i` are `y[:, i]`.

    Args:
        encoder: any task that predicts `[b, ...]`, such as `regression(partial(MLP, (32, 6)), x)`; its loss is unused.
        decoders: one task each, whose inputs are what the encoder predicts.
        sample_x: a batch of inputs `[b, ...]`, or its `jax.ShapeDtypeStruct`.

    Raises:
        InputError: fewer than two decoders, an encoder that predicts nothing, dropout or statistics in either.
    """
    decoders = tuple(decoders)
    require("the number of decoders", len(decoders), least=2)
    for task in (encoder, *decoders):
        require_task(task)
        if task.train is not None:
            raise InputError("encoder or a decoder has dropout or statistics, but tasks on one encoder have neither.")
    if encoder.predict is None:
        raise InputError("encoder predicts nothing, but decoders need an embedding.")
    shape = jax.eval_shape(encoder.predict, _like(encoder), sample_x)
    for task in decoders:
        if task.predict is not None:
            jax.eval_shape(task.predict, _like(task), shape)
    return MultiTask(encoder, decoders)


def _like(task: Task) -> Tree:
    return jax.eval_shape(task.unravel, jax.ShapeDtypeStruct((task.dim,), jnp.float32))


def joint(multi: MultiTask, encoders: int = 1, weights: Array | None = None) -> Task:
    """One task whose loss is the sum over tasks, times `weights` `[T]` where given, which may be traced.

    Parameters are `decoders` (a tuple of trees, or leaves `[T, ...]` if all are `alike`), `encoder` (leaves
    `[encoders, ...]`) and, with several encoders, `group` `[T]`, the encoder of each task: floats, rounded where they
    are used. All tasks begin in group 0.
    `accuracy` is the mean over tasks, where all have one.

    Raises:
        InputError: `encoders` below 1, or weights of another shape.
    """
    require("encoders", encoders, least=1, whole=True)
    count = len(multi.decoders)
    if weights is not None and jnp.shape(weights) != (count,):
        raise InputError(f"weights have shape {jnp.shape(weights)}, but there are {count} tasks.")

    def init(key: Array) -> Tree:
        below, above = jax.random.split(key)
        params = {"decoders": _drawn(multi.decoders, above), "encoder": _drawn((multi.encoder,) * encoders, below)}
        return params if encoders == 1 else params | {"group": jnp.zeros(count)}

    def loss(params: Tree, x: Tree, y: Array) -> Array:
        each = losses(multi, params, x, y)
        return (each if weights is None else each * weights).sum(1)

    def predict(params: Tree, x: Tree) -> Any:
        return _of_each(multi, [task.predict for task in multi.decoders], params, x)

    def correct(said: Any, y: Array) -> Array:
        score: list[Any] = [task.correct for task in multi.decoders]
        if alike(multi):
            return jax.vmap(score[0], (0, 1))(said, y).mean(0)
        return jnp.stack([f(out, y[:, i]) for i, (f, out) in enumerate(zip(score, said, strict=True))]).mean(0)

    says = all(task.predict is not None for task in multi.decoders)
    scored = all(task.correct is not None for task in multi.decoders)

    def train(params: Tree, x: Tree, y: Array, key: Array, mask: Array | None) -> tuple[Array, Tree]:
        del key, mask
        return loss(params, x, y), params

    leaves = len(jax.tree.leaves(jax.eval_shape(init, jax.random.key(0))))
    renewed = (train, [False] * (leaves - 1) + [True]) if encoders > 1 else (None, ())
    return from_functions(init, loss, predict if says else None, correct if scored else None, *renewed)


def alike(multi: MultiTask) -> bool:
    """Whether all decoders are one task: their parameters are then stacked, leaves `[T, ...]`."""
    return all(task is multi.decoders[0] for task in multi.decoders)


def _drawn(tasks: Sequence[Task], key: Array) -> Tree:
    """Fresh parameters of each, stacked where all are one task: leaves `[count, ...]`, else a tuple."""
    keys = jax.random.split(key, len(tasks))
    if all(task is tasks[0] for task in tasks):
        return jax.vmap(tasks[0].unravel)(jax.lax.map(tasks[0].init, keys))
    return tuple(task.unravel(task.init(key)) for task, key in zip(tasks, keys, strict=True))


def _of_each(multi: MultiTask, fs: Sequence[Any], params: Tree, x: Tree, *more: Array) -> Any:
    """`f(decoder, embedding, ...)` of each task, stacked where decoders are alike: leaves `[T, ...]`, else a tuple."""
    encode: Any = multi.encoder.predict
    count = len(multi.decoders)
    seen = jax.vmap(lambda p: encode(p, x))(params["encoder"])  # [g, b, ...]
    group = jnp.round(params["group"]).astype(jnp.int32) if "group" in params else jnp.zeros(count, jnp.int32)
    if alike(multi):
        rows = params["decoders"], seen[0] if seen.shape[0] == 1 else seen[group], *more
        return jax.vmap(fs[0], (0, None if seen.shape[0] == 1 else 0, *[1] * len(more)))(*rows)
    rows = enumerate(zip(fs, params["decoders"], strict=True))
    return tuple(f(p, seen[group[i]], *[a[:, i] for a in more]) for i, (f, p) in rows)


def losses(multi: MultiTask, params: Tree, x: Tree, y: Array) -> Array:
    """The loss of each example in each task, `[b, T]`.

    Raises:
        InputError: while tracing, targets that are not `[b, T, ...]`.
    """
    count = len(multi.decoders)
    if y.shape[1:2] != (count,):
        raise InputError(f"y has shape {list(y.shape)}, but targets of {count} tasks are [b, {count}, ...].")
    each = _of_each(multi, [task.loss for task in multi.decoders], params, x, y)
    return each.T if alike(multi) else jnp.stack(each, 1)


def parted(params: Tree, encoders: int, group: Array | np.ndarray) -> Tree:
    """Parameters with `encoders` copies of the first encoder, of which task `i` uses that of number `group[i]`."""
    copies = jax.tree.map(lambda a: jnp.broadcast_to(a[:1], (encoders, *a.shape[1:])), params["encoder"])
    return {"decoders": params["decoders"], "encoder": copies, "group": jnp.asarray(group, jnp.float32)}


def shared(params: Tree) -> Tree:
    """Parameters of one encoder for all tasks, the first: the inverse of `parted`."""
    return {"decoders": params["decoders"], "encoder": jax.tree.map(lambda a: a[:1], params["encoder"])}


def look_ahead(
    multi: MultiTask, params: Tree, x: Tree, y: Array, lr: float | Array, mask: Array | None = None
) -> Array:
    """What a step of the encoder for task `i` does to task `j`, `S` `[T, T]`; positive: it helps.

        S[i, j] = (1 - L_j(encoder - lr grad L_i) / L_j(encoder)) / lr

    Decoders stay as they are, L_j is the mean loss of the batch (over `mask` `[b]`, if given), a loss of 0 stays 0.
    `params` are those of one encoder. Fifty et al., Efficiently Identifying Task Groupings for Multi-Task Learning,
    NeurIPS 2021.
    """

    def means(encoder: Tree) -> Array:
        each = losses(multi, params | {"encoder": encoder}, x, y)
        return each.mean(0) if mask is None else mask @ each / jnp.maximum(mask.sum(), 1)

    now, back = jax.vjp(means, params["encoder"])
    (steps,) = jax.vmap(back)(jnp.eye(len(multi.decoders)))
    move = lambda g: jax.tree.map(lambda e, g: e - lr * g, params["encoder"], g)
    ahead = jax.vmap(lambda g: means(move(g)))(steps)
    return jnp.where(now > 0, 1 - ahead / jnp.maximum(now, TINY), 0) / lr


def partitions(tasks: int, groups: int) -> np.ndarray:
    """All partitions of `tasks` into exactly `groups` groups, `[P, T]` int8: row by row the group of each task.

    Groups are numbered in the order of their first task, so that no partition is there twice.

    Raises:
        InputError: more groups than tasks, or more than ten tasks.
    """
    require("tasks", tasks, least=1, most=MOST, whole=True)
    require("groups", groups, least=1, most=tasks, whole=True)
    found = [(0,)]
    for _ in range(tasks - 1):
        found = [(*row, k) for row in found for k in range(min(max(row) + 2, groups))]
    return np.array([row for row in found if max(row) == groups - 1], np.int8)


def split_scores(affinity: Array, table: np.ndarray) -> Array:
    """How good each partition of `table` `[P, T]` is by the affinities `[T, T]`, `[P]`: the mean over tasks of

    the mean affinity to task `j` from the others of its group; of a task that is alone, the mean of all affinities
    from and to it, so that it can be compared.
    """
    count = table.shape[1]
    off = jnp.where(jnp.eye(count, dtype=bool), 0, affinity)
    same = jnp.asarray((table[:, :, None] == table[:, None, :]) & ~np.eye(count, dtype=bool), jnp.float32)
    others = same.sum(1)
    inside = jnp.einsum("pij,ij->pj", same, off, precision="highest") / jnp.maximum(others, 1)
    alone = (off.sum(0) + off.sum(1)) / max(2 * (count - 1), 1)
    return jnp.where(others > 0, inside, alone).mean(1)


def best_split(affinity: Array, groups: int) -> Array:
    """The group of each task `[T]` int32 in the best of all partitions into `groups` groups; the first of equals."""
    table = partitions(affinity.shape[0], groups)
    return jnp.asarray(table, jnp.int32)[split_scores(affinity, table).argmax()]


def split_of(groups: Sequence[Sequence[int]], tasks: int) -> np.ndarray:
    """The group of each task `[T]` from lists of tasks, such as `((0, 1), (2, 3))`.

    Raises:
        InputError: not every task in exactly one group.
    """
    flat = [i for group in groups for i in group]
    if sorted(flat) != list(range(tasks)) or not all(len(group) for group in groups):
        raise InputError(f"split is {groups!r}, but every task from 0 to {tasks - 1} must be in exactly one group.")
    return np.array([next(k for k, group in enumerate(groups) if i in group) for i in range(tasks)], np.int32)
