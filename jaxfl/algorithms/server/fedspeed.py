"""FedSpeed: long local intervals whose pull to the global model is corrected, towards flat minima.

With a vector c_i of each client, 0 at first, its members S train K steps from x, g1 and g2 of one mini-batch,

    g1 = grad F_i(y),    z = y + rho g1 / |g1|,    g2 = grad F_i(z)
    y <- y - lr ((1 - alpha) g1 + alpha g2 - c_i + (y - x) / lam)
    c_i <- c_i - (y - x) / lam,    x <- 1 / |S| sum_S y_i - lam (1 / n sum_i c_i over all n clients).

That is FedDyn (`algorithms.feddyn`) with 1 / lam for its alpha, and the gradient at an ascent point. So are the unequal
clients: client i, which counts p_i among all, has lam n p_i for lam, and the last mean is by p_i; with alpha = 0 the
end is the optimum of sum_i p_i F_i, with alpha > 0 it is O(rho) beside. The mean over all is kept by what members
report. The paper's text has x <- 1 / |S| sum_S (y_i - lam c_i), with the new c_i (`present_alone`): for all clients in
every round that is the same, otherwise x* is not where it ends; the authors' code is as above. That code clips
gradients and lets weights and the rate decay, as all of optax can before it.
"""

from jaxfl.algorithms.server.feddyn import with_duals
from jaxfl.core import Algorithm, Array
from jaxfl.errors import require
from jaxfl.exchange.network import Network
from jaxfl.learn.hooks import sam
from jaxfl.learn.task import Task
from jaxfl.paper import Paper, System

PAPER = Paper(
    "FedSpeed: Larger Local Interval, Less Communication Round, and Higher Generalization Accuracy",
    "Sun, Shen, Huang, Ding, Tao",
    "ICLR 2023",
    "https://arxiv.org/abs/2302.10429",
    number="031",
)


def fedspeed(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    lam: float | Array = 10.0,
    rho: float | Array = 0.1,
    alpha: float | Array = 1.0,
    normalised: bool = True,
    present_alone: bool = False,
    **kw,
) -> Algorithm:
    """FedSpeed with client rate `lr`, `1 / lam` the pull to the global model, `rho` the ascent and `alpha` its share.

    Not `normalised`, the ascent point is `y + rho g1`, as in the text. Two gradients a step. `steps`, `epochs`, `batch`
    of `kw` as in `fedopt`.
    """
    require("lam", lam, above=0)
    hooks = [sam(rho, alpha, normalised=normalised)]
    return with_duals(task, net, lr=lr, alpha=1 / lam, hooks=hooks, present_alone=present_alone, **kw)


SYSTEMS = {"fedspeed": System(fedspeed, PAPER)}
