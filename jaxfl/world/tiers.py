"""A graph whose nodes lie in tiers by degree, each with a table as wide as its own widest node.

One table `[n, k]` is as wide as the widest hub: 10,000 nodes of mean degree 10 with a hub of degree 1,000 waste 99 of
100 slots. Tiers of geometric widths waste a constant factor, and a function of ONE node is still mapped over the rows
of a table, one table after the other. A graph whose table would be large and mostly empty, such as a star's, comes in
tiers by itself: `wasteful`.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array, Graph, Tree, constant
from jaxfl.errors import InputError

NARROW = 8  # slots below which a further tier saves nothing
GROWTH = 2.0  # a tier's widest row over its narrowest
SLOT = 8  # bytes of a neighbour and its weight
LARGE, EMPTY = 2**26, 16  # bytes of a table, and slots an edge, above which tiers are made


class Tiers(NamedTuple):
    """`parts[b]` holds the rows `[n_b, k_b]` of tier `b`; its `nbr` are node numbers, its `rev` is None.

    Tier after tier, the rows belong to the nodes `order` `[n]`, node `i` has row `position[i]` of them. A `Graph` is
    one tier in the order of its nodes (both None): see `tiers_of`.
    """

    parts: tuple[Graph, ...]
    order: Array | None = None  # [n] int32
    position: Array | None = None  # [n] int32

    own = rev = shifts = reach = None  # promises of a table
    column_stochastic = False

    @property
    def nbr(self) -> Array:
        """There is none: raises InputError, for what needs one table of all nodes."""
        slots = self.n * max(part.nbr.shape[1] for part in self.parts)
        raise InputError(
            f"topology has hubs, and one table of the neighbours of {self.n} nodes, which is needed here, would take "
            f"{SLOT * slots / 1e9:,.1f} GB: gossip and broadcasts need none, other systems a graph without hubs."
        )

    weight = nbr

    @property
    def n(self) -> int:
        """Number of nodes, static."""
        return self.parts[0].nbr.shape[0] if self.position is None else self.position.shape[0]

    def total(self, f: Callable[[Graph], Array]) -> Array:
        """The sum of `f` of each tier."""
        return functools.reduce(operator.add, map(f, self.parts))

    def split(self, rows: Tree) -> tuple[Tree, ...]:
        """Leaves `[n, ...]` in the order of the nodes, cut into what each tier holds `[n_b, ...]`."""
        if self.order is None:
            return (rows,)
        ends = np.cumsum([part.nbr.shape[0] for part in self.parts])
        spans = [(end - part.nbr.shape[0], end) for part, end in zip(self.parts, ends, strict=True)]
        return tuple(jax.tree.map(lambda a, ids=self.order[i:j]: a[ids], rows) for i, j in spans)

    def join(self, rows: Sequence[Tree]) -> Tree:
        """What each tier holds `[n_b, ...]`, as leaves `[n, ...]` in the order of the nodes."""
        return join(self.position, rows)


def join(position: Array | None, rows: Sequence[Tree]) -> Tree:
    """`Tiers.join`, from `position` alone."""
    if position is None:
        return rows[0]
    return jax.tree.map(lambda *a: jnp.concatenate(a)[position], *rows)


def tiers_of(graph: Graph | Tiers) -> Tiers:
    """A graph as its one tier; tiers as they are."""
    return Tiers((graph,)) if isinstance(graph, Graph) else graph


def layout(degrees: Sequence[np.ndarray], growth: float) -> tuple[tuple[int, int], ...]:
    """Rows and width of each tier, widest first, such that every graph fits whose `degrees` `[n]` are given.

    Nodes take rows by descending degree, so what has to fit is the largest degree of each rank. A tier ends where a
    node needs fewer than `1 / growth` of its slots.
    """
    need = np.maximum(np.max([np.sort(d)[::-1] for d in degrees], axis=0), 1)
    found, at = [], 0
    while at < need.size:
        width = int(need[at])
        rows = need.size - at if width <= NARROW else int(np.count_nonzero(need[at:] * growth >= width))
        found.append((rows, width))
        at += rows
    return tuple(found)


def wasteful(n: int, degree: np.ndarray) -> bool:
    """Whether the table of nodes with these numbers of neighbours `[n]` would be large and mostly empty."""
    slots = n * int(degree.max())
    return slots * SLOT > LARGE and slots > EMPTY * int(degree.sum())


def in_tiers(n: int, listeners: np.ndarray, sources: np.ndarray, weight: np.ndarray | float = 1.0) -> Tiers:
    """Tiers in which node `listeners[e]` hears `sources[e]` with `weight[e]`; pairs ascend, no repeats, no loops."""
    degree = np.bincount(listeners, minlength=n)
    slot = np.arange(listeners.size) - (np.cumsum(degree) - degree)[listeners]
    order = np.argsort(-degree, kind="stable").astype(np.int32)
    position = np.argsort(order).astype(np.int32)
    weight, row = np.broadcast_to(np.float32(weight), listeners.shape), position[listeners]
    parts, first = [], 0
    for count, width in layout([degree], GROWTH):
        mine = (row >= first) & (row < first + count)
        at = row[mine] - first, slot[mine]
        nbr, heard = np.repeat(order[first : first + count, None], width, 1), np.zeros((count, width), np.float32)
        nbr[at], heard[at] = sources[mine], weight[mine]
        parts.append(Graph(constant(nbr), constant(heard)))
        first += count
    return Tiers(tuple(parts), constant(order), constant(position))


def tables(graph: Graph | Tiers) -> list[tuple[np.ndarray, Graph]]:
    """On the host: of each tier the nodes `[n_b]` and their rows."""
    tiers = tiers_of(graph)
    order = np.arange(tiers.n) if tiers.order is None else np.asarray(tiers.order, np.int64)
    ends = np.cumsum([part.nbr.shape[0] for part in tiers.parts])
    return list(zip(np.split(order, ends[:-1]), tiers.parts, strict=True))


def by_node(graph: Graph | Tiers, f: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """On the host: `f` of the weights `[n_b, k_b]` float64 of each tier, `[n_b]`, in the order of the nodes `[n]`."""
    rows = [(ids, f(np.asarray(part.weight, np.float64))) for ids, part in tables(graph)]
    out = np.empty(sum(ids.size for ids, _ in rows), rows[0][1].dtype)
    for ids, values in rows:
        out[ids] = values
    return out


def edges(graph: Graph | Tiers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The live edges as host arrays (listener `[e]`, source `[e]`, weight `[e]` float64)."""
    found = []
    for ids, part in tables(graph):
        weight = np.asarray(part.weight, np.float64)
        i, s = np.nonzero(weight)
        found.append((ids[i], np.asarray(part.nbr)[i, s].astype(np.int64), weight[i, s]))
    i, j, w = map(np.concatenate, zip(*found, strict=True))
    by = np.argsort(i, kind="stable")
    return i[by], j[by], w[by]


def degrees(graph: Graph | Tiers) -> np.ndarray:
    """How many nodes each node hears, `[n]` int."""
    return by_node(graph, lambda weight: np.count_nonzero(weight, axis=1))
