"""Coreness in a changing graph: restarted, incremental, and incremental without error.

Distributed k-Core Decomposition; Montresor, De Pellegrini, Miorandi; IEEE TPDS 2013; https://arxiv.org/abs/1103.5320.

The coreness of a node is the largest k such that it lies in a subgraph of minimum degree k; it is the h-index of its
neighbours' corenesses. A round is one batch of edge changes (`world.temporal`), run until nobody speaks. A node knows
its links, what it heard, and that a round begins.

`kcore_restart` (Montresor et al.): core <- degree, nothing known of the neighbours; keep the lowest of what each
neighbour said, core <- h(min(est, core)); say it when it falls. Exact.

`kcore_incremental` (the paper): what was heard stays, stamped with its round. A node that gained an edge restarts from
its degree; one that only lost edges recomputes. A message (c, t) is taken if t is newer than what is known, or as new
and c lower; then core <- h(est), or min(core, degree) while a neighbour is unknown. After a fall the node skips one
turn to speak (`paused`), so that several falls become one message. Never too high; too low where several nodes would
have to rise together and none of them gained an edge.

`kcore_exact` (not in the paper) reopens these too, one level at a time, with the phases that `Program.rest` separates.
Falls come first: core <- min(core, h(est)). Then phases of rises: who gained an edge to a node of at least its own
core, or rose in the phase before, tries core + 1, if it has more than core neighbours of at least its core. So does
each of these on hearing that a neighbour of its own core tries. Two exchanges later all such neighbours have
answered, and a try that lacks support is taken back. What is left has risen, and a phase without a try ends the round.
Exact, as (1) x <- min(x, h(x)) falls from any x above the coreness to the coreness (h is monotone, and a fixed point
is a bound from below); (2) let x be the fixed point after a phase, H the k-core for the lowest k with
H != {x >= k}: all of H has x >= k - 1, so the next phase can raise it; (3) a group that rises holds a node that
gained an edge or rose in the phase before, as otherwise it would have been as high before (Sariyuce et al., Streaming
algorithms for k-core decomposition, PVLDB 2013, for one edge).

Deviations: a node without neighbours says nothing (nobody would hear it). A broadcast is one message. What comes in one
exchange is taken together, before the node recomputes; the authors' program recomputes after every single message and
so sends 1 to 6 % more of them.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxfl.core import Algorithm, Array, Inbox, Metric, Outbox, Process, Program
from jaxfl.exchange.network import Network
from jaxfl.exchange.program import program
from jaxfl.exchange.reducers import h_index
from jaxfl.paper import Example, Given, Paper, System
from jaxfl.world.temporal import Edges, chung_lu, churned, temporal

PAPER = Paper(
    "Decentralized and Self-adaptive Core Maintenance on Temporal Graphs",
    "Rucci, Carlini, Dazzi, Kavalionak, Mordacchini",
    "2025",
    "https://arxiv.org/abs/2510.00758",
    number="002",
)
MONTRESOR = Paper(
    "Distributed k-Core Decomposition",
    "Montresor, De Pellegrini, Miorandi",
    "IEEE TPDS 2013",
    "https://arxiv.org/abs/1103.5320",
    journal=True,
)

UNKNOWN = 2**30  # what a neighbour said that said nothing: higher than any coreness
MOST = 10_000  # exchanges of a round at most


def _degree(inbox: Inbox) -> Array:
    return inbox.link.sum(dtype=jnp.int32)


def _algorithm(p: Program, net: Network, most: int) -> Algorithm:
    return program(p, net, most=most, answer="core")


def kcore_restart(net: Network = Network(), *, most: int = MOST) -> Algorithm:
    """Every round from the degrees down; the answer, also logged as `core`, is the coreness `[n]` int32."""

    def init(key, data, i, link):
        return (jnp.int32(0), jnp.full(link.shape, UNKNOWN, jnp.int32)), Outbox(jnp.zeros(1, jnp.int32), False)

    def begin(key, s, inbox):
        degree = _degree(inbox)
        return (degree, jnp.full_like(s[1], UNKNOWN)), Outbox(degree[None], degree > 0)

    def step(key, s, inbox):
        core, est = s
        est = jnp.where(inbox.came, jnp.minimum(est, inbox.message[:, 0]), est)
        now = h_index(jnp.minimum(est, core), inbox.link)
        return (now, est), Outbox(now[None], now < core)

    return _algorithm(Program(init, step, lambda s: s[0], begin), net, most)


class _Kept(NamedTuple):
    core: Array
    est: Array  # [k] what each neighbour said last
    stamp: Array  # [k] in which round
    link: Array  # [k] bool, the links of the last round
    t: Array  # the round
    changed: Array  # bool, there is something to say
    paused: Array  # bool, but not now


def kcore_incremental(net: Network = Network(), *, paused: bool = True, most: int = MOST) -> Algorithm:
    """From the last coreness on; the answer, also logged as `core`, is an estimate `[n]` int32, never too high.

    Args:
        net: delivers the messages.
        paused: skip a turn after a fall.
        most: exchanges of a round at most.
    """

    def init(key, data, i, link):
        none, zero = jnp.zeros(link.shape, bool), jnp.int32(0)
        est = jnp.full(link.shape, UNKNOWN, jnp.int32)
        s = _Kept(zero, est, jnp.zeros_like(est), none, zero, jnp.array(False), jnp.array(False))
        return s, Outbox(jnp.zeros(2, jnp.int32), False)

    def compute(s, est, inbox):
        some_unknown = (inbox.link & (est == UNKNOWN)).any()
        return jnp.where(some_unknown, jnp.minimum(s.core, _degree(inbox)), h_index(est, inbox.link))

    def say(s):
        outbox = Outbox(jnp.stack([s.core, s.t]), s.changed & ~s.paused, s.changed & s.paused)
        return s._replace(changed=s.changed & s.paused, paused=jnp.array(False)), outbox

    def begin(key, s, inbox):
        gained, lost, t = inbox.link & ~s.link, s.link & ~inbox.link, s.t + 1
        est, stamp = jnp.where(gained, UNKNOWN, s.est), jnp.where(gained, t, s.stamp)
        fallen = jnp.where(lost.any(), compute(s, est, inbox), s.core)
        core = jnp.where(gained.any(), _degree(inbox), fallen)
        changed = s.changed | gained.any() | (core != s.core)
        return say(_Kept(core, est, stamp, inbox.link, t, changed, s.paused))

    def step(key, s, inbox):
        value, t = inbox.message.T
        take = inbox.came & ((t > s.stamp) | ((t == s.stamp) & (value < s.est)))
        est, stamp = jnp.where(take, value, s.est), jnp.where(take, t, s.stamp)
        core = jnp.where(take.any(), compute(s, est, inbox), s.core)
        wait = s.paused | (core < s.core) if paused else s.paused
        return say(s._replace(core=core, est=est, stamp=stamp, changed=s.changed | (core != s.core), paused=wait))

    return _algorithm(Program(init, step, lambda s: s.core, begin), net, most)


class _Phased(NamedTuple):
    core: Array  # as of the phase before
    est: Array  # [k] what each neighbour said last
    link: Array  # [k] bool, the links of the last round
    new: Array  # [k] bool, links gained and not yet tried
    met: Array  # bool, there was a round before
    up: Array  # bool, tries core + 1
    tried: Array  # bool, did so in this phase
    wait: Array  # exchanges until the try may fail


def kcore_exact(net: Network = Network(), *, most: int = MOST) -> Algorithm:
    """Incremental and exact, in phases; the answer, also logged as `core`, is the coreness `[n]` int32."""

    def init(key, data, i, link):
        none, no, zero = jnp.zeros(link.shape, bool), jnp.array(False), jnp.int32(0)
        est = jnp.full(link.shape, UNKNOWN, jnp.int32)
        return _Phased(zero, est, none, none, no, no, no, zero), Outbox(jnp.zeros(1, jnp.int32), False)

    def attempt(s, cause, link):
        """Try core + 1, given a `cause`, if enough neighbours may."""
        up = cause & ~s.tried & ((link & (s.est >= s.core)).sum() > s.core)
        wait = jnp.where(up, 2, s.wait)
        return s._replace(up=s.up | up, tried=s.tried | up, wait=wait)

    def say(s, speaks):
        return s, Outbox((s.core + s.up)[None], speaks, s.wait > 0)

    def begin(key, s, inbox):
        gained = inbox.link & ~s.link
        est = jnp.where(gained, UNKNOWN, s.est)
        bound = jnp.where(s.met, s.core, _degree(inbox))
        core = jnp.minimum(bound, h_index(est, inbox.link))
        speaks = gained.any() | (core != s.core)
        s = s._replace(core=core, est=est, link=inbox.link, new=gained & s.met, met=jnp.array(True))
        return say(s, speaks)

    def step(key, s, inbox):
        before, was = s.core + s.up, s.est
        est = jnp.where(inbox.came, inbox.message[:, 0], was)
        h, wait = h_index(est, inbox.link), jnp.maximum(s.wait - 1, 0)
        up = s.up & ((wait > 0) | (h > s.core))
        s = s._replace(core=jnp.minimum(s.core, jnp.where(s.up, s.core, h)), est=est, up=up, wait=wait)
        cause = (inbox.came & (was <= s.core) & (est > s.core)).any()
        s = attempt(s, cause, inbox.link)
        return say(s, s.core + s.up != before)

    def rest(key, s, inbox):
        rose, core = s.up, s.core + s.up
        cause = rose | (s.new & (s.est >= core)).any()
        s = s._replace(core=core, new=jnp.zeros_like(s.new), up=jnp.array(False), tried=jnp.array(False))
        s = attempt(s, cause, inbox.link)
        return say(s, s.up)

    return _algorithm(Program(init, step, lambda s: s.core + s.up, begin, rest), net, most)


def coreness(n: int, edges: Edges) -> np.ndarray:
    """The coreness `[n]` of each node, by networkx."""
    import networkx as nx

    g: Any = nx.Graph()
    g.add_nodes_from(range(n))
    g.add_edges_from(edges.tolist())
    core = nx.core_number(g)
    return np.array([core[i] for i in range(n)])


@lru_cache(maxsize=4)
def _changing(n: int, rounds: int, seed: int) -> tuple[Process, np.ndarray]:
    """A power-law graph of which 1 % of the edges change every round, and the coreness in its last."""
    snapshots = churned(n, chung_lu(n, min(10.0, n / 4), 0.6, seed), rounds, 0.01, seed)
    return temporal(n, snapshots, tiers=False), coreness(n, snapshots[-1])


def _error(truth: Array, core: Array) -> dict[str, Array]:
    """How far the nodes are from the coreness, on average."""
    return {"error": jnp.abs(core - truth).mean(dtype=jnp.float32)}


def _temporal(given: Given) -> Example:
    """A graph of its own, in place of a fixed topology: `error` is against the coreness in the last round."""
    graph, truth = _changing(given.nodes, given.rounds, given.seed)
    return Example(data=(), topology=graph, metric=Metric(_error, jnp.asarray(truth)))


SYSTEMS = {
    "kcore_restart": System(kcore_restart, MONTRESOR, _temporal),
    "kcore_incremental": System(kcore_incremental, PAPER, _temporal),
    "kcore_exact": System(kcore_exact, PAPER, _temporal),
}
