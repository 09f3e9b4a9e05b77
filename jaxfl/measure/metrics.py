"""Metrics: what is evaluated between rounds, on what `Algorithm.read` returns.

That is one model `[d]`, models `[n, d]`, one a node, or a dict of such: `{"x": [d], "personal": [n, d]}`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array, Metric, Shards, Tree, constant
from jaxfl.engine.distribution import jain, worst
from jaxfl.errors import InputError, require
from jaxfl.exchange.rules import mean
from jaxfl.learn.local import local_gradient, whole_shard
from jaxfl.learn.task import Task, check_labels, judged, require_task, scores
from jaxfl.mapping.nodes import map_nodes


def parts_of(answer: Tree) -> dict[str, Array]:
    """The named parts of a system's answer: a dict of models `[d]` and `[n, d]`; one array is the part "".

    Raises:
        InputError: it is neither.
    """
    parts: dict[str, Any] = dict(answer) if isinstance(answer, Mapping) and answer else {"": answer}
    if any(jax.tree.structure(a).num_nodes != 1 or jnp.ndim(a) not in (1, 2) for a in parts.values()):
        shapes = [list(jnp.shape(a)) for a in jax.tree.leaves(answer)]
        raise InputError(
            f"the system's answer has the shapes {shapes}, but one model [d], models [n, d], or a dict of such by name "
            "are needed."
        )
    return parts


def _first(parts: dict[str, Array], ndim: int) -> str:
    """The name of the first part with so many axes; where there is none, of the first."""
    return next((name for name, a in parts.items() if jnp.ndim(a) == ndim), next(iter(parts)))


def node_models(answer: Tree) -> Array:
    """What the nodes themselves use: the models `[n, d]`, one a node, if the answer has such, else the one model `[d]`.

    Raises:
        InputError: the answer has neither.
    """
    parts = parts_of(answer)
    return parts[_first(parts, 2)]


def mean_model(answer: Tree) -> Array:
    """The one model `[d]`, if the answer has such, else the average of the models `[n, d]`.

    Raises:
        InputError: the answer has neither.
    """
    parts = parts_of(answer)
    rows = parts[_first(parts, 1)]
    if rows.ndim == 1:
        return rows
    n = rows.shape[0]
    return mean(rows[0], rows, jnp.full(n, 1 / n))


def consensus_distance(rows: Array) -> Array:
    """`sqrt(mean_i |x_i - mean|^2)` of rows `[n, d]` (Kong et al., ICML 2021)."""
    rows = rows - rows[0]  # exact: equal models have distance 0
    gap = rows - mean_model(rows)
    return jnp.sqrt((gap * gap).sum(1).mean())


def _require_metrics(*metrics: Any) -> None:
    odd = [type(m).__name__ for m in metrics if not isinstance(m, Metric)]
    if odd:
        raise InputError(f"metrics hold {', '.join(odd)}, but each must be a Metric: `Metric(f)` of a function.")


def together(*metrics: Metric) -> Metric:
    """All of them as one metric.

    Raises:
        InputError: one is no metric; while tracing, two measure the same name.
    """
    _require_metrics(*metrics)
    parts = [m.measure for m in metrics]

    def measure(arrays, answer):
        out: dict = {}
        for f, a in zip(parts, arrays, strict=True):
            found = f(a, answer)
            twice = sorted(out.keys() & found.keys())
            if twice:
                raise InputError(f"metrics measure {', '.join(twice)} twice, but each name can be measured once.")
            out |= found
        return out

    return Metric(measure, tuple(m.arrays for m in metrics))


def among(metric: Metric, ids: Any) -> Metric:
    """`metric` of the nodes `ids` only, such as the honest ones, `~world.byz`: the others' models are not looked at.

    `ids` are node ids, or a mask `[n]` of bool. A server's one model `[d]` is every node's model. `local_test` has such
    `ids` of its own.

    Raises:
        InputError: nobody is left, or `metric` is none; while tracing, one model is measured by node.
    """
    _require_metrics(metric)
    ids = _ids(ids)
    all_of_them = metric.measure

    def measure(arrays, answer):
        inner, ids = arrays
        out = all_of_them(inner, jax.tree.map(lambda a: a if a.ndim == 1 else a[ids], answer))
        by_node = [name for name, value in out.items() if jnp.ndim(value)]
        if by_node and all(a.ndim == 1 for a in jax.tree.leaves(answer)):
            raise InputError(
                f"metric measures one model by node ({by_node[0]}), where among has no say: give it `ids`."
            )
        return out

    return Metric(measure, (metric.arrays, constant(ids, np.int32)))


def _ids(ids: Any) -> np.ndarray:
    ids = np.asarray(ids)
    ids = np.flatnonzero(ids) if ids.dtype == bool else ids
    if ids.ndim != 1 or not ids.size:
        raise InputError(f"ids has shape {list(ids.shape)}: a row of at least one node id is needed.")
    return ids


def shared_test(task: Task, x: Array, y: Array, *, nodes: bool = True, batch: int | None = None) -> Metric:
    """Loss and accuracy on a test set that all nodes share.

    Columns: `accuracy`, `test_loss` of the mean model; with `nodes`, for models `[n, d]`, also over nodes
    `node_accuracy` (mean), `worst_decile` (mean of the lowest tenth), `node_spread` (standard deviation) and
    `consensus`, the consensus distance. A server's one model is every node's model. Of an answer in parts the first
    are those of the one model `[d]`, the others those of the models `[n, d]`. Tasks without accuracy give `test_loss`,
    `node_loss` and `consensus`.

    Args:
        task: the task.
        x: inputs `[N, ...]`.
        y: targets `[N, ...]`.
        nodes: evaluate every node's model too.
        batch: samples evaluated at once; bounds memory.

    Raises:
        InputError: `task` is no Task; while tracing, an answer that is no model `[d]` or models `[n, d]`.
    """
    require_task(task)
    check_labels(task, y, "y")
    key = "accuracy" if task.correct is not None else "loss"

    def measure(arrays, answer):
        top = scores(task, mean_model(answer), *arrays, batch=batch)
        out = {"test_loss": top["loss"]} | ({"accuracy": top["accuracy"]} if key in top and key != "loss" else {})
        if not nodes:
            return out
        rows = node_models(answer)
        if rows.ndim == 1:
            each, distance = top[key][None], jnp.float32(0)
        else:
            each = map_nodes(lambda shared, row: scores(task, row, *shared, batch=batch)[key], arrays, rows)
            distance = consensus_distance(rows)
        if key == "loss":
            return out | {"node_loss": each.mean(), "consensus": distance}
        spread = {"node_accuracy": each.mean(), "worst_decile": worst(_beyond(each)), "node_spread": each.std()}
        return out | spread | {"consensus": distance}

    return Metric(measure, (x, y))


def _beyond(each: Array, sign: int = -1) -> Array:
    """Scores of nodes `[n]`, infinitely bad where a model has none: NaN says that a node was not asked."""
    return jnp.where(jnp.isnan(each), sign * jnp.inf, each)


def local_test(task: Task, shards: Shards, *, ids: Any = None, batch: int | None = None) -> Metric:
    """Accuracy of every node on samples of its own: who is served well, and who badly.

    `local_accuracy` `[n]` is kept by node in `Result.nodes`, NaN at nodes without a test sample, which count nowhere.
    Columns: `local_accuracy`, its mean over nodes, `local_accuracy_worst_decile` (mean of the lowest tenth of the
    nodes), `local_accuracy_spread` (standard deviation), `local_accuracy_jain` (Jain's fairness index) and
    `local_accuracy_weighted`, the share of all nodes' samples that are right. Tasks without accuracy give `local_loss`
    alike but for Jain's index; its worst decile are the highest losses. A model that is not finite has an
    infinite loss, or an accuracy of -inf, and the columns are NaN.

    A server's one model `[d]` is every node's model. Of an answer in parts, `{"x": [d], "personal": [n, d]}`, these are
    the columns of the models `[n, d]`, which nodes use themselves; every other part has its own, `local_accuracy_x` and
    so on.

    Args:
        task: the task.
        shards: the test samples of each node, as of `partition.hold_out` or `partition.own_tests`.
        ids: nodes that count (None: all), as ids or a mask `[n]`; the others are NaN.
        batch: samples of a node evaluated at once; bounds memory.

    Raises:
        InputError: `task` is no Task, `shards` are none or hold no sample; while tracing, an answer of other shapes.
    """
    require_task(task)
    require("batch", batch, least=1, whole=True, none=True)
    if not isinstance(shards, Shards):
        raise InputError(f"shards is a {type(shards).__name__}, but must be Shards: `partition.hold_out` makes them.")
    size = np.asarray(shards.size)
    if ids is not None:
        size = np.where(np.isin(np.arange(len(size)), _ids(ids)), size, 0)
    if not size.any():
        raise InputError("shards hold no test sample of any node that counts, but at least one is needed.")
    shards, n = dataclasses.replace(shards, size=constant(size)), len(size)
    check_labels(task, shards, "shards")
    key = "loss" if task.predict is None or task.correct is None else "accuracy"
    most = shards.longest if batch is None else min(batch, shards.longest)

    def right(data: Shards, i: Array, row: Array) -> Array:
        """Sum over the samples of node i."""
        judge = judged(task, row)
        index, mask = (a[0] for a in whole_shard(data, i, 1))
        fill = lambda a: jnp.pad(a, (0, -len(a) % most)).reshape(-1, most)

        def some(part: tuple[Array, Array]) -> Array:
            index, mask = part
            x, y = jax.tree.map(lambda a: a[index], data.x), data.y[index]
            return jnp.where(mask > 0, judge(x, y)[key], 0).sum()

        return jax.lax.map(some, (fill(index), fill(mask))).sum()

    def columns(name: str, data: Shards, rows: Array) -> dict[str, Array]:
        if rows.shape not in ((task.dim,), (n, task.dim)):
            raise InputError(
                f"the system's answer has shape {list(rows.shape)}, but [{task.dim}] or [{n}, {task.dim}] "
                "is needed to test every node's model on its own samples."
            )
        every, work = jnp.arange(n), 4 * most * sum(math.prod(a.shape[1:]) for a in jax.tree.leaves(data.x))
        if rows.ndim == 1:
            total = map_nodes(lambda s, i: right(s[0], i, s[1]), (data, rows), every, bytes_each=work)
        else:
            total = map_nodes(lambda s, r: right(s, r[0], r[1]), data, (every, rows), bytes_each=work)
        each = jnp.where(data.size > 0, _beyond(total, 1 if key == "loss" else -1) / data.size, jnp.nan)
        found = {name: each, f"{name}_weighted": jnp.where(data.size > 0, total, 0).sum() / data.size.sum()}
        if key == "loss":
            return found | {f"{name}_worst_decile": -worst(-each)}
        return found | {f"{name}_jain": jain(each)}

    def measure(data, answer):
        parts = parts_of(answer)
        main = _first(parts, 2)
        found = {}
        for part, rows in parts.items():
            found |= columns(f"local_{key}" if part == main else f"local_{key}_{part}", data, rows)
        return found

    return Metric(measure, shards)


def training_objective(task: Task, data: Shards) -> Metric:
    """`train_loss` and `gradient_norm` at the mean model of `f = mean_i F_i`, each `F_i` over its whole shard."""
    gradient = local_gradient(task._replace(train=None, untrained=()))  # of the model as it is used

    def measure(data, answer):
        n = data.size.shape[0]
        x = mean_model(answer)
        key = jax.random.key(0)  # whole shards draw nothing
        g, log = map_nodes(lambda s, i: gradient(key, s[0], i, s[1]), (data, x), jnp.arange(n), bytes_each=4 * x.size)
        full = mean(x, g, jnp.full(n, 1 / n))
        return {"train_loss": log["loss"].mean(), "gradient_norm": jnp.sqrt((full * full).sum())}

    return Metric(measure, data)


def distance_to(optimum: Array) -> Metric:
    """`error`: mean over nodes of `|x_i - optimum|^2`; `mean_error`: `|mean - optimum|^2`; `consensus`."""
    if jnp.ndim(optimum) != 1:
        raise InputError(f"optimum has shape {jnp.shape(optimum)}, but must be one row [d].")

    def measure(optimum, answer):
        rows = jnp.atleast_2d(node_models(answer))
        gap = rows - optimum
        top = mean_model(answer) - optimum
        return {
            "error": (gap * gap).sum(1).mean(),
            "mean_error": (top * top).sum(),
            "consensus": consensus_distance(rows),
        }

    return Metric(measure, jnp.asarray(optimum, jnp.float32))
