"""Centralized SGD, a reference line: one model trained on the union of all shards, at the mean speed of the nodes."""

import optax

from jaxfl.core import Algorithm, Array, Log, State
from jaxfl.data.partition import pooled
from jaxfl.errors import require
from jaxfl.learn.local import local_sgd
from jaxfl.learn.task import Task
from jaxfl.paper import System


def centralized(
    task: Task,
    *,
    lr: float | Array = 0.1,
    steps: int = 10,
    epochs: int | None = None,
    batch: int | None = 16,
) -> Algorithm:
    """`steps` (or `epochs`) of SGD a round on the pooled data. Nothing is communicated."""
    require("lr", lr, above=0)
    learn = local_sgd(task, optax.sgd(lr), steps=None if epochs else steps, epochs=epochs, batch=batch)

    def round(key, env, s):
        x, log = learn(key, pooled(env.data), 0, s.shared["x"], t=env.t)
        spent = {} if env.links is None else {"seconds": log["steps"] * env.links.step.mean()}
        return State({"x": x}), Log(loss=log["loss"], gradients=log["gradients"]) | spent

    return Algorithm(lambda key, env, x: State({"x": x}), round, read=lambda s: s.shared["x"])


SYSTEMS = {"centralized": System(centralized)}
