"""FedPAGE: a coin decides between a gradient of all clients and local steps that correct the last direction.

In the first round, and later with probability p, every client (who is up) sends its whole gradient; otherwise each
member i of S starts from the last direction, corrected on its whole shard, and goes K steps on mini-batches B:

    all       g <- sum_i p_i grad F_i(x)
    members   y = y' = x,    g_i = g - grad F_i(x') + grad F_i(x),    then K times
              g_i <- g_i - grad F_i(y'; B) + grad F_i(y; B),    y' <- y,    y <- y - lr g_i
              g <- mean_S (x - y) / (lr K)
    both      x' <- x,    x <- x - server_lr g

K is a member's own number of steps where `Cohort.steps` differ. A whole gradient counts as the mini-batches of `batch`
samples it is made of; down go x, and to members x' and g.
"""

import jax
import jax.numpy as jnp
import optax

from jaxfl.algorithms.server.fedamd import everyone
from jaxfl.core import Algorithm, Array, State, stream
from jaxfl.errors import require
from jaxfl.exchange.network import Network
from jaxfl.learn.hooks import sarah
from jaxfl.learn.local import local_gradient, local_sgd
from jaxfl.learn.optimizer import rate
from jaxfl.learn.task import Task
from jaxfl.paper import Paper, System

PAPER = Paper(
    "FedPAGE: A Fast Local Stochastic Gradient Method for Communication-Efficient Federated Learning",
    "Zhao, Li, Richtarik",
    "arXiv 2021",
    "https://arxiv.org/abs/2108.04755",
)


def fedpage(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    server_lr: float | Array | None = None,
    p: float | Array = 0.2,
    steps: int = 10,
    batch: int | None = 16,
) -> Algorithm:
    """FedPAGE with client rate `lr` and the probability `p` of a round of all clients.

    `server_lr` None is `lr * steps`, which moves the server as far as the mean client moved. `batch` None is the whole
    shard.
    """
    require("lr", lr, above=0)
    require("server_lr", server_lr, above=0, none=True)
    require("p", p, least=0, most=1)
    gradient = local_gradient(task, unit=batch)
    learn = local_sgd(task, optax.chain(sarah(), optax.sgd(lr)), steps=steps, batch=batch)

    def member(key, data, i, x, *, t, g, previous, **more):
        now, spent = gradient(key, data, i, x, **more)
        then, _ = gradient(key, data, i, previous, **more)
        y, log = learn(key, data, i, x, t=t, direction=g + now - then, **more)
        ran = log["steps"]
        log |= {name: log[name] + 2 * spent[name] for name in ("steps", "gradients")}
        return (x - y) / (rate(lr, t) * jnp.maximum(ran, 1)), log

    def init(key, env, x):
        return State({"x": x, "previous": x, "g": jnp.zeros_like(x)}, (), net.init(env, x))

    def round(key, env, s):
        x, handed = s.shared["x"], {"g": s.shared["g"], "previous": s.shared["previous"]}

        def of(env, learn, handed):
            got = net.collect(key, env, s.mail, learn, x, handed)
            return got.mean, got.present, got.mail, got.log

        whole = (env.t == 0) | (jax.random.uniform(stream(key, "coin")) < rate(p, env.t))
        all_of_them = env._replace(cohort=everyone(env))
        g, present, mail, log = jax.lax.cond(
            whole, lambda: of(all_of_them, gradient, {}), lambda: of(env, member, handed)
        )
        step = rate(lr, env.t) * steps if server_lr is None else rate(server_lr, env.t)
        new = {"x": x - step * g, "previous": x, "g": g}
        return State({name: jnp.where(present, new[name], s.shared[name]) for name in new}, (), mail), log

    return Algorithm(init, round, read=lambda s: s.shared["x"])


SYSTEMS = {"fedpage": System(fedpage, PAPER)}
