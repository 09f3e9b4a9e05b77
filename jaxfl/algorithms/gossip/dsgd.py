"""D-SGD, DFedAvg and DFedAvgM: the workhorse of decentralized learning.

Every node trains on its own data, then averages with its neighbours (adapt, then combine):

    y_i <- local training from x_i on the data of node i,      x_i <- sum_j w_ij y_j.

One step a round is D-SGD (in its adapt-then-combine order), several are DFedAvg, with local heavy-ball momentum
DFedAvgM. Momentum starts anew every round, as in the paper.
"""

import jax.numpy as jnp
import optax

from jaxfl.core import Algorithm, Array, State, n_nodes, tile
from jaxfl.errors import InputError, require
from jaxfl.exchange.network import Network
from jaxfl.exchange.timing import at_once
from jaxfl.learn.local import local_sgd, optimizer_state
from jaxfl.learn.optimizer import require_state
from jaxfl.learn.task import Task
from jaxfl.mapping.at import at
from jaxfl.paper import Paper, System

PAPER = Paper(
    "Can Decentralized Algorithms Outperform Centralized Algorithms?",
    "Lian, Zhang, Zhang, Hsieh, Zhang, Liu",
    "NeurIPS 2017",
    "https://arxiv.org/abs/1705.09056",
)
DFEDAVGM = Paper(
    "Decentralized Federated Averaging",
    "Sun, Li, Wang",
    "IEEE TPAMI 2023",
    "https://arxiv.org/abs/2104.11375",
    journal=True,
)


def gossip_training(
    task: Task,
    net: Network = Network(),
    *,
    local: optax.GradientTransformation,
    steps: int = 1,
    epochs: int | None = None,
    batch: int | None = 16,
    keep_state: bool = False,
    overlap: bool = False,
) -> Algorithm:
    """Local training with any optax optimizer, then one gossip phase. Logs `loss`, `gradients`, bits.

    With `overlap` models are exchanged while nodes train (adapt while communicating), and the update made meanwhile is
    added to the mixture, `x_i <- sum_j w_ij x_j + (y_i - x_i)`: over links a round lasts as long as the longer of both.

    `epochs` replaces `steps` where given; `batch` None is the whole shard. An optimizer starts
    anew every round, and a schedule of its rate counts rounds; with `keep_state` it goes on where it was in the round
    before, a schedule counts the node's own steps, and `State.nodes` is `(models [n, d], optimizer states)`.

    Raises:
        InputError: without a graph, or if the cohort is not all nodes.
    """
    learn = local_sgd(task, local, steps=None if epochs else steps, epochs=epochs, batch=batch, keep_state=keep_state)

    if keep_state:
        require_state(local)

    def init(key, env, x):
        check_gossip(env)
        n = n_nodes(env)
        models = tile(x, n)
        nodes = (models, optimizer_state(task, local, x, n, key)) if keep_state else models
        return State((), nodes, net.init(env, x))

    def round(key, env, s):
        x, memory = (s.nodes[0], {"state": s.nodes[1]}) if keep_state else (s.nodes, None)
        y = at(jnp.arange(n_nodes(env)), learn)(key, env, x, memory=memory)  # [n, d]
        mixed, mail, log = net.gossip(key, env, s.mail, x if overlap else y.rows)  # [n, d]
        x, log = (mixed + (y.rows - x), at_once(y.log, log)) if overlap else (mixed, y.log | log)
        nodes = (x, y.memory["state"]) if keep_state else x
        return State((), nodes, mail), log

    return Algorithm(init, round, read=lambda s: s.nodes[0] if keep_state else s.nodes)


def check_gossip(env) -> None:
    """Raise `InputError` unless the cohort is every node."""
    if env.cohort.ids.shape[0] != n_nodes(env):
        raise InputError(
            f"cohort has {env.cohort.ids.shape[0]} members, but in gossip all {n_nodes(env)} nodes take part."
        )


def dsgd(task: Task, net: Network = Network(), *, lr: float | Array = 0.1, **kw) -> Algorithm:
    """D-SGD with rate `lr`; `kw` as in `gossip_training`."""
    require("lr", lr, above=0)
    return gossip_training(task, net, local=optax.sgd(lr), **kw)


def dfedavgm(
    task: Task, net: Network = Network(), *, lr: float | Array = 0.1, momentum: float | Array = 0.9, steps=5, **kw
) -> Algorithm:
    """DFedAvgM: several local heavy-ball steps; `kw` as in `gossip_training`."""
    require("lr", lr, above=0)
    require("momentum", momentum, least=0, below=1)
    return gossip_training(task, net, local=optax.sgd(lr, momentum=momentum), steps=steps, **kw)


SYSTEMS = {
    "dsgd": System(dsgd, PAPER),
    "dfedavgm": System(dfedavgm, DFEDAVGM),
}
