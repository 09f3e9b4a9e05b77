"""Randomized gossip: every node has a Poisson clock; when it rings, the node and a random neighbour average.

Node i holds a value, its clock rings once a second in the mean, and then it picks j with probability P_ij and both take
(x_i + x_j) / 2. So the pair ij meets P_ij + P_ji times a second. The mean never moves, and

    E |x' - mean|^2 = (x - mean)' (I - L / r) (x - mean),   L = sum_ij r_ij (e_i - e_j)(e_i - e_j)' / 2

after one of the r = sum r_ij meetings a second. P is the mixing matrix of the topology. A round is a wave of meetings
that do not conflict (`world.events`), so at most n / 2 of them.
"""

import jax.numpy as jnp

from jaxfl.core import Algorithm, State
from jaxfl.exchange.network import Network
from jaxfl.paper import Example, Given, Paper, System
from jaxfl.world.events import poisson

PAPER = Paper(
    "Randomized gossip algorithms",
    "Boyd, Ghosh, Prabhakar, Shah",
    "IEEE Trans. Information Theory 2006",
    "https://doi.org/10.1109/TIT.2006.874516",
    journal=True,
)


def random_gossip(net: Network = Network()) -> Algorithm:
    """Average the values `[n, m]` that the scenario carries as `data`, pair by pair; the topology has clocks.

    The answer is each node's estimate `[n, m]`.
    """

    def init(key, env, x):
        del key, x
        return State((), jnp.array(env.data), net.init(env, env.data[0]))

    def round(key, env, s):
        x, mail, log = net.gossip(key, env, s.mail, s.nodes)
        return State((), x, mail), log

    return Algorithm(init, round, read=lambda s: s.nodes)


def _clocks(given: Given) -> Example:
    """Every node wakes once a second and picks by the mixing weights."""
    return Example(topology=poisson(given.topology, call=1.0))


SYSTEMS = {"random_gossip": System(random_gossip, PAPER, _clocks)}
