"""SAVIC: local steps that all clients divide by one diagonal, refreshed where they meet.

At the start of a round all members S are at the server's x. With p_i the cohort's weights,

    H <- sum_S p_i h_i(x),   D <- refresh(D, H),   y <- y - lr G / max(alpha, |D|), K times from x,   x <- sum_S p_i y_i

where h_i is a mini-batch gradient (rule "adam", "rmsprop"), or Hutchinson's diagonal v * (H_i v) ("oasis",
"adahessian"), and the mean of D or D^2 is that of `learn.preconditioner`. "identity" is FedAvg, which sends no more.
D stays as it is within a round. A round has two phases: x down, h up, then D down and y - x up. `shared` False is the
ablation: every client divides by a D of its own, refreshed by its own h, and sends the model alone. Who runs no step
looks at nothing: its h is 0.

From the theory of the authors' earlier papers, where the text leaves it open: the first statistic is D itself, and H is
squared after its mean over clients; `squares` True is the mean of squares.
"""

import jax
import jax.numpy as jnp
import optax

from jaxfl.core import Algorithm, Array, State, n_nodes, stream, tile
from jaxfl.errors import InputError, require
from jaxfl.exchange.network import Network
from jaxfl.exchange.phases import joined, parted
from jaxfl.learn.hooks import scaled
from jaxfl.learn.local import displacement, local_curvature, local_gradient, local_sgd
from jaxfl.learn.preconditioner import by_name
from jaxfl.learn.task import Task
from jaxfl.paper import Paper, System

PAPER = Paper(
    "Local Methods with Adaptivity via Scaling",
    "Chezhegov, Skorik, Khachaturov, Shalagin, Avetisyan, Takac, Kholodov, Beznosikov",
    "Russian Mathematical Surveys 2024",
    "https://arxiv.org/abs/2406.00846",
    number="070",
    journal=True,
)


def savic(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.01,
    rule: str = "adam",
    beta: float | Array = 0.999,
    alpha: float | Array = 1e-2,
    momentum: float | Array | None = None,
    shared: bool = True,
    squares: bool = False,
    steps: int = 10,
    epochs: int | None = None,
    batch: int | None = 16,
) -> Algorithm:
    """SAVIC with client rate `lr` and floor `alpha`; `momentum` is heavy-ball of the scaled steps, anew every round.

    `epochs` replaces `steps` where given; `batch` None is the whole shard.
    """
    require("lr", lr, above=0)
    require("momentum", momentum, least=0, below=1, none=True)
    scale = by_name(rule, beta, alpha)
    plain = not scale.statistic
    local = optax.sgd(lr, momentum=momentum)
    local = local if plain else optax.chain(scaled(), local)
    train = displacement(local_sgd(task, local, steps=None if epochs else steps, epochs=epochs, batch=batch))
    look = (local_curvature if scale.statistic == "curvature" else local_gradient)(task, batch=batch)

    def statistic(key, data, i, x, **more):
        h, log = look(key, data, i, x, **more)
        return (h * h if squares else h), log

    def by_shared(key, data, i, diagonal, *, start, **more):
        return train(key, data, i, start, diagonal=diagonal, **more)

    def by_own(key, data, i, x, *, scale_state, steps=None, **more):
        h, seen = look(stream(key, "look"), data, i, x, steps=steps)
        new = scale.refresh(scale_state, h)
        more |= {} if steps is None else {"steps": steps}
        y, log = train(key, data, i, x, diagonal=scale.diagonal(new), **more)
        return y, log | {"gradients": log["gradients"] + seen["gradients"], "scale_state": new}

    def init(key, env, x):
        one = net.init(env, x)
        if plain:
            return State({"x": x}, (), one)
        if net.submodel is not None:
            raise InputError("net.submodel is set, but savic's clients see the gradient of the whole model.")
        if not shared:
            return State({"x": x}, jax.tree.map(lambda a: tile(a, n_nodes(env)), scale.init(x)), one)
        return State({"x": x, "scale": scale.init(x)}, (), joined(one, one))

    def round(key, env, s):
        x = s.shared["x"]
        if plain or not shared:
            memory = None if plain else {"scale_state": s.nodes}
            got = net.collect(key, env, s.mail, train if plain else by_own, x, memory=memory)
            return State({"x": x + got.mean}, got.memory.get("scale_state", ()), got.mail), got.log
        first, second = parted(s.mail)
        seen = net.collect(stream(key, "look"), env, first, statistic, x)
        h = jnp.sqrt(jnp.maximum(seen.mean, 0)) if squares else seen.mean
        stay = lambda new, old: jnp.where(seen.present, new, old)
        state = jax.tree.map(stay, scale.refresh(s.shared["scale"], h), s.shared["scale"])
        got = net.collect(key, env, second, by_shared, scale.diagonal(state), known={"start": x})
        seen.log.pop("loss")
        return State({"x": x + got.mean, "scale": state}, (), joined(seen.mail, got.mail)), seen.log | got.log

    return Algorithm(init, round, read=lambda s: s.shared["x"])


SYSTEMS = {"savic": System(savic, PAPER)}
