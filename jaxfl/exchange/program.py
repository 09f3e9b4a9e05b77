"""Lift a program of ONE node to an `Algorithm` over the world's graph."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxfl.core import Algorithm, Array, Env, Inbox, Outbox, Program, State, Tree, n_nodes, node_keys, stream
from jaxfl.errors import InputError, require
from jaxfl.exchange.network import Network
from jaxfl.mapping.nodes import map_nodes
from jaxfl.world.tiers import Tiers, join, tiers_of


def program(p: Program, net: Network = Network(), *, most: int | None = None, answer: str | None = None) -> Algorithm:
    """A protocol in which every node runs `p`; a round is one exchange, or as many as it takes until all are silent.

    A round starts with `p.begin`, if there is one: each node sees its links, and what it then says replaces what it
    was about to say when the last round was cut off. Without `most`, the outboxes are delivered once along the round's
    graph and each node takes a step. With `most`, that is repeated until nobody speaks or is busy. Then `p.rest`, if
    there is one, may start another phase; the round ends when all stay silent after it.

    The log counts `up_bits`, `down_bits` and `messages` (a broadcast is one); with `most` also `waves` (exchanges),
    `active` (nodes that spoke at all), `phases` (calls of `p.rest`) and `unfinished` (nodes that would have gone on
    after `most` exchanges). That a phase is over is known to all at no cost: a protocol that detects it pays more.

    Args:
        p: one node. Where the world's graph comes in tiers (`world.tiers`), its slots are those of its tier.
        net: delivers the messages.
        most: exchanges of a round at most; None is one exchange.
        answer: the name under which each node's answer (a number) is logged in every round; None: it is not.

    Raises:
        InputError: `most` is below 1, or None although `p.rest` needs rounds that end in silence.
    """
    require("most", most, least=1, whole=True, none=True)
    if most is None and p.rest is not None:
        raise InputError("most is None, but a program with a rest needs rounds that end in silence: give a number.")

    def init(key, env, x):
        del x
        t = _table(env)
        keys, ids = _keys(key, env, t), t.split(jnp.arange(n_nodes(env)))
        rows = zip(keys, ids, (part.weight != 0 for part in t.parts), strict=True)
        out = [map_nodes(lambda data, row: p.init(row[0], data, *row[1:]), env.data, row) for row in rows]
        return _pack(t, [s for s, _ in out], _whole(t.join([box for _, box in out])))

    def round(key, env, s):
        t = _table(env)
        states, outbox = _unpack(s)
        if p.begin is not None:
            inboxes, _ = net.deliver(env, outbox._replace(speaks=jnp.zeros_like(outbox.speaks)))
            states, fresh = _each(p.begin, _keys(stream(key, "begin"), env, t), t, states, inboxes)
            outbox = _first_of(fresh, outbox)
        if most is None:
            inboxes, cost = net.deliver(env, outbox)
            states, outbox = _each(p.step, _keys(key, env, t), t, states, inboxes)
        else:
            states, outbox, cost = _until_silent(p, net, most, key, env, t, states, outbox)
        s = _pack(t, states, outbox)
        return s, cost if answer is None else cost | {answer: read(s)}

    def read(s):
        return join(
            s.shared[0] if s.shared else None, [map_nodes(lambda _, v: p.read(v), (), v) for v in _unpack(s)[0]]
        )

    return Algorithm(init, round, read)


def _until_silent(p: Program, net: Network, most: int, key, env: Env, t: Tiers, states: tuple, outbox: Outbox) -> tuple:
    """Exchanges until nobody speaks or is busy, and phases until nobody does so after a rest."""

    def exchange(c: dict) -> dict:
        inboxes, cost = net.deliver(env, c["outbox"])
        keys = _keys(jax.random.fold_in(key, c["waves"]), env, t)
        states, box = _each(p.step, keys, t, c["states"], inboxes)
        return c | {
            "states": states,
            "outbox": box,
            "waves": c["waves"] + 1,
            "spoke": c["spoke"] | _by_node(c["outbox"].speaks),
            "cost": jax.tree.map(jnp.add, c["cost"], cost),
            "over": ~_awake(box).any() if p.rest is None else c["over"],
        }

    def rest(c: dict) -> dict:
        inboxes, _ = net.deliver(env, c["outbox"])
        keys = _keys(jax.random.fold_in(stream(key, "rest"), c["phases"]), env, t)
        states, box = _each(p.rest, keys, t, c["states"], inboxes)
        over = ~_awake(box).any()
        return c | {"states": states, "outbox": box, "phases": c["phases"] + 1, "over": over}

    def more(c: dict) -> Array:
        return ~c["over"] & ((c["waves"] < most) | ~_awake(c["outbox"]).any())

    def go(c: dict) -> dict:
        return exchange(c) if p.rest is None else jax.lax.cond(_awake(c["outbox"]).any(), exchange, rest, c)

    none = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(lambda: net.deliver(env, outbox)[1]))
    first = {
        "states": states,
        "outbox": outbox,
        "waves": jnp.int32(0),
        "phases": jnp.int32(0),
        "spoke": jnp.zeros(n_nodes(env), bool),
        "cost": none,
        "over": ~_awake(outbox).any() if p.rest is None else jnp.array(False),
    }
    last = jax.lax.while_loop(more, go, first)
    log = last["cost"] | {
        "waves": last["waves"],
        "active": last["spoke"].sum(),
        "unfinished": _awake(last["outbox"]).sum(),
    }
    return last["states"], last["outbox"], log if p.rest is None else log | {"phases": last["phases"]}


def _table(env: Env) -> Tiers:
    if env.graph is None:
        raise InputError("topology is None, but a program needs a graph.")
    return tiers_of(env.graph)


def _keys(key, env: Env, t: Tiers) -> tuple:
    return t.split(node_keys(stream(key, "program"), jnp.arange(n_nodes(env))))


def _each(f: Any, keys: tuple, t: Tiers, states: tuple, inboxes: Sequence[Inbox]) -> tuple[tuple, Outbox]:
    """`f(key, s, inbox)` for every node, tier by tier: their states, and what they say in the order of the nodes."""
    rows = zip(keys, states, inboxes, strict=True)
    out = [map_nodes(lambda _, row: f(*row), (), row) for row in rows]
    return tuple(s for s, _ in out), _whole(t.join([box for _, box in out]))


def _whole(outbox: Outbox) -> Outbox:
    """The same outbox from every step, so that a loop may carry it."""
    return Outbox(*map(jnp.asarray, outbox))


def _by_node(speaks: Array | bool) -> Array:
    speaks = jnp.asarray(speaks)
    return speaks if speaks.ndim == 1 else speaks.any(1)


def _awake(outbox: Outbox) -> Array:
    """Who speaks or is busy, `[n]`."""
    return _by_node(outbox.speaks) | outbox.busy


def _first_of(fresh: Outbox, late: Outbox) -> Outbox:
    """What is said now, and what was still under way where nothing is."""
    now = jnp.asarray(fresh.speaks)
    now = now.reshape(now.shape + (1,) * (fresh.message.ndim - now.ndim))
    message = jnp.where(now, fresh.message, late.message)
    return Outbox(message, fresh.speaks | late.speaks, fresh.busy | late.busy)


def _pack(t: Tiers, states: Sequence[Tree], outbox: Outbox) -> State:
    return State((), (states[0], outbox)) if t.position is None else State((t.position,), (tuple(states), outbox))


def _unpack(s: State) -> tuple[tuple, Outbox]:
    states, outbox = s.nodes
    return (states if s.shared else (states,)), outbox
