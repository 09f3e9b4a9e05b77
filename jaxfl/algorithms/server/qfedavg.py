"""q-FedAvg: clients with a high loss count more, the more so the larger q.

With F_k the loss of all samples of client k at x, p_k the cohort's weights and L = 1 / lr,

    D_k = L (x - y_k),   h_k = q F_k^(q-1) |D_k|^2 + L F_k^q,   x <- x - sum_S p_k F_k^q D_k / sum_S p_k h_k.

q = 0 is FedAvg. The paper draws clients in proportion to p_k and takes plain sums; here the cohort's weights stand in
them. What a client's loss makes it count travels with its message, whose last number is h_k: the server divides.
"""

import jax.numpy as jnp
import optax

from jaxfl.core import Algorithm, Array, State
from jaxfl.errors import require
from jaxfl.exchange.network import Network
from jaxfl.learn.local import local_gradient, local_sgd
from jaxfl.learn.task import Task
from jaxfl.paper import Paper, System

PAPER = Paper(
    "Fair Resource Allocation in Federated Learning",
    "Li, Sanjabi, Beirami, Smith",
    "ICLR 2020",
    "https://arxiv.org/abs/1905.10497",
)


def qfedavg(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    q: float | Array = 1.0,
    steps: int = 10,
    epochs: int | None = None,
    batch: int | None = 16,
) -> Algorithm:
    """q-FedAvg with client rate `lr`; `epochs` replaces `steps` where given, `batch` None is the whole shard."""
    require("lr", lr, above=0)
    require("q", q, least=0)
    train = local_sgd(task, optax.sgd(lr), steps=None if epochs else steps, epochs=epochs, batch=batch)
    look = local_gradient(task)

    def member(key, data, i, x, **more):
        y, log = train(key, data, i, x, **more)
        _, there = look(key, data, i, x)
        move, loss = (x - y) / lr, there["loss"] + 1e-10
        h = q * loss ** (q - 1) * (move @ move) + loss**q / lr
        return jnp.append(loss**q * move, h), log | {"gradients": log["gradients"] + there["gradients"]}

    def init(key, env, x):
        return State({"x": x}, (), net.init(env, jnp.append(x, 0.0)))

    def round(key, env, s):
        got = net.collect(key, env, s.mail, member, s.shared["x"])
        above, below = got.mean[:-1], got.mean[-1]  # 0 where nobody answers, or a sparse codec leaves it out
        step = jnp.where(below > 0, above / jnp.where(below > 0, below, 1), 0)
        return State({"x": s.shared["x"] - step}, (), got.mail), got.log

    return Algorithm(init, round, read=lambda s: s.shared["x"])


SYSTEMS = {"qfedavg": System(qfedavg, PAPER)}
