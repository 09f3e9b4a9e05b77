"""SCAFFOLD: control variates take the drift of unlike clients out of local steps.

With option II of the paper for the clients' controls, and client i counting p_i among all (sum 1; the paper has 1 / n)
and w_i among the members S of a round (sum 1),

    y <- y - lr (G - c_i + c),  K times from x,      c_i' <- mean over the K steps of G
    x <- x + server_rate sum_S w_i (y_i - x),        c <- c + sum_S p_i (c_i' - c_i),        c_i <- c_i',

so that c = sum_i p_i c_i over all clients, present or not: where clients weigh by size the fixed point is the optimum
of sum_i p_i F_i, FedAvg's objective. All controls start at 0. Who runs no step keeps its control.
"""

from collections.abc import Callable

import jax.numpy as jnp
import optax

from jaxfl.core import Algorithm, Array, Env, State, counts, n_nodes, shares, tile
from jaxfl.errors import require
from jaxfl.exchange.network import Network
from jaxfl.learn import server as servers
from jaxfl.learn.hooks import drift
from jaxfl.learn.local import local_sgd
from jaxfl.learn.task import Task
from jaxfl.paper import Paper, System

PAPER = Paper(
    "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
    "Karimireddy, Kale, Mohri, Reddi, Stich, Suresh",
    "ICML 2020",
    "https://arxiv.org/abs/1910.06378",
)


def scaffold(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    server_rate: float | Array = 1.0,
    transform: optax.GradientTransformation | None = None,
    steps: int = 10,
    epochs: int | None = None,
    batch: int | None = 16,
) -> Algorithm:
    """SCAFFOLD with client rate `lr` and the share `server_rate` of the mean move that the server takes.

    `transform` is what becomes of that move before, an optax transformation (`learn.cross_layer`); controls are exact.
    `epochs` replaces `steps` where given; `batch` None is the whole shard. A message is two vectors, up and down.
    """
    require("lr", lr, above=0)
    require("server_rate", server_rate, above=0)
    local = optax.chain(drift(), optax.sgd(lr))
    learn = local_sgd(task, local, steps=None if epochs else steps, epochs=epochs, batch=batch, keep_gradient=True)
    member = controlled(learn, lambda x, y, log, t: y - x)

    def init(key, env, x):
        zero = jnp.zeros_like(x)
        shared = {"x": x, "c": zero}
        if transform is not None:
            shared["transform"] = servers.first(transform, x, key)
        return State(shared, tile(zero, n_nodes(env)), net.init(env, jnp.concatenate([x, x])))

    def round(key, env, s):
        x, c = s.shared["x"], s.shared["c"]
        handed, memory = {"shared_control": c}, {"control": s.nodes}
        got = net.collect(key, env, s.mail, member, x, handed, memory=memory, factor=among_all(env))
        move, change = got.mean[: x.size], got.filled[x.size :]
        move, opt = servers.transformed(transform, move, s.shared.get("transform", ()), x, got.present)
        shared = {"x": x + server_rate * move, "c": c + change} | ({} if transform is None else {"transform": opt})
        return State(shared, got.memory["control"], got.mail), got.log

    return Algorithm(init, round, read=lambda s: s.shared["x"])


def controlled(learn: Callable, message: Callable) -> Callable:
    """`learn` of a client with a `control`: it sends `message(x, y, log, t)` and `factor` times its control's change.

    `learn` keeps the mean gradient (`local_sgd(keep_gradient=True)`), which is the new control (option II).
    """

    def member(key, data, i, x, *, t, control, factor, **arguments):
        y, log = learn(key, data, i, x, t=t, control=control, **arguments)
        new = jnp.where(log["steps"] > 0, log.pop("gradient"), control)
        return jnp.concatenate([message(x, y, log, t), factor * (new - control)]), log | {"control": new}

    return member


def among_all(env: Env) -> Array:
    """`p_i / w_i` `[c]`: what turns a mean over members into what they add to a mean over all clients."""
    weight = counts(env.cohort)
    return jnp.where(weight > 0, shares(env)[env.cohort.ids] / jnp.where(weight > 0, weight, 1), 0)


SYSTEMS = {"scaffold": System(scaffold, PAPER)}
