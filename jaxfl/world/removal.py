"""Nodes that are taken out of a network at a given round, and networks that fall apart and heal.

Who goes: `hubs` first, `at_random`, `of_regions`, or any list. What they take with them:

| they keep | part of the world |
| --- | --- |
| nothing | `scenario(churn=vanish(n, nodes, at))`: no step, no message |
| links: data are lost, or (`at` 0) never were | `scenario(cohort=without_data(cohort, n, nodes, at))`: they relay |
| data: links are lost | `scenario(topology=cut_off(topology, n, nodes, at))`: they learn alone |

Which nodes and when are traced: all arms of a comparison share one program.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxfl.core import ALL_STEPS, Array, Cohort, Graph, Process, constant, stream
from jaxfl.errors import InputError, require
from jaxfl.world.churn import FOREVER, intervals
from jaxfl.world.cohort import labels, thinned
from jaxfl.world.process import process
from jaxfl.world.tiers import degrees, edges, tiers_of
from jaxfl.world.topology import as_process, between, within


def hubs(graph: Graph, count: int) -> np.ndarray:
    """The `count` nodes that hear the most others, the one of lower number first where two hear as many.

    Raises:
        InputError: `count` is outside 0..n.
    """
    n = tiers_of(graph).n
    require("count", count, least=0, most=n, whole=True)
    return np.argsort(-degrees(graph), kind="stable")[:count]


def at_random(n: int, count: int, seed: int = 0) -> np.ndarray:
    """`count` of `n` nodes, uniformly.

    Raises:
        InputError: `count` is outside 0..n, or a negative seed.
    """
    require("n", n, least=1, whole=True)
    require("count", count, least=0, most=n, whole=True)
    require("seed", seed, least=0, whole=True)
    return np.random.default_rng(seed).permutation(n)[:count]


def of_regions(region: Any, which: Any) -> np.ndarray:
    """The nodes whose `region` `[n]` (numbers or names) is `which`, or one of several.

    Raises:
        InputError: a region that no node is in.
    """
    region, wanted = np.asarray(region), np.atleast_1d(np.asarray(which))
    missing = [r for r in wanted.tolist() if r not in region.tolist()]
    if region.ndim != 1 or missing:
        raise InputError(f"which = {which}: regions of the nodes are needed, such as {region.ravel()[:5].tolist()}.")
    return np.flatnonzero(np.isin(region, wanted))


def giant_share(graph: Graph, up: Any = None) -> float:
    """Which share of the nodes `up` `[n]` (None: of all) is in their largest (strongly) connected component."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    (i, j, _), n = edges(graph), tiers_of(graph).n
    on = np.ones(n, bool) if up is None else np.asarray(up, bool)
    live = on[i] & on[j]
    matrix = coo_array((np.ones(live.sum()), (j[live], i[live])), shape=(n, n))
    part = connected_components(matrix, connection="strong")[1][on]
    return float(np.bincount(part).max() / on.sum()) if on.any() else 0.0


def _mask(n: int, nodes: Any, at: int) -> np.ndarray:
    ids = np.atleast_1d(np.asarray(nodes))
    ids = ids.astype(np.int64) if ids.size == 0 else ids
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or (ids.size and not 0 <= ids.min() <= ids.max() < n):
        raise InputError(f"nodes = {np.asarray(nodes).tolist()}: a list of ids from 0 to {n - 1} is needed.")
    require("at", at, least=0, most=FOREVER, whole=True)
    return np.isin(np.arange(n), ids)


def vanish(n: int, nodes: Any, at: int) -> Process:
    """From round `at` on `nodes` are down, with their data and their links: for `scenario(churn=)`.

    Raises:
        InputError: an id outside 0..n-1, or a negative round.
    """
    last = np.where(_mask(n, nodes, at), at, FOREVER)[:, None]
    return intervals(np.zeros_like(last), last)


def without_data(cohort: Process, n: int, nodes: Any, at: int = 0) -> Process:
    """From round `at` on `nodes` have no data: they run no step and count nothing in a cohort, but hear and relay.

    `cohort` is any process of cohorts (in gossip `cohort.everyone(n)`), or a clock.

    Raises:
        InputError: an id outside 0..n-1, or a negative round.
    """
    first, draw, inner = cohort

    def step(key: Array, arrays: dict, s: Any, t: Array) -> tuple[Any, Any]:
        s, c = draw(key, arrays["members"], s, t)
        c, *more = (c,) if isinstance(c, Cohort) else c
        has = ~(arrays["lost"][c.ids] & (t >= arrays["at"]))
        steps = jnp.where(has, ALL_STEPS if c.steps is None else c.steps, 0).astype(jnp.int32)
        c = thinned(c, has.astype(jnp.float32))._replace(steps=steps, strata=c.strata)  # the steps say all of it
        return s, (c, *more) if more else c

    arrays = {"members": inner, "lost": constant(_mask(n, nodes, at)), "at": constant(at, np.int32)}
    return process(step, arrays, lambda key, arrays: first(key, arrays["members"]))


def cut_off(topology: Any, n: int, nodes: Any, at: int) -> Process:
    """From round `at` on `nodes` have no links: they learn alone. `topology` as in `scenario`.

    Raises:
        InputError: an id outside 0..n-1, a negative round, or no topology.
    """
    mask = _mask(n, nodes, at)
    arrays = {"lost": constant(mask), "at": constant(at, np.int32)}
    return _cut(topology, lambda graph, arrays, t: between(graph, ~(arrays["lost"] & (t >= arrays["at"]))), arrays)


def partition(topology: Any, n: int, groups: Any, start: int, end: int) -> Process:
    """The network falls apart and heals: in the rounds `start <= t < end` only edges within a group carry weight.

    Args:
        topology: as in `scenario`; another `partition` for a further one.
        n: number of nodes.
        groups: how many blocks of successive nodes there are, or the group of each node `[n]`, 0, 1, ...
        start: first round of the cut.
        end: round in which it has healed.

    Raises:
        InputError: bad groups, rounds that are negative or in the wrong order, or no topology.
    """
    group = labels("groups", n, groups)
    require("start", start, least=0, whole=True)
    require("end", end, least=start, most=FOREVER, whole=True)
    arrays = {"group": constant(group, np.int32), "start": constant(start, np.int32), "end": constant(end, np.int32)}

    def apart(graph: Any, arrays: dict, t: Array) -> Any:
        down = (arrays["start"] <= t) & (t < arrays["end"])
        return within(graph, jnp.where(down, arrays["group"], 0))

    return _cut(topology, apart, arrays)


def _cut(topology: Any, live: Any, arrays: dict) -> Process:
    """The topology with those edges alone that `live(graph, arrays, t)` leaves."""
    first, walk, inner = as_process(topology)

    def step(key: Array, arrays: dict, s: Any, t: Array) -> tuple[Any, Any]:
        s, graph = walk(stream(key, "below cut"), arrays["inner"], s, t)
        return s, live(graph, arrays, t)

    return process(step, {"inner": inner, **arrays}, lambda key, arrays: first(key, arrays["inner"]))
