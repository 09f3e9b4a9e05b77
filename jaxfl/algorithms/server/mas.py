"""MAS, merge and split: all tasks train on one encoder until it is known which of them belong together.

Of T tasks with losses L_i, an encoder `a` and decoders `b_i`, until round `merge` FedAvg on the sum of all losses

    (a, b_1, ..., b_T) <- FedAvg on sum_i L_i(a, b_i),

and in the rounds from `first` to before `last` every member also looks ahead, on a mini-batch at the model it was
handed,

    S_ij <- S_ij + mean_S (1 - L_j(a - lr grad_a L_i, b_j) / L_j(a, b_j)) / lr.

In round `merge` the tasks part into the `groups` G that are best by S (`learn.multitask.split_scores`, all partitions
are tried), each with a copy of the encoder, and from then on

    (a_G, {b_i, i in G}) <- FedAvg on sum_{i in G} L_i(a_G, b_i),  all groups in one round.

A look is at the start of a round, where the authors' code looks every tenth batch of the local epochs. A member's
groups see the same mini-batches. Affinities travel: T^2 further numbers of a message until `merge`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxfl.core import Algorithm, Array, Log, Metric, State, stream
from jaxfl.data.sets import Dataset
from jaxfl.errors import InputError, require
from jaxfl.exchange.network import Network
from jaxfl.exchange.phases import joined, parted
from jaxfl.learn import multitask
from jaxfl.learn.local import local_sgd, one_batch
from jaxfl.learn.multitask import MultiTask, joint
from jaxfl.learn.optimizer import rate
from jaxfl.learn.task import Task, from_functions, logistic_regression, scores
from jaxfl.paper import Example, Given, Paper, System

PAPER = Paper(
    "MAS: Towards Resource-Efficient Federated Multiple-Task Learning",
    "Zhuang, Wen, Lyu, Zhang",
    "ICCV 2023",
    "https://arxiv.org/abs/2307.11285",
    number="108",
)

WIDTH, TESTED = 16, 500  # of the example


def mas(
    multi: MultiTask,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    merge: int | Array = 30,
    first: int | Array = 0,
    last: int | Array = 10,
    groups: int = 2,
    split: Sequence[Sequence[int]] | None = None,
    local: optax.GradientTransformation | None = None,
    steps: int = 10,
    epochs: int | None = None,
    batch: int | None = 16,
) -> Algorithm:
    """Merge and split of the tasks `multi` (`learn.multitask.multi_task`).

    It starts from a row of `joint(multi)`, and answers with one of `joint(multi, groups)`. Logs `loss` (summed over
    tasks), bits, and of the members together `encoder_passes` and `decoder_passes`, mini-batches that went through an
    encoder and through a decoder; `gradients` are of one encoder each.

    Args:
        multi: the tasks.
        net: how messages travel.
        lr: rate of local steps and of looks, or a schedule of the round.
        merge: rounds in which all tasks share an encoder; 0 is the split from scratch, and more than there are rounds
            is training all in one.
        first: first round in which members look ahead.
        last: first round in which they no longer do; those from `merge` on never do.
        groups: groups of tasks after the split.
        split: the groups, `((0, 1), (2, 3))`, in place of the best ones by affinity.
        local: another optimizer than `optax.sgd(lr)`.
        steps: local steps.
        epochs: replaces `steps` where given.
        batch: samples of a step and of a look; None is the whole shard.

    Raises:
        InputError: an argument out of range; tasks that part before a look; a personal part, which no encoder is.
    """
    count = len(multi.decoders)
    chosen = None if split is None else multitask.split_of(split, count)
    groups = groups if chosen is None else len(split or ())
    require("lr", lr, above=0)
    require("groups", groups, least=2, most=count, whole=True)
    require("first", first, least=0)
    require("merge", merge, least=0)
    if chosen is None and isinstance(first, int) and isinstance(merge, int) and first >= merge:
        raise InputError(f"first is {first}, but must be below merge, {merge}: tasks part by what looks have shown.")
    if net.personal is not None:
        raise InputError("net.personal is set, but models here are of several encoders that come and go.")
    one, many = joint(multi), joint(multi, groups)
    tx, most = local or optax.sgd(lr), None if epochs else steps
    together, apart = (local_sgd(task, tx, steps=most, epochs=epochs, batch=batch) for task in (one, many))
    up = many.dim - count  # nobody sends back whose encoder is whose

    def look(key, data, i, x, t):
        key = stream(key, "look")
        index, mask = one_batch(key, data, i, batch)
        seen, y = jax.tree.map(lambda a: a[index], data.x), data.y[index]
        return multitask.look_ahead(multi, one.unravel(x), seen, y, rate(lr, t), mask).ravel()

    def merged(key, data, i, x, *, t, looking, **arguments):
        y, log = together(key, data, i, x, t=t, **arguments)
        ran, looked = log["gradients"], looking & (log["steps"] > 0)
        s = jax.lax.cond(looking, lambda: look(key, data, i, x, t), lambda: jnp.zeros(count**2))
        log |= {"encoder": ran + looked * (1 + count), "decoder": count * ran + looked * (count + count**2)}
        log |= {"gradients": ran + looked * count, "steps": log["steps"] + looked * count}
        return jnp.concatenate([y - x, jnp.where(looked, s, 0)]), log

    def parts(key, data, i, x, **arguments):
        y, log = apart(key, data, i, x, **arguments)
        ran = log["gradients"]
        log |= {"gradients": groups * ran, "encoder": groups * ran, "decoder": count * ran}
        return (y - x)[:up], log

    def init(key, env, x):
        row = many.ravel(multitask.parted(one.unravel(x), groups, jnp.zeros(count)))
        mail = joined(net.init(env, jnp.zeros(one.dim + count**2)), net.init(env, jnp.zeros(up)))
        return State({"x": row, "affinity": jnp.zeros((count, count))}, (), mail)

    def round(key, env, s):
        x, affinity, (early, late) = s.shared["x"], s.shared["affinity"], parted(s.mail)

        def before(_):
            row = one.ravel(multitask.shared(many.unravel(x)))
            looking = (env.t >= first) & (env.t < last)
            got = net.collect(key, env, early, merged, row, known={"looking": looking})
            new = multitask.parted(one.unravel(row + got.mean[: one.dim]), groups, jnp.zeros(count))
            seen = affinity + got.mean[one.dim :].reshape(count, count)
            return many.ravel(new), seen, joined(got.mail, late), _passes(env, got)

        def after(_):
            best = multitask.best_split(affinity, groups) if chosen is None else chosen
            row = jnp.where(env.t == merge, many.ravel(multitask.parted(many.unravel(x), groups, best)), x)
            got = net.collect(key, env, late, parts, row)
            return row.at[:up].add(got.mean), affinity, joined(early, got.mail), _passes(env, got)

        x, affinity, mail, log = jax.lax.cond(env.t < merge, before, after, None)
        return State({"x": x, "affinity": affinity}, (), mail), log

    return Algorithm(init, round, read=lambda s: s.shared["x"])


def _passes(env: Any, got: Any) -> Log:
    """The log with the passes of all members, of one type in both phases."""
    total = lambda name: jnp.where(env.cohort.weight > 0, got.each[name], 0).sum()
    log = got.log | {"encoder_passes": total("encoder"), "decoder_passes": total("decoder")}
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), log)


def tanh_units(inputs: int, width: int) -> Task:
    """An encoder: `tanh(x W + c)`, `width` units of the flat inputs."""

    def init(key):
        return {"bias": jnp.zeros(width), "kernel": jax.random.normal(key, (inputs, width)) / inputs**0.5}

    def predict(p, x):
        return jnp.tanh(x.reshape(x.shape[0], -1) @ p["kernel"] + p["bias"])

    return from_functions(init, lambda p, x, y: jnp.zeros(x.shape[0]), predict)


def joint_test(multi: MultiTask, x: Any, y: Any) -> Metric:
    """`test_loss`, summed over tasks, and where all have one their mean `accuracy`, for rows of any number of encoders.

    `x` `[N, ...]` and `y` `[N, T, ...]` are the test set.
    """
    one, two = joint(multi), joint(multi, 2)
    size, count = two.dim - one.dim - len(multi.decoders), len(multi.decoders)

    def measure(arrays, row):
        encoders = 1 if row.shape[0] == one.dim else 1 + (row.shape[0] - count - one.dim) // size
        found = scores(joint(multi, encoders), row, *arrays)
        return {("test_loss" if name == "loss" else name): value for name, value in found.items()}

    return Metric(measure, (jnp.asarray(x), jnp.asarray(y)))


def _questions(given: Given) -> Example:
    """Yes or no to each label of several, or to each digit of the label in base two, from tanh units."""
    known: Dataset = given.dataset
    if known.x.dtype != np.float32 or known.task not in ("classification", "multilabel"):
        raise InputError(f"data is {known.name}, but these tasks are questions about labels, from features.")
    count = known.y.shape[1] if known.task == "multilabel" else max(2, int(known.classes or 2) - 1).bit_length()
    require("the number of labels", count, least=2, most=multitask.MOST)
    asked = (lambda y: y) if known.task == "multilabel" else lambda y: np.asarray(y)[:, None] >> np.arange(count) & 1
    x, features = known.x[:1], math.prod(known.x.shape[1:])
    multi = multitask.multi_task(tanh_units(features, WIDTH), [logistic_regression(WIDTH, 2)] * count, x)
    data = dataclasses.replace(given.data, y=jnp.asarray(asked(np.asarray(given.data.y)), jnp.int32))
    x, y = known.tested(TESTED)
    metric = joint_test(multi, x, np.asarray(asked(y), np.int32))
    return Example((multi,), data, model=joint(multi).init, metric=metric)


SYSTEMS = {"mas": System(mas, PAPER, _questions)}
