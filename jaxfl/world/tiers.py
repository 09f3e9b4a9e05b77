"""A graph whose nodes lie in tiers by degree, each with a table as wide as its own widest node.

One table `[n, k]` is as wide as the widest hub: 10,000 nodes of mean degree 10 with a hub of degree 1,000 waste 99 of
100 slots. Tiers of geometric widths waste a constant factor, and a function of ONE node is still mapped over the rows
of a table, one table after the other.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array, Graph, Tree

NARROW = 8  # slots below which a further tier saves nothing


class Tiers(NamedTuple):
    """`parts[b]` holds the rows `[n_b, k_b]` of tier `b`; its `nbr` are node numbers, its `rev` is None.

    Tier after tier, the rows belong to the nodes `order` `[n]`, node `i` has row `position[i]` of them. A `Graph` is
    one tier in the order of its nodes (both None): see `tiers_of`.
    """

    parts: tuple[Graph, ...]
    order: Array | None = None  # [n] int32
    position: Array | None = None  # [n] int32

    @property
    def n(self) -> int:
        """Number of nodes, static."""
        return self.parts[0].nbr.shape[0] if self.position is None else self.position.shape[0]

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
