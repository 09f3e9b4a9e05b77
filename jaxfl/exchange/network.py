"""The exchange: the only way information crosses between nodes.

A `Network` says how messages are coded, what attackers make of them and how a receiver combines them. Its verbs take
the round's key, `Env` and the network's memory `mail`, and return the result, the new memory and a `Log` of what it
cost: `up_bits` sent by nodes, `down_bits` received by them, and `seconds` where the world has links. A message of
several vectors is their concatenation, so its bits are counted.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import (
    Array,
    Cohort,
    Env,
    Graph,
    Inbox,
    Log,
    Mail,
    Outbox,
    Strata,
    Tree,
    counts,
    n_nodes,
    node_keys,
    own_weight,
    stream,
    tile,
    without,
)
from jaxfl.errors import InputError, require_rows
from jaxfl.exchange import coverage, noise, personal, rules, timing
from jaxfl.exchange.attacks import Attack
from jaxfl.exchange.codecs import FLOAT, PLAIN, Codec, Collective
from jaxfl.exchange.inboxes import graph_of, inboxes
from jaxfl.exchange.mix import everywhere
from jaxfl.exchange.noise import Noise
from jaxfl.exchange.slots import check, require_each, require_whole
from jaxfl.learn.layers import Part
from jaxfl.mapping.at import lift, reported
from jaxfl.mapping.nodes import map_memory, map_nodes, put_rows, rows_of
from jaxfl.mapping.sums import count
from jaxfl.world.events import Events
from jaxfl.world.tiers import tiers_of


class Collected(NamedTuple):
    """What a cohort learned and sent, combined at the server."""

    mean: Array  # [m]; zeros where nobody answered
    present: Array  # bool, somebody answered
    log: Log  # `loss`, `gradients`, `up_bits`, `down_bits` and, over links, `seconds`
    mail: Mail
    memory: dict  # what nodes keep now, leaves [n, ...] by name
    each: dict  # what each member logged, leaves [c, ...]
    filled: Array  # [m], the mean in which what a sub-model does not send is 0: for sums over clients
    heard: Array | None = None  # [c, m] where asked for: what arrived from each member, 0 of the absent


class Network(NamedTuple):
    """How messages travel.

    `rule` combines what a receiver heard, `codec` encodes a message, `attack` is what Byzantine senders (`Env.byz`)
    say instead (None: they say what they are told), `repeats` is the number of exchanges in one gossip phase
    (multiple gossip steps: mixing by the power of the matrix, each step a message on every link). `collective`
    replaces codec and rule at a server by a compressed all-reduce. `personal` is the part of the model that nodes keep
    to themselves (`learn.layers.part`): it is neither sent nor counted, and each node's own model is evaluated.
    `submodel` says which numbers of a server's model a client holds and trains (`learn.submodels`); those are sent, and
    of each number the mean of those who sent it is taken (`exchange.coverage`). `noise` is what links add to all that
    crosses them (`exchange.noise`).
    """

    rule: Callable = rules.mean
    codec: Codec = PLAIN
    attack: Attack | None = None
    repeats: int = 1
    collective: Collective | None = None
    personal: Part | None = None
    submodel: Callable | None = None
    noise: Noise | None = None

    def fill(self, system: str, **slots: Any) -> "Network":
        """The network with the slots that `system` brings itself.

        Raises:
            InputError: the user has filled one of them, or one that these replace.
        """
        replaced = ("codec", "rule") if "collective" in slots else ()
        for slot in (*slots, *replaced):
            if getattr(self, slot) is not self._field_defaults[slot]:
                given = next(iter(slots)) if slot in replaced else slot
                raise InputError(f"net.{slot} is set, but {system} brings its own {given}: leave it out.")
        return self._replace(**slots)

    def check(self) -> None:
        """Raise `InputError` unless every slot holds what belongs there."""
        check(self)

    def init(self, env: Env, message: Array) -> Mail:
        """Memory of the network for messages like `message` `[m]`, one a node.

        Raises:
            InputError: a message that is no vector, a slot that holds something else, or a rule or codec beside a
                collective, which replaces them.
        """
        self.check()
        if jnp.ndim(message) != 1:
            raise InputError(f"message has shape {jnp.shape(message)}, but must be what ONE node sends, [m].")
        n, own = n_nodes(env), ()
        if self.personal is not None:
            own = personal.none_yet(self.personal, n)
            message = message[personal.split(self.personal, len(message))[1]]
        colluders = () if self.attack is None else self.attack.init(message)
        mine, common = ((), ()) if self.collective is None else self.collective.init(message)
        return Mail((tile(self.codec.init(message), n), tile(mine, n), own), (colluders, common))

    def _send(
        self, key: Array, mail: Mail, who: Cohort, messages: Array, present: Array | None = None
    ) -> tuple[Array, Mail, Array]:
        """What the messages `[c, m]` of a cohort are after codec and noise, and their bits `[c]`.

        Who is not `present` `[c]` (None: all are) sends nothing and remembers what it did before.
        """
        c, m = messages.shape
        arrive = lambda sent: sent if self.noise is None else noise.sent(key, who.ids, sent, self.noise)
        if self.codec is PLAIN:
            return arrive(messages), mail, jnp.full(c, 32.0 * m)
        memory, *other = mail.nodes
        keys = node_keys(stream(key, "codec"), who.ids)

        def send(_, row: tuple, mine: Tree) -> tuple:
            key, message = row
            sent, mine, bits = self.codec.send(key, mine, message)
            return (sent, bits), mine

        (sent, bits), memory = map_memory(who, send, (), (keys, messages), memory, present=present)
        return arrive(sent), mail._replace(nodes=(memory, *other)), bits

    def _plan(self, key: Array, mail: Mail, sent: Array, weight: Array, bad: Array) -> tuple[Mail, Tree]:
        """What the colluders agree on, once a round, having seen every message."""
        if self.attack is None:
            return mail, ()
        memory, common = mail.shared
        memory, known = self.attack.plan(stream(key, "attack"), memory, sent, weight, bad)
        return mail._replace(shared=(memory, common)), known

    def combine(self, key: Array, env: Env, mail: Mail, messages: Array, reference: Array | None = None):
        """The cohort's messages `[c, m]` combined at the server: `([m], mail, bits [c])`, of those present.

        Weights are `counts(cohort)` in a mean, and sum to one in every other rule; an absent member's message counts
        nothing and costs nothing. If nobody is present the mean rule gives zero. `reference` `[m]` is what the server
        holds against the messages in rules that need it, such as what it aggregated before. It logs nothing: for those
        who count time themselves.
        """
        require_whole(self, "this system hands out and combines whole models")
        if self.noise is not None and not noise.silent(self.noise.down):
            raise InputError("net.noise is set, but this system hands out models by itself, as they are.")
        return self._combine(key, env, mail, messages, reference)[:3]

    def _combine(self, key: Array, env: Env, mail: Mail, messages: Array, reference: Array | None, covers=None):
        """`combine`, and what arrived, `[c, m]`."""
        c = env.cohort
        self._hear_once(c)
        require_rows("messages", messages, c.ids.shape[0])
        weight = counts(without(c, "total"))  # that sum to one, as rules need them
        present, bad = weight > 0, env.byz[c.ids]
        own = jnp.zeros(messages.shape[1], messages.dtype) if reference is None else reference
        if self.collective is None:
            sent, mail, bits = self._send(key, mail, c, messages, present)
        else:
            sent, bits = messages, 0.0
        mail, known = self._plan(key, mail, sent, weight, bad)
        if self.attack is not None:
            sent = self.attack.lie(stream(key, "lie"), known, own, sent, weight, bad)
        if covers is not None:  # of other numbers nobody hears
            sent = jnp.where(covers > 0, sent, 0)

        def arrived(sent: Array) -> Array:
            """Without the messages of the absent, which may not be finite: `0 * nan` is not 0."""
            return self.rule(own, jnp.where(present[:, None], sent, 0.0), weight)

        if self.collective is not None:
            out, mail, bits = _all_reduce(self.collective, key, c, mail, sent, weight)
        elif self.rule is not rules.mean:
            out = arrived(sent)
        else:
            out = self.rule(own, sent, weight)
            # decided by the result [m], as looking at the messages would read [c, m] once more
            out = jax.lax.cond(jnp.isfinite(out).all(), lambda _: out, arrived, sent)
        if c.total is not None and self.rule is rules.mean:
            out = out * (c.weight.sum() / c.total)
        return out, mail, jnp.where(present, bits, 0.0), sent

    def _hear_once(self, c: Cohort) -> None:
        if c.updates is not None:
            raise InputError("cohort has updates in turn (waves), but this system combines all its members at once.")
        if self.repeats != 1:
            raise InputError(f"net.repeats is {self.repeats}, but a server hears its cohort once: it is for gossip.")

    def aggregate(self, key: Array, env: Env, mail: Mail, messages: Array, reference: Array | None = None):
        """`combine` as a phase of its own: `([m], mail, log)` with `up_bits` and the seconds of the slowest upload.

        What members learned from the server, and how long that took, is counted where it happened; `collect` does both.
        """
        out, mail, bits = self.combine(key, env, mail, messages, reference)
        return out, mail, timing.through_server(env, jnp.zeros(bits.shape), 0.0, bits)

    def collect(
        self,
        key: Array,
        env: Env,
        mail: Mail,
        learn: Callable,
        x: Array,
        shared: dict | None = None,
        *,
        known: dict | None = None,
        memory: dict | None = None,
        reference: Array | None = None,
        hear: bool = False,
        cost: Callable = timing.through_server,
        crosses: tuple[float | Array, float | Array] = (1.0, 1.0),
        **own: Tree,
    ) -> Collected:
        """One round with a server: the cohort is handed `x`, learns, and what it sends is combined.

        It is `at` and then `combine`. Where that is a plain mean, the messages are added up block by block and
        `[c, m]` is never stored.

        Args:
            key: of the round.
            env: the round.
            mail: the network's memory.
            learn: of ONE node, as in `at`; its result is the node's message `[m]`.
            x: what a member starts from, `[d]` or one a member `[c, d]`.
            shared: further named arguments that all members are handed by the server. They travel: their bits count.
            known: named arguments that all members see alike and that do not travel.
            memory: what nodes keep, as in `at`.
            reference: as in `combine`.
            hear: whether the server itself looks at each message: `heard` is then what arrived, `[c, m]`.
            cost: `(env, steps [c], bits handed to a member, bits sent [c]) -> Log`, `timing.through_server` or
                `timing.all_reduce(...)`.
            crosses: the shares of what is handed and of what is sent that cross a link, each one number or `[c]`.
            own: further named arguments, leaves `[c, ...]`; arrays of floats among them are handed down too.

        Raises:
            InputError: while tracing, a server that is to `hear` each message of a collective, which gives it the mean
                alone, or of sub-models.
        """
        c, part, cut, d = env.cohort, self.personal, self.submodel, x.shape[-1]
        self._hear_once(c)
        if hear:
            require_each(self)
        plain = self.codec is PLAIN and self.attack is None and self.collective is None and self.rule is rules.mean
        plain &= not hear and (self.noise is None or noise.silent(self.noise.up))
        if part is not None:
            learn, memory = personal.keeping(learn, part), {"personal": mail.nodes[-1]} | dict(memory or {})
        if cut is not None:
            learn = coverage.trimmed(learn, cut, tuple(memory or ()))
        if self.noise is not None:
            learn = noise.handed(learn, self.noise, frozenset({*(shared or {}), *own}))
        train = lift(c, learn, counts(c) if plain else None)
        out, new, each = train(key, env, x, dict(shared or {}) | dict(known or {}), memory, **own)
        out, covers = (out, None) if cut is None else jnp.split(out, 2, -1)
        m, heard = out.shape[-1], None
        mine, sent = (np.arange(0), slice(None)) if part is None else personal.split(part, m)
        if plain:
            bits = jnp.full(c.ids.shape, 32.0 * (m - len(mine)))
        else:
            against = None if reference is None else reference[sent]
            out, mail, bits, heard = self._combine(key, env, mail, out[:, sent], against, covers)
            heard = jnp.where((c.weight > 0)[:, None], heard, 0) if hear else None
        if part is not None:
            back = personal.handed_back(part, c, x, each.pop("same"), m)
            if heard is not None:
                heard = jnp.zeros((len(c.ids), m)).at[:, sent].set(heard).at[:, mine].set(back)
            out = (out if plain else jnp.zeros(m).at[sent].set(out)).at[mine].set(back)
            mail = mail._replace(nodes=(*mail.nodes[:-1], new.pop("personal")))
        moved = [(x, x.ndim - 1), (shared, 0), (own, 1)]
        numbers = lambda held: sum(personal.numbers(tree, axis, part, (d, held)) for tree, axis in moved)
        filled, held, steps, log = out, d, each["steps"], Log()
        if covers is not None:
            out, bits, log = coverage.combined(c, plain, out, covers, bits, each, d)
            held, steps = each["held"], steps * each["held"] / d
        down, up = crosses
        log |= reported(c, each) | cost(env, steps, FLOAT * numbers(held) * down, bits * up)
        return Collected(out, count(c.weight > 0) > 0, log, mail, new, each, filled, heard)

    def gossip(
        self, key: Array, env: Env, mail: Mail, messages: Array, *, own: Array | None = None, column_stochastic=False
    ):
        """Every node combines its own message with those of its neighbours: `([n, m], mail, log)`.

        `own` is what nodes have themselves, where that is not what they send (None: it is). The log has `up_bits`,
        `down_bits` and, over links, the seconds in which all send and receive at once.

        Raises:
            InputError: without a graph, or where its weights do not sum to one at a receiver
                (`Graph.column_stochastic`, as for push-sum) and `column_stochastic` does not say that this is meant;
                `own` with several exchanges, after the first of which a node sends what it has.
        """
        g = graph_of(env)
        if own is not None and self.repeats > 1:
            raise InputError(f"net.repeats is {self.repeats}, but this system sends other messages than nodes have.")
        own = messages if own is None else own
        require_rows("messages", messages, n_nodes(env))
        if g.column_stochastic and not column_stochastic:
            raise InputError("topology has column stochastic weights, which would shrink models: give row sums of one.")
        if self.submodel is not None:
            raise InputError("net.submodel is set, but sub-models are parts of a server's model: gossip has none.")
        if self.personal is not None:
            sent = personal.split(self.personal, messages.shape[1])[1]
            said = messages[:, sent]
            mine = said if own is messages else own[:, sent]
            out, mail, log = self._replace(personal=None)._gossip(key, env, g, mail, said, mine)
            return own.at[:, sent].set(out), mail, log
        return self._gossip(key, env, g, mail, messages, own)

    def _gossip(self, key: Array, env: Env, g: Graph, mail: Mail, messages: Array, own: Array):
        if self.repeats == 1:
            return self._gossip_once(key, env, g, mail, messages, own)

        def again(carry, r):
            messages, mail, log = self._gossip_once(jax.random.fold_in(key, r), env, g, carry[1], carry[0], carry[0])
            return (messages, mail), log

        (messages, mail), logs = jax.lax.scan(again, (messages, mail), jnp.arange(self.repeats))
        return messages, mail, jax.tree.map(lambda a: a.sum(0), logs)

    def _gossip_once(self, key: Array, env: Env, g: Graph, mail: Mail, messages: Array, own: Array):
        (n, m), byz = messages.shape, env.byz
        up = jnp.ones(n) if env.alive is None else env.alive.astype(jnp.float32)
        who = Cohort(jnp.arange(n), up, strata=Strata(n))
        speak = (g.weight != 0).any(1) if isinstance(g, Events) else env.alive  # without a partner nothing is coded
        sent, mail, bits = self._send(key, mail, who, messages, speak)
        tiers, came = tiers_of(g), lambda g: jnp.where(g.weight != 0, bits[g.nbr], 0)
        # one product where every message is alike: no gather, and exact
        live, plain = lambda g: (g.weight != 0).sum(), self.codec is PLAIN
        total = tiers.total(live) * (32.0 * m) if plain else tiers.total(lambda g: came(g).sum())
        log = Log(up_bits=total, down_bits=total)
        if env.links is not None:
            ids = tiers.split(jnp.arange(n))
            log["seconds"] = timing.over_edges(env, [(i, g, came(g)) for i, g in zip(ids, tiers.parts, strict=True)])
        mail, known = self._plan(key, mail, sent, up, byz)
        attack, down = self.attack, 0.0 if self.noise is None else self.noise.down
        alike = noise.silent(down) and (attack is None or attack.alike)
        at_once = everywhere(self.rule, g, m) if alike else None
        if at_once is not None:
            if attack is not None:
                sent = attack.lie(stream(key, "lie"), known, None, sent, up, byz)
            return at_once(own, sent), mail, log

        def receive(shared, row):
            (sent, byz, known), (key, own, down, own_w, nbr, weight) = shared, row
            heard = jnp.concatenate([own[None], sent[nbr]])
            weight = jnp.concatenate([own_w[None], weight])
            if attack is not None:
                bad = jnp.concatenate([jnp.zeros(1, bool), byz[nbr]])
                heard = attack.lie(key, known, own, heard, weight, bad)
            if down is not None:
                heard = heard.at[1:].set(noise.added(stream(key, "noise"), down, heard[1:]))
            # over a link that is down nothing comes, not even what is not finite
            return self.rule(own, jnp.where((weight != 0)[:, None], heard, 0.0), weight)

        each = None if noise.silent(down) else noise.of_node(down, jnp.arange(n))
        out, mine = [], tiers.split((node_keys(stream(key, "lie"), jnp.arange(n)), own, each))
        for rows, g in zip(mine, tiers.parts, strict=True):
            rows = *rows, own_weight(g), g.nbr, g.weight
            out.append(map_nodes(receive, (sent, byz, known), rows, bytes_each=4 * m * (g.nbr.shape[1] + 1)))
        return tiers.join(out), mail, log

    def deliver(self, env: Env, outbox: Outbox) -> tuple[list[Inbox], Log]:
        """What all nodes say, put into their neighbours' inboxes: `(Inbox of leaves [n_b, k_b, ...] a tier, log)`.

        `outbox.message` is `[n, m]` (one message for all who listen) or `[n, k, m]` (one a slot, delivered along
        `graph.rev`), `outbox.speaks` `[n]` or `[n, k]` bool. A plain graph is one tier (`world.tiers`). The log counts
        bits over live links, over `env.links` the seconds in which all are sent and received, and `messages`: how often
        a node spoke, a broadcast being one.

        Raises:
            InputError: a network that codes, lies or combines, which messages of a protocol are not subject to; one
                message a slot over a graph that has an edge without a reverse, or tiers.
        """
        for slot, default in self._field_defaults.items():
            if getattr(self, slot) is not default and getattr(self, slot) != default:
                raise InputError(f"net.{slot} is set, but the messages of a protocol arrive as they were said.")
        return inboxes(env, graph_of(env), outbox)


def _all_reduce(collective: Collective, key: Array, who: Cohort, mail: Mail, messages: Array, weight: Array):
    (coder, memory, own), (colluders, common) = mail
    mine = rows_of(who, memory)
    out, mine, common, bits = collective.reduce(stream(key, "collective"), mine, common, messages, weight)
    memory = put_rows(who, memory, mine)
    return out, Mail((coder, memory, own), (colluders, common)), bits
