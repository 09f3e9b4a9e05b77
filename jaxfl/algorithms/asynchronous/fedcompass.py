"""FedCompass: clients of unlike speed run unlike numbers of local steps, so that they answer in groups, hardly stale.

Client i is sent out with the model of version `v_i` and `Q_i` steps, and answers with `D_i`, where it ended minus where
it began. When a group is together, the server moves by what it brought, `G`, and by what came too late for earlier ones
and was kept for this, `B`,

    x <- x + alpha sum_{i in G, B} s(v - v_i) p_i D_i,    s(a) = 1 / sqrt(1 + a),    v <- v + 1

with `p_i` the share of client i among all clients, not among those in the group. The first answer of a client is a
version by itself. Groups and `Q_i` are those of COMPASS, the clock (`world.compass`); with the members it yields
FedCompass is FedBuff at the server, whose rate is `alpha`.

Deviation: an answer older than `longest` versions is dropped; the log's `dropped` counts them. The authors' code has
the exponent of `s` positive, so that stale answers count more; the paper means them to count less.
"""

from typing import Any

import numpy as np

from jaxfl.algorithms.asynchronous.fedbuff import fedbuff
from jaxfl.core import Algorithm, Array, Process
from jaxfl.exchange.network import Network
from jaxfl.learn.task import Task
from jaxfl.paper import Example, Paper, System, Workers
from jaxfl.world.compass import compass
from jaxfl.world.durations import scaled

PAPER = Paper(
    "FedCompass: Efficient Cross-Silo Federated Learning on Heterogeneous Client Devices using a Computing Power Aware "
    "Scheduler",
    "Li, Chaturvedi, He, Chen, Singh, Kindratenko, Huerta, Kim, Madduri",
    "ICLR 2024",
    "https://arxiv.org/abs/2309.14675",
    number="014",
)


def fedcompass(
    task: Task, net: Network = Network(), *, lr: float | Array = 0.1, alpha: float | Array = 0.9, **kw: Any
) -> Algorithm:
    """FedCompass with client rate `lr` and server rate `alpha`, in a world with the clock `world.compass.compass`.

    `steps` is to be the `most` of that clock. `kw` as in `fedbuff`: `server_momentum` makes it FedCompass+M.
    """
    return fedbuff(task, net, lr=lr, server_lr=alpha, **kw)


def grouped(jobs: Workers) -> Process:
    """COMPASS at work on all nodes: a job of all steps takes what the options say, the least is a fifth of them."""
    most = int(np.max(jobs.steps))
    return compass(jobs.nodes, scaled(jobs.seconds, 1 / np.asarray(jobs.steps)), least=max(1, most // 5), most=most)


SYSTEMS = {"fedcompass": System(fedcompass, PAPER, lambda given: Example(clock=grouped))}
