"""Overlays of sites that are unlike far from each other: ring, tree, star, and edges that are used every m-th round.

`delay` `[n, n]` are seconds of a message from site to site, such as `regions.distances` or its latencies. Marfoq, Xu,
Neglia, Vidal, Throughput-optimal topology design for cross-silo federated learning, NeurIPS 2020 (ring, tree, star); Do
and others, Reducing training time in cross-silo federated learning using multigraph topology, ICCV 2023 (`every`).
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array, Graph, Process, constant
from jaxfl.errors import InputError, require
from jaxfl.world.graph import from_edges
from jaxfl.world.process import process
from jaxfl.world.promises import require_weights
from jaxfl.world.topology import kept


def _delays(delay: Any, least: int) -> np.ndarray:
    both = np.asarray(delay, np.float64)
    if both.ndim != 2 or both.shape[0] != both.shape[1] or len(both) < least:
        raise InputError(f"delay has shape {list(both.shape)}, but must be [n, n] of at least {least} sites.")
    both = (both + both.T) / 2
    np.fill_diagonal(both, 0)
    if not (np.isfinite(both) & (both >= 0)).all():
        raise InputError("delay has numbers that are negative or not finite.")
    return both


def tour(delay: Any) -> np.ndarray:
    """A short round trip through all sites, `[n]` in order, by Christofides' algorithm on the mean of both ways.

    Raises:
        InputError: no square matrix of at least two sites, or a number that is negative or not finite.
    """
    import networkx as nx

    both = _delays(delay, 2)
    if len(both) == 2:
        return np.arange(2)
    found = nx.approximation.christofides(nx.from_numpy_array(np.maximum(both, 1e-30) - 1e-30 * np.eye(len(both))))
    return np.array(found[:-1])


def directed_ring(order: Any) -> Graph:
    """Every site hears the one before it in the round trip `order` `[n]`: one slot, no weights yet.

    Raises:
        InputError: `order` does not name every site once.
    """
    order = np.asarray(order)
    if order.ndim != 1 or sorted(order.tolist()) != list(range(len(order))):
        raise InputError("order must name every site 0..n-1 once.")
    return from_edges(len(order), order, np.roll(order, 1))


def tree(delay: Any) -> Graph:
    """The minimum spanning tree (MST) of the delays, both ways; no weights yet.

    Raises:
        InputError: as `tour`.
    """
    import networkx as nx

    both = _delays(delay, 2)
    edges = nx.minimum_spanning_edges(nx.from_numpy_array(both + 1e-30 * (1 - np.eye(len(both)))), data=False)
    i, j = zip(*edges, strict=True)
    return from_edges(len(both), i, j, both=True)


def multiplicity(delays: Any, most: int = 5) -> np.ndarray:
    """How many rounds each edge is away from one use to the next: `min(most, round(delay / shortest))`, at least 1.

    Raises:
        InputError: a delay that is not above 0, or `most` below 1.
    """
    require("most", most, least=1, whole=True)
    values = np.asarray(delays, np.float64)
    require("delays", values, above=0)
    return np.clip(np.rint(values / values.min()), 1, most).astype(np.int64)


def by_slot(graph: Graph, matrix: Any) -> np.ndarray:
    """What `matrix` `[n, n]`, from site to site, has for each slot of a table, `[n, k]`; 0 where there is no edge."""
    nbr, live = np.asarray(graph.nbr), np.asarray(graph.weight) != 0
    return np.where(live, np.asarray(matrix)[nbr, np.arange(len(nbr))[:, None]], 0)


def every(graph: Graph, rounds: Any) -> Process:
    """A weighted graph whose edge in slot `s` of node `i` is there in rounds that `rounds[i, s]` divides, else not.

    Who does not hear a neighbour keeps its weight. With rounds by `multiplicity` it is the multigraph topology: of as
    many parallel edges one is strong, and the round in which all edges of a site are weak leaves it alone.

    Raises:
        InputError: rounds of another shape than `[n, k]`, or below 1 (0 where there is no edge).
    """
    m = np.where(np.asarray(graph.weight) != 0, np.asarray(rounds), 1)
    if np.shape(rounds) != graph.nbr.shape:
        raise InputError(
            f"rounds have shape {list(np.shape(rounds))}, but must be {list(graph.nbr.shape)}, one a slot."
        )
    require("rounds", m, least=1, whole=True)

    def step(key: Array, arrays: dict, s: tuple, t: Array) -> tuple[tuple, Graph]:
        return s, kept(arrays["graph"], t % arrays["rounds"] == 0)

    return process(step, {"graph": require_weights(graph), "rounds": constant(m, np.int32)})


def halves(graph: Graph) -> Graph:
    """Weights of 1/2 for the site itself and 1/2 for all it hears, alike: doubly stochastic on a directed ring."""
    live = (graph.weight != 0).astype(jnp.float32)
    return dataclasses.replace(graph, weight=0.5 * live / jnp.maximum(live.sum(1, keepdims=True), 1))
