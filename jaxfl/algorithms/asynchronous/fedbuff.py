"""FedBuff and Papaya: buffered asynchronous federated learning.

Federated Learning with Buffered Asynchronous Aggregation; Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba; AISTATS
2022; https://arxiv.org/abs/2106.06639. A member i that read version t - a_i trains from it,

    y_i <- local training from x_{t - a_i} on the data of node i

and when the K-th arrives (`world.clock.buffered`) the server discounts what is stale,

    Delta <- sum_S s(a_i) p_i (y_i - x_{t - a_i}) / sum_S p_i,    s(a) = 1 / sqrt(1 + a),    x <- ServerOpt(x, -Delta).

With equal `p_i` this divides by K as the paper does; `normalised` divides by the sum of discounted weights. Papaya is
FedBuff whose server sees only masked messages (`exchange.secure`). If nobody is stale it is FedOpt, bit for bit.

Deviation: an arrival older than `longest` versions is dropped but fills a place of the buffer (in FLSim it does not);
the log's `dropped` counts them.
"""

from collections.abc import Callable

import optax

from jaxfl.algorithms.server.fedopt import fedopt
from jaxfl.core import Algorithm, Array
from jaxfl.errors import require
from jaxfl.exchange.network import Network
from jaxfl.exchange.secure import enclave
from jaxfl.exchange.staleness import Staleness, polynomial
from jaxfl.learn.task import Task
from jaxfl.paper import Paper, System

PAPER = Paper(
    "Papaya: Practical, Private, and Scalable Federated Learning",
    "Huba, Nguyen, Malik, Zhu, Rabbat, Yousefpour, Wu, Zhan, Ustinov, Srinivas, Wang, Shoumikhin, Min, Malek",
    "MLSys 2022",
    "https://arxiv.org/abs/2111.04877",
    number="038",
)
FEDBUFF = Paper(
    "Federated Learning with Buffered Asynchronous Aggregation",
    "Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba",
    "AISTATS 2022",
    "https://arxiv.org/abs/2106.06639",
)


def fedbuff(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    server_lr: float | Array = 1.0,
    server_momentum: float | Array | None = None,
    discount: Callable | None = None,
    longest: int = 32,
    normalised: bool = False,
    **kw,
) -> Algorithm:
    """FedBuff with client rate `lr`. Memory: `longest + 1` models.

    Args:
        task: what is learned.
        net: how messages travel.
        lr: rate of local SGD.
        server_lr: rate of the server.
        server_momentum: heavy-ball momentum of the server, None for none.
        discount: `s(age)` of `exchange.staleness`; None is `polynomial(0.5)`.
        longest: age in versions above which an arrival is dropped.
        normalised: divide by the sum of discounted weights.
        kw: as in `fedopt`.
    """
    require("lr", lr, above=0)
    require("server_lr", server_lr, above=0)
    require("server_momentum", server_momentum, least=0, below=1, none=True)
    require("longest", longest, least=0, whole=True)
    stale = Staleness(longest, discount or polynomial(0.5), normalised)
    server = optax.sgd(server_lr, momentum=server_momentum)
    return fedopt(task, net, local=optax.sgd(lr), server=server, stale=stale, **kw)


def papaya(
    task: Task, net: Network = Network(), *, resolution: float | Array = 2.0**-16, levels: int = 256, **kw
) -> Algorithm:
    """FedBuff under secure aggregation: `resolution` and `levels` of `exchange.secure.enclave`, `kw` as in `fedbuff`.

    Raises:
        InputError: `net` has a codec, a rule or a collective, which masked sums replace.
    """
    return fedbuff(task, net.fill("papaya", collective=enclave(resolution, levels)), **kw)


SYSTEMS = {
    "fedbuff": System(fedbuff, FEDBUFF),
    "papaya": System(papaya, PAPER),
}
