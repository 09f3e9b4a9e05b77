"""HeteroFL: a client trains the first units of every hidden layer, as many as it is able to.

With `M_i` the numbers between the first `s_i` of the units of each hidden layer, all inputs and all outputs,

    y_i <- local training from M_i * x, moving M_i alone,        i in S
    x_j <- sum_S p_i M_ij y_ij / sum_S p_i M_ij,   and as it was where no member has it.

Client `i` has the entry `i % len` of `share`; the paper's levels are a to e, and `p_i` is the cohort's weight.
Left out are the paper's scaler of units (BatchNorm is none of the models cut here) and its cross-entropy over the
classes that a client has.
"""

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.core import Algorithm, Array
from jaxfl.errors import require
from jaxfl.exchange.network import Network
from jaxfl.learn.submodels import Profile, width
from jaxfl.learn.task import Task
from jaxfl.paper import Paper, System

PAPER = Paper(
    "HeteroFL: Computation and Communication Efficient Federated Learning for Heterogeneous Clients",
    "Diao, Ding, Tarokh",
    "ICLR 2021",
    "https://arxiv.org/abs/2010.01264",
)


def heterofl(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    share: Profile = (1.0, 0.5, 0.25, 0.125, 0.0625),
    **kw,
) -> Algorithm:
    """HeteroFL with client rate `lr` and each client's `share` of every hidden layer. `kw` as in `fedopt`.

    The model is a chain of layers (`submodels.units`); one without a hidden layer is whole at all clients.
    """
    require("lr", lr, above=0)
    return fedavg(task, net.fill("heterofl", submodel=width(task, share)), lr=lr, **kw)


SYSTEMS = {"heterofl": System(heterofl, PAPER)}
