"""FedAvg-M, SCAFFOLD-M and their variance-reduced versions.

Momentum Benefits Non-IID Federated Learning Simply and Provably; Cheng, Huang, Wu, Yuan; ICLR 2024;
https://arxiv.org/abs/2306.16504 (card 061). The last global direction g enters every local step
y <- y - lr * d, with G the mini-batch gradient at y (G' the same mini-batch at the previous global model x'):

    FedAvg-M       d = b G + (1 - b) g
    SCAFFOLD-M     d = b (G - c_i + c) + (1 - b) g
    FedAvg-M-VR    d = G + (1 - b) (g - G')
    SCAFFOLD-M-VR  d = G - b (c_i - c) + (1 - b) (g - G')

    g <- mean_S (x - y_i) / (lr K),   x <- x - server_lr * g
    c_i <- mean over the K steps of G, i in S,   c <- c + sum_S (c_i_new - c_i) / n

beta = 1 switches the momentum off (the paper's inverted convention). g and all c start at 0, x' at x. K is a
member's own number of steps where `Cohort.steps` differ.
"""

import jax
import jax.numpy as jnp
import optax

from jaxfl.core import Algorithm, Array, State, n_nodes, require, tile
from jaxfl.exchange.network import Network
from jaxfl.learn.hooks import blend, drift, storm
from jaxfl.learn.local import local_sgd, train_log
from jaxfl.learn.task import Task


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
    batch: int | None = 16,
) -> Algorithm:
    """The four methods: with or without control variates, with or without variance reduction.

    `server_lr` None is `lr * steps`, which moves the server as far as the mean client moved.
    """
    require("lr", lr, above=0)
    require("server_lr", server_lr, above=0)
    require("beta", beta, above=0, most=1)
    rate = lr * steps if server_lr is None else server_lr
    if reduced:
        hooks = [drift(beta), storm(beta)] if controls else [storm(beta)]
    else:
        hooks = [drift(), blend(beta)] if controls else [blend(beta)]
    local = optax.chain(*hooks, optax.sgd(lr))
    learn = local_sgd(task, local, steps=steps, batch=batch, keep_gradient=controls)

    def member(key, data, i, x, **vectors):
        """The message of one client: its mean direction, and the change of its control."""
        y, log = learn(key, data, i, x, **vectors)
        direction = (x - y) / (lr * jnp.maximum(log["steps"], 1))
        if not controls:
            return direction, log
        new = log.pop("gradient")
        return jnp.concatenate([direction, new - vectors["control"]]), log | {"control": new}

    def init(key, env, x):
        zero = jnp.zeros_like(x)
        message = jnp.concatenate([x, x]) if controls else x
        shared = {"x": x, "g": zero} | ({"previous": x} if reduced else {}) | ({"c": zero} if controls else {})
        return State(shared, tile(zero, n_nodes(env)) if controls else (), net.init(env, message))

    def round(key, env, s):
        c, now = env.cohort, s.shared
        told = {"direction": now["g"]} | ({"previous": now["previous"]} if reduced else {})
        told |= {"shared_control": now["c"]} if controls else {}
        kept = {"control": s.nodes} if controls else None
        mean, log, mail, cost = net.collect(key, env, s.mail, member, now["x"], told, steps=c.steps, kept=kept)
        d = now["x"].size
        new = {"x": now["x"] - rate * mean[:d], "g": mean[:d]} | ({"previous": now["x"]} if reduced else {})
        if controls:
            new["c"] = now["c"] + ((c.weight > 0).sum() / n_nodes(env)) * mean[d:]
        nodes = log.get("control", ())
        return State(new, nodes, mail), train_log(log, c) | net.broadcast(env, *jax.tree.leaves(now)) | cost

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
