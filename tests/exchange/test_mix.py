"""Mixing on a CPU costs what its links cost, whatever the graph is like."""

import jax
import jax.numpy as jnp
import pytest

from jaxfl.exchange.mix import mix
from jaxfl.world import graph, mixing

GRAPHS = {
    "regular": lambda: mixing.metropolis(graph.random_regular(96, 8, 0)),
    "exponential": lambda: mixing.uniform(graph.exponential(96)),
    "torus": lambda: mixing.metropolis(graph.torus(8, 12)),
    "ring": lambda: mixing.metropolis(graph.ring(96)),
    "complete": lambda: mixing.metropolis(graph.complete(96)),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_mixing_costs_its_links(name):
    """A few operations for each number that is heard; a product of all by all where nearly all are heard."""
    found, x = GRAPHS[name](), jnp.ones((96, 500))
    program = jax.jit(lambda x: mix(found, x, x)).lower(x).compile()
    heard = found.nbr.size * x.shape[1]
    assert program.cost_analysis()["flops"] < 6 * heard
    assert ("dot(" in program.as_text()) == (name == "complete")
