"""DADAO: accelerated, decentralized and asynchronous, without inner loops: gradients and exchanges are random events.

All F_i are L-smooth and mu-strongly convex, and sum_i F_i is minimised. A node holds x, x~, y, y~, z, z~; between two
of its events they flow, which is computed at the later one by its own elapsed time (`learn.flow`):

    x' = eta (x~ - x),     y' = alpha (y~ - y),                z' = alpha (z~ - z),
    x~' = eta (x - x~),    y~' = -theta (nu x~ + y + z),       z~' = alpha~ (z - z~)

    node i acts, once a second:     D = grad F_i(x_i) - nu x_i - y~_i,
                                    x_i -= gamma D,   x~_i -= gamma~ D,   y~_i += (delta + 1) D
    i and j meet, r_ij a second:    D = (y_i + z_i) - (y_j + z_j),
                                    z_i -= D / 2,     z~_i -= beta~ D,    and the opposite at j

    nu = mu / 2,  q = sqrt(nu / L),  alpha = delta = q / 4,  alpha~ = eta = q / 8,  theta = 1 / (2 q),
    beta~ = 2 chi / q,  gamma = 1 / (4 L),  gamma~ = gamma / q

With the Laplacian Lap = sum_ij r_ij (e_i - e_j)(e_i - e_j)' of the meetings, chi is 1 over its smallest eigenvalue
above 0, and rates are such that chi max_ij (e_i - e_j)' Lap^+ (e_i - e_j) = 1 (`clocked`): gradients then grow with
sqrt(L / mu) whatever the graph is. A message is one vector. The sum of z over nodes stays 0.

A round is a wave of events that do not conflict (`world.events`). Rates of meetings are in proportion to the weights of
the topology, all alike in the paper's main part; its semidefinite program for the best rates is left out, as are
graphs that change. Its "seconds" have no unit; over links each wave's transfers and steps come on top.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxfl.algorithms.gossip.dsgd import check_gossip
from jaxfl.core import Algorithm, Array, Process, State, n_nodes
from jaxfl.errors import InputError, require
from jaxfl.exchange.network import Network
from jaxfl.learn.flow import flowed
from jaxfl.learn.local import local_gradient
from jaxfl.learn.task import Task
from jaxfl.mapping.at import at
from jaxfl.paper import Example, Given, Paper, System
from jaxfl.world.events import Events, poisson, spectrum

PAPER = Paper(
    "DADAO: Decoupled Accelerated Decentralized Asynchronous Optimization",
    "Nabli, Oyallon",
    "ICML 2023",
    "https://arxiv.org/abs/2208.00779",
    number="058",
)


def dadao(
    task: Task,
    chi: float | Array,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    kappa: float | Array = 100.0,
    batch: int | None = None,
) -> Algorithm:
    """DADAO with `lr = 1 / L` and the condition number `kappa = L / mu`; `batch` None takes the whole shard.

    The topology is made of clocks, `clocked(graph)` gives it and `chi`. State: `[n, 6, d]`, in the order above.

    Raises:
        InputError: a topology without clocks, a cohort that is not all nodes, or a number out of range.
    """
    require("chi", chi, above=0)
    require("lr", lr, above=0)
    require("kappa", kappa, least=1)
    gradient = local_gradient(task, batch=batch)
    nu, q = 1 / (2 * kappa * lr), (1 / (2 * kappa)) ** 0.5

    def init(key, env, x):
        check_gossip(env)
        if not isinstance(env.graph, Events):
            raise InputError(
                "topology has no clocks, but DADAO's nodes act and meet at random: give it clocked(graph)."
            )
        rows = jnp.zeros((n_nodes(env), 6, x.size), x.dtype).at[:, 0].set(x)
        return State((), rows, net.init(env, x))

    def round(key, env, s):
        rows = flowed(flow(nu, q), env.graph.since, s.nodes)
        x, x_, y, y_, z, z_ = jnp.moveaxis(rows, 1, 0)
        g = at(jnp.arange(n_nodes(env)), gradient)(key, env, x)
        D = jnp.where(g.each["steps"][:, None] > 0, g.rows - nu * x - y_, 0)
        mixed, mail, log = net.gossip(key, env, s.mail, y + z)
        half = y + z - mixed  # of the difference to the partner; 0 without one
        x, x_, y_ = x - lr / 4 * D, x_ - lr / (4 * q) * D, y_ + (q / 4 + 1) * D
        z, z_ = z - half, z_ - 4 * chi / q * half
        return State((), jnp.stack([x, x_, y, y_, z, z_], 1), mail), g.log | log

    return Algorithm(init, round, read=lambda s: s.nodes[:, 0])


def flow(nu: float | Array, q: float | Array) -> Array:
    """The matrix `[6, 6]` of what happens between events, in the order x, x~, y, y~, z, z~."""
    still = jnp.zeros((6, 6))
    for near, far, pull, back in ((0, 1, q / 8, q / 8), (2, 3, q / 4, 0), (4, 5, q / 4, q / 8)):
        still = still.at[near, near].set(-pull).at[near, far].set(pull)
        still = still.at[far, far].set(-back).at[far, near].set(back)
    return still.at[3, jnp.array([1, 2, 4])].set(-jnp.array([nu, 1.0, 1.0]) / (2 * q))


def clocked(graph: Any, **kw) -> tuple[Process, float]:
    """The clocks of DADAO on a connected graph, and its `chi`: nodes act once a second, pairs meet by the weights.

    `kw` as in `world.events.poisson`, such as `ahead`.
    """
    slowest, farthest = spectrum(graph)
    rate = math.sqrt(2 * slowest * farthest)
    return poisson(graph, call=rate, act=1.0, **kw), slowest / rate


def _clocked(given: Given) -> Example:
    clocks, chi = clocked(given.topology)
    return Example(arguments=(given.task, np.float32(chi)), topology=clocks)


SYSTEMS = {"dadao": System(dadao, PAPER, _clocked)}
