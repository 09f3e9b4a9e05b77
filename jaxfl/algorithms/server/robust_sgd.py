"""Byzantine-robust SGD at a server with momentum at the workers, and its rule, centered clipping.

With the workers `i` of a round, their mini-batch gradients g_i(x), and the rule CC of radius tau, repeated L times from
what it gave in the round before (0 at the start),

    m_i <- beta m_i + (1 - beta) g_i(x),   m_i = g_i(x) at its first step
    v <- v + mean_i (m_i - v) min(1, tau / |m_i - v|)
    x <- x - lr v

The authors' code has m_i <- beta m_i + g_i: there tau is larger and lr smaller by a factor 1 / (1 - beta). Any other
rule of `exchange.rules` takes the place of CC through `robust_sgd`. Where only a cohort takes part, the others keep
their momentum.
"""

import jax.numpy as jnp
import optax

from jaxfl.core import Algorithm, Array, State, n_nodes, stream
from jaxfl.errors import require
from jaxfl.exchange.network import Network
from jaxfl.exchange.rules import centered_clipping
from jaxfl.learn import server as servers
from jaxfl.learn.hooks import worker_momentum
from jaxfl.learn.local import local_gradient
from jaxfl.learn.optimizer import begin_nodes
from jaxfl.learn.task import Task
from jaxfl.paper import Paper, System

PAPER = Paper(
    "Learning from History for Byzantine Robust Optimization",
    "Karimireddy, He, Jaggi",
    "ICML 2021",
    "https://arxiv.org/abs/2012.10333",
    number="074",
)


def robust_sgd(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    beta: float | Array = 0.9,
    batch: int | None = 16,
    worker: optax.GradientTransformation | None = None,
    server: optax.GradientTransformation | None = None,
) -> Algorithm:
    """Distributed SGD: one gradient a worker and round, sent through the worker's own momentum, joined by `net.rule`.

    `worker` replaces `worker_momentum(beta)` by another optax transformation of rows `[d]`, `server` replaces
    `optax.sgd(lr)`; `batch` None is the whole shard. Who computes no gradient in a round sends none. Logs `loss`,
    `gradients`, bits.
    """
    require("lr", lr, above=0)
    gradient = local_gradient(task, batch=batch)
    up, down = optax.with_extra_args_support(worker or worker_momentum(beta)), server or optax.sgd(lr)

    def member(key, data, i, x, *, state, **arguments):
        g, log = gradient(key, data, i, x, **arguments)
        message, state = up.update(g, state, x, key=stream(key, "worker"), value=log["loss"], t=arguments["t"])
        return message, log | {"state": state}

    def init(key, env, x):
        shared = {"x": x, "v": jnp.zeros_like(x), "server": servers.first(down, x, key)}
        return State(shared, begin_nodes(up, x, n_nodes(env), key), net.init(env, x))

    def round(key, env, s):
        c, now = env.cohort, s.shared
        if c.steps is not None:
            env = env._replace(cohort=c._replace(weight=jnp.where(c.steps > 0, c.weight, 0)))
        got = net.collect(key, env, s.mail, member, now["x"], memory={"state": s.nodes}, reference=now["v"])
        x, opt = servers.step(down, got.mean, now["server"], now["x"], got.present)
        v = jnp.where(got.present, got.mean, now["v"])
        return State({"x": x, "v": v, "server": opt}, got.memory["state"], got.mail), got.log

    return Algorithm(init, round, read=lambda s: s.shared["x"])


def learning_from_history(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    beta: float | Array = 0.9,
    tau: float | Array = 10.0,
    iterations: int = 1,
    batch: int | None = 16,
) -> Algorithm:
    """The paper's system: `robust_sgd` with centered clipping of radius `tau` in place of `net.rule`.

    `tau` is in the units of a gradient; the paper's code has 10 without momentum and, in its scale, 100 with 0.99.
    """
    via = net.fill("learning_from_history", rule=centered_clipping(tau, iterations))
    return robust_sgd(task, via, lr=lr, beta=beta, batch=batch)


SYSTEMS = {
    "robust_sgd": System(robust_sgd, PAPER),
    "learning_from_history": System(learning_from_history, PAPER),
}
