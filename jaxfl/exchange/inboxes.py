"""What all nodes say in a phase of a protocol, put into their neighbours' inboxes."""

from typing import Any

import jax.numpy as jnp

from jaxfl.core import Array, Env, Graph, Inbox, Log, Outbox, own_weight
from jaxfl.errors import InputError
from jaxfl.exchange import timing
from jaxfl.world.tiers import Tiers, tiers_of


def graph_of(env: Env) -> Any:
    """The round's graph, a `Graph` or `Tiers`; `InputError` where there is none."""
    if env.graph is None:
        raise InputError("topology is None, but gossip needs a graph.")
    return env.graph


def inboxes(env: Env, graph: Graph | Tiers, outbox: Outbox) -> tuple[list[Inbox], Log]:
    """`Network.deliver` over `graph`."""
    message = outbox.message
    if message.ndim not in (2, 3):
        raise InputError(f"outbox has a message of shape {message.shape[1:]}: [m], or [k, m] by slot, is needed.")
    n = message.shape[0]
    tiers = tiers_of(graph)
    if tiers.order is not None and message.ndim != 2:
        raise InputError("outbox has one message a slot, but a graph in tiers carries broadcasts alone.")
    speaks = jnp.asarray(outbox.speaks)
    if message.ndim == 3:
        speaks = jnp.broadcast_to(speaks[:, None] if speaks.ndim == 1 else speaks, message.shape[:2])
    else:
        speaks = jnp.broadcast_to(speaks, (n,))
    inboxes = [_inbox(g, message, speaks) for g in tiers.parts]
    each = 8.0 * message.dtype.itemsize * message.shape[-1]
    moved = sum(inbox.came.sum() for inbox in inboxes)
    log = Log(up_bits=moved * each, down_bits=moved * each)
    log["messages"] = speaks.sum() if message.ndim == 2 else moved
    if env.links is not None:
        came = [inbox.came * each for inbox in inboxes]
        ids = tiers.split(jnp.arange(n))
        log["seconds"] = timing.over_edges(env, list(zip(ids, tiers.parts, came, strict=True)))
    return inboxes, log


def _inbox(g: Graph, message: Array, speaks: Array) -> Inbox:
    """What the rows of a neighbour table hear."""
    if message.ndim == 3 and g.rev is None:
        raise InputError("outbox has one message a slot, but the graph has an edge without a reverse.")
    take = (lambda a: a[g.nbr]) if message.ndim == 2 else (lambda a: a[g.nbr, g.rev])
    link = g.weight != 0
    came = link & take(speaks)
    return Inbox(take(message), came, link, jnp.where(came, g.weight, 0), own_weight(g))
