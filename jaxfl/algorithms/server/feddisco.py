"""FedDisco: clients whose labels are unlike the whole count less.

Once, client k says how far its label distribution D_k is from a target T, d_k = KL(D_k || T); T is uniform where
nothing is known. With n_k the shares of the cohort S by size, and d_k divided by its sum over S,

    p_k = max(0, n_k - a d_k + b) / sum_S max(0, n_j - a d_j + b),       x <- sum_S p_k y_k.

a = b = 0 is FedAvg. The weights are the world's (`world.weights.disco`), so that every system with a cohort takes
them: `--weights disco:a=0.5,b=0.1`. Here with FedAvg. Not as in the authors' code: 1 - cosine, too, is divided by its
sum, and a client of weight 0 is not asked. That d_k is sent is not counted: one number a client, once.
"""

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.core import Algorithm, Array
from jaxfl.exchange.network import Network
from jaxfl.learn.task import Task
from jaxfl.paper import Example, Given, Paper, System

PAPER = Paper(
    "FedDisco: Federated Learning with Discrepancy-Aware Collaboration",
    "Ye, Xu, Wang, Xu, Chen, Wang",
    "ICML 2023",
    "https://arxiv.org/abs/2305.19229",
    number="099",
)


def feddisco(task: Task, net: Network = Network(), *, lr: float | Array = 0.1, **kw) -> Algorithm:
    """FedAvg with client rate `lr` in a world that counts by discrepancy; `kw` as in `fedavg`."""
    return fedavg(task, net, lr=lr, **kw)


def example(given: Given) -> Example:
    """Members count by size and discrepancy."""
    del given
    return Example(weights="disco")


SYSTEMS = {"feddisco": System(feddisco, PAPER, example)}
