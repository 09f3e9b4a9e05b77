"""Gossip averaging.

Node i holds a value and

    x_i <- w_ii x_i + sum_j w_ij x_j.

With a symmetric doubly stochastic W the distance to consensus shrinks per round by the second largest eigenvalue
modulus, and the mean never moves.
"""

import jax.numpy as jnp

from jaxfl.core import Algorithm, Outbox, Program
from jaxfl.exchange.network import Network
from jaxfl.exchange.program import program
from jaxfl.paper import Paper, System

PAPER = Paper(
    "Fast linear iterations for distributed averaging",
    "Xiao, Boyd",
    "Systems & Control Letters 2004",
    "https://doi.org/10.1016/j.sysconle.2004.02.022",
    journal=True,
)


def gossip_averaging(net: Network = Network()) -> Algorithm:
    """Average the values `[n, m]` that the scenario carries as `data`; the answer is each node's estimate `[n, m]`."""

    def init(key, data, i, link):
        return data[i], Outbox(data[i])

    def step(key, x, inbox):
        x = inbox.own * x + jnp.tensordot(inbox.weight, inbox.message, 1)
        return x, Outbox(x)

    return program(Program(init, step, read=lambda x: x), net)


SYSTEMS = {"gossip_averaging": System(gossip_averaging, PAPER)}
