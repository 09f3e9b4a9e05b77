"""Asynchronous gossip: Poisson clocks of nodes and of pairs, whose events come in waves that do not conflict.

Events at different nodes commute, and an event only waits for the earlier ones at its own nodes. So a pair's event may
happen as soon as no other clock of its two nodes rings before, a node's as soon as no clock of its pairs does. A round
is one wave of all events that may: a matching whose pairs average (weight 1/2), and nodes that act by themselves.
Applied wave by wave, events give what they give one by one in the order of time, bit for bit, with no capacity that
could overflow. Nodes are then not all equally far in time; `ahead` bounds by how much, and 0 is one event at a time.

When a clock rings is drawn by its number and how often it rang, so `ahead` changes the waves, not the events.
Times are kept relative to the earliest clock: float32 is as good after years as at the start.

Events take no time by themselves. Over `links` every wave takes as long as its slowest transfer and step on top, which
is more than nodes would need that wait for their partners alone.

Boyd, Ghosh, Prabhakar, Shah, Randomized gossip algorithms, IEEE Trans. Information Theory 2006 (clocks); Lubachevsky,
Efficient parallel simulations of dynamic Ising spin systems, J. Computational Physics 1988 (waves).
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxfl.core import ALL_STEPS, Array, Cohort, Graph, Process, constant, stream
from jaxfl.errors import InputError, require
from jaxfl.world.exponential import exponential
from jaxfl.world.graph import from_edges
from jaxfl.world.process import process
from jaxfl.world.tiers import Tiers, edges, tiers_of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Events(Graph):
    """A wave of events: a graph of one slot, in which who meets hears its partner with weight 1/2, the others nobody.

    A node has one event at most in a wave: it meets, or it acts. `seconds` is how far the earliest clock moved on:
    what happens before the sum of them over rounds is what these rounds hold.
    """

    acts: Array  # [n] bool, its own clock rang
    since: Array  # [n] float32, seconds from a node's last event (or the start) to this one, 0 without one
    seconds: Array  # float32


class Clocks(NamedTuple):
    """When which clock rings next, in seconds from the earliest; clocks of pairs, then of nodes."""

    key: Array
    next: Array  # [E + n] float32, inf: never
    rung: Array  # [E + n] int32, how often so far
    last: Array  # [n] float32, at most 0: a node's last event


def poisson(graph: Any, *, call: float | Array = 1.0, act: Any = 0.0, ahead: float | Array = math.inf) -> Process:
    """Node `i` calls node `j` at random times, `call * weight_ij` a second in the mean, and acts `act_i` a second.

    As a topology it lets a gossip system run asynchronously: who acts works, and the two of a call exchange and average
    (`scenario` sees to that). The pair's clock is that of its calls both ways. All rates are traced.

    Args:
        graph: who calls whom. Of mixing weights, node `i` wakes once a second and calls by its row of the matrix,
            itself included; the weights of generators are 1.
        call: what weights are multiplied by for calls a second.
        act: events a second of nodes by themselves, one number or one a node `[n]`.
        ahead: events more than so many seconds after the earliest wait for a later wave.

    Raises:
        InputError: no fixed `Graph`, hubs that need tiers, a rate below 0, or no clock that ever rings.
    """
    n, both, table, rate = _pairs(graph)
    require("call", call, least=0)
    require("ahead", ahead, least=0, most=math.inf)
    own = np.asarray(act, np.float64)
    if own.shape not in ((), (n,)) or not (np.isfinite(own) & (own >= 0)).all():
        raise InputError(f"act = {act}: a finite number of at least 0, or one a node [{n}], is needed.")
    if not own.any() and (not rate.any() or (not isinstance(call, Tracer) and np.max(call) == 0)):
        raise InputError(f"act = {act}, call = {call}: no clock ever rings.")
    arrays = {
        "nbr": both.nbr,
        "pair": constant(table, np.int32),
        "weight": constant(rate, np.float32),
        "call": jnp.asarray(call, jnp.float32),
        "act": constant(np.broadcast_to(own, n), np.float32),
        "ahead": jnp.asarray(ahead, jnp.float32),
    }
    return process(_wave, arrays, _wound)


def spectrum(graph: Any) -> tuple[float, float]:
    """How slowly clocks average, `1 / lambda_2`, and the largest `(e_i - e_j)' Lap^+ (e_i - e_j) / 2` of a pair.

    Of `Lap = sum_ij r_ij (e_i - e_j)(e_i - e_j)'` with `r_ij` the weights both ways, in float64: with `call=c` both are
    `c` times smaller. The second is half of the largest resistance between neighbours.

    Raises:
        InputError: as `poisson`, or a graph in parts.
    """
    n, both, table, rate = _pairs(graph)
    i, slot = np.nonzero(np.asarray(both.weight))
    lap, j = np.zeros((n, n)), np.asarray(both.nbr)[i, slot]
    lap[i, j] = -rate[table[i, slot]]
    lap -= np.diag(lap.sum(1))
    values, vectors = np.linalg.eigh(lap)
    if n < 2 or values[1] < 1e-9 * values[-1]:
        raise InputError("topology is not connected, but all nodes must come to agree.")
    inverse = (vectors[:, 1:] / values[1:]) @ vectors[:, 1:].T
    across = inverse[i, i] + inverse[j, j] - 2 * inverse[i, j]
    return float(1 / values[1]), float(across.max() / 2)


def _pairs(graph: Any) -> tuple[int, Graph, np.ndarray, np.ndarray]:
    """Nodes, the graph of who meets, each slot's pair `[n, k]` (E: none), each pair's weights both ways added `[E]`."""
    if not isinstance(graph, Graph | Tiers):
        raise InputError(f"topology is a {type(graph).__name__}, but clocks of calls need one fixed graph.")
    n = tiers_of(graph).n
    i, j, weight = edges(graph)
    code, which = np.unique(np.minimum(i, j) * n + np.maximum(i, j), return_inverse=True)
    both = from_edges(n, i, j, both=True)
    rows, slots = np.nonzero(np.asarray(both.weight))
    others, table = np.asarray(both.nbr)[rows, slots], np.full(both.nbr.shape, code.size)
    table[rows, slots] = np.searchsorted(code, np.minimum(rows, others) * n + np.maximum(rows, others))
    return n, both, table, np.bincount(which, weight, code.size)


def _rate(arrays: dict) -> Array:
    """Events a second of every clock: of pairs, then of nodes."""
    return jnp.concatenate([arrays["call"] * arrays["weight"], arrays["act"]])


def _waits(key: Array, clock: Array, rung: Array, rate: Array) -> Array:
    """Seconds from a ring of clocks `[c]` to their next one."""
    keys = jax.vmap(lambda i, t: jax.random.fold_in(jax.random.fold_in(key, i), t))(clock, rung)
    return jax.vmap(exponential)(keys) / rate


def _wound(key: Array, arrays: dict) -> Clocks:
    key, rate, n = stream(key, "clocks"), _rate(arrays), arrays["act"].shape[0]
    never = jnp.zeros(rate.shape, jnp.int32)
    return Clocks(key, _waits(key, jnp.arange(rate.size), never, rate), never, jnp.zeros(n))


def _wave(key: Array, arrays: dict, s: Clocks, t: Array) -> tuple[Clocks, Events]:
    """All events that no earlier one at their nodes holds up; of equal times a node's own goes first, then by pair."""
    del key, t  # every clock draws by itself
    nbr, pair, rate = arrays["nbr"], arrays["pair"], _rate(arrays)
    n, here = nbr.shape[0], jnp.arange(nbr.shape[0])
    E = rate.size - n
    own = s.next[E:]
    of_slot = jnp.where(pair < E, s.next[pair], jnp.inf)  # [n, k]
    tied = of_slot == of_slot.min(1, keepdims=True, initial=jnp.inf)
    mine = jnp.where(tied & (of_slot < jnp.inf), pair, E).min(1, initial=E)  # the first of equals by number
    slot = jnp.argmax((pair == mine[:, None]) & (mine < E)[:, None], axis=1)
    partner = nbr[here, slot]
    itself = own <= jnp.where(mine < E, s.next[jnp.minimum(mine, E - 1)], jnp.inf) if E else own < jnp.inf
    choice = jnp.where(itself, E + here, jnp.where(mine < E, mine, E + here))  # the clock of its next event
    when = s.next[choice]
    soon = when <= s.next.min() + arrays["ahead"]
    meets = ~itself & (choice < E) & (choice[partner] == choice) & soon
    acts = itself & soon & (when < jnp.inf)
    ring = acts | (meets & (here < partner))
    clock = jnp.where(ring, choice, E + n)  # out of range: nobody's
    rung = s.rung.at[clock].add(1, mode="drop")
    wait = _waits(s.key, choice, rung[choice], rate[choice])
    after = s.next.at[clock].set(when + wait, mode="drop")
    event, now = acts | meets, after.min()
    since = jnp.where(event, when - s.last, 0.0)
    last = jnp.where(event, when, s.last) - now
    wave = Events(
        nbr=jnp.where(meets, partner, here)[:, None].astype(jnp.int32),
        weight=jnp.where(meets, 0.5, 0.0)[:, None],
        rev=jnp.zeros((n, 1), jnp.int32),
        acts=acts,
        since=since,
        seconds=now,
    )
    return Clocks(s.key, after - now, rung, last), wave


def paced(c: Cohort, wave: Events) -> Cohort:
    """The cohort in which only who acts runs steps."""
    own = jnp.where(wave.acts[c.ids], ALL_STEPS, 0)
    return c._replace(steps=own if c.steps is None else jnp.minimum(c.steps, own))
