"""Topologies whose nodes average in groups, other groups each round: pairs, and machines of several workers.

A schedule is `labels` `[period, n]`, the group of each node in turn; `averaging` makes it a topology,
`max_plus.grouped` the clocks of nodes that wait for their group alone.
"""

from typing import Any

import numpy as np

from jaxfl.core import Graph, Process
from jaxfl.errors import InputError, require
from jaxfl.world.mixing import from_weights
from jaxfl.world.topology import by_round


def averaging(labels: Any) -> Process:
    """In round `t` every node has the mean of its group, `labels[t mod period]`: doubly stochastic.

    Args:
        labels: the group of each node, whole numbers from 0, `[n]` or in turn `[period, n]`.

    Raises:
        InputError: another shape, or a number below 0.
    """
    rows = np.atleast_2d(np.asarray(labels))
    require("labels", rows, least=0, whole=True)
    if rows.ndim != 2 or rows.shape[1] < 2:
        raise InputError(f"labels have shape {list(np.shape(labels))}, but must be [n] or [period, n] of n > 1 nodes.")
    return by_round([_means(row) for row in rows])


def _means(row: np.ndarray) -> Graph:
    alike = row[:, None] == row
    np.fill_diagonal(alike, False)
    i, j = np.nonzero(alike)
    return from_weights(len(row), i, j, 1 / (1 + alike.sum(1)[i]))  # type: ignore[return-value]


def one_peer_ring(n: int) -> np.ndarray:
    """Labels `[2, n]`: pairs with the next node round a circle, in turn those that begin at even and at odd nodes.

    Raises:
        InputError: `n` is odd or below 2.
    """
    require("n", n, least=2, whole=True)
    if n % 2:
        raise InputError(f"n is {n}, but must be even: nodes meet in pairs.")
    return np.stack([np.arange(n) // 2, (np.arange(n) + 1) % n // 2])


def pairs(n: int) -> np.ndarray:
    """Labels `[log2 n, n]`: in turn pairs of nodes whose numbers differ in bit 0, 1, ...; after all, the exact mean.

    Raises:
        InputError: `n` is no power of two above 1.
    """
    bits = _bits("n", n)
    at = np.arange(n)
    return np.stack([at % 2**b + 2**b * (at // 2 ** (b + 1)) for b in range(bits)])


def alternating_exponential(machines: int, local: int) -> np.ndarray:
    """Labels `[2 log2 machines, machines * local]` of the alternating exponential ring (AER).

    Machines are paired as nodes in `pairs`. In a round half of the pairs average over the workers of both machines, the
    other half inside each machine alone; in the next they swap. The product over a period is the exact mean. Links
    between machines thus carry half as much at once.

    Raises:
        InputError: `machines` is no power of two above 1, or `local` is below 1.
    """
    require("local", local, least=1, whole=True)
    _bits("machines", machines)
    rows = []
    for met in pairs(machines):
        for turn in (0, 1):
            alone = met % 2 != turn  # every other pair stays at home
            label = np.where(alone, machines + np.arange(machines), met)
            rows.append(np.unique(label, return_inverse=True)[1])
    return np.repeat(np.stack(rows), local, axis=1)


def _bits(name: str, n: int) -> int:
    require(name, n, least=2, whole=True)
    if n & (n - 1):
        raise InputError(f"{name} is {n}, but must be a power of two.")
    return n.bit_length() - 1
