"""FedStale, and FedVARP and MIFA beside it: of the clients who are away the server counts what they sent last.

With u_i = y_i - x the update of client i after K local steps, h_i the last one that the server has of it (0 at first),
alpha_i what it counts among all and w_i among the members S of a round,

    FedStale    x <- x + server_lr [beta sum_i alpha_i h_i + sum_S w_i (u_i - beta h_i)]
    FedVARP     beta = 1
    MIFA        x <- x + server_lr sum_i alpha_i h_i, after h_i <- u_i: FedVARP with w_i = alpha_i
    all         h_i <- u_i,  i in S

where alpha_i h_i is summed over all clients, present or not, at the cost of the members (`exchange.last`). beta = 0 is
FedAvg. With w_i = alpha_i / p_i, where i takes part with probability p_i (`world.uneven.independent`), the step is
unbiased for every beta; p_i may be estimated (`world.uneven.by_intervals`). With plain cohorts w_i is the share among
the members, as in FedVARP. A round in which nobody answers goes on by what is remembered, as in the papers, which for
MIFA have all clients in the first round; here who was never there counts with an update of 0. A member that runs no
step adds nothing to the sum over S, and keeps its h_i. Deviation: alpha_i and w_i are the world's (MIFA and FedVARP
have 1 / n).
"""

import jax.numpy as jnp
import optax

from jaxfl.core import Algorithm, Array, State, counts
from jaxfl.errors import require
from jaxfl.exchange import last, rules
from jaxfl.exchange.network import Network
from jaxfl.learn import server as servers
from jaxfl.learn.local import displacement, local_sgd
from jaxfl.learn.task import Task
from jaxfl.paper import Paper, System

PAPER = Paper(
    "FedStale: leveraging stale client updates in federated learning",
    "Rodio, Neglia",
    "ECAI 2024",
    "https://arxiv.org/abs/2405.04171",
    number="085",
)
FEDVARP = Paper(
    "FedVARP: Tackling the Variance Due to Partial Client Participation in Federated Learning",
    "Jhunjhunwala, Sharma, Nagarkatti, Joshi",
    "UAI 2022",
    "https://arxiv.org/abs/2207.14130",
)
MIFA = Paper(
    "Fast Federated Learning in the Presence of Arbitrary Device Unavailability",
    "Gu, Huang, Zhang, Huang",
    "NeurIPS 2021",
    "https://arxiv.org/abs/2106.04159",
)


def fedstale(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    server_lr: float | Array = 1.0,
    beta: float | Array | None = 0.5,
    steps: int = 10,
    epochs: int | None = None,
    batch: int | None = 16,
) -> Algorithm:
    """FedStale with client rate `lr` and weight `beta` of old updates, 0 to 1; None is MIFA's step.

    `epochs` replaces `steps` where given; `batch` None is the whole shard. Memory: `[n, d]`.
    """
    require("lr", lr, above=0)
    require("server_lr", server_lr, above=0)
    require("beta", beta, least=0, most=1, none=True)
    last.require_mean(net)
    learn = displacement(local_sgd(task, optax.sgd(lr), steps=None if epochs else steps, epochs=epochs, batch=batch))
    tx = servers.for_parameters(optax.sgd(server_lr), task)

    def init(key, env, x):
        shared = {"x": x, "mean": jnp.zeros_like(x), "server": servers.first(tx, x, key)}
        return State(shared, last.table(env, x), net.init(env, x))

    def round(key, env, s):
        x, mean = s.shared["x"], s.shared["mean"]
        got = net.collect(key, env, s.mail, learn, x, hear=True)
        new = last.renew(env, s.nodes, mean, got)
        if beta is None:
            move = new.mean
        else:
            fresh = rules.mean(mean, new.new - beta * new.last, jnp.where(new.news, counts(env.cohort), 0))
            move = beta * mean + fresh
        x, opt = servers.step(tx, -move, s.shared["server"], x, jnp.bool_(True))
        return State({"x": x, "mean": new.mean, "server": opt}, new.table, got.mail), got.log

    return Algorithm(init, round, read=lambda s: s.shared["x"])


def fedvarp(task: Task, net: Network = Network(), *, lr: float | Array = 0.1, **kw) -> Algorithm:
    """FedVARP with client rate `lr`: FedStale with `beta` = 1; `kw` as there."""
    return fedstale(task, net, lr=lr, beta=1.0, **kw)


def mifa(task: Task, net: Network = Network(), *, lr: float | Array = 0.1, **kw) -> Algorithm:
    """MIFA with client rate `lr`; `kw` as in `fedstale`."""
    return fedstale(task, net, lr=lr, beta=None, **kw)


SYSTEMS = {
    "fedstale": System(fedstale, PAPER),
    "fedvarp": System(fedvarp, FEDVARP),
    "mifa": System(mifa, MIFA),
}
