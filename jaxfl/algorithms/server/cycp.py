"""CyCP, FedAvg with cyclic client participation: clients are there group after group.

The clients are in K groups, which come in turn, in a fixed order or in another one each cycle. In each round the server
draws N clients of the group whose turn it is, without replacement, and

    y_i <- ClientOpt(x),  i in S,      x <- sum_S p_i y_i / sum_S p_i,

the next group going on from x. ClientOpt is full gradient steps (GD: `batch` None), steps on batches drawn with
replacement (SGD: `steps`), or passes over the shuffled shard (SSGD: `epochs`, `batch`; the paper keeps the batches and
shuffles their order, here samples are shuffled). With N the size of a group a cycle meets every client once, and the
noise of sampling clients is gone: O~(1 / T^2) over T rounds in place of O~(1 / T). K = 1 is FedAvg.

What is new is who takes part, `cohort.in_turn`. By options there are as many groups, of nodes with successive numbers,
as the cohort fits into the nodes. The paper's clients count alike; here they count by their weights.
"""

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.core import Algorithm, Array
from jaxfl.exchange.network import Network
from jaxfl.learn.task import Task
from jaxfl.paper import Example, Given, Paper, System
from jaxfl.world.cohort import in_turn

PAPER = Paper(
    "On the Convergence of Federated Averaging with Cyclic Client Participation",
    "Cho, Sharma, Joshi, Xu, Kale, Zhang",
    "ICML 2023",
    "https://arxiv.org/abs/2302.03109",
    number="112",
)


def cycp(task: Task, net: Network = Network(), *, lr: float | Array = 0.1, **kw) -> Algorithm:
    """FedAvg, to be run with groups of clients that take turns; `kw` as in `fedopt`."""
    return fedavg(task, net, lr=lr, **kw)


def turns(given: Given) -> Example:
    """As many groups of successive nodes as members fit into the nodes, in turn."""
    return Example(cohort=lambda c: in_turn(given.nodes, c, max(given.nodes // c, 1)))


SYSTEMS = {"cycp": System(cycp, PAPER, turns)}
