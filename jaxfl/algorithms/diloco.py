"""DiLoCo: local AdamW for many steps, then one Nesterov step along the mean of what the workers moved.

DiLoCo: Distributed Low-Communication Training of Language Models; Douillard, Feng, Rusu, Chhaparia, Donchev, Kuncoro,
Ranzato, Szlam, Shen; 2023; https://arxiv.org/abs/2311.08105 (base of card 068). With the workers' AdamW states kept,

    y_i <- H steps of AdamW from x on the data of worker i,     Delta <- mean_i (x - y_i)
    m <- beta m + Delta,     x <- x - eta (Delta + beta m),

which is `optax.sgd(eta, momentum=beta, nesterov=True)` on the pseudo-gradient Delta. With a `delay` of k the outer
step applies the Delta of k rounds before, whose all-reduce runs beside the local steps in simulated time; the first k
rounds change nothing. A worker's weight in the mean is the cohort's. OpenDiLoCo (Jaghouar, Ong, Hagemann; 2024;
https://arxiv.org/abs/2407.07852) sends Delta in 16 bits.

Deviations: simulated workers draw batches with replacement; rates are constants unless the optax transformations given
are schedules.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxfl.core import Algorithm, Array, State, n_nodes, require
from jaxfl.exchange import timing
from jaxfl.exchange.codecs import half
from jaxfl.exchange.network import Network
from jaxfl.learn.local import local_sgd, optimizer_state, train_log
from jaxfl.learn.task import Task


class Pace(NamedTuple):
    """What adapts to the pseudo-gradient: how many local steps a worker runs, and how messages travel."""

    init: Callable  # () -> memory
    plan: Callable  # (memory, Network) -> (most local steps or None, Network, dict to log)
    see: Callable  # (memory, mean pseudo-gradient [d]) -> memory


STEADY = Pace(lambda: (), lambda s, net: (None, net, {}), lambda s, delta: s)


def diloco(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 1e-3,
    local: optax.GradientTransformation | None = None,
    server: optax.GradientTransformation | None = None,
    steps: int = 20,
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
        steps: local steps a round, H.
        batch: samples a step; None is the whole shard.
        keep_state: a worker's optimizer state lasts; False starts it anew every round.
        delay: rounds between measuring a pseudo-gradient and applying it.
        pace: adapts local steps and compression.

    Raises:
        InputError: a number out of range.
    """
    require("lr", lr, above=0)
    require("delay", delay, least=0)
    inner = optax.adamw(lr) if local is None else local
    tx = optax.sgd(0.7, momentum=0.9, nesterov=True) if server is None else server
    train = local_sgd(task, inner, steps=steps, batch=batch, keep_state=keep_state)

    def learn(key, data, i, x, **named):
        """The pseudo-gradient of one worker."""
        y, log = train(key, data, i, x, **named)
        return x - y, log

    def init(key, env, x):
        flying = (jnp.zeros((delay, x.size)), jnp.zeros(delay)) if delay else ()
        shared = {"x": x, "outer": tx.init(x), "flying": flying, "pace": pace.init()}
        nodes = optimizer_state(task, inner, x, n_nodes(env)) if keep_state else ()
        return State(shared, nodes, pace.plan(shared["pace"], net)[1].init(env, x))

    def round(key, env, s):
        c, now = env.cohort, s.shared
        present = c.weight > 0
        most, via, plan = pace.plan(now["pace"], net)
        bound = [b for b in (c.steps, most) if b is not None]
        allowed = jnp.broadcast_to(jnp.min(jnp.stack(jnp.broadcast_arrays(*bound)), 0), c.ids.shape) if bound else None
        kept = {"state": s.nodes} if keep_state else None
        delta, log, mail, cost = via.collect(key, env, s.mail, learn, now["x"], steps=allowed, kept=kept)
        out = train_log(log, c) | cost | {"down_bits": cost["up_bits"]} | plan
        came, flying, on_the_way = delta, (), None
        if delay:
            (line, bits), each = now["flying"], cost["up_bits"] / jnp.maximum(present.sum(), 1)
            came, flying, on_the_way = line[0], (_push(line, delta), _push(bits, each)), bits[-1]
        u, outer = tx.update(came, now["outer"], now["x"])
        x = now["x"] + u
        if delay:
            keep = lambda new, old: jnp.where(env.t >= delay, new, old)
            x, outer = jax.tree.map(keep, (x, outer), (now["x"], now["outer"]))
        shared = {"x": x, "outer": outer, "flying": flying, "pace": pace.see(now["pace"], delta)}
        state = State(shared, log.get("state", s.nodes), mail)
        return state, timing.all_reduce_round(env, log["steps"], out, on_the_way)

    return Algorithm(init, round, read=lambda s: s.shared["x"])


def _push(line: Array, new: Array) -> Array:
    """A delay line one round later: its oldest entry, the first, is gone."""
    return jnp.concatenate([line[1:], new[None]])


def open_diloco(task: Task, net: Network = Network(), **kw) -> Algorithm:
    """OpenDiLoCo: DiLoCo whose pseudo-gradients travel in 16 bits; `kw` as in `diloco`."""
    return diloco(task, net._replace(codec=half()), **kw)


def all_reduce(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 1e-3,
    optimizer: optax.GradientTransformation | None = None,
    batch: int | None = 16,
    delay: int = 0,
) -> Algorithm:
    """Data-parallel training: gradients are averaged in every step, and one optimizer (None: AdamW) takes the mean."""
    require("lr", lr, above=0)
    server = optax.adamw(lr) if optimizer is None else optimizer
    return diloco(task, net, local=optax.sgd(1.0), server=server, steps=1, batch=batch, keep_state=False, delay=delay)
