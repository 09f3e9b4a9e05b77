"""CDFL: clients call the server when they like; it finds out of which clusters their data are, and sends one model.

The server has cluster models C_1 .. C_S. A client trains from the model w_i that it had from its last contact, which
also anchors it, sends the result w and takes what comes back; on its arrival, t contacts after the first of all and
a after its last one,

    u <- an estimate of the client's mixture from w and C, in the simplex (`exchange.mixtures`)
    C_s <- C_s + alpha u_s h(a / n) (w - C_s)  where u_s >= threshold
    w_i <- beta sum_s u_s C_s + (1 - beta) w

Of the paper only its abstract and summaries were at hand: the structure is theirs (clients drive, server-side
estimation from the uploaded model, one customised model down, updates held back from clusters a client is not of), the
formulas and constants are a reconstruction. Ages count contacts, in units of n. A first model `[d]` becomes S models by
noise; then the nearest cluster moves in the first `warmup` contacts whatever its share, or none would ever stand out.

`async_ifca` is the rival whose clients get all S models, train from the one of least loss on their data, which moves by
`alpha h`, and keep it: IFCA without rounds. Its download is S times as large.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxfl.core import Algorithm, Array, State, n_nodes, stream, tile, without
from jaxfl.errors import InputError, require
from jaxfl.exchange import mixtures
from jaxfl.exchange.network import Network
from jaxfl.exchange.one_by_one import Turn, one_by_one
from jaxfl.exchange.staleness import polynomial
from jaxfl.learn.hooks import prox
from jaxfl.learn.local import batch_loss, local_sgd, one_batch
from jaxfl.learn.task import Task
from jaxfl.mapping.nodes import put_rows, rows_of
from jaxfl.paper import Paper, System

PAPER = Paper(
    "Towards Client Driven Federated Learning",
    "Li, Zhu",
    "2024",
    "https://arxiv.org/abs/2405.15407",
    number="049",
)
IFCA = Paper(
    "An Efficient Framework for Clustered Federated Learning",
    "Ghosh, Chung, Yin, Ramchandran",
    "NeurIPS 2020",
    "https://arxiv.org/abs/2006.04088",
)


def cdfl(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    clusters: int = 4,
    alpha: float | Array = 0.2,
    threshold: float | Array = 0.6,
    beta: float | Array = 0.5,
    rho: float | Array = 0.1,
    estimate: Callable | None = None,
    discount: Callable | None = None,
    spread: float | Array = 0.01,
    warmup: int | Array = 100,
    steps: int | None = 10,
    epochs: int | None = None,
    batch: int | None = 16,
) -> Algorithm:
    """CDFL with `clusters` models and client rate `lr`. The answer is the clients' own models `[n, d]`.

    The model a run starts from is one `[d]`, or one a cluster `[S, d]`. `State.nodes` has by name the models `w`, the
    contact `heard` after which a node was answered, and its estimated mixture `share` `[n, S]`.

    Args:
        task: what is learned.
        net: how uploads travel.
        lr: clients' rate.
        clusters: S.
        alpha: how far a contact moves a cluster.
        threshold: share from which a client moves a cluster.
        beta: share of the mixture in the answer.
        rho: weight of the proximal term.
        estimate: `(w, C) -> u`, by default `mixtures.projected()`.
        discount: one of `exchange.staleness`, by default `polynomial(0.5)`.
        spread: noise that tells the first clusters apart.
        warmup: contacts in which the nearest cluster moves in any case.
        steps: local steps; `epochs` replaces them where given.
        epochs: local epochs.
        batch: samples a step; None is the whole shard.

    Raises:
        InputError: a number out of range, or a first model of another number of clusters.
    """
    require("threshold", threshold, least=0, most=1)
    require("beta", beta, least=0, most=1)
    require("rho", rho, least=0)
    require("warmup", warmup, least=0, whole=True)
    learn = local_sgd(
        task, optax.chain(prox(rho), optax.sgd(lr)), steps=None if epochs else steps, epochs=epochs, batch=batch
    )
    guess = estimate or mixtures.projected()

    def of(sent, models, count, each):
        del each
        u = guess(sent, models)
        nearest = (jnp.arange(len(models)) == jnp.argmax(u)) & (count < warmup)
        return u, jnp.where((u >= threshold) | nearest, u, 0)

    def answer(sent, models, u):
        return beta * (u @ models) + (1 - beta) * sent

    return _contacts(net, learn, of, answer, lr, clusters, alpha, discount, spread, whole=False)


def async_ifca(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    clusters: int = 4,
    alpha: float | Array = 0.2,
    discount: Callable | None = None,
    spread: float | Array = 0.01,
    steps: int | None = 10,
    epochs: int | None = None,
    batch: int | None = 16,
) -> Algorithm:
    """Clients choose the best of all cluster models on their whole shard and train it; arguments as in `cdfl`."""
    train = local_sgd(task, optax.sgd(lr), steps=None if epochs else steps, epochs=epochs, batch=batch)

    def learn(key, data, i, x, *, models, **more):
        loss = batch_loss(task, data, *one_batch(key, data, i, None), stream(key, "choice"))
        best = jnp.argmin(jax.lax.map(lambda m: loss(task.unravel(m))[0], models))
        del x
        y, log = train(key, data, i, models[best], **more)
        return y, log | {"share": jax.nn.one_hot(best, len(models))}

    def of(sent, models, count, each):
        del sent, models, count
        return each["share"], each["share"]

    return _contacts(
        net, learn, of, lambda sent, models, u: u @ models, lr, clusters, alpha, discount, spread, whole=True
    )


def _contacts(net, learn, of, answer, lr, clusters, alpha, discount, spread, *, whole: bool) -> Algorithm:
    """Members train at once, then the server answers one contact after the other, in the order of the cohort.

    `of(sent, C, count, each)` is the estimate and how far it moves the clusters; with `whole`, all of them are sent.
    """
    require("lr", lr, above=0)
    require("alpha", alpha, least=0, most=1)
    require("clusters", clusters, least=1, whole=True)
    require("spread", spread, least=0)
    fade = discount or polynomial(0.5)

    def init(key, env, x):
        if x.ndim == 2 and len(x) != clusters:
            raise InputError(f"model has {len(x)} rows, but clusters is {clusters}: one row, or as many, are needed.")
        n, models = n_nodes(env), x
        if x.ndim == 1:
            models = x + spread * jax.random.normal(stream(key, "clusters"), (clusters, x.size), x.dtype)
        own = models.mean(0)
        nodes = {"w": tile(own, n), "heard": jnp.zeros(n, jnp.int32), "share": jnp.full((n, clusters), 1 / clusters)}
        return State({"models": models, "contacts": jnp.int32(0)}, nodes, net.init(env, own))

    def round(key, env, s):
        c, n = without(env.cohort, "age", "total", "updates"), n_nodes(env)  # who calls comes from the model it has
        shared = {"models": s.shared["models"]} if whole else None

        def contact(server: dict, turn: Turn, combine: Callable) -> tuple:
            models, count, here = server["models"], server["contacts"], turn.members.weight[0] > 0
            mine, each = jax.tree.map(lambda a: a[0], (turn.kept, turn.each))
            sent, cost = combine(turn.members, turn.rows)
            u, moves = of(sent, models, count, each)
            age = jnp.maximum(count - mine["heard"], 0)
            pull = jnp.where(here, alpha * moves * fade(age / n), 0)
            models = models + pull[:, None] * (sent - models)
            count = count + here
            new = {"w": answer(sent, models, u), "heard": count, "share": u}
            new = jax.tree.map(lambda a, b: jnp.where(here, a, b)[None], new, mine)
            return {"models": models, "contacts": count}, new, cost

        mine = rows_of(c, s.nodes)
        handed = mine["w"].shape[1] * (clusters if whole else 1)
        got = one_by_one(
            net, key, env._replace(cohort=c), s.mail, learn, mine["w"], contact, s.shared,
            shared=shared, kept=mine, alone=True, handed=handed,
        )  # fmt: skip
        return State(got.server, put_rows(c, s.nodes, got.kept), got.mail), got.log

    return Algorithm(init, round, read=lambda s: s.nodes["w"])


SYSTEMS = {"cdfl": System(cdfl, PAPER), "async_ifca": System(async_ifca, IFCA)}
