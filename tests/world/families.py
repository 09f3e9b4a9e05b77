"""One graph of each family, and their matrices by a loop that shares nothing with the library."""

import numpy as np
import pytest

from jaxfl.core import own_weight
from jaxfl.world import graph as G

FAMILIES = {
    "ring": G.ring(12),
    "torus": G.torus(3, 5),
    "grid": G.grid(3, 4),
    "hypercube": G.hypercube(16),
    "exponential": G.exponential(12),
    "complete": G.complete(9),
    "star": G.star(7),
    "regular": G.random_regular(14, 5, seed=3),
    "erdos": G.erdos_renyi(20, 0.4, seed=1),
    "barabasi": G.barabasi_albert(20, 2, seed=2),
    "watts": G.watts_strogatz(20, 4, 0.3, seed=4),
    "geometric": G.random_geometric(20, 0.5, seed=5),
    "caveman": G.caveman(4, 5),
    "two_level": G.two_level(4, 3),
}
UNDIRECTED = {name: g for name, g in FAMILIES.items() if name != "exponential"}
REGULAR = ("ring", "torus", "hypercube", "exponential", "complete", "regular")
each = pytest.mark.parametrize("name", FAMILIES)
each_undirected = pytest.mark.parametrize("name", UNDIRECTED)


def adjacency(graph):
    """Who hears whom, each slot one by one."""
    nbr, weight = np.asarray(graph.nbr), np.asarray(graph.weight)
    out = np.zeros((len(nbr), len(nbr)))
    for i, row in enumerate(nbr):
        for s, j in enumerate(row):
            out[i, j] += weight[i, s]
    return out


def dense(graph):
    return adjacency(graph) + np.diag(np.asarray(own_weight(graph), np.float64))
