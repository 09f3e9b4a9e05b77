"""SCAFFOLD.

SCAFFOLD: Stochastic Controlled Averaging for Federated Learning; Karimireddy, Kale, Mohri, Reddi, Stich, Suresh; ICML
2020; https://arxiv.org/abs/1910.06378. Local steps `y <- y - lr (G - c_i + c)`, option II of the paper for `c_i` (the
mean gradient along the local path), server step `x <- x + server_rate * mean_S (y_i - x)`. It is SCAFFOLD-M of
`momentum_fl` without momentum (beta = 1).
"""

from jaxfl.algorithms.momentum_fl import momentum_fl
from jaxfl.core import Algorithm, Array, require
from jaxfl.exchange.network import Network
from jaxfl.learn.task import Task


def scaffold(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    server_rate: float | Array = 1.0,
    steps: int = 10,
    batch: int | None = 16,
) -> Algorithm:
    """SCAFFOLD with client rate `lr` and the share `server_rate` of the mean move that the server takes."""
    require("server_rate", server_rate, above=0)
    rate = server_rate * lr * steps
    return momentum_fl(
        task, net, lr=lr, server_lr=rate, beta=1.0, controls=True, reduced=False, steps=steps, batch=batch
    )
