"""FedNova: clients that run more steps do not pull the model to their own optimum.

Client i runs tau_i local steps (`Cohort.steps`, epochs of unequal shards), which add up its gradients with weights a_i,

    d_i = (x - y_i) / (lr |a_i|_1),   tau = sum_S p_i |a_i|_1,   x <- x - lr tau sum_S p_i d_i,

with p_i the cohort's weights. Plain SGD has |a_i|_1 = tau_i; with heavy-ball `momentum` rho, anew every round, it is
[tau_i - rho (1 - rho^tau_i) / (1 - rho)] / (1 - rho); with a proximal term `mu`, [1 - (1 - lr mu)^tau_i] / (lr mu).
All of these, and both at once, are what tau_i steps on a gradient of 1 sum up to. Where all run alike it is FedAvg. The
last number of a message is |a_i|_1; who runs no step sends 0.
"""

import jax
import jax.numpy as jnp
import optax

from jaxfl.core import Algorithm, Array, State
from jaxfl.errors import require
from jaxfl.exchange.network import Network
from jaxfl.learn.hooks import prox
from jaxfl.learn.local import local_sgd
from jaxfl.learn.optimizer import rate
from jaxfl.learn.task import Task
from jaxfl.paper import Paper, System

PAPER = Paper(
    "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization",
    "Wang, Liu, Liang, Joshi, Poor",
    "NeurIPS 2020",
    "https://arxiv.org/abs/2007.07481",
)


def fednova(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    momentum: float | Array = 0.0,
    mu: float | Array = 0.0,
    steps: int = 10,
    epochs: int | None = None,
    batch: int | None = 16,
) -> Algorithm:
    """FedNova with client rate `lr`; `epochs` replaces `steps` where given, `batch` None is the whole shard."""
    require("lr", lr, above=0)
    require("momentum", momentum, least=0, below=1)
    require("mu", mu, least=0)
    local = optax.chain(prox(mu), optax.sgd(lr, momentum=momentum))
    train = local_sgd(task, local, steps=None if epochs else steps, epochs=epochs, batch=batch)

    def total(tau: Array, lr: float | Array) -> Array:
        """`|a|_1`: how far, over the rate, `tau` steps on a gradient of 1 go."""

        def step(_, carry):
            far, v = carry
            v = momentum * v + 1 - lr * mu * far
            return far + v, v

        return jax.lax.fori_loop(0, tau.astype(jnp.int32), step, (jnp.float32(0), jnp.float32(0)))[0]

    def member(key, data, i, x, *, t, **more):
        y, log = train(key, data, i, x, t=t, **more)
        a = total(log["steps"], rate(lr, t))
        return jnp.append((x - y) / jnp.where(a > 0, a, 1), a), log

    def init(key, env, x):
        return State({"x": x}, (), net.init(env, jnp.append(x, 0.0)))

    def round(key, env, s):
        got = net.collect(key, env, s.mail, member, s.shared["x"])
        return State({"x": s.shared["x"] - got.mean[-1] * got.mean[:-1]}, (), got.mail), got.log

    return Algorithm(init, round, read=lambda s: s.shared["x"])


SYSTEMS = {"fednova": System(fednova, PAPER)}
