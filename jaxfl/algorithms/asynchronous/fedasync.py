"""FedAsync: every arrival at once, mixed into the server's model.

A member that read version t - a approximately minimises F_i(y) + rho / 2 |y - x_{t - a}|^2 from there, and the server
mixes

    x <- (1 - alpha s(a)) x + alpha s(a) y_i.

Its clock is `world.clock.buffered` with `goal = 1`. With more than one arrival a round the server mixes in their
weighted mean, `x + alpha sum_S s(a_i) p_i (y_i - x) / sum_S p_i`. An arrival older than `longest` versions is dropped.
"""

from collections.abc import Callable

import optax

from jaxfl.algorithms.server.fedopt import fedopt
from jaxfl.core import Algorithm, Array
from jaxfl.errors import require
from jaxfl.exchange.network import Network
from jaxfl.exchange.staleness import Staleness, polynomial
from jaxfl.learn.hooks import prox
from jaxfl.learn.task import Task
from jaxfl.paper import Paper, System

PAPER = Paper(
    "Asynchronous Federated Optimization",
    "Xie, Koyejo, Gupta",
    "2019",
    "https://arxiv.org/abs/1903.03934",
)


def fedasync(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    alpha: float | Array = 0.6,
    rho: float | Array = 0.0,
    discount: Callable | None = None,
    longest: int = 32,
    **kw,
) -> Algorithm:
    """FedAsync with client rate `lr`, mixing weight `alpha` and proximal weight `rho`. Memory: `longest + 1` models.

    `discount` is one of `exchange.staleness`; None is `polynomial(0.5)`. `kw` as in `fedopt`.
    """
    require("lr", lr, above=0)
    require("alpha", alpha, above=0, most=1)
    require("rho", rho, least=0)
    require("longest", longest, least=0, whole=True)
    stale = Staleness(longest, discount or polynomial(0.5), mixing=True)
    local = optax.chain(prox(rho), optax.sgd(lr))
    return fedopt(task, net, local=local, server=optax.sgd(alpha), stale=stale, **kw)


SYSTEMS = {"fedasync": System(fedasync, PAPER)}
