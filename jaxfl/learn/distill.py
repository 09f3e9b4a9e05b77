"""Distillation: learning from what others say about unlabelled examples that everyone sees.

Decentralized Learning with Multi-Headed Distillation; Zhmoginov et al.; CVPR 2023; https://arxiv.org/abs/2211.15774,
but the parts are general: a plan of lessons says which head learns from which, a selector picks one target an example.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxfl.core import Array, Shards, Tree, stream
from jaxfl.data.sets import Dataset, generator
from jaxfl.errors import InputError, require
from jaxfl.learn.heads import Output, predict, unit
from jaxfl.learn.local import batch_loss, drawn_batches, whole_shard
from jaxfl.learn.task import Task


class Public(NamedTuple):
    """The data of a world in which all nodes see some examples without labels."""

    private: Shards
    public: Tree  # leaves [P, ...]


class Lesson(NamedTuple):
    """Head `student` learns from the heads `levels` of the teachers."""

    student: int
    levels: tuple[int, ...]


def chain(heads: int) -> tuple[Lesson, ...]:
    """Head k learns from head k - 1: knowledge travels one hop a head."""
    return tuple(Lesson(k, (k - 1,)) for k in range(1, heads))


def same_level(heads: int) -> tuple[Lesson, ...]:
    """Head k learns from heads k - 1 and k."""
    return tuple(Lesson(k, (k - 1, k)) for k in range(1, heads))


def main_head(heads: int) -> tuple[Lesson, ...]:
    """The main head learns from main heads: mutual distillation as in FedMD (Li and Wang, 2019)."""
    del heads
    return (Lesson(0, (0,)),)


def taught(lessons: tuple[Lesson, ...]) -> tuple[int, ...]:
    """The heads that some lesson listens to, ascending: no other leaves its node."""
    return tuple(sorted({level for lesson in lessons for level in lesson.levels}))


def hold_out(data: Dataset, count: int, seed: int = 0) -> tuple[np.ndarray, Dataset]:
    """`count` random train inputs `[count, ...]` for all to see, without labels, and the data set without them.

    Raises:
        InputError: `count` is below 1 or leaves nothing.
    """
    total = len(data.y)
    require("count", count, whole=True)
    if not 1 <= count < total:
        raise InputError(f"count is {count}, but must be from 1 to {total - 1} of the {total} train samples.")
    order = generator(seed).permutation(total)
    rest = np.sort(order[count:])
    clients = None if data.clients is None else data.clients[rest]
    return data.x[np.sort(order[:count])], data._replace(x=data.x[rest], y=data.y[rest], clients=clients)


def confidence(logits: Array) -> Array:
    """The largest probability, `[..., classes]` to `[...]`."""
    return jax.nn.softmax(logits).max(-1)


def most_confident(least: float = 0.0) -> Callable:
    """Selector: the candidate of the highest confidence, example by example; below `least` nothing is learned.

    A selector is `(key, candidates [a, b, classes], live [a]) -> (target [b, classes], weight [b])`; of no live
    candidate the weight is 0.
    """
    require("least", least, least=0, most=1)

    def choose(key, candidates, live):
        del key
        sure = jnp.where(live[:, None], confidence(candidates), -1.0)
        target = jnp.take_along_axis(candidates, sure.argmax(0)[None, :, None], 0)[0]
        return target, (sure.max(0) >= least).astype(jnp.float32)

    return choose


def at_random() -> Callable:
    """Selector: any live candidate with the same probability, example by example."""

    def choose(key, candidates, live):
        rank = jnp.where(live[:, None], jax.random.uniform(key, candidates.shape[:2]), -1.0)
        target = jnp.take_along_axis(candidates, rank.argmax(0)[None, :, None], 0)[0]
        return target, (rank.max(0) >= 0).astype(jnp.float32)

    return choose


def soft_cross_entropy(target: Array, logits: Array) -> Array:
    """`-sum_c softmax(target)_c log softmax(logits)_c` in nats, `[..., classes]` to `[...]`; `target` is constant."""
    return -(jax.nn.softmax(jax.lax.stop_gradient(target)) * jax.nn.log_softmax(logits)).sum(-1)


def lesson_losses(
    key: Array,
    lessons: tuple[Lesson, ...],
    choose: Callable,
    own: Array,
    heard: Array,
    live: Array,
    *,
    own_head: bool = True,
) -> Array:
    """The loss of each lesson `[len(lessons)]`: mean over examples of the cross-entropy to the chosen target.

    Args:
        key: of the selector.
        lessons: all with the same number of levels.
        choose: the selector.
        own: logits of the student's heads `[heads, b, classes]`.
        heard: logits of the teachers' heads `taught(lessons)`, `[a, len(taught), b, classes]`.
        live: the teachers that are there, `[a]` bool.
        own_head: the student's own heads of the lesson's levels are candidates too.
    """
    names, count = taught(lessons), len(lessons)
    levels = np.array([lesson.levels for lesson in lessons])  # [lessons, levels]
    position = np.searchsorted(names, levels)
    b, classes = own.shape[1:]
    candidates = jnp.moveaxis(heard[:, position], 0, 1).reshape(count, -1, b, classes)
    live = jnp.repeat(live, levels.shape[1])
    if own_head:
        candidates = jnp.concatenate([candidates, own[levels]], 1)
        live = jnp.concatenate([live, jnp.ones(levels.shape[1], bool)])
    target, weight = jax.vmap(choose, (0, 0, None))(jax.random.split(key, count), candidates, live)
    student = own[np.array([lesson.student for lesson in lessons])]
    return (soft_cross_entropy(target, student) * jax.lax.stop_gradient(weight)).mean(-1)


def embedding_loss(own: Array, heard: Array, live: Array) -> Array:
    """Mean over examples and live teachers of `|unit(own) - unit(heard)|^2`; 0 where no teacher is live.

    `own` is `[b, width]`, `heard` `[a, b, at least width]` (what goes beyond is padding), `live` `[a]`.
    """
    gap = unit(own) - unit(jax.lax.stop_gradient(heard[..., : own.shape[-1]]))
    each = (gap**2).sum(-1).mean(-1)
    return jnp.where(live, each, 0.0).sum() / jnp.maximum(live.sum(), 1)


def distilled_sgd(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    batch: int | None,
    lessons: Callable[[int], tuple[Lesson, ...]] = chain,
    choose: Callable | None = None,
    own_head: bool = True,
) -> Callable:
    """Local steps on `private loss + nu_aux * sum of lesson losses + nu_emb * embedding loss`, of ONE node.

    Private batches are those of `local_sgd` for the same key, so that with `nu_aux = nu_emb = 0` the model is the same.

    Args:
        task: made by `heads.multi_head`.
        optimizer: an optax transformation, with hooks as in `local_sgd`; its state stays with the node.
        steps: number of steps.
        batch: private samples a step, drawn with replacement; None is the whole shard.
        lessons: who learns from whom, from the number of heads.
        choose: the selector, by default `most_confident()`.
        own_head: as in `lesson_losses`.

    Raises:
        InputError: a count below 1, a task with a loss of its own in training.

    Returns:
        `learn(key, data: Public, i, x [d], *, state, images, index, said, teachers, live, nu_aux, nu_emb=None,
        alike=None, steps=None, t=0) -> (y [d], log)`. Step `k` sees the public examples `images[index[k]]` (leaves
        `[K, ...]`, `index` `[steps, b]`) and hears what the nodes `teachers[k]` `[a]` said of them: `said` is an
        `Output` of all nodes on `images`, with the taught heads only. `alike` `[n]` bool marks who has an embedding of
        the same size; without `nu_emb` embeddings are left alone. `steps` bounds how many steps this node runs, `t` is
        the round. `log` holds `loss` (private), `aux_loss` (sum over lessons), both means over the steps run, `steps`,
        `gradients` and `state`.
    """
    require("steps", steps, least=1, whole=True)
    require("batch", batch, least=1, whole=True, none=True)
    if task.train is not None:
        raise InputError(
            "task has dropout or statistics (BatchNorm), which distillation does not train: leave them out."
        )
    choose, most = most_confident() if choose is None else choose, steps
    tx = optax.with_extra_args_support(optimizer)

    def learn(
        key: Array,
        data: Public,
        i: Array,
        x: Array,
        *,
        state: Tree,
        images: Tree,
        index: Array,
        said: Output,
        teachers: Array,
        live: Array,
        nu_aux: Array,
        nu_emb: Array | None = None,
        alike: Array | None = None,
        steps: Array | None = None,
        t: Array | int = 0,
    ):
        (draw, noise), chance = jax.random.split(key), stream(key, "selector")
        shard = data.private
        anchor = task.unravel(x)
        mine, mask = (
            whole_shard(shard, i, most) if batch is None else (drawn_batches(draw, shard, i, most, batch), None)
        )

        def step(carry, now):
            p, opt = carry
            k, mine, mask, index, teachers, live = now
            private = batch_loss(task, shard, mine, mask, noise)
            seen = jax.tree.map(lambda a: a[index], images)
            heard = said.logits[teachers[:, None], :, index]  # [a, b, taught, classes]

            def loss(p):
                own, value = predict(task, p, seen), private(p)[0]
                plan = lessons(own.logits.shape[0])
                aux = jnp.float32(0)
                if plan:
                    targets, pick = jnp.moveaxis(heard, 1, 2), jax.random.fold_in(chance, k)
                    aux = lesson_losses(pick, plan, choose, own.logits, targets, live, own_head=own_head).sum()
                total = value + nu_aux * aux
                if nu_emb is not None:
                    same = live if alike is None else live & alike[teachers]
                    targets = said.embedding[teachers[:, None], index]
                    total += nu_emb * embedding_loss(own.embedding, targets, same)
                return total, (value, aux)

            points = []  # where the hooks ask for further gradients: counted while tracing

            def grad_fn(q):
                points.append(q)
                return jax.grad(loss, has_aux=True)(q)[0]

            (total, (value, aux)), g = jax.value_and_grad(loss, has_aux=True)(p)
            now = {"anchor": anchor, "key": jax.random.fold_in(noise, k), "t": t, "step": k}
            u, new = tx.update(g, opt, p, value=total, grad_fn=grad_fn, **now)
            log = jnp.stack([value, aux, jnp.float32(1), jnp.float32(1 + len(points))])
            if steps is not None:
                keep = lambda a, b: jax.tree.map(lambda a, b: jnp.where(k < steps, a, b), a, b)
                u, new, log = keep(u, optax.tree.zeros_like(u)), keep(new, opt), keep(log, jnp.zeros_like(log))
            return (optax.apply_updates(p, u), new), log

        xs = jnp.arange(most), mine, mask, index, teachers, live
        (p, state), logs = jax.lax.scan(step, (anchor, state), xs)
        loss, aux, ran, gradients = logs.sum(0)
        own = {"loss": loss / jnp.maximum(ran, 1), "aux_loss": aux / jnp.maximum(ran, 1)}
        return task.ravel(p), own | {"steps": ran, "gradients": gradients, "state": state}

    return learn
