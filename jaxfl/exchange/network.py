"""The exchange: the only way information crosses between nodes.

A `Network` says how messages are coded, what attackers make of them and how a receiver combines them. Its verbs take
the round's key, `Env` and the network's memory `mail`, and return the result, the new memory and the cost: `up_bits`
sent by nodes, `down_bits` received by them. A message of several vectors is their concatenation, so its bits are
counted.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxfl.core import (
    Array,
    Cohort,
    Env,
    Graph,
    Inbox,
    InputError,
    Mail,
    Outbox,
    Strata,
    Tree,
    n_nodes,
    node_keys,
    own_weight,
    stream,
    tile,
)
from jaxfl.exchange import rules
from jaxfl.exchange.attacks import Attack
from jaxfl.exchange.codecs import PLAIN, Codec, Collective
from jaxfl.exchange.mix import mix
from jaxfl.mapping import at, map_kept, map_nodes, put_rows, rows_of


class Network(NamedTuple):
    """How messages travel.

    `rule` combines what a receiver heard, `codec` encodes a message, `attack` is what Byzantine senders (`Env.byz`)
    say instead (None: they say what they are told), `repeats` is the number of exchanges in one gossip phase
    (multiple gossip steps: mixing by the power of the matrix, each step a message on every link). `collective`
    replaces codec and rule in `aggregate` by a compressed all-reduce.
    """

    rule: Callable = rules.mean
    codec: Codec = PLAIN
    attack: Attack | None = None
    repeats: int = 1
    collective: Collective | None = None

    def init(self, env: Env, message: Array) -> Mail:
        """Memory of the network for messages like `message` `[m]`, one a node."""
        colluders = () if self.attack is None else self.attack.init(message)
        mine, common = ((), ()) if self.collective is None else self.collective.init(message)
        n = n_nodes(env)
        return Mail((tile(self.codec.init(message), n), tile(mine, n)), (colluders, common))

    def _send(
        self, key: Array, mail: Mail, who: Cohort, messages: Array, present: Array | None = None
    ) -> tuple[Array, Mail, Array]:
        """What the messages `[c, m]` of a cohort are after the codec, and their bits `[c]`.

        Who is not `present` `[c]` (None: all are) sends nothing and remembers what it did before.
        """
        c, m = messages.shape
        if self.codec is PLAIN:
            return messages, mail, jnp.full(c, 32.0 * m)
        memory, other = mail.nodes
        keys = node_keys(stream(key, "codec"), who.ids)

        def send(_, row: tuple, mine: Tree) -> tuple:
            key, message = row
            sent, mine, bits = self.codec.send(key, mine, message)
            return (sent, bits), mine

        (sent, bits), memory = map_kept(who, send, (), (keys, messages), memory, present=present)
        return sent, mail._replace(nodes=(memory, other)), bits

    def _plan(self, key: Array, mail: Mail, sent: Array, weight: Array, bad: Array) -> tuple[Mail, Tree]:
        """What the colluders agree on, once a round, having seen every message."""
        if self.attack is None:
            return mail, ()
        memory, common = mail.shared
        memory, known = self.attack.plan(stream(key, "attack"), memory, sent, weight, bad)
        return mail._replace(shared=(memory, common)), known

    def broadcast(self, env: Env, *vectors: Array) -> dict:
        """Cost of handing `vectors`, each `[m]`, to every member of the cohort that is asked, uncoded."""
        c = env.cohort
        asked = c.weight > 0 if c.asked is None else c.asked
        return {"down_bits": asked.sum() * (32.0 * sum(v.shape[-1] for v in vectors))}

    def aggregate(self, key: Array, env: Env, mail: Mail, messages: Array, own: Array | None = None):
        """The cohort's messages `[c, m]` combined at the server: `([m], mail, cost)`.

        Weights are `cohort.weight` normalised; an absent member's message counts nothing and costs nothing. If nobody
        is present the mean rule gives zero. `own` `[m]` is the server's reference for rules that need one, such as
        what it aggregated before.
        """
        c = env.cohort
        chex.assert_shape(messages, (c.ids.shape[0], None))
        weight = c.weight / jnp.maximum(c.weight.sum(), 1e-12)
        if self.collective is not None:
            return _all_reduce(self.collective, key, c, mail, messages, weight)
        sent, mail, bits = self._send(key, mail, c, messages, weight > 0)
        own = jnp.zeros(messages.shape[1], messages.dtype) if own is None else own
        cost = {"up_bits": jnp.where(weight > 0, bits, 0).sum()}
        bad = env.byz[c.ids]
        mail, known = self._plan(key, mail, sent, weight, bad)
        if self.attack is not None:
            sent = self.attack.lie(stream(key, "lie"), known, own, sent, weight, bad)

        def present(sent: Array) -> Array:
            """Without the messages of the absent, which may not be finite: `0 * nan` is not 0."""
            return self.rule(own, jnp.where((weight > 0)[:, None], sent, 0.0), weight)

        if self.rule is not rules.mean:
            return present(sent), mail, cost
        out = self.rule(own, sent, weight)
        # decided by the result [m], as looking at the messages would read [c, m] once more
        return jax.lax.cond(jnp.isfinite(out).all(), lambda _: out, present, sent), mail, cost

    def collect(self, key: Array, env: Env, mail: Mail, learn: Callable, x: Array, shared: Tree = None, **named):
        """What the cohort learns, combined: `([m], log, mail, cost)`. `learn` of ONE node, `named` as in `mapping.at`.

        It is `aggregate` of the nodes' messages. Where that is a plain mean, the messages are added up block by block
        and `[c, m]` is never stored.
        """
        c = env.cohort
        plain = self.codec is PLAIN and self.attack is None and self.collective is None
        if self.rule is rules.mean and plain:
            weight = c.weight / jnp.maximum(c.weight.sum(), 1e-12)
            out, log = at(c, learn, weight)(key, env, x, shared, **named)
            return out, log, mail, {"up_bits": (weight > 0).sum() * (32.0 * out.size)}
        messages, log = at(c, learn)(key, env, x, shared, **named)
        out, mail, cost = self.aggregate(key, env, mail, messages)
        return out, log, mail, cost

    def gossip(self, key: Array, env: Env, mail: Mail, messages: Array):
        """Every node combines its own message with those of its neighbours: `([n, m], mail, cost)`."""
        g = _graph(env)
        chex.assert_shape(messages, (n_nodes(env), None))
        if self.repeats == 1:
            messages, mail, bits = self._gossip_once(key, env, g, mail, messages)
            return messages, mail, {"up_bits": bits, "down_bits": bits}

        def again(carry, r):
            messages, mail, bits = self._gossip_once(jax.random.fold_in(key, r), env, g, carry[1], carry[0])
            return (messages, mail), bits

        (messages, mail), bits = jax.lax.scan(again, (messages, mail), jnp.arange(self.repeats))
        return messages, mail, {"up_bits": bits.sum(), "down_bits": bits.sum()}

    def _gossip_once(self, key: Array, env: Env, g: Graph, mail: Mail, messages: Array) -> tuple[Array, Mail, Array]:
        (n, m), byz = messages.shape, env.byz
        up = jnp.ones(n) if env.alive is None else env.alive.astype(jnp.float32)
        who = Cohort(jnp.arange(n), up, jnp.zeros(n, jnp.int32), strata=Strata(n))
        sent, mail, bits = self._send(key, mail, who, messages, env.alive)
        live = g.weight != 0
        # one product where every message is alike: no gather, and exact
        total = live.sum() * (32.0 * m) if self.codec is PLAIN else jnp.where(live, bits[g.nbr], 0).sum()
        if self.rule is rules.mean and self.attack is None:
            return mix(g, messages, sent), mail, total
        mail, known = self._plan(key, mail, sent, up, byz)

        def receive(shared, row):
            (sent, byz, known), (key, own, own_w, nbr, weight) = shared, row
            heard = jnp.concatenate([own[None], sent[nbr]])
            weight = jnp.concatenate([own_w[None], weight])
            if self.attack is not None:
                bad = jnp.concatenate([jnp.zeros(1, bool), byz[nbr]])
                heard = self.attack.lie(key, known, own, heard, weight, bad)
            # over a link that is down nothing comes, not even what is not finite
            return self.rule(own, jnp.where((weight != 0)[:, None], heard, 0.0), weight)

        keys = node_keys(stream(key, "lie"), jnp.arange(n))
        rows = keys, messages, own_weight(g), g.nbr, g.weight
        out = map_nodes(receive, (sent, byz, known), rows, bytes_each=4 * m * (g.nbr.shape[1] + 1))
        return out, mail, total

    def deliver(self, env: Env, outbox: Outbox) -> tuple[Inbox, dict]:
        """What all nodes say, put into their neighbours' inboxes: `(Inbox of leaves [n, k, ...], cost)`.

        `outbox.message` is `[n, m]` (one message for all who listen) or `[n, k, m]` (one a slot, delivered along
        `graph.rev`), `outbox.speaks` `[n]` or `[n, k]` bool. The cost counts bits over live links, and `messages`:
        how often a node spoke, a broadcast being one. The rows of the graph may be some of the nodes only, of which
        the inbox then is; the outbox is everyone's.
        """
        g = _graph(env)
        message = outbox.message
        n, k = message.shape[0], g.nbr.shape[1]
        chex.assert_rank(message, {2, 3})
        speaks = jnp.asarray(outbox.speaks)
        if message.ndim == 3 and speaks.ndim == 1:
            speaks = speaks[:, None]
        speaks = jnp.broadcast_to(speaks, (n, k)[: message.ndim - 1])
        if message.ndim == 3 and g.rev is None:
            raise InputError("outbox has one message a slot, but the graph has an edge without a reverse.")
        take = (lambda a: a[g.nbr]) if message.ndim == 2 else (lambda a: a[g.nbr, g.rev])
        link = g.weight != 0
        came = link & take(speaks)
        bits = came.sum() * (8.0 * message.dtype.itemsize * message.shape[-1])
        inbox = Inbox(take(message), came, link, jnp.where(came, g.weight, 0), own_weight(g))
        told = speaks.sum() if message.ndim == 2 else came.sum()
        return inbox, {"up_bits": bits, "down_bits": bits, "messages": told}


def _all_reduce(collective: Collective, key: Array, who: Cohort, mail: Mail, messages: Array, weight: Array):
    (coder, memory), (colluders, common) = mail
    mine = rows_of(who, memory)
    out, mine, common, bits = collective.reduce(stream(key, "collective"), mine, common, messages, weight)
    memory = put_rows(who, memory, mine)
    return out, Mail((coder, memory), (colluders, common)), {"up_bits": jnp.where(weight > 0, bits, 0).sum()}


def _graph(env: Env) -> Graph:
    if env.graph is None:
        raise InputError("topology is None, but gossip needs a graph.")
    return env.graph
