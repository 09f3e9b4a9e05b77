"""MATCHA: a graph as matchings, of which a random part is active in each round.

The edges of a graph are coloured, each colour a matching of nodes in pairs. Matching `j` is active with probability
`p_j`, alone, and

    x <- (I - alpha sum_{j active} L_j) x,    p = argmax lambda_2(sum_j p_j L_j)  over  sum_j p_j <= budget * matchings,

with `L_j` its Laplacian and `alpha` such that the expected contraction `|E[W W] - J|` is smallest. Wang, Sahu, Yang,
Joshi, Kar, MATCHA: speeding up decentralized SGD via matching decomposition sampling, 2019.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array, Graph, Process, constant, stream
from jaxfl.errors import InputError, require
from jaxfl.world.process import process
from jaxfl.world.tiers import edges, tiers_of

ASCENT = 400  # steps towards the best probabilities


def matchings(graph: Any) -> np.ndarray:
    """Partners by matching, `[matchings, n]`; a node without one is its own.

    Raises:
        InputError: a graph with an edge in one direction alone, or without edges.
    """
    import networkx as nx

    i, j, _ = edges(graph)
    both = {(a, b) for a, b in zip(i.tolist(), j.tolist(), strict=True)}
    if not both or any((b, a) not in both for a, b in both):
        raise InputError("graph has no edges, or some in one direction alone: pairs that average are needed.")
    lines = nx.line_graph(nx.Graph(sorted(both)))
    colour = nx.greedy_color(lines, strategy="DSATUR")
    partner = np.tile(np.arange(tiers_of(graph).n), (max(colour.values()) + 1, 1))
    for (a, b), c in colour.items():
        partner[c, a], partner[c, b] = b, a
    return partner


def activation(partner: np.ndarray, budget: float) -> np.ndarray:
    """Probabilities `[matchings]` of mean `budget` that make the expected graph best connected (projected ascent)."""
    count = len(partner)
    p, best = np.full(count, budget), (-1.0, np.full(count, budget))
    for step in range(ASCENT):
        expected = sum(q * _laplacian(row) for q, row in zip(p, partner, strict=True))
        value, vector = np.linalg.eigh(expected)
        if value[1] > best[0]:
            best = float(value[1]), p
        slope = np.array([((vector[:, 1] - vector[row, 1]) ** 2).sum() / 2 for row in partner])
        p = _projected(p + slope / (np.linalg.norm(slope) + 1e-12) / np.sqrt(1 + step), budget * count)
    return best[1]


def _projected(p: np.ndarray, total: float) -> np.ndarray:
    """The nearest point of the box 0..1 whose sum is `total`."""
    low, high = p.min() - 1, p.max()
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(p - middle, 0, 1).sum() > total else (low, middle)
    return np.clip(p - high, 0, 1)


def _laplacian(partner: np.ndarray) -> np.ndarray:
    n = len(partner)
    out = np.eye(n)
    np.subtract.at(out, (np.arange(n), partner), 1.0)
    return out


def step_size(partner: np.ndarray, p: np.ndarray) -> float:
    """The `alpha` whose expected squared matrix contracts best."""
    from scipy.optimize import minimize_scalar

    each = np.stack([_laplacian(row) for row in partner])
    mean = np.tensordot(p, each, 1)
    spread = np.tensordot(2 * p * (1 - p), each, 1)  # L_j L_j = 2 L_j
    n = partner.shape[1]
    norm = lambda a: np.linalg.eigvalsh(np.eye(n) - 2 * a * mean + a * a * (mean @ mean + spread) - 1 / n).max()
    return float(minimize_scalar(norm, bounds=(1e-3, 1.0), method="bounded").x)  # type: ignore[attr-defined]


def matcha(graph: Graph, budget: float = 0.5) -> Process:
    """Random matchings of a graph, on average a share `budget` of them a round; slot `j` is matching `j`.

    Raises:
        InputError: a budget outside 0..1, or a graph as `matchings` refuses.
    """
    require("budget", budget, above=0, most=1)
    partner = matchings(graph)
    p = activation(partner, budget)
    n = partner.shape[1]

    def step(key: Array, arrays: dict, s: tuple, t: Array) -> tuple[tuple, Graph]:
        nbr = arrays["partner"]
        active = jax.random.uniform(stream(key, "matcha"), arrays["p"].shape) < arrays["p"]
        meets = active & (nbr != jnp.arange(n)[:, None])
        return s, Graph(nbr, jnp.where(meets, arrays["alpha"], 0.0), rev=arrays["rev"])

    slots = np.broadcast_to(np.arange(len(p)), (n, len(p)))
    arrays = {"partner": constant(partner.T, np.int32), "p": constant(p, np.float32), "rev": constant(slots, np.int32)}
    return process(step, arrays | {"alpha": constant(step_size(partner, p), np.float32)})
