"""Asynchronous Local-SGD with Delayed Nesterov: the server's momentum moves once in N arrivals.

A worker that read version t - a runs H steps of AdamW on its shard and sends g = x_{t-a} - y. The server applies it at
once, and renews and applies its momentum with every N-th arrival alone,

    B <- B + g
    every N-th:  m <- b m + B / N,  B <- 0,     x <- x - eps ((1 - c N + c) b m + g / N)
    else:                                       x <- x - eps (c b m + g / N)

(`learn.server.delayed_nesterov`). Its clock is `delivery.quorum(n, 1, seconds)`, where everyone always works, or
`clock.buffered` with goal 1. Dynamic Local Updates, H_i = floor(v_i / max v H) by the workers' speeds, are a world:
`work.bounded(clock, work.dynamic_steps(speed, H))`, with durations H_i / v_i. Equal ages are what they are for.

Deviations: a worker is its shard (the paper hands a free worker the shard that lags most); its AdamW state stays with
it, at a constant rate unless `local` has a schedule; an answer older than `longest` versions is dropped. With several
arrivals a version, g is their mean.
"""

import optax

from jaxfl.algorithms.server.fedopt import fedopt
from jaxfl.core import Algorithm, Array
from jaxfl.errors import require
from jaxfl.exchange.network import Network
from jaxfl.exchange.staleness import Staleness, constant
from jaxfl.learn.server import delayed_nesterov
from jaxfl.learn.task import Task
from jaxfl.paper import Paper, System

PAPER = Paper(
    "Asynchronous Local-SGD Training for Language Modeling",
    "Liu, Chhaparia, Douillard, Kale, Rusu, Shen, Szlam, Ranzato",
    "2024",
    "https://arxiv.org/abs/2401.09135",
    number="076",
)


def async_local_sgd(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 1e-3,
    local: optax.GradientTransformation | None = None,
    server_lr: float | Array = 0.7,
    momentum: float | Array = 0.9,
    delay: int = 4,
    spread: float | Array = 0.0,
    longest: int = 32,
    keep_state: bool = True,
    **kw,
) -> Algorithm:
    """Asynchronous Local-SGD. Memory: `longest + 1` models, and what `local` keeps for each worker.

    Args:
        task: what is learned.
        net: how pseudo-gradients travel.
        lr: rate of the workers' AdamW, where `local` is None.
        local: the workers' optimizer.
        server_lr: rate of the server, eps.
        momentum: of the server, b.
        delay: arrivals N from one step of the momentum to the next; the paper has as many as workers. 1 is Nesterov.
        spread: c in [0, 1 / N], how much of the momentum moves the model in between.
        longest: age in versions above which an arrival is dropped.
        keep_state: whether a worker's optimizer goes on where it was.
        kw: as in `fedopt`.
    """
    require("lr", lr, above=0)
    require("longest", longest, least=0, whole=True)
    inner = optax.adamw(lr) if local is None else local
    outer = delayed_nesterov(server_lr, momentum, delay, spread)
    return fedopt(
        task, net, local=inner, server=outer, stale=Staleness(longest, constant()), keep_state=keep_state, **kw
    )


SYSTEMS = {"async_local_sgd": System(async_local_sgd, PAPER)}
