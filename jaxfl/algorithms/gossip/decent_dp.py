"""Decent-DP: data-parallel training by gossip, whose exchange hides behind the gradients, with AccumAdam.

Every worker exchanges its model while it computes a gradient at it (adapt while communicating), and adds its own step:

    x_i^{t+1} = sum_j W^t_ij x_j^t - lr d_i^t,      d_i^t of Adam (DAdam) or AccumAdam (`learn.accumulate`) at x_i^t.

Moments stay with the worker. AccumAdam's period is set in proportion to the number of workers, 4 for 8 of them. The
paper's topologies are groups that average (`world.groups`), its model of the run time is `max_plus.grouped`:

    f_i^k = max(f_i^{k-1} + c_i^k,  max_{j in g} f_j^{k-1} + A_g).

The paper has weight decay before the step, on x_i; so it is here. Its recursion for the run time is that of its code.
"""

from jaxfl.algorithms.gossip.dsgd import gossip_training
from jaxfl.core import Algorithm, Array
from jaxfl.errors import require
from jaxfl.exchange.network import Network
from jaxfl.learn.accumulate import accum_adam
from jaxfl.learn.task import Task
from jaxfl.paper import Paper, System

PAPER = Paper(
    "From Promise to Practice: Realizing High-performance Decentralized Training",
    "Wang, Zhang, Wu, Johansson",
    "ICLR 2025",
    "https://arxiv.org/abs/2410.11998",
    number="017",
)


def decent_dp(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 1e-3,
    accumulate: int = 4,
    b1: float | Array = 0.9,
    b2: float | Array = 0.999,
    eps: float | Array = 1e-8,
    weight_decay: float | Array = 0.0,
    batch: int | None = 16,
    overlap: bool = True,
) -> Algorithm:
    """One step of AccumAdam a round; without `overlap` models are exchanged after it (adapt, then combine).

    Raises:
        InputError: a number out of its range; without a graph, or if the cohort is not all nodes.
    """
    require("lr", lr, above=0)
    local = accum_adam(lr, accumulate=accumulate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    return gossip_training(task, net, local=local, batch=batch, keep_state=True, overlap=overlap)


def dadam(task: Task, net: Network = Network(), *, lr: float | Array = 1e-3, **kw) -> Algorithm:
    """DAdam, the same with Adam; `kw` as in `decent_dp`."""
    return decent_dp(task, net, lr=lr, accumulate=1, **kw)


SYSTEMS = {"decent_dp": System(decent_dp, PAPER), "dadam": System(dadam, PAPER)}
