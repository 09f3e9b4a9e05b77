"""Whether a graph that a user made is what `core.Graph` promises, looked at on the host before anything is compiled."""

import jax
import numpy as np
from jax.core import Tracer

from jaxfl.core import Graph
from jaxfl.errors import InputError
from jaxfl.world.mixing import TOLERANCE
from jaxfl.world.tiers import Tiers, by_node, tables


def require_weights(graph: Graph | Tiers) -> Graph | Tiers:
    """The graph, or an InputError: its arrays do not fit, break a promise of `core.Graph`, or are no mixing weights.

    These are finite, at least 0 and sum to at most 1 in a row, with `own` to 1 (of push-sum to anything). A traced
    graph passes.
    """
    if any(isinstance(a, Tracer) for a in jax.tree.leaves(graph)):
        return graph
    if isinstance(graph, Graph):
        _require_table(graph)
    least = by_node(graph, lambda weight: weight.min(1, initial=np.inf))
    total = by_node(graph, lambda weight: weight.sum(1))
    bad = np.flatnonzero(~((least >= 0) & np.isfinite(total)))
    if bad.size:
        at = next(np.asarray(part.weight)[ids == bad[0]][0] for ids, part in tables(graph) if bad[0] in ids)
        worst = at[~(np.isfinite(at) & (at >= 0))][0]
        raise InputError(f"node {bad[0]} hears with the weight {worst:g}, but weights must be finite and at least 0.")
    if graph.own is None and total.max() > 1 + TOLERANCE:
        raise InputError(
            f"the weights of node {int(np.argmax(total))} sum to {np.max(total):g}, but must sum to at most 1; "
            "give the graph mixing weights first, such as mixing.metropolis(graph)."
        )
    if graph.own is not None:
        own = np.asarray(graph.own, np.float64)
        bad = np.flatnonzero(~((own >= 0) & np.isfinite(own)))
        if bad.size:
            raise InputError(f"own of node {bad[0]} is {own[bad[0]]:g}, but must be finite and at least 0.")
        worst = int(np.argmax(np.abs(own + total - 1)))
        if not graph.column_stochastic and not abs(own[worst] + total[worst] - 1) < 1e-5:
            raise InputError(
                f"the weights of node {worst}, its own included, sum to {own[worst] + total[worst]:g}, but must sum to "
                "1 (weights of push-sum come from mixing.push_weights)."
            )
    return graph


def _require_table(graph: Graph) -> None:
    """InputError unless the arrays of a graph have the shapes, ranges and promised places of `core.Graph`."""
    nbr, weight = np.asarray(graph.nbr), np.asarray(graph.weight)
    if nbr.ndim != 2 or nbr.dtype.kind not in "iu" or weight.shape != nbr.shape or weight.dtype.kind not in "fiuV":
        raise InputError(
            f"nbr is {nbr.dtype}{list(nbr.shape)} and weight {weight.dtype}{list(weight.shape)}, but a table of node "
            "numbers [n, k] and one of weights [n, k] are needed."
        )
    n, k = nbr.shape
    for name, a, shape, most in (
        ("nbr", nbr, (n, k), n),
        ("rev", graph.rev, (n, k), k),
        ("own", graph.own, (n,), None),
    ):
        if a is None:
            continue
        a = np.asarray(a)
        if a.shape != shape:
            raise InputError(f"{name} has shape {list(a.shape)}, but must be {list(shape)}, as nbr is [{n}, {k}].")
        if most is not None and a.size and not 0 <= a.min() <= a.max() < most:
            bad = a.min() if a.min() < 0 else a.max()
            raise InputError(f"{name} holds {bad}, but must hold numbers from 0 to {most - 1}.")
    here = np.arange(n)
    if graph.shifts is not None and len(graph.shifts) != k:
        raise InputError(f"shifts is {graph.shifts}, but must be {k}, one a slot of nbr.")
    for slot in range(k):  # one by one: a complete graph has as many as nodes
        there, live = nbr[:, slot], weight[:, slot] != 0
        if graph.shifts is not None:
            bad = np.flatnonzero((there != (here + graph.shifts[slot]) % n) | ~live)
            if bad.size:
                raise InputError(
                    f"shifts is {graph.shifts}, but in slot {slot} node {bad[0]} hears node {there[bad[0]]} with the "
                    f"weight {weight[bad[0], slot]:g}: it must hear node {(bad[0] + graph.shifts[slot]) % n}, above 0."
                )
        if graph.reach is not None:
            apart = (there - here) % n
            bad = np.flatnonzero(live & (np.minimum(apart, n - apart) > graph.reach))
            if bad.size:
                raise InputError(f"reach is {graph.reach}, but node {bad[0]} hears node {there[bad[0]]}, farther away.")
        if graph.rev is not None:
            back = np.asarray(graph.rev)[:, slot]
            bad = np.flatnonzero(live & (nbr[there, back] != here))
            if bad.size:
                raise InputError(
                    f"rev of node {bad[0]} is {back[bad[0]]} in slot {slot}, but there node {there[bad[0]]} hears "
                    f"node {nbr[there[bad[0]], back[bad[0]]]}."
                )
