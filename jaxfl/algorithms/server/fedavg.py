"""FedAvg and FedSGD.

Each round a cohort S trains from x and

    x <- sum_S n_k y_k / sum_S n_k.

The published pseudo-code divides by the size of the whole population; the consistent form above divides by the
cohort's. Sizes `n_k` are the cohort's weights (`world.scenario` sets them to the shard sizes).
"""

import optax

from jaxfl.algorithms.server.fedopt import fedopt
from jaxfl.core import Algorithm, Array
from jaxfl.errors import require
from jaxfl.exchange.network import Network
from jaxfl.learn.task import Task
from jaxfl.paper import Paper, System

PAPER = Paper(
    "Communication-Efficient Learning of Deep Networks from Decentralized Data",
    "McMahan, Moore, Ramage, Hampson, Aguera y Arcas",
    "AISTATS 2017",
    "https://arxiv.org/abs/1602.05629",
    number="056",
)


def fedavg(
    task: Task, net: Network = Network(), *, lr: float | Array = 0.1, server_momentum: float | Array | None = None, **kw
) -> Algorithm:
    """FedAvg with client rate `lr`; `server_momentum` makes it FedAvgM (Hsu et al., 2019). `kw` as in `fedopt`."""
    require("lr", lr, above=0)
    require("server_momentum", server_momentum, least=0, below=1, none=True)
    server = None if server_momentum is None else optax.sgd(1.0, momentum=server_momentum)
    return fedopt(task, net, local=optax.sgd(lr), server=server, **kw)


def fedsgd(task: Task, net: Network = Network(), *, lr: float | Array = 0.1) -> Algorithm:
    """FedSGD: one gradient of the whole shard a client and round, `x <- x - lr sum_S n_k grad F_k(x) / sum_S n_k`."""
    return fedavg(task, net, lr=lr, steps=1, batch=None)


SYSTEMS = {
    "fedavg": System(fedavg, PAPER),
    "fedsgd": System(fedsgd, PAPER),
}
