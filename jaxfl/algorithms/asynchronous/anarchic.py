"""Anarchic federated learning: clients take part when they like, for as many steps as they like, from old models.

A client i that read version t - a_i runs K_i local steps of rate lr, another number every time, and sends the mean step

    G_i = (x_{t - a_i} - y_i) / (lr K_i),      y_i <- K_i local steps from x_{t - a_i}.

When m such have come, the set S, the server moves along those who came (cross-device), or along what all clients sent
last (cross-silo), where G_i <- that of the new message for i in S, and 0 before a client's first,

    AFA-CD    x <- x - server_lr lr sum_S w_i G_i,            w_i of the members, sum 1
    AFA-CS    x <- x - server_lr lr sum_i p_i G_i             over all clients (`exchange.last`).

Where some come more often than others AFA-CD stops at the optimum of those who come, AFA-CS at that of sum_i p_i F_i.
The paper has w_i = 1 / m and p_i = 1 / n, here they are the world's. `lr G_i` is sent, so that any local optimizer
serves. A client that runs no step has no direction: in AFA-CD it counts with 0, in AFA-CS with its last. What arrives
from more than `longest` versions ago is dropped.
"""

import jax.numpy as jnp
import optax

from jaxfl.core import Algorithm, Array, State, ages
from jaxfl.errors import require
from jaxfl.exchange import last
from jaxfl.exchange.network import Network
from jaxfl.exchange.staleness import Staleness, counted
from jaxfl.exchange.versions import push, recall, versions
from jaxfl.learn import server as servers
from jaxfl.learn.local import local_sgd
from jaxfl.learn.task import Task
from jaxfl.paper import Paper, System

PAPER = Paper(
    "Anarchic Federated Learning",
    "Yang, Zhang, Khanduri, Liu",
    "ICML 2022",
    "https://arxiv.org/abs/2108.09875",
    number="050",
)


def anarchic(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array,
    server_lr: float | Array,
    longest: int,
    silo: bool,
    steps: int = 10,
    epochs: int | None = None,
    batch: int | None = 16,
) -> Algorithm:
    """AFA-CS (`silo`) or AFA-CD. `epochs` replaces `steps` where given; `batch` None is the whole shard.

    Memory: `longest + 1` models, with `silo` one more a client.
    """
    require("lr", lr, above=0)
    require("server_lr", server_lr, above=0)
    require("longest", longest, least=0, whole=True)
    if silo:
        last.require_mean(net)
    train = local_sgd(task, optax.sgd(lr), steps=None if epochs else steps, epochs=epochs, batch=batch)
    parameters = servers.parameters_alone(task)
    tx = servers.for_parameters(optax.sgd(server_lr), task)

    def member(key, data, i, x, **more):
        y, log = train(key, data, i, x, **more)
        move = parameters(y - x)
        return move / jnp.maximum(log["steps"], 1) + (y - x - move), log  # statistics are averaged as they are

    def init(key, env, x):
        shared = {"x": x, "server": servers.first(tx, x, key), "past": versions(x, longest + 1)}
        nodes = last.table(env, x) if silo else ()
        return State(shared | ({"mean": jnp.zeros_like(x)} if silo else {}), nodes, net.init(env, x))

    def round(key, env, s):
        c, _, aged = counted(Staleness(longest, normalised=True), env.cohort)
        env, x, past = env._replace(cohort=c), s.shared["x"], s.shared["past"]
        got = net.collect(key, env, s.mail, member, recall(past, ages(c)), hear=silo)
        if silo:
            new = last.renew(env, s.nodes, s.shared["mean"], got)
            move, nodes, more = new.mean, new.table, {"mean": new.mean}
        else:
            move, nodes, more = got.mean, (), {}
        x, opt = servers.step(tx, -move, s.shared["server"], x, got.present)
        return State({"x": x, "server": opt, "past": push(past, x)} | more, nodes, got.mail), got.log | aged

    return Algorithm(init, round, read=lambda s: s.shared["x"])


def afa_cd(
    task: Task, net: Network = Network(), *, lr: float | Array = 0.1, server_lr: float | Array = 5.0, longest=32, **kw
) -> Algorithm:
    """AFA-CD with client rate `lr` and server rate `server_lr`, in mean local steps; `kw` as in `anarchic`."""
    return anarchic(task, net, lr=lr, server_lr=server_lr, longest=longest, silo=False, **kw)


def afa_cs(
    task: Task, net: Network = Network(), *, lr: float | Array = 0.1, server_lr: float | Array = 5.0, longest=32, **kw
) -> Algorithm:
    """AFA-CS with client rate `lr` and server rate `server_lr`, in mean local steps; `kw` as in `anarchic`."""
    return anarchic(task, net, lr=lr, server_lr=server_lr, longest=longest, silo=True, **kw)


SYSTEMS = {"afa_cd": System(afa_cd, PAPER), "afa_cs": System(afa_cs, PAPER)}
