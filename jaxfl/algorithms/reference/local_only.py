"""Local-only training, a reference line: every node trains on its own data and nobody talks."""

import jax.numpy as jnp
import optax

from jaxfl.core import Algorithm, Array, State, n_nodes, tile
from jaxfl.errors import require
from jaxfl.learn.local import local_sgd
from jaxfl.learn.task import Task
from jaxfl.mapping.at import at
from jaxfl.paper import System


def local_only(
    task: Task,
    *,
    lr: float | Array = 0.1,
    steps: int = 10,
    epochs: int | None = None,
    batch: int | None = 16,
) -> Algorithm:
    """`steps` (or `epochs`) of SGD a round at every node. Nothing is communicated."""
    require("lr", lr, above=0)
    learn = local_sgd(task, optax.sgd(lr), steps=None if epochs else steps, epochs=epochs, batch=batch)

    def round(key, env, s):
        x = at(jnp.arange(n_nodes(env)), learn)(key, env, s.nodes)
        return State((), x.rows), x.log

    return Algorithm(lambda key, env, x: State((), tile(x, n_nodes(env))), round, read=lambda s: s.nodes)


SYSTEMS = {"local_only": System(local_only)}
