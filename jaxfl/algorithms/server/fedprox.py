"""FedProx.

Client k approximately minimises

    h_k(w; x) = F_k(w) + mu / 2 |w - x|^2

for as many steps as it can this round (`Cohort.steps`), and partial work is averaged instead of dropped. mu = 0 with
equal work is FedAvg.
"""

import optax

from jaxfl.algorithms.server.fedopt import fedopt
from jaxfl.core import Algorithm, Array
from jaxfl.errors import require
from jaxfl.exchange.network import Network
from jaxfl.learn.hooks import prox
from jaxfl.learn.task import Task
from jaxfl.paper import Paper, System

PAPER = Paper(
    "Federated Optimization in Heterogeneous Networks",
    "Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith",
    "MLSys 2020",
    "https://arxiv.org/abs/1812.06127",
    number="037",
)


def fedprox(
    task: Task, net: Network = Network(), *, lr: float | Array = 0.1, mu: float | Array = 0.1, **kw
) -> Algorithm:
    """FedProx with client rate `lr` and proximal weight `mu`; `kw` as in `fedopt`."""
    require("lr", lr, above=0)
    require("mu", mu, least=0)
    return fedopt(task, net, local=optax.chain(prox(mu), optax.sgd(lr)), **kw)


SYSTEMS = {"fedprox": System(fedprox, PAPER)}
