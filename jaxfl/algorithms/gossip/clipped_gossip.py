"""ClippedGossip: Byzantine-robust decentralized SGD, in which every node clips its neighbours around itself.

Of every node i, with the mini-batch gradient g_i(x_i) and mixing weights w_ij,

    m_i <- beta m_i + (1 - beta) g_i(x_i),   m_i = g_i at the first step
    y_i <- x_i - lr m_i
    x_i <- y_i + sum_j w_ij (y_j - y_i) min(1, tau_i / |y_j - y_i|)

The radius is a number, or adapts in every round: `exchange.rules.adaptive_radius`, a form of the paper's
tau_i^2 = 1 / delta sum_(honest j) w_ij |y_j - y_i|^2 that does not know who is honest (the authors' code takes the
second largest distance instead).
"""

import optax

from jaxfl.algorithms.gossip.dsgd import gossip_training
from jaxfl.core import Algorithm, Array
from jaxfl.errors import require
from jaxfl.exchange.network import Network
from jaxfl.exchange.rules import adaptive_radius, centered_clipping
from jaxfl.learn.hooks import worker_momentum
from jaxfl.learn.task import Task
from jaxfl.paper import Paper, System

PAPER = Paper(
    "Byzantine-Robust Decentralized Learning via ClippedGossip",
    "He, Karimireddy, Jaggi",
    "2022",
    "https://arxiv.org/abs/2202.01545",
)


def clipped_gossip(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    beta: float | Array = 0.9,
    delta: float | Array = 0.2,
    tau: float | Array | None = None,
    **kw,
) -> Algorithm:
    """ClippedGossip of radius `tau`, in place of `net.rule`; `kw` as in `gossip_training`, one local step by default.

    Where `tau` is None it adapts to liars of total mixing weight at most `delta` in every neighbourhood.
    """
    rule = centered_clipping(adaptive_radius(delta) if tau is None else tau)
    return robust_gossip(task, net.fill("clipped_gossip", rule=rule), lr=lr, beta=beta, **kw)


def robust_gossip(
    task: Task, net: Network = Network(), *, lr: float | Array = 0.1, beta: float | Array = 0.9, **kw
) -> Algorithm:
    """D-SGD with worker momentum that is kept across rounds, joined by any `net.rule`; `kw` as in `gossip_training`."""
    require("lr", lr, above=0)
    local = optax.chain(worker_momentum(beta), optax.sgd(lr))
    return gossip_training(task, net, local=local, keep_state=True, **kw)


SYSTEMS = {
    "robust_gossip": System(robust_gossip, PAPER),
    "clipped_gossip": System(clipped_gossip, PAPER),
}
