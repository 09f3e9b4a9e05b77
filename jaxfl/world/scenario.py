"""The world of a run, composed of its parts."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxfl.core import ALL_STEPS, Array, Cohort, Graph, Links, Now, Process, Scenario, Shards, Tree, constant, stream
from jaxfl.errors import InputError, require
from jaxfl.mapping.canonical import canonical, once
from jaxfl.world.cohort import base_of, everyone, weighted
from jaxfl.world.events import Events, paced
from jaxfl.world.links import by_node
from jaxfl.world.max_plus import Clocks
from jaxfl.world.process import process, yielded
from jaxfl.world.promises import require_weights
from jaxfl.world.tiers import Tiers, tiers_of
from jaxfl.world.topology import as_process, between
from jaxfl.world.weights import Weights, reweighed


def byzantine(n: int, byz: Any = None) -> Array:
    """The Byzantine nodes `[n]` bool: none, the first `byz` nodes, or a given mask.

    Raises:
        InputError: a number outside 0..n, or a mask that is not `[n]` bool.
    """
    given = np.asarray(0 if byz is None else byz)
    if given.ndim == 0 and np.issubdtype(given.dtype, np.integer) and 0 <= given <= n:
        return constant(np.arange(n) < given)
    if given.shape != (n,) or given.dtype != bool:
        raise InputError(f"byz = {byz}: None, a number from 0 to n = {n}, or a mask [{n}] of bool is needed.")
    return constant(given)


def scenario(
    data: Tree,
    *,
    nodes: int | None = None,
    topology: Any = None,
    cohort: Process | None = None,
    churn: Process | None = None,
    links: Links | None = None,
    byz: Any = None,
    round_seconds: float | None = None,
    weights: Weights | None = None,
    clocks: Clocks | None = None,
) -> Scenario:
    """A world whose parts ignore each other, but for churn: who is down sends nothing, hears nothing, runs no step.

    Args:
        data: `Shards`, or whatever the task reads.
        nodes: number of nodes; by default one a shard, and needed where `data` is not `Shards`.
        topology: a weighted graph, a networkx graph (`mixing.from_networkx`) or a mixing matrix (`mixing.from_matrix`),
            the same in every round; a list of them, in turn (`topology.by_round`); a process that yields a graph; None.
            Clocks (`world.events`) say which pairs meet, who works, and how long a round takes.
        cohort: a process that yields a `Cohort`, or `(Cohort, seconds)` where a clock decides how long a round takes
            (`world.clock`); by default everyone. Members weigh as much as they have samples (where `data` is not
            `Shards`: all alike), unless the process was made with a `weight` of its own, such as `jnp.ones(n)`.
        churn: a process that yields who is up, `[n]` bool (`world.churn`, `world.availability`); None is everyone.
        links: how fast the nodes and their links are (`world.links`); None: transfers and steps take no time.
        byz: see `byzantine`.
        round_seconds: simulated seconds of a round beside its steps and transfers, where no clock says otherwise. None:
            0 where there are `links`, which time those, else 1.
        weights: how much the members who are up count in a round (`world.weights`); None: by their base weights.
        clocks: nodes wait for those they hear alone (`world.max_plus`), and time is counted so; None: all wait for all.

    Raises:
        InputError: a node has no sample, the sizes of the parts disagree, or a bad number.
    """
    _require_parts(data, cohort=cohort, churn=churn, links=links, weights=weights, clocks=clocks)
    sizes = np.asarray(data.size) if isinstance(data, Shards) else None
    if sizes is not None and sizes.size and sizes.min() == 0:
        raise InputError(f"data: node {int(np.argmin(sizes))} has no sample, and every shard needs at least one.")
    n = nodes if sizes is None or nodes is not None else len(sizes)
    if n is None:
        raise InputError("nodes = None: the number of nodes is needed where data is not Shards.")
    require("nodes", n, whole=True)
    if n < 1:
        raise InputError(f"nodes = {n}: at least one node is needed.")
    if sizes is not None and n != len(sizes):
        raise InputError(f"nodes = {nodes}: data has {len(sizes)} shards, and one a node is needed.")
    round_seconds = (1.0 if links is None and clocks is None else 0.0) if round_seconds is None else round_seconds
    require("round_seconds", round_seconds, most=math.inf)
    if not (math.isfinite(round_seconds) and round_seconds >= 0):
        raise InputError(f"round_seconds = {round_seconds}: a finite time of at least 0 is needed.")
    where = process(lambda key, arrays, s, t: (s, None)) if topology is None else as_process(topology)
    who = everyone(n) if cohort is None else cohort
    graph, members = yielded(where), yielded(who)
    timed = isinstance(members, tuple) and not isinstance(members, Cohort)
    members = members[0] if timed else members
    if graph is not None and tiers_of(graph).n != n:
        raise InputError(f"topology has {tiers_of(graph).n} nodes: as many as the world, {n}, are needed.")
    if isinstance(topology, Graph | Tiers):
        require_weights(topology)
    if isinstance(graph, Events) and (timed or cohort is not None):
        raise InputError("cohort is set, but the clocks of this topology (world.events) say who acts: leave it out.")
    if clocks is not None:
        _require_one_time(clocks, links, timed or isinstance(graph, Events), graph, n)
    if links is not None and isinstance(members, Cohort) and members.updates is not None:
        raise InputError("links are given, but in waves the durations of jobs are all that takes time: leave them out.")
    base = base_of(who)
    if not isinstance(members, Cohort) or members.ids.shape[0] > n or (base is not None and base.shape != (n,)):
        raise InputError(f"cohort is not drawn from {n} nodes: a process that yields a Cohort of them is needed.")
    who = weighted(who, sizes)
    up = process(lambda key, arrays, s, t: (s, None)) if churn is None else churn
    alive = yielded(up)
    if churn is not None and (getattr(alive, "shape", None) != (n,) or alive.dtype != bool):
        raise InputError(f"churn does not yield who of {n} nodes is up: a process of [{n}] bool is needed.")
    if links is not None and any(np.shape(v) != (n,) for v in by_node(links)):
        raise InputError(f"links have shapes {[np.shape(v) for v in by_node(links)]}: [{n}], one a node, is needed.")

    if weights is not None:
        if any(a.ndim == 1 and len(a) != n for a in jax.tree.leaves(weights.arrays)):
            raise InputError(f"weights are not of {n} nodes: one number a node, [{n}], is needed.")
        jax.eval_shape(lambda c, arrays: reweighed(c, weights.of, arrays), members, weights.arrays)
    (first_where, next_where, _), (first_who, next_who, _), (first_up, next_up, _) = where, who, up
    rule, weighing = (None, ()) if weights is None else weights

    begin, tick = (None, None) if clocks is None else clocks[:2]

    def init(key: Array, arrays: dict) -> tuple:
        at_where = once(first_where)(stream(key, "topology"), arrays["topology"])
        at_up = once(first_up)(stream(key, "churn"), arrays["churn"])
        timers = () if begin is None else (begin(n, graph),)
        return at_where, once(first_who)(stream(key, "cohort"), arrays["cohort"]), at_up, *timers

    def step(key: Array, arrays: dict, s: tuple, t: Array) -> tuple[tuple, Now]:
        at_where, graph = once(next_where)(stream(key, "topology"), arrays["topology"], s[0], t)
        at_who, c = once(next_who)(stream(key, "cohort"), arrays["cohort"], s[1], t)
        at_up, alive = once(next_up)(stream(key, "churn"), arrays["churn"], s[2], t)
        c, seconds = c if timed else (c, arrays["seconds"])
        if isinstance(graph, Events):
            c, seconds = paced(c, graph), graph.seconds
        if alive is not None:
            here, steps = alive[c.ids], ALL_STEPS if c.steps is None else c.steps
            left = jnp.maximum((arrays["share"] * alive).sum(), 1e-12)  # of a total, which is of all who are up
            total = None if c.total is None else c.total * left
            c = c._replace(weight=jnp.where(here, c.weight, 0), steps=jnp.where(here, steps, 0), total=total)
            graph = None if graph is None else between(graph, alive)
        if rule is not None:
            c = reweighed(c, rule, arrays["weights"])
        timers = ()
        if tick is not None:
            at_clocks, more = tick(stream(key, "clocks"), arrays["clocks"], s[3], t, graph, alive)
            timers, seconds = (at_clocks,), seconds + more
        return (at_where, at_who, at_up, *timers), Now(graph, c, seconds, alive, arrays["share"])

    arrays = {
        "topology": where.arrays,
        "cohort": who.arrays,
        "churn": up.arrays,
        "seconds": constant(round_seconds, np.float32),
    }
    arrays |= {} if weights is None else {"weights": weighing}
    arrays |= {} if clocks is None else {"clocks": clocks.arrays}
    arrays["share"] = _shares(base_of(who), n)
    return Scenario(canonical(init), canonical(step), arrays, data, byzantine(n, byz), links)


def _require_parts(data: Tree, **parts: Any) -> None:
    """Refuse what is no part of a world."""
    odd = sorted({type(a).__name__ for a in jax.tree.leaves(data) if not (hasattr(a, "shape") and hasattr(a, "dtype"))})
    if odd:
        raise InputError(
            f"data is a {type(data).__name__} with leaves of type {', '.join(odd)}, but must be arrays or Shards, such "
            "as partition.iid(dataset, n)."
        )
    kinds = dict.fromkeys(("cohort", "churn"), (Process, "a Process"))
    kinds |= {"links": (Links, "world.links.links(n)"), "weights": (Weights, "Weights, such as weights.uniform()")}
    kinds |= {"clocks": (Clocks, "Clocks, such as max_plus.neighbours(work)")}
    for name, value in parts.items():
        kind, words = kinds[name]
        if value is not None and not isinstance(value, kind):
            what = f"{type(value).__module__}.{type(value).__qualname__}"
            raise InputError(f"{name} is a {what}, but must be {words}.")


def _require_one_time(clocks: Clocks, links: Links | None, timed: bool, graph: Any, n: int) -> None:
    """Refuse what counts time beside the clocks of the nodes."""
    if links is not None:
        raise InputError(
            "links and clocks would both count transfers: give links to the clocks, neighbours(way=links)."
        )
    if timed:
        raise InputError("cohort or topology has a clock of its own beside clocks: one of them must count the time.")
    if clocks.graph and graph is None:
        raise InputError("topology is None, but clocks of nodes that wait for their neighbours need a graph.")
    clocks.init(n, graph)


def _shares(base: Array | None, n: int) -> Array:
    """How much each client counts among all, `[n]`, sum 1."""
    if isinstance(base, Tracer):
        return base / base.sum()
    weight = np.ones(n) if base is None else np.asarray(base, np.float64)
    return constant(weight / weight.sum(), np.float32)
