"""Gradient tracking (DIGing in its adapt-then-combine form).

Each node tracks the average gradient beside its model:

    x_i <- sum_j w_ij (x_j - lr v_j),      v_i <- sum_j w_ij v_j + grad F_i(x_i new) - grad F_i(x_i old).

With exact gradients every node reaches the optimum of the average objective, where D-SGD with a constant rate stops
at a bias. A message is two vectors.
"""

import jax.numpy as jnp

from jaxfl.algorithms.gossip.dsgd import check_gossip
from jaxfl.core import Algorithm, Array, State, n_nodes, tile
from jaxfl.errors import require
from jaxfl.exchange.network import Network
from jaxfl.learn.local import local_gradient
from jaxfl.learn.optimizer import rate
from jaxfl.learn.task import Task
from jaxfl.mapping.at import at
from jaxfl.paper import Paper, System

PAPER = Paper(
    "Achieving Geometric Convergence for Distributed Optimization over Time-Varying Graphs",
    "Nedic, Olshevsky, Shi",
    "SIAM J. Optim. 2017",
    "https://arxiv.org/abs/1607.03218",
    journal=True,
)


def gradient_tracking(
    task: Task, net: Network = Network(), *, lr: float | Array = 0.1, batch: int | None = None
) -> Algorithm:
    """Gradient tracking with rate `lr`, or a schedule of the round; `batch` None takes the whole shard.

    State: `(x, v, gradient)` a node.
    """
    require("lr", lr, above=0)
    gradient = local_gradient(task, batch=batch)

    def init(key, env, x):
        check_gossip(env)
        g = at(jnp.arange(n_nodes(env)), gradient)(key, env, x).rows
        return State((), (tile(x, n_nodes(env)), g, g), net.init(env, jnp.concatenate([x, x])))

    def round(key, env, s):
        x, v, old = s.nodes
        rows = jnp.concatenate([x - rate(lr, env.t) * v, v], axis=1)
        mixed, mail, log = net.gossip(key, env, s.mail, rows)  # [n, 2d]
        x, v = jnp.split(mixed, 2, axis=1)
        g = at(jnp.arange(n_nodes(env)), gradient)(key, env, x)
        return State((), (x, v + g.rows - old, g.rows), mail), log | g.log

    return Algorithm(init, round, read=lambda s: s.nodes[0])


SYSTEMS = {"gradient_tracking": System(gradient_tracking, PAPER)}
