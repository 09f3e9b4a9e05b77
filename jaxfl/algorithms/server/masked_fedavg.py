"""Every parameter matters: FedAvg of sub-models, whatever they are, as long as somebody trains each number.

With `M_i` the numbers that a policy gives client i in a round, by client, by round, or by the model itself,

    y_i <- local training from M_i * x, moving M_i alone,        i in S
    x_j <- sum_S p_i M_ij y_ij / sum_S p_i M_ij,   and as it was where no member has it.

The paper's theorem, whose members count alike: at rate ~ 1 / sqrt(T Q),

    mean_q |grad F(x_q)|^2 <= G / sqrt(T Q) + V / Q + I / Gamma (delta^2 mean_q |x_q|^2),

`Gamma` the least number of members that train a number (`coverage_index` in the log), `delta^2` the share of `|x|^2`
that a member is not handed (`reduction_noise`). A policy of one's own: `fedavg(task, Network(submodel=policy))`.
"""

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.core import Algorithm, Array
from jaxfl.errors import InputError
from jaxfl.exchange.network import Network
from jaxfl.learn import submodels
from jaxfl.learn.task import Task
from jaxfl.paper import Paper, System

PAPER = Paper(
    "Every Parameter Matters: Ensuring the Convergence of Federated Learning with Dynamic Heterogeneous Models "
    "Reduction",
    "Zhou, Lan, Venkataramani, Ding",
    "NeurIPS 2023",
    "https://arxiv.org/abs/2310.08670",
    number="057",
)
POLICIES = {f.__name__: f for f in (submodels.magnitude, submodels.random, submodels.width, submodels.rolling)}


def masked_fedavg(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    masks: str = "magnitude",
    share: submodels.Profile = (1.0, 0.75, 0.5),
    **kw,
) -> Algorithm:
    """FedAvg with client rate `lr` of sub-models of a `share` of the model each. `kw` as in `fedopt`.

    `masks` is "magnitude" (weight pruning of the server's model), "random", "width" or "rolling", as in
    `learn.submodels`; client `i` has the entry `i % len` of `share`, which in the last two is that of hidden units.

    Raises:
        InputError: other `masks`.
    """
    if masks not in POLICIES:
        raise InputError(f"masks is {masks!r}, but must be one of {', '.join(POLICIES)}.")
    return fedavg(task, net.fill("masked_fedavg", submodel=POLICIES[masks](task, share)), lr=lr, **kw)


SYSTEMS = {"masked_fedavg": System(masked_fedavg, PAPER)}
