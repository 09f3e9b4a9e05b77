"""Several updates of a server in one round: members train together, the server goes on in their order.

A wave (`world.waves`) has several versions of the server in a round; where clients call one by one, each member of a
cohort is an update of its own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxfl.core import PER_MEMBER, Array, Cohort, Env, Log, Mail, Tree
from jaxfl.exchange import timing
from jaxfl.exchange.codecs import FLOAT
from jaxfl.exchange.network import Network
from jaxfl.mapping.at import lift, reported


class Turn(NamedTuple):
    """What the server finds when it makes one of its updates: of a part of the members, `[k, ...]` each."""

    members: Cohort
    rows: Array  # [k, m], what they learned
    kept: Tree  # what they have beside it
    each: dict  # what they logged


class Updated(NamedTuple):
    """What a round of several updates gave."""

    server: Tree  # what the last update left
    log: Log
    mail: Mail
    memory: dict  # what nodes keep now, leaves [n, ...] by name
    kept: Tree  # what the updates made of it, leaves [c, ...]


def place(c: Cohort) -> Array:
    """In which of the updates each member is, `[c]` from 0."""
    updates = c.updates.shape[0]  # type: ignore[union-attr]
    return jnp.repeat(jnp.arange(updates), c.ids.shape[0] // updates)


def one_by_one(
    net: Network,
    key: Array,
    env: Env,
    mail: Mail,
    learn: Callable,
    x: Array,
    update: Callable,
    server: Tree,
    *,
    shared: dict | None = None,
    memory: dict | None = None,
    kept: Tree = (),
    alone: bool = False,
    handed: float | None = None,
) -> Updated:
    """All members of the cohort learn at once, then the server makes one update after the other.

    Args:
        net: how messages travel.
        key: of the round.
        env: the round, whose cohort has `updates`.
        mail: the network's memory.
        learn: of ONE node, as in `at`.
        x: what a member starts from, `[d]` or one a member `[c, d]`.
        update: `(server, Turn, combine) -> (server, kept, sent)`, one update. `combine(members, messages)` is
            `(combined message, sent)`, as `Network.combine`, and `kept` what it makes of `Turn.kept`.
        server: what the first update finds.
        shared: further named arguments that all members see alike, as in `at`.
        memory: what nodes keep, as in `at`.
        kept: what members have beside it, which the server's updates change, leaves `[c, ...]`.
        alone: each member is an update of its own, in the order of the cohort.
        handed: numbers that a member downloads (None: those of one `x`).

    Raises:
        InputError: what `Network.combine` refuses.
    """
    c = env.cohort
    updates = jnp.ones(c.ids.shape[0], bool) if alone else c.updates
    turns, size = updates.shape[0], c.ids.shape[0]  # type: ignore[union-attr]
    rows, new, each = lift(c, learn)(key, env, x, shared, memory)

    def of(j: Array, tree: Tree) -> Tree:
        return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, j * (size // turns), size // turns), tree)

    def one(j: Array, now: tuple) -> tuple:
        server, mail, kept, bits = now
        of_all = {"total": None if c.total is None or alone else c.total[j], "waiting": None, "updates": None}
        mine: dict[str, Any] = of(j, {f: a for f, a in c._asdict().items() if f in PER_MEMBER})
        turn = jax.random.fold_in(key, j)

        def combine(members: Cohort, messages: Array) -> tuple[Array, tuple]:
            out, mail_now, sent = net.combine(turn, env._replace(cohort=members), mail, messages)
            return out, (mail_now, sent)

        found = Turn(Cohort(**mine, **of_all), of(j, rows), of(j, kept), of(j, each))
        server, own, (mail, sent) = update(server, found, combine)
        put = lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, j * (size // turns), 0)
        return server, mail, jax.tree.map(put, kept, own), put(bits, sent)

    first = server, mail, kept, jnp.zeros(size)
    server, mail, kept, bits = jax.lax.fori_loop(0, turns if alone else updates.sum(), one, first)  # type: ignore[union-attr]
    down = FLOAT * (x.shape[-1] if handed is None else handed)
    return Updated(server, reported(c, each) | timing.through_server(env, each["steps"], down, bits), mail, new, kept)
