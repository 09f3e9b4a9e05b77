"""How good parts of a model are: each exit of a model that has several, and what each client is handed of it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxfl.core import Array, Metric, node_keys
from jaxfl.errors import InputError
from jaxfl.learn.exits import hits
from jaxfl.learn.submodels import Policy
from jaxfl.learn.task import Task
from jaxfl.mapping.nodes import map_nodes
from jaxfl.measure.metrics import mean_model, node_models


def exit_accuracy(task: Task, x: Array, y: Array) -> Metric:
    """`exit_1`, `exit_2`, ...: the accuracy of each exit of the mean model on `x [N, ...]`, `y [N]`.

    Raises:
        InputError: a task that predicts nothing.
    """
    predict = task.predict
    if predict is None:
        raise InputError("task predicts nothing, but exits need predictions [b, exits, classes].")

    def measure(arrays, answer):
        x, y = arrays
        each = hits(predict(task.unravel(mean_model(answer)), x), y).mean(0)
        return {f"exit_{e}": each[e - 1] for e in range(1, each.shape[0] + 1)}

    return Metric(measure, (x, y))


def handed(metric: Metric, policy: Policy, ids: Sequence[int]) -> Metric:
    """`metric` of what the nodes `ids` are handed of the server's model, or hold of models of their own.

    It sees the answer `{"x": [d], "clients": [k, d]}`: the model itself, or the mean of models, and
    `where(held, x, fill)` of each node, as `policy` has it in round 0 (a policy that draws or moves is not meant).
    So `node_accuracy` of `metrics.shared_test` is the mean over these nodes' own models. One node an architecture is
    enough for a server's model.
    """
    inner = metric.measure

    def measure(arrays, answer):
        arrays, ids = arrays
        rows, key = node_models(answer), jax.random.key(0)

        def cut(shared, row):
            key, i, own = row
            x = shared if own is None else own
            sub = policy(key, i, jnp.int32(0), x)
            return jnp.where(sub.held, x, sub.fill)

        one = rows.ndim == 1
        own = map_nodes(cut, rows if one else None, (node_keys(key, ids), ids, None if one else rows[ids]))
        return inner(arrays, {"x": mean_model(answer), "clients": own})

    return Metric(measure, (metric.arrays, jnp.asarray(ids, jnp.int32)))
