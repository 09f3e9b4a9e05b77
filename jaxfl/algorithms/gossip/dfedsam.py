"""DFedSAM and DFedSAM-MGS.

Local sharpness-aware steps, then gossip, Q times for MGS:

    y <- y - lr * grad F_i(y + rho g / |g|; xi),  g = grad F_i(y; xi),      x_i <- sum_j (W^Q)_ij y_j.

rho = 0 is DFedAvg. The Q gossip steps of MGS are Q messages on every link, and are counted so.
"""

import optax

from jaxfl.algorithms.gossip.dsgd import gossip_training
from jaxfl.core import Algorithm, Array
from jaxfl.errors import require
from jaxfl.exchange.network import Network
from jaxfl.learn.hooks import sam
from jaxfl.learn.task import Task
from jaxfl.paper import Paper, System

PAPER = Paper(
    "Improving the Model Consistency of Decentralized Federated Learning",
    "Shi, Shen, Wei, Sun, Yuan, Wang, Tao",
    "ICML 2023",
    "https://arxiv.org/abs/2302.04083",
    number="004",
)


def dfedsam(
    task: Task, net: Network = Network(), *, lr: float | Array = 0.1, rho: float | Array = 0.05, steps: int = 5, **kw
) -> Algorithm:
    """DFedSAM with rate `lr` and radius `rho`; `kw` as in `gossip_training`."""
    require("lr", lr, above=0)
    require("rho", rho, least=0)
    return gossip_training(task, net, local=optax.chain(sam(rho), optax.sgd(lr)), steps=steps, **kw)


def dfedsam_mgs(task: Task, net: Network = Network(), *, gossip_steps: int = 4, **kw) -> Algorithm:
    """DFedSAM with `gossip_steps` exchanges a round; `kw` as in `dfedsam`."""
    require("gossip_steps", gossip_steps, least=1, whole=True)
    return dfedsam(task, net.fill("dfedsam_mgs", repeats=gossip_steps), **kw)


SYSTEMS = {
    "dfedsam": System(dfedsam, PAPER),
    "dfedsam_mgs": System(dfedsam_mgs, PAPER),
}
