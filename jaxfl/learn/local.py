"""Local training: the only way a node touches its data.

`local_sgd` returns `learn(key, data, i, x, *, t=0, steps=None, **vectors) -> (y, log)` of ONE node; `at` lifts it to
a cohort. It speaks optax: the optimizer may be a chain with the hooks of `learn.hooks`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxfl.core import Array, Shards, Tree, stream
from jaxfl.errors import InputError, require
from jaxfl.learn.optimizer import begin, begin_nodes, pinned
from jaxfl.learn.task import Task, require_task


def epoch_batches(key: Array, data: Shards, i: Array, epochs: int, batch: int) -> tuple[Array, Array]:
    """Shuffled mini-batches of shard `i`: sample indices and a mask, both `[epochs * ceil(longest / batch), batch]`.

    Every epoch visits each sample once; the mask is 0 on the padding of a shard shorter than the longest.
    """
    count = -(-data.longest // batch)
    position = jnp.arange(count * batch)
    inside = position < data.size[i]

    def shuffle(key):
        rank = jnp.where(inside, jax.random.uniform(key, position.shape), 2.0)
        return jnp.argsort(rank)

    order = jax.vmap(shuffle)(jax.random.split(key, epochs))
    mask = jnp.broadcast_to(inside, order.shape)
    index = data.order[data.start[i] + jnp.where(mask, order, 0)]
    return index.reshape(epochs * count, batch), mask.reshape(epochs * count, batch).astype(jnp.float32)


def drawn_batches(key: Array, data: Shards, i: Array, steps: int, batch: int) -> Array:
    """Sample indices `[steps, batch]` of shard `i`, drawn with replacement."""
    return data.order[data.start[i] + jax.random.randint(key, (steps, batch), 0, data.size[i])]


def whole_shard(data: Shards, i: Array, steps: int) -> tuple[Array, Array]:
    """All samples of shard `i` in every step: indices and mask `[steps, longest]`."""
    position = jnp.arange(data.longest)
    inside = position < data.size[i]
    index = data.order[data.start[i] + jnp.where(inside, position, 0)]
    both = index, inside.astype(jnp.float32)
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (steps, *a.shape)), both)


def one_batch(key: Array, data: Shards, i: Array, batch: int | None) -> tuple[Array, Array | None]:
    """One mini-batch of shard `i`: indices `[batch]`, drawn with replacement. None: the whole shard, and its mask."""
    if batch is None:
        index, mask = whole_shard(data, i, 1)
        return index[0], mask[0]
    return drawn_batches(key, data, i, 1, batch)[0], None


def steps_of(size: Any, steps: int | None, epochs: int | None, batch: int | None) -> Any:
    """How many local steps `local_sgd` of these arguments runs, `[]` or, of `epochs`, by the `size` `[n]` of shards."""
    return steps if not epochs else epochs if batch is None else epochs * -(-size // batch)


def _batches(key, data, i, steps, epochs, batch):
    """Indices, masks (None where every batch is full) of all local steps."""
    if batch is None:
        return whole_shard(data, i, steps if epochs is None else epochs)
    if epochs is not None:
        return epoch_batches(key, data, i, epochs, batch)
    return drawn_batches(key, data, i, steps, batch), None


def batch_loss(task: Task, data: Shards, index: Array, mask: Array | None, key: Array) -> Callable:
    """What training minimises on one mini-batch: `(params) -> (mean loss, params)`, renewed in what is untrained.

    Dropout draws by `key`, at every point where the loss is asked for alike.
    """
    x, y = jax.tree.map(lambda a: a[index], data.x), data.y[index]

    def loss(p: Tree) -> tuple[Array, Tree]:
        if task.train is None:
            each, new = task.loss(p, x, y), ()
        else:
            each, new = task.train(_renewed(task, p, jax.lax.stop_gradient(p)), x, y, key, mask)
        return each.mean() if mask is None else (each * mask).sum() / jnp.maximum(mask.sum(), 1.0), new

    return loss


def _renewed(task: Task, params: Tree, new: Tree) -> Tree:
    """`params` with what is untrained as it is in `new`."""
    if not task.untrained:
        return params
    old, structure = jax.tree.flatten(params)
    pairs = zip(old, jax.tree.leaves(new), task.untrained, strict=True)
    return structure.unflatten([b if untrained else a for a, b, untrained in pairs])


def local_sgd(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    batch: int | None = None,
    keep_gradient: bool = False,
    keep_state: bool = False,
) -> Callable:
    """Several optimizer steps from the received model on the node's own data.

    Args:
        task: what is learned.
        optimizer: an optax transformation, with hooks chained before it. Unless `keep_state`, its state starts anew
            every round; its schedules go on and count rounds, so that all local steps of round `t` have the rate
            `schedule(t)`, and its random keys differ by seed, node and round (`learn.optimizer`).
        steps: number of steps, each on a batch drawn with replacement.
        epochs: instead of `steps`, passes over the shuffled shard; a shard shorter than the longest runs fewer steps.
        batch: samples a step; None is the whole shard.
        keep_gradient: also log `gradient` `[d]`, the mean over steps of the raw mini-batch gradient.
        keep_state: the optimizer's state stays with the node: `learn` takes it as `state`, and logs the new one as
            `state`. `optimizer_state` makes the first. A schedule then counts the node's own local steps, as in optax.

    Returns:
        `learn(key, data, i, x, *, t=0, steps=None, state=None, personal=None, held=None, **vectors) -> (y [d], log)`.
        `t` is the round. Its `steps` bounds how many steps this node runs, the rest are masked. `vectors` `[d]` reach
        the hooks as trees. `personal` is `(Part, [p])`, columns of this node alone: it trains with them in `x`, logs
        the new ones as `personal`, and returns and reports nothing of them. `held` `[d]` bool are the numbers of a
        sub-model: gradients are 0 elsewhere, and nothing moves there. `log` holds `loss` (mean over the steps run, 0
        where there is none), `steps` and `gradients` (mini-batch gradients evaluated).

    Raises:
        InputError: unless exactly one of `steps` and `epochs` is given, or for a count below 1.
    """
    require_task(task)
    if (steps is None) == (epochs is None):
        raise InputError(f"steps is {steps} and epochs is {epochs}, but exactly one of them must be given.")
    for name, value in (("steps", steps), ("epochs", epochs), ("batch", batch)):
        require(name, value, least=1, whole=True, none=True)
    tx = optax.with_extra_args_support(optimizer)
    most = steps
    uneven = epochs is not None and batch is not None

    def learn(
        key, data, i, x, *, t: Array | int = 0, steps: Array | None = None, state: Tree = None, personal=None,
        held: Array | None = None, **vectors
    ):  # fmt: skip
        handed = x
        if personal is not None:
            own = personal[0].columns
            x = x.at[own].set(personal[1])
        anchor = task.unravel(x)
        extra = {name: task.unravel(v) for name, v in vectors.items()}
        whole = held is None
        inside = None if whole else task.unravel(held)
        pick = lambda a, b: a if whole else jax.tree.map(jnp.where, inside, a, b)
        draw, noise = jax.random.split(key)
        index, mask = _batches(draw, data, i, most, epochs, batch)

        number = jnp.arange(index.shape[0])
        if epochs is not None and batch is not None:  # beyond the longest shard of all no step is run or numbered
            most_of_all, room = -(-data.size.max() // batch), index.shape[0] // epochs
            idle = number % room >= most_of_all
            number = number // room * most_of_all + number % room

        def step(carry, now):
            (p, opt, total), (k, index, mask) = carry, now
            mine = jax.random.fold_in(noise, k)
            loss = batch_loss(task, data, index, mask, stream(mine, "loss"))
            points = []  # where the hooks ask for further gradients: counted while tracing

            def grad_fn(q):
                points.append(q)
                g = jax.grad(loss, has_aux=True)(q)[0]
                return pick(g, optax.tree.zeros_like(g))

            (value, after), g = jax.value_and_grad(loss, has_aux=True)(p)
            g = pick(g, optax.tree.zeros_like(g))
            mine = {"value": value, "grad_fn": grad_fn, "anchor": anchor, "key": mine, "t": t, "step": k}
            u, new = tx.update(g, opt, p, **mine, **extra)
            new = new if keep_state else pinned(new, t)
            more = jax.tree.map(jnp.add, total, g) if keep_gradient else ()
            q = pick(_renewed(task, optax.apply_updates(p, u), after), p)
            log = jnp.stack([value, jnp.float32(1), jnp.float32(1 + len(points))])
            if uneven or steps is not None:
                run = jnp.bool_(True) if steps is None else k < steps
                if uneven:
                    run &= mask.sum() > 0
                keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(run, a, b), new, old)
                q, new, more, log = keep(q, p), keep(new, opt), keep(more, total), keep(log, jnp.zeros_like(log))
            return (q, new, more), log

        first = state if keep_state else begin(tx, anchor, key, t)
        carry = anchor, first, optax.tree.zeros_like(anchor) if keep_gradient else ()
        if uneven:
            none = jnp.zeros(3)
            run = lambda carry, now: jax.lax.cond(now[0], lambda c, _: (c, none), step, carry, now[1:])
            (p, state, total), logs = jax.lax.scan(run, carry, (idle, number, index, mask))
        else:
            (p, state, total), logs = jax.lax.scan(step, carry, (number, index, mask))
        loss, ran, gradients = logs.sum(0)
        log = {"loss": loss / jnp.maximum(ran, 1), "steps": ran, "gradients": gradients}
        row = task.ravel(p)
        if keep_gradient:
            log["gradient"] = task.ravel(total) / jnp.maximum(ran, 1)
        if keep_state:
            log["state"] = state
        if personal is not None:
            log["personal"], row = row[own], row.at[own].set(handed[own])
            if keep_gradient:
                log["gradient"] = log["gradient"].at[own].set(0.0)
        return row, log

    return learn


def optimizer_state(task: Task, optimizer: optax.GradientTransformation, x: Array, n: int, key: Array) -> Tree:
    """The first state of `n` nodes' local optimizers at the model `x` `[d]`, leaves `[n, ...]`, each with its own keys.

    `key` is that of `Algorithm.init`; a node's noise then differs by seed and node, and goes on from round to round.
    """
    return begin_nodes(optimizer, task.unravel(x), n, key)


def displacement(learn: Callable) -> Callable:
    """`learn` with `y - x` for `y`: the subtraction happens while the node's row is in cache."""

    def move(key, data, i, x, **arguments):
        y, log = learn(key, data, i, x, **arguments)
        return y - x, log

    return move


def local_gradient(task: Task, *, batch: int | None = None, unit: int | None = None) -> Callable:
    """The mini-batch gradient itself: `(key, data, i, x, *, t=0, steps=None) -> (g [d], log)`.

    `batch=None` is the whole shard. A task that keeps statistics is refused. A node whose `steps` is 0 computes
    nothing: gradient, loss and what is counted are 0. `log` is that of `local_sgd`; the round `t` makes no difference.
    It counts one step and one gradient, or with a `unit` those of mini-batches of so many samples, the last perhaps
    smaller: what a large batch costs beside small ones.
    """
    return _at_one_batch(task, batch, unit, 1, lambda f, p, key: jax.value_and_grad(f, has_aux=True)(p))


def local_curvature(task: Task, *, batch: int | None = None) -> Callable:
    """Hutchinson's diagonal of the mini-batch Hessian H, `v * (H v)` with v of random signs, as `local_gradient`.

    Its mean over v is the diagonal; of a diagonal H it is that at once. It counts as two gradients.
    """

    def of(f: Callable, p: Tree, key: Array) -> tuple[tuple, Tree]:
        leaves, structure = jax.tree.flatten(p)
        keys = jax.random.split(stream(key, "signs"), len(leaves))
        v = structure.unflatten([jax.random.rademacher(k, a.shape, a.dtype) for k, a in zip(keys, leaves, strict=True)])
        both, (_, hv) = jax.jvp(lambda p: jax.value_and_grad(f, has_aux=True)(p), (p,), (v,))
        return both[0], jax.tree.map(jnp.multiply, v, hv)

    return _at_one_batch(task, batch, None, 2, of)


def _at_one_batch(task: Task, batch: int | None, unit: int | None, cost: int, of: Callable) -> Callable:
    """What `of(loss, params, key) -> ((value, params), result)` finds on one mini-batch, at `cost` gradients."""
    require_task(task)
    require("batch", batch, least=1, whole=True, none=True)
    require("unit", unit, least=1, whole=True, none=True)
    if task.untrained:
        raise InputError("task keeps statistics (BatchNorm), but this system sends gradients, which renew none.")

    def learn(key, data, i, x, *, t: Array | int = 0, steps: Array | None = None, personal: Any = None, held=None):
        del t
        if personal is not None:
            raise InputError(
                "net.personal is set, but this system sends gradients, and no node trains a part of its own."
            )
        index, mask = _batches(key, data, i, 1, None, batch)
        index, mask = jax.tree.map(lambda a: a[0], (index, mask))
        loss = batch_loss(task, data, index, mask, stream(key, "loss"))
        (value, _), g = of(loss, task.unravel(x), key)
        g = task.ravel(g) if held is None else jnp.where(held, task.ravel(g), 0)
        samples = data.size[i] if batch is None else batch
        work = jnp.float32(1 if unit is None else -(-samples // unit))
        out = g, {"loss": value, "steps": work, "gradients": cost * work}
        return out if steps is None else jax.tree.map(lambda a: jnp.where(steps > 0, a, 0), out)

    return learn
