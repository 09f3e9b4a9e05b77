"""FedAvg-M, SCAFFOLD-M and their variance-reduced versions.

The last global direction g enters every local step y <- y - lr * d, with G the mini-batch gradient at y (G' the same
mini-batch at the previous global model x'):

    FedAvg-M       d = b G + (1 - b) g
    SCAFFOLD-M     d = b (G - c_i + c) + (1 - b) g
    FedAvg-M-VR    d = G + (1 - b) (g - G')
    SCAFFOLD-M-VR  d = G - b (c_i - c) + (1 - b) (g - G')

    g <- mean_S (x - y_i) / (lr K),   x <- x - server_lr * g

and controls as in SCAFFOLD (`algorithms.scaffold`). beta = 1 switches the momentum off (the paper's inverted
convention). g and all c start at 0, x' at x. K is a member's own number of steps where `Cohort.steps` differ. A round
in which nobody answers changes nothing.
"""

import jax.numpy as jnp
import optax

from jaxfl.algorithms.server.scaffold import among_all, controlled
from jaxfl.core import Algorithm, Array, State, n_nodes, tile
from jaxfl.errors import require
from jaxfl.exchange.network import Network
from jaxfl.learn.hooks import blend, drift, storm
from jaxfl.learn.local import local_sgd
from jaxfl.learn.optimizer import rate
from jaxfl.learn.task import Task
from jaxfl.mapping.sums import count
from jaxfl.paper import Paper, System

PAPER = Paper(
    "Momentum Benefits Non-IID Federated Learning Simply and Provably",
    "Cheng, Huang, Wu, Yuan",
    "ICLR 2024",
    "https://arxiv.org/abs/2306.16504",
    number="061",
)


def momentum_fl(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array,
    server_lr: float | Array | None,
    beta: float | Array,
    controls: bool,
    reduced: bool,
    steps: int = 10,
    epochs: int | None = None,
    batch: int | None = 16,
) -> Algorithm:
    """The four methods: with or without control variates, with or without variance reduction.

    Rates are numbers, or schedules of the round.
    `server_lr` None is `lr * steps`, which moves the server as far as the mean client moved. `epochs` replaces `steps`
    where given, there by the mean number of steps that members ran; `batch` None is the whole shard.
    """
    require("lr", lr, above=0)
    require("server_lr", server_lr, above=0, none=True)
    require("beta", beta, above=0, most=1)
    if reduced:
        hooks = [drift(beta), storm(beta)] if controls else [storm(beta)]
    else:
        hooks = [drift(), blend(beta)] if controls else [blend(beta)]
    local, most = optax.chain(*hooks, optax.sgd(lr)), None if epochs else steps
    learn = local_sgd(task, local, steps=most, epochs=epochs, batch=batch, keep_gradient=controls)

    def direction(x, y, log, t):
        return (x - y) / (rate(lr, t) * jnp.maximum(log["steps"], 1))

    def plain(key, data, i, x, *, t, **arguments):
        y, log = learn(key, data, i, x, t=t, **arguments)
        return direction(x, y, log, t), log

    member = controlled(learn, direction) if controls else plain

    def init(key, env, x):
        zero = jnp.zeros_like(x)
        message = jnp.concatenate([x, x]) if controls else x
        shared = {"x": x, "g": zero} | ({"previous": x} if reduced else {}) | ({"c": zero} if controls else {})
        return State(shared, tile(zero, n_nodes(env)) if controls else (), net.init(env, message))

    def round(key, env, s):
        x, now = s.shared["x"], s.shared
        handed = {"direction": now["g"]} | ({"previous": now["previous"]} if reduced else {})
        own = {}
        if controls:
            handed |= {"shared_control": now["c"]}
            own = {"memory": {"control": s.nodes}, "factor": among_all(env)}
        got = net.collect(key, env, s.mail, member, x, handed, **own)
        g = jnp.where(got.present, got.mean[: x.size], now["g"])
        new = {"x": jnp.where(got.present, x - server_rate(env, got) * g, x), "g": g}
        new |= ({"previous": x} if reduced else {}) | ({"c": now["c"] + got.filled[x.size :]} if controls else {})
        return State(new, got.memory.get("control", ()), got.mail), got.log

    def server_rate(env, got):
        if server_lr is not None:
            return rate(server_lr, env.t)
        if not epochs:
            return rate(lr, env.t) * steps
        ran = jnp.where(env.cohort.weight > 0, got.each["steps"], 0.0)
        return rate(lr, env.t) * ran.sum() / jnp.maximum(count(env.cohort.weight > 0), 1)

    return Algorithm(init, round, read=lambda s: s.shared["x"])


def fedavg_m(task: Task, net: Network = Network(), *, lr=0.1, server_lr=None, beta=0.1, **kw) -> Algorithm:
    """FedAvg with global momentum in the local steps; `kw` as in `momentum_fl`."""
    return momentum_fl(task, net, lr=lr, server_lr=server_lr, beta=beta, controls=False, reduced=False, **kw)


def scaffold_m(task: Task, net: Network = Network(), *, lr=0.1, server_lr=None, beta=0.1, **kw) -> Algorithm:
    """SCAFFOLD with global momentum in the local steps; `kw` as in `momentum_fl`."""
    return momentum_fl(task, net, lr=lr, server_lr=server_lr, beta=beta, controls=True, reduced=False, **kw)


def fedavg_m_vr(task: Task, net: Network = Network(), *, lr=0.1, server_lr=None, beta=0.1, **kw) -> Algorithm:
    """FedAvg-M with STORM-type variance reduction: two gradients a step; `kw` as in `momentum_fl`."""
    return momentum_fl(task, net, lr=lr, server_lr=server_lr, beta=beta, controls=False, reduced=True, **kw)


def scaffold_m_vr(task: Task, net: Network = Network(), *, lr=0.1, server_lr=None, beta=0.1, **kw) -> Algorithm:
    """SCAFFOLD-M with STORM-type variance reduction: two gradients a step; `kw` as in `momentum_fl`."""
    return momentum_fl(task, net, lr=lr, server_lr=server_lr, beta=beta, controls=True, reduced=True, **kw)


SYSTEMS = {
    "fedavg_m": System(fedavg_m, PAPER),
    "scaffold_m": System(scaffold_m, PAPER),
    "fedavg_m_vr": System(fedavg_m_vr, PAPER),
    "scaffold_m_vr": System(scaffold_m_vr, PAPER),
}
