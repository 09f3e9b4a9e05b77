"""AD-PSGD: workers compute at their own pace, and pairs average meanwhile, so that gradients are old.

    node i acts, once a second in the mean:       x_i <- x_i - lr grad F_i(r_i),   then   r_i <- x_i
    i and j meet, w_ij + w_ji times a second:     x_i, x_j <- (x_i + x_j) / 2

with r_i what node i read when it began to compute; meetings since then make it old. In expectation the mean model goes
the way of SGD with rate `lr / n` an act. Both clocks are Poisson (`world.events`) and apart, as the paper's threads for
computing and averaging; in its analysis every act brings one meeting.
"""

import jax.numpy as jnp

from jaxfl.algorithms.gossip.dsgd import check_gossip
from jaxfl.core import Algorithm, Array, State, n_nodes, tile
from jaxfl.errors import InputError, require
from jaxfl.exchange.network import Network
from jaxfl.learn.local import local_gradient
from jaxfl.learn.optimizer import rate
from jaxfl.learn.task import Task
from jaxfl.mapping.at import at
from jaxfl.paper import Example, Given, Paper, System
from jaxfl.world.events import Events, poisson

PAPER = Paper(
    "Asynchronous Decentralized Parallel Stochastic Gradient Descent",
    "Lian, Zhang, Zhang, Liu",
    "ICML 2018",
    "https://arxiv.org/abs/1710.06952",
)


def ad_psgd(task: Task, net: Network = Network(), *, lr: float | Array = 0.1, batch: int | None = 16) -> Algorithm:
    """AD-PSGD with rate `lr`, or a schedule of the round; the topology has clocks. State by name: `x`, and `read`.

    Raises:
        InputError: a topology without clocks, a cohort that is not all nodes, or a number out of range.
    """
    require("lr", lr, above=0)
    gradient = local_gradient(task, batch=batch)

    def init(key, env, x):
        del key
        check_gossip(env)
        if not isinstance(env.graph, Events):
            raise InputError("topology has no clocks, but nodes of AD-PSGD act and meet at random: events.poisson.")
        rows = tile(x, n_nodes(env))
        return State((), {"x": rows, "read": rows}, net.init(env, x))

    def round(key, env, s):
        g = at(jnp.arange(n_nodes(env)), gradient)(key, env, s.nodes["read"])
        acted = g.each["steps"][:, None] > 0
        mixed, mail, log = net.gossip(key, env, s.mail, s.nodes["x"])
        x = jnp.where(acted, mixed - rate(lr, env.t) * g.rows, mixed)  # who acts meets nobody in this wave
        return State((), {"x": x, "read": jnp.where(acted, x, s.nodes["read"])}, mail), g.log | log

    return Algorithm(init, round, read=lambda s: s.nodes["x"])


def _clocks(given: Given) -> Example:
    """Every node acts once a second, and calls once a second by the mixing weights."""
    return Example(topology=poisson(given.topology, call=1.0, act=1.0))


SYSTEMS = {"ad_psgd": System(ad_psgd, PAPER, _clocks)}
