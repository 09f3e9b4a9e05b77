"""MoDeST: every node derives the same small sample of nodes from a public hash; no server, in spite of churn.

As in the paper and the authors' code, with `order(t)` the members of a node's view by hash(node, t), in round t

    S = the first s of order(t) that answer a ping, found by each aggregator that holds the model x
    y_i <- local training from x on the data of node i,  i in S
    A = the first a of order(t + 1) that answer, found by each i in S;   x <- mean of the first sf s of the y_i at A

Every message carries the sender's view, 64 bits a member, which the receiver merges. A leave is told and applied at
once, a join parked until the round is over, a crash met by pings, then by the window of activity. A message to oneself
costs nothing; pings and news of joins and leaves are counted (`pings`), but not as bits.

Who is up changes between rounds only. Should then all aggregators be down, those who trained hand over once more to
the next of order(t) that answer (`resent` 1): in the code so for a leave, while a crash of all aggregators is the end.
If they are down too, nobody trains until someone who has the model is back. A round too small for `success` waits for
the aggregation timeout and goes on with what came (in the code with 3 or more). Pongs do not refresh the window.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxfl.core import Algorithm, Array, Cohort, Env, Log, Mail, State, Tree, n_nodes, stream, tile
from jaxfl.errors import InputError, require
from jaxfl.exchange.membership import (
    Sample,
    View,
    advertise,
    first_alive,
    founders,
    informed,
    look,
    mark,
    news,
    public_hash,
    sign_of_life,
)
from jaxfl.exchange.network import Network
from jaxfl.exchange.timing import transfer
from jaxfl.learn.local import local_sgd
from jaxfl.learn.task import Task
from jaxfl.mapping.at import at, reported
from jaxfl.paper import Paper, System
from jaxfl.world.links import by_node

PAPER = Paper(
    "MoDeST: Bridging the Gap between Federated and Decentralized Learning with Decentralized Sampling",
    "De Vos, Dhasade, Kermarrec, Lavoie, Pouwelse, Sharma",
    "2023",
    "https://arxiv.org/abs/2302.13837",
    number="001",
)

FANOUT = 10  # a join or leave is told to so many times s nodes
VIEW_BITS = 64.0  # of one member in a view


class Held(NamedTuple):
    """The aggregators of a round and what they hold."""

    models: Array  # [a, d]
    ids: Array  # [a] int32
    on: Array  # [a] bool, the slot is in use


class Work(NamedTuple):
    """The participants of a round and what they trained."""

    rows: Array  # [c, d]
    ids: Array  # [c] int32
    on: Array  # [c] bool, the slot is in use
    ready: Array  # [c] seconds after which a member has trained and sent


class Flow(NamedTuple):
    """What one phase moved and took. Adds up over phases."""

    sent: Array  # [n] bits
    received: Array  # [n] bits
    pings: Array
    seconds: Array
    overflow: Array  # nodes that found no slot


def _flow(env: Env, link: Array, source: Array, to: Array, bits: Array | float, pings: Array, lost: Array) -> Flow:
    """A message of `bits` over every `link` `[k, c]` from `source` `[c]` to another node of `to` `[k]`; no time yet."""
    link = link & (to[:, None] != source)
    nobody = jnp.zeros(n_nodes(env))
    sent, received = nobody.at[source].add(link.sum(0) * bits), nobody.at[to].add(link.sum(1) * bits)
    return Flow(sent, received, jnp.float32(pings), jnp.float32(0), jnp.float32(lost))


def _still(n: int) -> Flow:
    zero = jnp.float32(0)
    return Flow(jnp.zeros(n), jnp.zeros(n), zero, zero, zero)


def _slowest(rate: Array, latency: Array, bits: Array) -> Array:
    return transfer(rate, latency, bits).max()


def _either(first: Array, a: Tree, b: Tree) -> Tree:
    return jax.tree.map(lambda a, b: jnp.where(first, a, b), a, b)


def modest(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    momentum: float | Array | None = None,
    steps: int = 5,
    epochs: int | None = None,
    batch: int | None = 20,
    sample: int = 10,
    aggregators: int = 1,
    success: float = 1.0,
    window: int | None = None,
    announced: float | Array | Callable = 1.0,
    liveness: bool | Array = True,
    private: bool = False,
    room: int = 2,
    ping_timeout: float | Array = 5.0,
    aggregation_timeout: float | Array = 300.0,
) -> Algorithm:
    """MoDeST. Draws its own sample: the world's cohort is not read, its churn is.

    Logs `loss`, `gradients`, `up_bits`, `down_bits`, by node `sent_bits` and `received_bits` `[n]` whose sums these
    are, `pings`, `participants` (who trained), `resent`, and with private views `overflow`.

    Args:
        task: what is learned.
        net: rule, codec and attack of the trained models; the mean model travels uncoded.
        lr: local rate.
        momentum: of the local steps.
        steps: local steps; `epochs` replaces them where given.
        epochs: local epochs.
        batch: samples a step; None is the whole shard.
        sample: s, participants of a round.
        aggregators: a.
        success: sf, share of s an aggregator waits for, the fastest where the world has links.
        window: rounds without a sign of life after which a member is left out (None: `10 n / s`, so that a member
            that is up is missed with probability e^-10 a window; the code has 50, too short for n much above 10 s).
        announced: probability that a departure is announced, else it is a silent crash: a number, one a node `[n]`, or
            a function of the round.
        liveness: off, S are the first s of the order, whether or not they are up; A is found by pings all the same.
        private: every node has its own view, `[n, n]` in all, and hears news only by message; else one shared view.
        room: with private views, slots for `room` times s participants and a aggregators, as samples may differ.
        ping_timeout: seconds until a ping counts as unanswered.
        aggregation_timeout: seconds after which an aggregator goes on without the missing.

    Raises:
        InputError: a number out of range, or more participants or aggregators than nodes.
    """
    counts = {"sample": sample, "aggregators": aggregators, "room": room, "window": window}
    for name, value in counts.items():
        require(name, value, least=1, whole=True, none=name == "window")
    for name, value in (("lr", lr), ("ping_timeout", ping_timeout), ("aggregation_timeout", aggregation_timeout)):
        require(name, value, above=0)
    require("momentum", momentum, least=0, below=1, none=True)
    require("success", success, above=0, most=1)
    require("announced", announced, least=0, most=1)
    learn = local_sgd(task, optax.sgd(lr, momentum), steps=None if epochs else steps, epochs=epochs, batch=batch)
    slots = room if private else 1
    need = max(1, math.floor(success * sample))

    def up(env: Env) -> Array:
        return jnp.ones(n_nodes(env), bool) if env.alive is None else env.alive

    def find(env: Env, views: View, ids: Array, hash: Array, alive: Array, t: Array, s: int) -> Sample:
        n = n_nodes(env)
        return look(views, ids, hash, alive, t, math.ceil(10 * n / sample) if window is None else window, s)

    def wait(pick: Sample, on: Array) -> Array:
        return ping_timeout * jnp.where(on, pick.waits, 0).max()

    def uploaded(env: Env, ids: Array, steps: Array | int) -> Array:
        """Seconds `[c]` in which the nodes `ids` run `steps` and send to as many others as there are aggregators."""
        if env.links is None:
            return jnp.zeros(ids.shape)
        rate, _, latency, step = (v[ids] for v in by_node(env.links, "MoDeST"))
        bits = jnp.float32(aggregators * (32.0 * task.dim + VIEW_BITS * n_nodes(env)))
        return steps * step + transfer(rate, latency, bits)

    def train(key, env: Env, views: View, held: Held, salt: Array) -> tuple[View, Work, Log, Flow]:
        """The aggregators look for the participants of the round and send them the model; these train."""
        n, alive, hash, on = n_nodes(env), up(env), public_hash(salt, env.t, n_nodes(env)), held.on & up(env)[held.ids]
        pick = find(env, views, held.ids, hash, alive | ~jnp.asarray(liveness, bool), env.t, sample)
        asked = mark(pick.ids, pick.found, n) & on[:, None]  # [a, n]
        who = first_alive(hash, asked.any(0), alive, min(n, slots * sample))
        link = asked[:, who.ids].T & who.found[:, None]  # [c, a]
        x = held.models[0] if on.size == 1 else held.models[link.argmax(1)]  # the first copy to come
        work = at(who.ids, learn)(key, env, x)
        views = informed(sign_of_life(views, held.ids, on, env.t), who.ids, held.ids, link)
        pings = jnp.where(on, pick.pings, 0).sum() * liveness
        bits = 32.0 * task.dim + VIEW_BITS * n
        flow = _flow(env, link, held.ids, who.ids, bits, pings, (asked.any(0) & alive).sum() - who.found.sum())
        if env.links is not None:
            f = env.links
            moved = jnp.maximum(_slowest(f.up, f.latency, flow.sent), _slowest(f.down, f.latency, flow.received))
            flow = flow._replace(seconds=wait(pick, on) * liveness + moved)
        present = Cohort(who.ids, who.found.astype(jnp.float32))
        return (
            views,
            Work(work.rows, who.ids, who.found, uploaded(env, who.ids, work.each["steps"])),
            reported(present, work.each),
            flow,
        )

    def collect(key, env: Env, views: View, mail: Mail, held: Held, work: Work, salt: Array, t: Array):
        """The participants look for the aggregators of round `t` and send them what they trained; these average."""
        n, alive, hash = n_nodes(env), up(env), public_hash(salt, t, n_nodes(env))
        views = sign_of_life(views, work.ids, work.on, env.t)
        pick = find(env, views, work.ids, hash, alive, t, aggregators)
        chosen = mark(pick.ids, pick.found, n) & work.on[:, None]  # [c, n]
        who = first_alive(hash, chosen.any(0), alive, held.ids.shape[0])
        link = chosen[:, who.ids].T & who.found[:, None]  # [a, c]
        order = jnp.argsort(work.ready)
        used = link & (link[:, order].cumsum(1) <= need)[:, jnp.argsort(order)]

        def average(used):
            cohort = Cohort(work.ids, used.astype(jnp.float32))
            return net.combine(key, env._replace(cohort=cohort), mail, work.rows, held.models[0])

        # the messages are encoded alike for every aggregator, so mail is that of the first
        models, mails, each = jax.vmap(average)(used)
        bits = each[0].sum() / jnp.maximum(used[0].sum(), 1) + VIEW_BITS * n
        pings = jnp.where(work.on, pick.pings, 0).sum()
        flow = _flow(env, link, work.ids, who.ids, bits, pings, chosen.any(0).sum() - who.found.sum())
        if env.links is not None:
            short = (who.found & (link.sum(1) < need)).any()
            late = jnp.where(used, work.ready, 0).max() + jnp.where(short, aggregation_timeout, 0)
            received = _slowest(env.links.down, env.links.latency, flow.received)
            flow = flow._replace(seconds=wait(pick, work.on) + late + received)
        views = sign_of_life(informed(views, who.ids, work.ids, link), who.ids, who.found, env.t)
        held = _either(who.found.any(), Held(models, who.ids, who.found), held)
        return views, jax.tree.map(lambda a: a[0], mails), held, flow

    def init(key, env, x):
        n = n_nodes(env)
        if max(sample, aggregators) > n:
            raise InputError(f"sample is {sample} and aggregators {aggregators}, but the world has {n} nodes.")
        alive, salt = up(env), jax.random.bits(stream(key, "public hash"))
        a, c = min(n, slots * aggregators), min(n, slots * sample)
        first = first_alive(public_hash(salt, jnp.int32(0), n), alive, alive, a)
        held = Held(tile(x, a), first.ids, first.found & (jnp.arange(a) < aggregators))
        work = Work(tile(jnp.zeros_like(x), c), jnp.arange(c), jnp.zeros(c, bool), jnp.zeros(c))
        shared = {"held": held, "work": work, "salt": salt, "up": alive}
        return State(shared, tile(founders(alive), n if private else 1), net.init(env, x))

    def round(key, env, s):
        held, work, salt, before = (s.shared[name] for name in ("held", "work", "salt", "up"))
        views = s.nodes
        n, alive = n_nodes(env), up(env)
        share = announced(env.t) if callable(announced) else announced
        leaves = before & ~alive & (jax.random.uniform(stream(key, "announced"), (n,)) < share)
        comes = alive & ~before
        own = jnp.diagonal(views.stamp) if private else views.stamp[0]
        said, heard = news(own, comes, leaves, env.t), stream(key, "advertise")
        views = advertise(heard, views, said, leaves, alive, FANOUT * sample)

        gone = ~(held.on & alive[held.ids]).any()
        left = work._replace(on=work.on & alive[work.ids], ready=uploaded(env, work.ids, 0))
        again = lambda: collect(stream(key, "again"), env, views, s.mail, held, left, salt, env.t)
        views, mail, held, zeroth = jax.lax.cond(gone, again, lambda: (views, s.mail, held, _still(n)))
        views, fresh, log, first = train(key, env, views, held, salt)
        views, mail, held, second = collect(key, env, views, mail, held, fresh, salt, env.t + 1)
        views = advertise(heard, views, said, comes, alive, FANOUT * sample)

        total = jax.tree.map(lambda *a: sum(a), zeroth, first, second)
        log |= {"up_bits": total.sent.sum(), "down_bits": total.received.sum(), "pings": total.pings}
        log |= {"sent_bits": total.sent, "received_bits": total.received}
        log |= {"participants": fresh.on.sum(), "resent": gone & left.on.any()}
        log |= {"overflow": total.overflow} if private else {}
        log |= {} if env.links is None else {"seconds": total.seconds}
        work = _either(fresh.on.any(), fresh, work)
        return State({"held": held, "work": work, "salt": salt, "up": alive}, views, mail), log

    def read(s):
        held = s.shared["held"]
        return held.models[jnp.argmax(held.on)]

    return Algorithm(init, round, read)


SYSTEMS = {"modest": System(modest, PAPER)}
