"""FedOpt, the workhorse of federated learning, and its adaptive servers FedAdagrad, FedAdam, FedYogi.

With the cohort `S` of a round,

    y_i <- local training from x on the data of node i,  i in S
    Delta <- sum_S p_i (y_i - x) / sum_S p_i,      x <- ServerOpt(x, -Delta)

and for the adaptive servers, elementwise,

    m <- b1 m + (1 - b1) Delta,   v <- (Adagrad | Adam | Yogi)(v, Delta^2),   x <- x + lr_s m / (sqrt(v) + tau).

As in the paper's Algorithm 2, moments are not bias-corrected and v starts at tau^2 (the authors' TensorFlow code,
on Keras optimizers, corrects and starts at 0). `p_i` is the cohort's weight.

Where a clock lets members answer late (`world.clock`, `Cohort.age`), a `Staleness` says from how many earlier versions
an update is taken and what it then counts; without one an update from an old version is dropped.
"""

from collections.abc import Callable

import jax.numpy as jnp
import optax

from jaxfl.core import Algorithm, Array, State, ages, n_nodes
from jaxfl.errors import require
from jaxfl.exchange.network import Network
from jaxfl.exchange.one_by_one import one_by_one, place
from jaxfl.exchange.staleness import FRESH, Staleness, counted
from jaxfl.exchange.versions import push, recall, versions
from jaxfl.learn import server as servers
from jaxfl.learn.local import displacement, local_sgd, optimizer_state
from jaxfl.learn.optimizer import require_state
from jaxfl.learn.server import adagrad_moment, adam_moment, scale_by_moments, yogi_moment
from jaxfl.learn.task import Task
from jaxfl.mapping.sums import count
from jaxfl.paper import Paper, System

PAPER = Paper(
    "Adaptive Federated Optimization",
    "Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan",
    "ICLR 2021",
    "https://arxiv.org/abs/2003.00295",
    number="091",
)


def fedopt(
    task: Task,
    net: Network = Network(),
    *,
    local: optax.GradientTransformation,
    server: optax.GradientTransformation | None = None,
    steps: int = 10,
    epochs: int | None = None,
    batch: int | None = 16,
    stale: Staleness = FRESH,
    keep_state: bool = False,
) -> Algorithm:
    """FedOpt with any optax optimizer at the clients (`local`) and the server (None: `x <- x + Delta`).

    `epochs` replaces `steps` where given; `batch` None is the whole shard. A client's optimizer starts anew every
    round, and a schedule of its rate counts rounds; with `keep_state` it goes on where it was, `State.nodes`, and a
    schedule counts the client's own steps. A round in which nobody answers changes nothing. Logs `loss`, `gradients`,
    bits, and where earlier versions are remembered (`stale.longest`) the mean `age` of those asked and how many were
    `dropped`.
    """
    learn = local_sgd(task, local, steps=None if epochs else steps, epochs=epochs, batch=batch, keep_state=keep_state)
    alone = learn if stale.mixing else displacement(learn)  # what a member does that knows no current model
    learn = _from_current(learn) if stale.mixing else alone
    tx = optax.sgd(1.0) if server is None else server
    tx = tx if stale.mixing else servers.for_parameters(tx, task)  # who mixes models mixes all of them

    if keep_state:
        require_state(local)

    def init(key, env, x):
        past = versions(x, stale.longest + 1) if stale.longest else ()
        nodes = optimizer_state(task, local, x, n_nodes(env), key) if keep_state else ()
        return State({"x": x, "server": servers.first(tx, x, key), "past": past}, nodes, net.init(env, x))

    def in_waves(key, env, s):
        c = env.cohort
        heard, _, aged = counted(stale, c)
        read = recall(s.shared["past"], ages(c) - place(c)) if stale.longest else s.shared["x"]

        def update(server, turn, combine):
            x = server["x"]
            members, scale, _ = counted(stale, turn.members)
            mean, sent = combine(members, turn.rows - x if stale.mixing else turn.rows)
            delta = mean if scale is None else scale * mean
            x, opt = servers.step(tx, -delta, server["server"], x, count(members.weight > 0) > 0)
            return {"x": x, "server": opt, "past": push(server["past"], x) if stale.longest else ()}, (), sent

        memory = {"state": s.nodes} if keep_state else None
        env = env._replace(cohort=c._replace(weight=jnp.where(heard.weight > 0, c.weight, 0), selected=heard.selected))
        got = one_by_one(net, key, env, s.mail, alone, read, update, s.shared, memory=memory)
        return State(got.server, got.memory.get("state", ()), got.mail), got.log | aged

    def round(key, env, s):
        if env.cohort.updates is not None:
            return in_waves(key, env, s)
        x, past = s.shared["x"], s.shared["past"]
        c, scale, aged = counted(stale, env.cohort)
        env = env._replace(cohort=c)
        read = recall(past, ages(c)) if stale.longest else x  # [c, d] or [d]
        known, memory = {"current": x} if stale.mixing else None, {"state": s.nodes} if keep_state else None
        got = net.collect(key, env, s.mail, learn, read, known=known, memory=memory)
        delta = got.mean if scale is None else scale * got.mean
        x, opt = servers.step(tx, -delta, s.shared["server"], x, got.present)
        shared = {"x": x, "server": opt, "past": push(past, x) if stale.longest else ()}
        return State(shared, got.memory.get("state", ()), got.mail), got.log | aged

    return Algorithm(init, round, read=lambda s: s.shared["x"])


def _from_current(learn: Callable) -> Callable:
    """`learn` with `y - current` for `y`."""

    def move(key, data, i, x, *, current, **arguments):
        y, log = learn(key, data, i, x, **arguments)
        return y - current, log

    return move


def _adaptive(second: Callable, task, net, lr, server_lr, b1, tau, kw) -> Algorithm:
    require("lr", lr, above=0)
    require("server_lr", server_lr, above=0)
    require("b1", b1, least=0, below=1)
    require("tau", tau, above=0)
    server = optax.chain(scale_by_moments(second, b1, tau), optax.scale_by_learning_rate(server_lr))
    return fedopt(task, net, local=optax.sgd(lr), server=server, **kw)


def fedadagrad(
    task: Task, net: Network = Network(), *, lr: float | Array = 0.1, server_lr=0.1, b1=0.0, tau=1e-3, **kw
) -> Algorithm:
    """Server Adagrad: `v <- v + Delta^2`. `lr` is the clients' rate; `kw` as in `fedopt`."""
    return _adaptive(adagrad_moment(), task, net, lr, server_lr, b1, tau, kw)


def fedadam(
    task: Task, net: Network = Network(), *, lr: float | Array = 0.1, server_lr=0.01, b1=0.9, b2=0.99, tau=1e-3, **kw
) -> Algorithm:
    """Server Adam: `v <- b2 v + (1 - b2) Delta^2`. `lr` is the clients' rate; `kw` as in `fedopt`."""
    return _adaptive(adam_moment(b2), task, net, lr, server_lr, b1, tau, kw)


def fedyogi(
    task: Task, net: Network = Network(), *, lr: float | Array = 0.1, server_lr=0.01, b1=0.9, b2=0.99, tau=1e-3, **kw
) -> Algorithm:
    """Server Yogi: `v <- v - (1 - b2) Delta^2 sign(v - Delta^2)`. `lr` is the clients' rate; `kw` as in `fedopt`."""
    return _adaptive(yogi_moment(b2), task, net, lr, server_lr, b1, tau, kw)


SYSTEMS = {
    "fedadagrad": System(fedadagrad, PAPER),
    "fedadam": System(fedadam, PAPER),
    "fedyogi": System(fedyogi, PAPER),
}
