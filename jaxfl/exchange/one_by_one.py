"""A round of several updates of a server (`world.waves`): members train together, the server goes on in their order."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxfl.core import PER_MEMBER, Array, Cohort, Env, Log, Mail, Tree
from jaxfl.errors import InputError
from jaxfl.exchange import timing
from jaxfl.exchange.codecs import FLOAT
from jaxfl.exchange.network import Network
from jaxfl.mapping.at import lift, reported


class Updated(NamedTuple):
    """What a round of several updates gave."""

    server: Tree  # what the last update left
    log: Log
    mail: Mail
    memory: dict  # what nodes keep now, leaves [n, ...] by name


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
    memory: dict | None = None,
) -> Updated:
    """All members of the cohort learn at once, then the server makes one update after the other.

    Args:
        net: how messages travel.
        key: of the round.
        env: the round, whose cohort has `updates`.
        mail: the network's memory.
        learn: of ONE node, as in `at`.
        x: what a member starts from, `[d]` or one a member `[c, d]`.
        update: `(server, members, rows, combine) -> (server, sent)`, one update of `members`, a cohort of a part of
            the places, who learned `rows`. `combine(members, messages)` is `(combined message, sent)`, as
            `Network.combine`.
        server: what the first update finds.
        memory: what nodes keep, as in `at`.

    Raises:
        InputError: a world with links, or what `Network.combine` refuses.
    """
    c = env.cohort
    if env.links is not None:
        raise InputError("links are given, but in waves the durations of jobs are all that takes time: leave them out.")
    updates = c.updates.shape[0]  # type: ignore[union-attr]
    members = c.ids.shape[0] // updates
    rows, new, each = lift(c, learn)(key, env, x, {}, memory)

    def part(a: Array, j: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(a, j * members, members)

    def one(j: Array, now: tuple) -> tuple:
        server, mail, bits = now
        of_all = {"total": None if c.total is None else c.total[j], "waiting": None, "updates": None}
        mine = {f: None if a is None else part(a, j) for f, a in c._asdict().items() if f in PER_MEMBER}
        turn = jax.random.fold_in(key, j)

        def combine(members: Cohort, messages: Array) -> tuple[Array, tuple]:
            out, mail_now, sent = net.combine(turn, env._replace(cohort=members), mail, messages)
            return out, (mail_now, sent)

        server, (mail, sent) = update(server, Cohort(**mine, **of_all), part(rows, j), combine)  # type: ignore[arg-type]
        return server, mail, jax.lax.dynamic_update_slice_in_dim(bits, sent, j * members, 0)

    count = c.updates.sum()  # type: ignore[union-attr]
    server, mail, bits = jax.lax.fori_loop(0, count, one, (server, mail, jnp.zeros(c.ids.shape)))
    log = reported(c, each) | timing.through_server(env, each["steps"], FLOAT * x.shape[-1], bits)
    return Updated(server, log | {"updates": count}, mail, new)
