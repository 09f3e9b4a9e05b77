"""DecAvg, decentralized FedAvg on a network that may lose nodes: weights are those of who is left.

    y_i <- local training from x_i on the data D_i of node i (with momentum that starts anew each round),
    x_i <- sum_j a_ij y_j,      a_ij = v_j / sum_(k live, i or heard by i) v_k,     v_j = |D_j| or 1

over the neighbours that are up, so that a node that loses some hears the others all the more. A node without data only
relays; by sizes it would count for nothing, so where there are relays all must count alike (`by_size=False`).

The authors' a_ij have the trust in each link as a factor beside |D_j|; here all links are trusted alike. Which nodes
vanish, and with what, is the world's (`world.removal`).
"""

import jax.numpy as jnp
import optax

from jaxfl.algorithms.gossip.dsgd import gossip_training
from jaxfl.core import Algorithm, Array, Graph, n_nodes, shares
from jaxfl.errors import require
from jaxfl.exchange.network import Network
from jaxfl.learn.task import Task
from jaxfl.paper import Example, Given, Paper, System
from jaxfl.world import mixing

PAPER = Paper(
    "Exploring the Impact of Disrupted Peer-to-Peer Communications on Fully Decentralized Learning in Disaster "
    "Scenarios",
    "Palmieri, Boldrini, Valerio, Passarella, Conti",
    "2023",
    "https://arxiv.org/abs/2310.02986",
    number="008",
)


def decavg(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    momentum: float | Array = 0.5,
    by_size: bool = True,
    steps: int = 5,
    **kw,
) -> Algorithm:
    """DecAvg; nodes count by their samples, or all alike where `by_size` is False. `kw` as in `gossip_training`."""
    require("lr", lr, above=0)
    require("momentum", momentum, least=0, below=1)
    inner = gossip_training(task, net, local=optax.sgd(lr, momentum=momentum), steps=steps, **kw)

    def round(key, env, s):
        v = shares(env) if by_size else jnp.ones(n_nodes(env))
        return inner.round(key, env._replace(graph=mixing.proportional(env.graph, v)), s)

    return inner._replace(round=round)


def unweighted(given: Given) -> Example:
    """The given graph, of whose weights nothing is read but where they are 0."""
    known = isinstance(given.topology, Graph)
    return Example(topology=mixing.uniform(given.topology) if known else given.topology)


SYSTEMS = {"decavg": System(decavg, PAPER, unweighted)}
