"""Membership without a server: views of who is in, and samples that all nodes derive alike.

A view is a conflict-free replicated table: merging is the elementwise maximum, so views that have heard the same news
in any order, grouping or number agree. Nodes whose views agree draw the same sample, since the order of a round is a
public hash of the round and the node. After MoDeST (De Vos et al., 2023, https://arxiv.org/abs/2302.13837) and its
code. A last axis `[n]` runs over the members; leading axes are whose view it is.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxfl.core import Array

NEVER = -(2**30)  # a last sign of life that is outside of every window


class View(NamedTuple):
    """What is known of the members. Both `[..., n]` int32."""

    active: Array  # round of the last sign of life
    stamp: Array  # twice how often the member came or left, plus one if it left last


class Sample(NamedTuple):
    """The first of an order who answered a ping."""

    ids: Array  # [s] int32, distinct, in the order; where not `found`, anyone else
    found: Array  # [s] bool, a prefix
    pings: Array  # int32, how many were asked
    waits: Array  # int32, how many timeouts passed, one after the other


def founders(up: Array) -> View:
    """The view `[n]` at the start: those `up` are members, of the others nobody has heard."""
    return View(jnp.where(up, 0, NEVER), jnp.where(up, 0, 1))


def merge(a: View, b: View) -> View:
    """What two views know together: the later sign of life, the newer event. Commutative, associative, idempotent."""
    return View(jnp.maximum(a.active, b.active), jnp.maximum(a.stamp, b.stamp))


def news(stamp: Array, comes: Array, leaves: Array, t: Array) -> View:
    """What members with `stamp` `[n]` say in round `t`; those who neither come nor leave say nothing new."""
    after = 2 * (stamp // 2 + 1)
    said = jnp.where(comes, after, jnp.where(leaves, after + 1, stamp))
    return View(jnp.where(comes, t, NEVER), said)


def members(view: View, t: Array, window: int) -> Array:
    """Who counts as a member in round `t`: did not leave, and gave a sign of life within `window` rounds."""
    return (view.stamp % 2 == 0) & (view.active >= t - window)


def public_hash(salt: Array, t: Array, n: int) -> Array:
    """The hash `[n]` of round `t`, int32 from 0 to 2^31 - 1, which every node can compute; `salt` is public too."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), salt), t)
    return (jax.random.bits(key, (n,), jnp.uint32) >> 1).astype(jnp.int32)


def first_alive(hash: Array, members: Array, alive: Array, s: int) -> Sample:
    """The first `s` `members` `[n]`, in the order of `hash` (then id), who are `alive` `[n]`, and what it took.

    `s` are pinged at once; after a timeout as many more as were silent, and so on: nobody is asked in vain behind
    the last one found. Costs O(n s), without a sort of all.
    """
    n = hash.shape[0]
    first, ids = jax.lax.top_k(jnp.where(members & alive, jnp.iinfo(jnp.int32).max - hash, -1), s)
    found = first >= 0
    mine, tie = hash[ids][:, None], jnp.arange(n) < ids[:, None]
    ahead = members & ((hash < mine) | ((hash == mine) & tie))  # [s, n]
    everyone = members.sum(dtype=jnp.int32)
    position = jnp.where(found, ahead.sum(1, dtype=jnp.int32), everyone)

    def ask(carry: tuple) -> tuple:
        asked, silent, waits, _ = carry
        answers = (position < asked).sum(dtype=jnp.int32)
        now = asked - answers
        further = jnp.minimum(asked + s - answers, everyone)
        return further, now, waits + (now > silent), further > asked

    zero = jnp.int32(0)
    start = jnp.minimum(s, everyone), zero, zero, jnp.bool_(True)
    pings, _, waits, _ = jax.lax.while_loop(lambda c: c[3], ask, start)
    return Sample(ids, found, pings, waits)


def mark(ids: Array, on: Array, n: int) -> Array:
    """The ids `[..., s]` that are `on` as a mask `[..., n]`."""
    return (jax.nn.one_hot(ids, n, dtype=bool) & on[..., None]).any(-2)


def _row(views: View, ids: Array) -> Array:
    """Where the views of the nodes `ids` are kept: table `[n, n]` with one a node, or `[1, n]` that all share."""
    return ids if views.active.shape[0] > 1 else jnp.zeros_like(ids)


def look(views: View, ids: Array, hash: Array, alive: Array, t: Array, window: int, s: int) -> Sample:
    """What each of the nodes `ids` `[k]` finds with its own view: `first_alive` with leaves `[k, ...]`.

    A node always counts itself as a member.
    """
    n = hash.shape[0]
    if views.active.shape[0] == 1:
        one = first_alive(hash, members(views, t, window)[0], alive, s)
        return jax.tree.map(lambda a: jnp.broadcast_to(a, (*ids.shape, *a.shape)), one)
    known = members(jax.tree.map(lambda a: a[ids], views), t, window) | jax.nn.one_hot(ids, n, dtype=bool)
    return jax.vmap(lambda mine: first_alive(hash, mine, alive, s))(known)


def sign_of_life(views: View, ids: Array, on: Array, t: Array) -> View:
    """The nodes `ids` `[c]` that are `on` note in their own view that they were active in round `t`."""
    seen = views.active.at[_row(views, ids), ids].max(jnp.where(on, t, NEVER))
    return views._replace(active=seen)


def informed(views: View, to: Array, by: Array, link: Array) -> View:
    """The nodes `to` `[k]` merge the views of the nodes `by` `[c]` where there is a `link` `[k, c]`."""
    if views.active.shape[0] == 1:
        return views

    def pour(a: Array) -> Array:
        heard = jnp.where(link[:, :, None], a[by], NEVER).max(1)
        return a.at[to].max(heard)

    return View(pour(views.active), pour(views.stamp))


def advertise(key: Array, views: View, said: View, speaks: Array, alive: Array, fanout: int) -> View:
    """Those who `speaks` `[n]` tell their news to random nodes; who is up merges it.

    Each hears each speaker with probability `fanout / n` independently (the code draws `fanout` of them exactly), and
    a speaker hears itself. A shared view hears everything.
    """
    n = alive.shape[0]
    if views.active.shape[0] == 1:
        heard = speaks[None]
    else:
        near = jax.random.uniform(key, (n, n)) < fanout / n
        heard = (near & alive[:, None] | jnp.eye(n, dtype=bool)) & speaks
    return merge(views, View(jnp.where(heard, said.active, NEVER), jnp.where(heard, said.stamp, 0)))
