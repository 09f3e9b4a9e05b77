"""Metrics: what is evaluated between rounds, on what `Algorithm.read` returns, `[d]` or `[n, d]`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array, Metric, Shards
from jaxfl.errors import InputError
from jaxfl.exchange.rules import mean
from jaxfl.learn.local import local_gradient
from jaxfl.learn.task import Task, require_task, scores
from jaxfl.mapping.nodes import map_nodes

WORST = 0.1  # the share of nodes called worst


def mean_model(answer: Array) -> Array:
    """The average `[d]` of the models `[n, d]`, or the one model itself.

    Raises:
        InputError: the answer is neither.
    """
    if jax.tree.structure(answer).num_nodes != 1 or jnp.ndim(answer) not in (1, 2):
        shapes = [list(jnp.shape(a)) for a in jax.tree.leaves(answer)]
        raise InputError(f"the system's answer has the shapes {shapes}, but one model [d] or models [n, d] are needed.")
    if answer.ndim == 1:
        return answer
    n = answer.shape[0]
    return mean(answer[0], answer, jnp.full(n, 1 / n))


def consensus_distance(rows: Array) -> Array:
    """`sqrt(mean_i |x_i - mean|^2)` of rows `[n, d]` (Kong et al., ICML 2021)."""
    rows = rows - rows[0]  # exact: equal models have distance 0
    gap = rows - mean_model(rows)
    return jnp.sqrt((gap * gap).sum(1).mean())


def worst(values: Array, share: float = WORST) -> Array:
    """Mean of the lowest `share` of `values` `[n]`, rounded down to a number of values (at least one)."""
    count = max(1, int(share * values.shape[0] * (1 + 1e-12)))  # 0.29 * 100 is 28.999999999999996
    return jnp.sort(values)[:count].mean()


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

    `ids` are node ids, or a mask `[n]` of bool. A server's one model `[d]` is every node's model.

    Raises:
        InputError: nobody is left, or `metric` is none.
    """
    _require_metrics(metric)
    ids = np.asarray(ids)
    ids = np.flatnonzero(ids) if ids.dtype == bool else ids
    if ids.ndim != 1 or not ids.size:
        raise InputError(f"ids has shape {list(ids.shape)}: a row of at least one node id is needed.")

    all_of_them = metric.measure

    def measure(arrays, answer):
        inner, ids = arrays
        return all_of_them(inner, jax.tree.map(lambda a: a if a.ndim == 1 else a[ids], answer))

    return Metric(measure, (metric.arrays, jnp.asarray(ids, jnp.int32)))


def shared_test(task: Task, x: Array, y: Array, *, nodes: bool = True, batch: int | None = None) -> Metric:
    """Loss and accuracy on a test set that all nodes share.

    Columns: `accuracy`, `test_loss` of the mean model; with `nodes`, for models `[n, d]`, also over nodes
    `node_accuracy` (mean), `worst_decile` (mean of the lowest tenth), `node_spread` (standard deviation) and
    `consensus`, the consensus distance. A server's one model is every node's model. Tasks without accuracy give
    `test_loss`, `node_loss` and `consensus`.

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
    key = "accuracy" if task.correct is not None else "loss"

    def measure(arrays, answer):
        top = scores(task, mean_model(answer), *arrays, batch=batch)
        out = {"test_loss": top["loss"]} | ({"accuracy": top["accuracy"]} if key in top and key != "loss" else {})
        if not nodes:
            return out
        if answer.ndim == 1:
            each, distance = top[key][None], jnp.float32(0)
        else:
            each = map_nodes(lambda shared, row: scores(task, row, *shared, batch=batch)[key], arrays, answer)
            distance = consensus_distance(answer)
        if key == "loss":
            return out | {"node_loss": each.mean(), "consensus": distance}
        spread = {"node_accuracy": each.mean(), "worst_decile": worst(each), "node_spread": each.std()}
        return out | spread | {"consensus": distance}

    return Metric(measure, (x, y))


def training_objective(task: Task, data: Shards) -> Metric:
    """`train_loss` and `gradient_norm` at the mean model of `f = mean_i F_i`, each `F_i` over its whole shard."""
    gradient = local_gradient(task)

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
        rows = answer.reshape(-1, answer.shape[-1])
        gap = rows - optimum
        top = mean_model(answer) - optimum
        return {
            "error": (gap * gap).sum(1).mean(),
            "mean_error": (top * top).sum(),
            "consensus": consensus_distance(rows),
        }

    return Metric(measure, jnp.asarray(optimum, jnp.float32))
