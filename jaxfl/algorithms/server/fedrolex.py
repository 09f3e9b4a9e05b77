"""FedRolex: as HeteroFL, but the units that clients train roll on by one each round, so that all are trained.

With `n` units in a hidden layer, in round t client i trains the units `t speed, ..., t speed + s_i n - 1`, modulo n:

    y_i <- local training from M_i * x, moving M_i alone,   M_i between these units of each hidden layer
    x_j <- sum_S p_i M_ij y_ij / sum_S p_i M_ij,   and as it was where no member has it.

Client `i` has the entry `i % len` of `share`; the paper's are those of HeteroFL, and `p_i` is the cohort's weight.
"""

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.core import Algorithm, Array
from jaxfl.errors import require
from jaxfl.exchange.network import Network
from jaxfl.learn.submodels import Profile, rolling
from jaxfl.learn.task import Task
from jaxfl.paper import Paper, System

PAPER = Paper(
    "FedRolex: Model-Heterogeneous Federated Learning with Rolling Sub-Model Extraction",
    "Alam, Liu, Yan, Zhang",
    "NeurIPS 2022",
    "https://arxiv.org/abs/2212.01548",
)


def fedrolex(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    share: Profile = (1.0, 0.5, 0.25, 0.125, 0.0625),
    speed: int = 1,
    **kw,
) -> Algorithm:
    """FedRolex with client rate `lr`, each client's `share` of a layer, and `speed` units a round. `kw` as in `fedopt`.

    The model is a chain of layers (`submodels.units`); one without a hidden layer is whole at all clients.
    """
    require("lr", lr, above=0)
    return fedavg(task, net.fill("fedrolex", submodel=rolling(task, share, speed)), lr=lr, **kw)


SYSTEMS = {"fedrolex": System(fedrolex, PAPER)}
