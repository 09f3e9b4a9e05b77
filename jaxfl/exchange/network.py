"""The exchange: the only way information crosses between nodes.

A `Network` says how messages are coded and how a receiver combines them. Its four verbs take the round's key, `Env`
and the network's memory `mail`, and return the result, the new memory and the cost: `up_bits` sent by nodes,
`down_bits` received by them. A message of several vectors is their concatenation, so its bits are counted.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxfl.core import Array, Env, Graph, InputError, Tree, n_nodes, node_keys, own_weight, stream, tile
from jaxfl.exchange import rules
from jaxfl.exchange.codecs import Codec, plain
from jaxfl.exchange.mix import mix
from jaxfl.mapping import map_nodes


class Network(NamedTuple):
    """How messages travel.

    `rule` combines what a receiver heard, `codec` encodes a message, `repeats` is the number of exchanges in one
    gossip phase (multiple gossip steps: mixing by the power of the matrix, each step a message on every link).
    """

    rule: Callable = rules.mean
    codec: Codec = plain()
    repeats: int = 1

    def init(self, env: Env, message: Array) -> Tree:
        """Memory of the codec for messages like `message` `[m]`, one a node."""
        return () if self.codec.link is None else tile(self.codec.link.init(message), n_nodes(env))

    def _send(self, key: Array, mail: Tree, ids: Array | None, messages: Array) -> tuple[Array, Tree]:
        """What the messages `[c, m]` of nodes `ids` (None: all, in order) are after the codec."""
        if self.codec.link is None:
            return messages, mail
        link = optax.with_extra_args_support(self.codec.link)
        mine = mail if ids is None else jax.tree.map(lambda a: a[ids], mail)
        who = jnp.arange(messages.shape[0]) if ids is None else ids
        keys = node_keys(stream(key, "codec"), who)
        sent, mine = map_nodes(lambda _, row: link.update(row[1], row[2], key=row[0]), (), (keys, messages, mine))
        return sent, mine if ids is None else jax.tree.map(lambda a, v: a.at[ids].set(v), mail, mine)

    def broadcast(self, env: Env, *vectors: Array) -> dict:
        """Cost of handing `vectors`, each `[m]`, to every member of the cohort that is present, uncoded."""
        return {"down_bits": (env.cohort.weight > 0).sum() * (32.0 * sum(v.shape[-1] for v in vectors))}

    def aggregate(self, key: Array, env: Env, mail: Tree, messages: Array, own: Array | None = None):
        """The cohort's messages `[c, m]` combined at the server: `([m], mail, cost)`.

        Weights are `cohort.weight` normalised; an absent member's message counts nothing and costs nothing. If nobody
        is present the mean rule gives zero. `own` `[m]` is the server's reference for rules that need one.
        """
        c = env.cohort
        chex.assert_shape(messages, (c.ids.shape[0], None))
        sent, mail = self._send(key, mail, c.ids, messages)
        weight = c.weight / jnp.maximum(c.weight.sum(), 1e-12)
        own = jnp.zeros(messages.shape[1], messages.dtype) if own is None else own
        cost = {"up_bits": (c.weight > 0).sum() * self.codec.bits(messages.shape[1])}
        out = self.rule(own, sent, weight)

        def again(sent: Array) -> Array:
            """Without the messages of the absent, which may not be finite: `0 * nan` is not 0."""
            return self.rule(own, jnp.where((weight > 0)[:, None], sent, 0.0), weight)

        # decided by the result [m], as looking at the messages would read [c, m] once more
        return jax.lax.cond(jnp.isfinite(out).all(), lambda _: out, again, sent), mail, cost

    def gossip(self, key: Array, env: Env, mail: Tree, messages: Array):
        """Every node combines its own message with those of its neighbours: `([n, m], mail, cost)`."""
        g = _graph(env)
        chex.assert_shape(messages, (n_nodes(env), None))
        bits = self.repeats * (g.weight != 0).sum() * self.codec.bits(messages.shape[1])
        cost = {"up_bits": bits, "down_bits": bits}
        if self.repeats == 1:
            return *self._gossip_once(key, g, mail, messages), cost

        def again(carry, r):
            return self._gossip_once(jax.random.fold_in(key, r), g, carry[1], carry[0]), None

        (messages, mail), _ = jax.lax.scan(again, (messages, mail), jnp.arange(self.repeats))
        return messages, mail, cost

    def _gossip_once(self, key: Array, g: Graph, mail: Tree, messages: Array) -> tuple[Array, Tree]:
        sent, mail = self._send(key, mail, None, messages)
        if self.rule is rules.mean:
            return mix(g, messages, sent), mail

        def receive(sent, row):
            own, own_w, nbr, weight = row
            heard = jnp.concatenate([own[None], sent[nbr]])
            return self.rule(own, heard, jnp.concatenate([own_w[None], weight]))

        row_bytes = 4 * messages.shape[1] * (g.nbr.shape[1] + 1)
        return map_nodes(receive, sent, (messages, own_weight(g), g.nbr, g.weight), bytes_each=row_bytes), mail

    def deliver(self, env: Env, outbox: Array):
        """Messages in the neighbours' inboxes: `(inbox [n, k, m], the graph they came along, cost)`.

        `outbox` is `[n, m]` (one message for all who listen) or `[n, k, m]` (one a slot, delivered along `graph.rev`).
        """
        g = _graph(env)
        bits = (g.weight != 0).sum() * self.codec.bits(outbox.shape[-1])
        chex.assert_rank(outbox, {2, 3})
        if outbox.ndim == 3 and g.rev is None:
            raise InputError("outbox has one message a slot, but the graph has an edge without a reverse.")
        inbox = outbox[g.nbr] if outbox.ndim == 2 else outbox[g.nbr, g.rev]
        return inbox, g, {"up_bits": bits, "down_bits": bits}


def _graph(env: Env) -> Graph:
    if env.graph is None:
        raise InputError("topology is None, but gossip needs a graph.")
    return env.graph
