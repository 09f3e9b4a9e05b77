"""FedAMD: of the members of a round some refresh a large gradient, the others walk from the mean of all of them.

The server keeps v_i, the last large-batch gradient of client i, of all n clients, and v = sum_i p_i v_i. Each member
of a round is an anchor with probability p_t (or all are, in every `period`-th round, and otherwise none is):

    anchor   u = grad F_i(x; large batch),    v_i <- u,    v <- v + p_i (u - v_i)      (used from the next round on)
    miner    y = y' = x, g = v, then K times with a mini-batch B
             g <- g - grad F_i(y'; B) + grad F_i(y; B),    y' <- y,    y <- y - lr g
    server   x <- x + server_rate (mean over the miners of y - x), and x stays where there are none.

At the optimum of sum_i p_i F_i nothing moves, whoever takes part. The paper has p_i = 1 / n. Clients keep
their rows of the table, so that a message is one vector, `u - v_i` or `y - x`, and v is kept by what anchors report;
down go x and v.

At first all clients are anchors at the first model (those that are up): what that costs is in the log of round 1. A
large gradient counts as the mini-batches of `batch` samples it is made of, in gradients and in time, and a step of a
miner as two gradients. An anchor that may run a step at all computes the whole of it; who may run none reports nothing.
"""

import jax
import jax.numpy as jnp
import optax

from jaxfl.core import COSTS, Algorithm, Array, Cohort, Env, Log, State, Strata, n_nodes, node_keys, shares, stream
from jaxfl.errors import require
from jaxfl.exchange.network import Collected, Network
from jaxfl.learn.hooks import sarah
from jaxfl.learn.local import displacement, local_gradient, local_sgd
from jaxfl.learn.optimizer import rate
from jaxfl.learn.task import Task
from jaxfl.mapping.at import reported
from jaxfl.paper import Paper, System

PAPER = Paper(
    "Anchor Sampling for Federated Learning with Partial Client Participation",
    "Wu, Guo, Qu, He, Liu, Gao",
    "ICML 2023",
    "https://arxiv.org/abs/2206.05891",
    number="062",
)


def fedamd(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    server_rate: float | Array = 1.0,
    p: float | Array = 0.2,
    period: int | None = None,
    large: int | None = None,
    steps: int = 10,
    batch: int | None = 16,
) -> Algorithm:
    """FedAMD with client rate `lr` and the share `server_rate` of the miners' mean move that the server takes.

    `p` is the probability of being an anchor, a number or a schedule of the round; `period` replaces it. Anchors take
    `large` samples (None: the whole shard), miners `batch` a step (None: the whole shard).
    """
    require("lr", lr, above=0)
    require("server_rate", server_rate, above=0)
    require("p", p, least=0, most=1)
    require("period", period, least=2, whole=True, none=True)
    gradient = local_gradient(task, batch=large, unit=batch)
    walk = displacement(local_sgd(task, optax.chain(sarah(), optax.sgd(lr)), steps=steps, batch=batch))

    def anchor(key, data, i, x, *, last, direction=None, **more):
        del direction  # it is handed to all, who then throw their coins
        u, log = gradient(key, data, i, x, **more)
        new = jnp.where(log["steps"] > 0, u, last)
        return new - last, log | {"last": new}

    def refresh(key, env, mail, x, handed, table, mine):
        """What anchors report, and what that adds to v: `mine` `[c]` says who is one."""
        weight = jnp.where(mine, shares(env)[env.cohort.ids], 0)
        env = env._replace(cohort=among(env.cohort, mine, weight))
        got = net.collect(key, env, mail, anchor, x, handed, memory={"last": table})
        return got, weight.sum() * got.filled

    def init(key, env, x):
        n = n_nodes(env)
        env = env._replace(cohort=everyone(env))
        got, v = refresh(key, env, net.init(env, x), x, {}, jnp.zeros((n, x.size), x.dtype), env.cohort.weight > 0)
        owed = {name: jnp.float32(got.log[name]) for name in COSTS if name in got.log}
        return State({"x": x, "v": v, "owed": owed}, got.memory["last"], got.mail)

    def round(key, env, s):
        c, x, v = env.cohort, s.shared["x"], s.shared["v"]
        if period is None:
            coins = jax.vmap(jax.random.uniform)(node_keys(stream(key, "roles"), c.ids))
            anchors = coins < rate(p, env.t)
        else:
            anchors = jnp.full(c.ids.shape, (env.t + 1) % period == 0)
        handed, asked = {"direction": v}, anchors & (c.weight > 0)
        still, change = refresh(stream(key, "anchors"), env, s.mail, x, handed, s.nodes, asked)
        moving = env._replace(cohort=among(c, ~anchors, jnp.where(anchors, 0, c.weight)))
        moved = net.collect(key, moving, still.mail, walk, x, handed)
        log = at_once(c, anchors, still, moved) | s.shared["owed"]
        new = {"x": jnp.where(moved.present, x + server_rate * moved.mean, x), "v": v + change}
        new["owed"] = jax.tree.map(jnp.zeros_like, s.shared["owed"])
        return State(new, still.memory["last"], moved.mail), log

    return Algorithm(init, round, read=lambda s: s.shared["x"])


def everyone(env: Env) -> Cohort:
    """All clients who are up, each as it counts in the objective."""
    n = n_nodes(env)
    weight = shares(env) if env.alive is None else jnp.where(env.alive, shares(env), 0)
    return Cohort(jnp.arange(n), weight, strata=Strata(n))


def among(c: Cohort, mine: Array, weight: Array) -> Cohort:
    """Of a cohort those who are `mine` `[c]`, with other weights."""
    return c._replace(weight=weight, total=None, selected=None if c.selected is None else c.selected & mine)


def at_once(c: Cohort, first: Array, a: Collected, b: Collected) -> Log:
    """The log of a round in which two groups of a cohort, `first` `[c]` and the rest, worked at the same time."""
    each = jax.tree.map(lambda a, b: jnp.where(first, a, b), a.each, b.each)
    log = reported(c, each) | {bits: a.log[bits] + b.log[bits] for bits in ("up_bits", "down_bits")}
    log |= {"seconds": jnp.maximum(a.log["seconds"], b.log["seconds"])} if "seconds" in a.log else {}
    return log | {name: value for name, value in b.log.items() if name not in log}


SYSTEMS = {"fedamd": System(fedamd, PAPER)}
