"""FjORD: ordered dropout; a client trains the first units of every layer, a share drawn anew each round.

    q_i ~ uniform among the steps of the grid up to s_i, what client i is able to
    y_i <- local training from M_i * x, moving M_i alone,   M_i between the first q_i of the units of each hidden layer
    x_j <- sum_S p_i M_ij y_ij / sum_S p_i M_ij,   and as it was where no member has it.

Client `i` has the entry `i % len` of `share`; `p_i` is the cohort's weight. The paper draws `q_i` at every local step,
here it holds for a round; its self-distillation from the widest sub-model is left out.
"""

from collections.abc import Sequence

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.core import Algorithm, Array
from jaxfl.errors import require
from jaxfl.exchange.network import Network
from jaxfl.learn.submodels import Profile, ordered
from jaxfl.learn.task import Task
from jaxfl.paper import Paper, System

PAPER = Paper(
    "FjORD: Fair and Accurate Federated Learning under heterogeneous targets with Ordered Dropout",
    "Horvath, Laskaridis, Almeida, Leontiadis, Venieris, Lane",
    "NeurIPS 2021",
    "https://arxiv.org/abs/2102.13451",
)


def fjord(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    share: Profile = (1.0, 0.8, 0.6, 0.4, 0.2),
    grid: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 1.0),
    **kw,
) -> Algorithm:
    """FjORD with client rate `lr`, what each client is able to, and the `grid` of shares. `kw` as in `fedopt`.

    The model is a chain of layers (`submodels.units`); one without a hidden layer is whole at all clients.
    """
    require("lr", lr, above=0)
    return fedavg(task, net.fill("fjord", submodel=ordered(task, share, grid)), lr=lr, **kw)


SYSTEMS = {"fjord": System(fjord, PAPER)}
