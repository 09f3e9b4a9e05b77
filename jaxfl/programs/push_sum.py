"""Push-sum.

On a directed graph each node splits its sum s_i and weight w_i over itself and those who hear it, and estimates the
average by their ratio:

    s_i <- sum_j a_ij s_j,   w_i <- sum_j a_ij w_j,   estimate s_i / w_i,     columns of A sum to one.

The total of s and of w never changes. Give the scenario a graph with `world.mixing.push_weights`.
"""

import jax.numpy as jnp

from jaxfl.core import Algorithm, Outbox, Program
from jaxfl.exchange.network import Network
from jaxfl.exchange.program import program
from jaxfl.paper import Example, Given, Paper, System
from jaxfl.world.topology import pushed

PAPER = Paper(
    "Gossip-Based Computation of Aggregate Information",
    "Kempe, Dobra, Gehrke",
    "FOCS 2003",
    "https://doi.org/10.1109/SFCS.2003.1238221",
)


def push_sum(net: Network = Network()) -> Algorithm:
    """Average the values `[n, m]` that the scenario carries as `data`; the answer is each node's estimate `[n, m]`."""

    def init(key, data, i, link):
        mass = jnp.append(data[i], 1.0)
        return mass, Outbox(mass)

    def step(key, mass, inbox):
        mass = inbox.own * mass + jnp.tensordot(inbox.weight, inbox.message, 1)
        return mass, Outbox(mass)

    return program(Program(init, step, read=lambda mass: mass[:-1] / mass[-1]), net)


def _directed(given: Given) -> Example:
    """The given topology with column stochastic weights."""
    return Example(topology=pushed(given.topology))


SYSTEMS = {"push_sum": System(push_sum, PAPER, _directed)}
