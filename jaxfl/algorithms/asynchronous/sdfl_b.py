"""SDFL-B: clusters whose heads are elected by trust, which bad updates cost; heads do not wait for the slowest.

Node i is in cluster q = i mod Q, of model x_q. Workers train all the time; a round ends when a quorum of them has
delivered, or by time-out (`world.delivery.quorum`), and who is late delivers in a later round, from the model it read,
a versions ago. In a round

    head      of each cluster: the highest trust of those who were not head in the last `rest` rounds
    score     l_i = loss of the delivered model y_i on a batch of the head, or the median over several judges'
              bad: l_i > factor * median of the cluster's
    trust     tau_i <- tau_i + gain if good, - loss if bad, - late if late, within [0, 1]
    stake     bad: a share `fine` of its own goes into the pool; the good share the pool and `reward`, by trust
    model     x_q <- x_q + sum_i a_i (y_i - x_q) / sum_i a_i,    a_i = tau_i n_i / (1 + a) where tau_i >= least
    exchange  every `every`-th round all x_q <- their mean, by the sum of their clusters' trust

All trust is 1 at first, all stakes too; stakes and pool grow by `reward` a round, and by nothing else. Who is below
`least` is scored all the same, and counts again when it has earned it. What is evaluated is the mean an exchange would
give. Workers lie in what they send; what a head does can be checked by all.

The paper is known to us by its abstract alone: clusters, heads, trust and its penalties, asynchrony and a ledger are
its; all numbers, the score, the election and the market are ours, as in our plan. There late costs 0.05: a slow honest
worker, who is always late, would then be shut out; here it costs less than a good update earns. The quorum is one of
all clusters. The chain itself is left out, as it adds a constant delay; `transactions` counts what is written to it.
Scoring counts as no gradient and no time. A message is y - x_q; models between heads are sent plain.
"""

import jax
import jax.numpy as jnp
import optax

from jaxfl.core import Algorithm, Array, State, ages, n_nodes, node_keys, stream
from jaxfl.errors import InputError, require
from jaxfl.exchange.meeting import meeting
from jaxfl.exchange.network import Network
from jaxfl.exchange.rules import mean_of
from jaxfl.exchange.staleness import Staleness, counted, polynomial
from jaxfl.exchange.trust import Terms, bad_by_loss, elected, groups_of, moved, require_terms
from jaxfl.exchange.versions import push, recall, versions
from jaxfl.learn.local import batch_loss, local_sgd, one_batch
from jaxfl.learn.task import Task
from jaxfl.paper import Example, Given, Paper, System
from jaxfl.world.delivery import quorum

PAPER = Paper(
    "Enhancing Scalability and Reliability in Semi-Decentralized Federated Learning With Blockchain: "
    "Trust Penalization and Asynchronous Functionality",
    "Shrestha, Khan, Shaikh, Jaberzadeh, Geng",
    "UEMCON 2023",
    "https://arxiv.org/abs/2310.19287",
    number="077",
)


def sdfl_b(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    clusters: int = 2,
    every: int = 3,
    judges: int = 1,
    probe: int | None = 16,
    factor: float | Array = 5.0,
    gain: float | Array = 0.02,
    loss: float | Array = 0.2,
    late: float | Array = 0.01,
    least: float | Array = 0.5,
    rest: int = 2,
    fine: float | Array = 0.1,
    reward: float | Array = 1.0,
    longest: int = 32,
    steps: int = 10,
    epochs: int | None = None,
    batch: int | None = 16,
) -> Algorithm:
    """SDFL-B with client rate `lr`. Memory: `longest + 1` times `clusters` models; older updates are dropped.

    Each delivered model is scored on `probe` samples (None: the shard) of the first `judges` of its cluster in the
    order of election. `gain`, `loss`, `late` and `least` are `exchange.trust.Terms`; with `loss` 0 nobody is penalised.
    `epochs` replaces `steps` where given; `batch` None is the whole shard. Logs `trusted` and `trusted_liars`, shares
    of the honest and of the Byzantine whose updates count, and the `transactions`.
    """
    require("lr", lr, above=0)
    for name, value in (("clusters", clusters), ("every", every), ("judges", judges), ("longest", longest + 1)):
        require(name, value, least=1, whole=True)
    require("probe", probe, least=1, whole=True, none=True)
    require("rest", rest, least=0, whole=True)
    require("factor", factor, least=1)
    require("fine", fine, least=0, most=1)
    require("reward", reward, least=0)
    terms = require_terms(Terms(gain, loss, late, least))
    train = local_sgd(task, optax.sgd(lr), steps=None if epochs else steps, epochs=epochs, batch=batch)

    def member(key, data, i, x, *, models, cluster, **more):
        y, log = train(key, data, i, x, **more)
        return y - models[cluster], log

    def score(key, env, rows, who):
        """The loss `[c]` of each model of `rows` `[c, d]` in the eyes of its judge, the nodes `who` `[c]`."""

        def one(row: Array, judge: Array, key: Array) -> Array:
            index, mask = one_batch(stream(key, "probe"), env.data, judge, probe)
            return batch_loss(task, env.data, index, mask, stream(key, "loss"))(task.unravel(row))[0]

        return jax.vmap(one)(rows, who, node_keys(key, who))

    def init(key, env, x):
        n = n_nodes(env)
        if clusters * judges > n:
            raise InputError(f"clusters is {clusters}, but {n} nodes have no {judges} a cluster.")
        models = jnp.broadcast_to(x, (clusters, x.size))
        ledger = {"trust": jnp.ones(n), "stake": jnp.ones(n), "last": jnp.full(n, -rest - 1, jnp.int32)}
        shared = {"models": models, "past": versions(models, longest + 1), "pool": jnp.float32(0)}
        shared |= {"salt": jax.random.bits(stream(key, "salt"), (), jnp.uint32)}
        return State(shared | ledger, (), net.init(env, x))

    def round(key, env, s):
        c, _, aged = counted(Staleness(longest, polynomial(1.0)), env.cohort)
        env, n, was = env._replace(cohort=c), n_nodes(env), s.shared
        models, trust, t = was["models"], was["trust"], env.t
        mine, everyone = c.ids % clusters, groups_of(jnp.arange(n) % clusters, clusters)
        read = recall(was["past"], ages(c))[jnp.arange(mine.size), mine]
        got = net.collect(key, env, s.mail, member, read, known={"models": models}, hear=True, cluster=mine)
        came = (c.weight > 0) & (got.each["steps"] > 0)
        inside = groups_of(mine, clusters) & came

        first = elected(was["salt"], t, trust, was["last"], everyone, rest, judges)  # [Q, judges]
        heard = jnp.where(came[:, None], got.heard, 0)  # type: ignore[arg-type]
        seen = [score(key, env, models[mine] + heard, first[mine, j]) for j in range(judges)]
        bad = bad_by_loss(jnp.median(jnp.stack(seen), 0), inside, factor)
        at = lambda mask: jnp.zeros(n, bool).at[c.ids].set(mask)
        good = at(came & ~bad)
        trust = moved(trust, good, at(bad), at(came & (ages(c) > 0)), terms)

        stake, paid = was["stake"], fine * was["stake"] * at(bad)
        pool, due = was["pool"] + paid.sum() + reward, good * (trust >= least) * trust
        pay = jnp.where(due.sum() > 0, pool / jnp.maximum(due.sum(), 1e-12), 0) * due

        own = trust[c.ids]
        a = jnp.where(came & (own >= least), c.weight * own, 0)
        models = models + _by_cluster(net, heard, groups_of(mine, clusters) * a)
        models, met = meeting(env, first[:, 0], models, (everyone * trust).sum(1), (t + 1) % every == 0)
        shared = was | {"models": models, "past": push(was["past"], models), "trust": trust, "pool": pool - pay.sum()}
        shared |= {"stake": stake - paid + pay, "last": was["last"].at[first[:, 0]].set(t)}
        log = got.log | aged | met | {"transactions": came.sum() + 2 * clusters}
        log |= {"trusted": _share(trust >= least, ~env.byz), "trusted_liars": _share(trust >= least, env.byz)}
        return State(shared, (), got.mail), log

    def read(s):
        trust, models = s.shared["trust"], s.shared["models"]
        return mean_of(models, (groups_of(jnp.arange(trust.size) % clusters, clusters) * trust).sum(1))

    return Algorithm(init, round, read)


def _by_cluster(net: Network, heard: Array, weight: Array) -> Array:
    """What each head makes of the updates `[c, d]` by their weights `[Q, c]`, `[Q, d]`; nothing where it has none."""
    total = weight.sum(1, keepdims=True)
    share = weight / jnp.where(total > 0, total, 1)
    own = jnp.zeros(heard.shape[1])
    some = jnp.where((weight > 0).any(0)[:, None], heard, 0)
    return jnp.where(total > 0, jnp.stack([net.rule(own, some, w) for w in share]), 0)


def _share(yes: Array, among: Array) -> Array:
    """The share of those `among` who are `yes`; 0 of nobody."""
    return (yes & among).sum() / jnp.maximum(among.sum(), 1)


def example(given: Given) -> Example:
    """A clock that ends rounds by quorum."""
    del given
    return Example(clock=lambda jobs: quorum(jobs.nodes, jobs.goal, jobs.seconds, concurrency=jobs.concurrency))


SYSTEMS = {"sdfl_b": System(sdfl_b, PAPER, example)}
