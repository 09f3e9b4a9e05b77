"""DiLoCo: local AdamW for many steps, then one Nesterov step along the mean of what the workers moved.

With the workers' AdamW states kept,

    y_i <- H steps of AdamW from x on the data of worker i,     Delta <- mean_i (x - y_i)
    m <- beta m + Delta,     x <- x - eta (Delta + beta m),

which is `optax.sgd(eta, momentum=beta, nesterov=True)` on the pseudo-gradient Delta. With a `delay` of k the outer
step applies the Delta of k rounds before, whose all-reduce runs beside the local steps in simulated time; the first k
rounds change nothing, nor does a Delta to which nobody contributed. A worker's weight in the mean is the cohort's.
OpenDiLoCo (Jaghouar, Ong, Hagemann; 2024; https://arxiv.org/abs/2407.07852) sends Delta in 16 bits.

Deviations: simulated workers draw batches with replacement; rates are constants unless the optax transformations given
are schedules.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxfl.core import Algorithm, Array, State, n_nodes
from jaxfl.errors import InputError, require
from jaxfl.exchange import timing
from jaxfl.exchange.codecs import half
from jaxfl.exchange.network import Network
from jaxfl.learn import server as servers
from jaxfl.learn.local import local_sgd, optimizer_state
from jaxfl.learn.task import Task
from jaxfl.mapping.sums import count
from jaxfl.paper import Paper, System

PAPER = Paper(
    "DiLoCo: Distributed Low-Communication Training of Language Models",
    "Douillard, Feng, Rusu, Chhaparia, Donchev, Kuncoro, Ranzato, Szlam, Shen",
    "2023",
    "https://arxiv.org/abs/2311.08105",
)
OPEN_DILOCO = Paper(
    "OpenDiLoCo: An Open-Source Framework for Globally Distributed Low-Communication Training",
    "Jaghouar, Ong, Hagemann",
    "2024",
    "https://arxiv.org/abs/2407.07852",
)


class Pace(NamedTuple):
    """What adapts to the pseudo-gradient: how many local steps a worker runs, and how messages travel."""

    init: Callable  # () -> memory
    plan: Callable  # (memory, Network) -> (most local steps or None, Network, dict to log)
    see: Callable  # (memory, mean pseudo-gradient [d]) -> memory


class Flying(NamedTuple):
    """The all-reduces of the last rounds that have not been applied, the oldest first."""

    delta: Array  # [delay, d], mean pseudo-gradients
    bits: Array  # [delay], what each member has to send
    answered: Array  # [delay] bool, somebody was present; all-reduces before the first round were nobody's


STEADY = Pace(lambda: (), lambda s, net: (None, net, {}), lambda s, delta: s)


def diloco(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 1e-3,
    local: optax.GradientTransformation | None = None,
    server: optax.GradientTransformation | None = None,
    steps: int = 20,
    epochs: int | None = None,
    batch: int | None = 16,
    keep_state: bool = True,
    delay: int = 0,
    pace: Pace = STEADY,
) -> Algorithm:
    """DiLoCo with any optax optimizers. Logs `loss`, `gradients`, bits.

    Args:
        task: what is learned.
        net: how pseudo-gradients travel.
        lr: rate of the workers' AdamW, where `local` is None.
        local: the workers' optimizer.
        server: the outer optimizer (None: Nesterov momentum 0.9 at rate 0.7, the paper's).
        steps: local steps a round, H; `epochs` replaces them where given.
        epochs: local epochs.
        batch: samples a step; None is the whole shard.
        keep_state: a worker's optimizer state lasts, and a schedule counts its own steps; False starts it anew every
            round, and a schedule counts rounds.
        delay: rounds between measuring a pseudo-gradient and applying it.
        pace: adapts local steps and compression.

    Raises:
        InputError: a number out of range.
    """
    require("lr", lr, above=0)
    require("delay", delay, least=0, whole=True)
    inner = optax.adamw(lr) if local is None else local
    tx = optax.sgd(0.7, momentum=0.9, nesterov=True) if server is None else server
    tx = servers.for_parameters(tx, task)
    train = local_sgd(task, inner, steps=None if epochs else steps, epochs=epochs, batch=batch, keep_state=keep_state)

    def learn(key, data, i, x, **arguments):
        """The pseudo-gradient of one worker."""
        y, log = train(key, data, i, x, **arguments)
        return x - y, log

    def init(key, env, x):
        flying = Flying(jnp.zeros((delay, x.size)), jnp.zeros(delay), jnp.zeros(delay, bool)) if delay else ()
        shared = {"x": x, "outer": servers.first(tx, x, key), "flying": flying, "pace": pace.init()}
        nodes = optimizer_state(task, inner, x, n_nodes(env), key) if keep_state else ()
        return State(shared, nodes, pace.plan(shared["pace"], net)[1].init(env, x))

    def round(key, env, s):
        now = s.shared
        most, via, plan = pace.plan(now["pace"], net)
        memory = {"state": s.nodes} if keep_state else None
        cost = timing.all_reduce(now["flying"].bits[-1] if delay else None)
        got = via.collect(key, env, s.mail, learn, now["x"], steps=most, memory=memory, cost=cost)
        came, answered, flying = got.mean, got.present, ()
        if delay:
            each = got.log["up_bits"] / jnp.maximum(count(env.cohort.weight > 0), 1)
            came, answered = now["flying"].delta[0], now["flying"].answered[0]
            flying = jax.tree.map(_push, now["flying"], Flying(got.mean, each, got.present))
        x, outer = servers.step(tx, came, now["outer"], now["x"], answered)
        seen = pace.see(now["pace"], got.mean)
        seen = jax.tree.map(lambda new, old: jnp.where(got.present, new, old), seen, now["pace"])
        shared = {"x": x, "outer": outer, "flying": flying, "pace": seen}
        return State(shared, got.memory.get("state", s.nodes), got.mail), got.log | plan

    return Algorithm(init, round, read=lambda s: s.shared["x"])


def _push(line: Array, new: Array) -> Array:
    """A delay line one round later: its oldest entry, the first, is gone."""
    return jnp.concatenate([line[1:], new[None]])


def open_diloco(task: Task, net: Network = Network(), **kw) -> Algorithm:
    """OpenDiLoCo: DiLoCo whose pseudo-gradients travel in 16 bits; `kw` as in `diloco`."""
    return diloco(task, net.fill("open_diloco", codec=half()), **kw)


def all_reduce(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 1e-3,
    optimizer: optax.GradientTransformation | None = None,
    batch: int | None = 16,
    delay: int = 0,
) -> Algorithm:
    """Data-parallel training: gradients are averaged in every step, and one optimizer (None: AdamW) takes the mean.

    Raises:
        InputError: a number out of range, or a personal part, which that optimizer would not move.
    """
    require("lr", lr, above=0)
    if net.personal is not None:
        raise InputError("net.personal is set, but this system sends gradients, and no node trains a part of its own.")
    server = optax.adamw(lr) if optimizer is None else optimizer
    return diloco(task, net, local=optax.sgd(1.0), server=server, steps=1, batch=batch, keep_state=False, delay=delay)


SYSTEMS = {
    "all_reduce": System(all_reduce),
    "diloco": System(diloco, PAPER),
    "open_diloco": System(open_diloco, OPEN_DILOCO),
}
