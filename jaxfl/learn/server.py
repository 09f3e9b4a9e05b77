"""A server's optimizer: any of optax, or FedOpt's adaptive ones (Reddi et al., ICLR 2021, Algorithm 2).

These differ from optax's in the paper's details: no bias correction, the second moment starts at `tau^2`, and `tau` is
added outside the root. `first` and `step` are how a server uses an optimizer.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxfl.core import Array, stream
from jaxfl.errors import require
from jaxfl.learn.layers import statistics
from jaxfl.learn.optimizer import begin
from jaxfl.learn.preconditioner import divided, second_moment
from jaxfl.learn.task import Task


class MomentsState(NamedTuple):
    """First and second moment, trees like the parameters."""

    m: optax.Params
    v: optax.Params


def scale_by_moments(second: Callable, b1: float | Array, tau: float | Array) -> optax.GradientTransformation:
    """`m / (sqrt(v) + tau)` with `m <- b1 m + (1 - b1) g` and `v <- second(v, g^2)`, `v_0 = tau^2`."""

    scale = second_moment(second, tau)

    def init(params):
        return MomentsState(optax.tree.zeros_like(params), scale.init(params))

    def update(updates, state, params=None):
        del params
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.m, updates)
        v = scale.refresh(state.v, updates)
        return divided(m, scale.diagonal(v)), MomentsState(m, v)

    return optax.GradientTransformation(init, update)


class DelayedState(NamedTuple):
    """Momentum, the updates since it was last renewed, both trees like the parameters, and how many there were."""

    m: optax.Params
    buffer: optax.Params
    count: Array  # int32


def delayed_nesterov(
    lr: float | Array, momentum: float | Array = 0.9, delay: int = 4, spread: float | Array = 0.0
) -> optax.GradientTransformation:
    """Nesterov momentum that moves once in `delay` updates; the updates themselves are applied at once.

    Delayed Nesterov of asynchronous Local-SGD (Liu et al., 2024, https://arxiv.org/abs/2401.09135). With N = `delay`
    and c = `spread`, of the t-th update g,

        B <- B + g
        every N-th time:  m <- b m + B / N,  B <- 0,     x <- x - lr ((1 - c N + c) b m + g / N)
        else:                                            x <- x - lr (c b m + g / N).

    With c = 0, N updates move the model as one step of Nesterov's on their mean; N = 1 is `optax.sgd(nesterov=True)`.

    Raises:
        InputError: a rate that is not above 0, a momentum outside [0, 1), a `spread` outside [0, 1 / delay].
    """
    require("lr", lr, above=0)
    require("momentum", momentum, least=0, below=1)
    require("delay", delay, least=1, whole=True)
    require("spread", spread, least=0, most=1 / delay)

    def init(params):
        zero = optax.tree.zeros_like(params)
        return DelayedState(zero, zero, jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        del params
        last = state.count == delay - 1
        total = jax.tree.map(jnp.add, state.buffer, updates)
        m = jax.tree.map(lambda m, b: jnp.where(last, momentum * m + b / delay, m), state.m, total)
        part = jnp.where(last, 1 - spread * delay + spread, spread) * momentum
        move = jax.tree.map(lambda m, g: -lr * (part * m + g / delay), m, updates)
        buffer = jax.tree.map(lambda b: jnp.where(last, 0, b), total)
        return move, DelayedState(m, buffer, jnp.where(last, 0, state.count + 1))

    return optax.GradientTransformation(init, update)


def adagrad_moment() -> Callable:
    """`v + g^2`."""
    return lambda v, square: v + square


def adam_moment(b2: float | Array) -> Callable:
    """`b2 v + (1 - b2) g^2`. Raises `InputError` for a `b2` outside [0, 1)."""
    require("b2", b2, least=0, below=1)
    return lambda v, square: b2 * v + (1 - b2) * square


def yogi_moment(b2: float | Array) -> Callable:
    """`v - (1 - b2) g^2 sign(v - g^2)`: the step never exceeds `(1 - b2) g^2` (Zaheer et al., NeurIPS 2018).

    Raises `InputError` for a `b2` outside [0, 1).
    """
    require("b2", b2, least=0, below=1)
    return lambda v, square: v - (1 - b2) * square * jnp.sign(v - square)


def for_parameters(tx: optax.GradientTransformation, task: Task) -> optax.GradientTransformation:
    """`tx` for the parameters in a row `[d]`; what no optimizer moves (`BatchNorm`'s statistics) is averaged."""
    kept = statistics(task)
    if kept is None:
        return tx
    at, tx = kept.columns, optax.with_extra_args_support(tx)

    def update(updates, state, params=None, **extra):
        g = jnp.asarray(updates)
        u, state = tx.update(g.at[at].set(0.0), state, params, **extra)
        return jnp.asarray(u).at[at].set(-g[at]), state

    return optax.GradientTransformationExtraArgs(tx.init, update)


def parameters_alone(task: Task) -> Callable[[Array], Array]:
    """`row -> row` with zeros where no optimizer moves anything (`BatchNorm`'s statistics)."""
    kept = statistics(task)
    return (lambda row: row) if kept is None else lambda row: row.at[kept.columns].set(0.0)


def first(tx: optax.GradientTransformation, x: Array, key: Array) -> optax.OptState:
    """The first state of a server's optimizer at the model `x` `[d]`; `key` is that of `Algorithm.init`.

    The state lasts, so that a schedule counts the server's steps; noise differs by seed.
    """
    return begin(tx, x, stream(key, "server"))


def step(
    tx: optax.GradientTransformation, update: Array, opt: optax.OptState, x: Array, present: Array
) -> tuple[Array, optax.OptState]:
    """The server's step on `update` `[d]`, which stands for a gradient: `(x, opt)`.

    Both stay as they were in a round in which nobody is `present` (bool): no momentum moves the model, no schedule
    advances.
    """
    u, new = tx.update(update, opt, x)
    stay = lambda new, old: jnp.where(present, new, old)
    return jax.tree.map(stay, (optax.apply_updates(x, u), new), (x, opt))


def transformed(
    tx: optax.GradientTransformation | None, move: Array, opt: optax.OptState, x: Array, present: Array
) -> tuple[Array, optax.OptState]:
    """What a transformation makes of the mean move `[d]` of a system that has a step of its own: `(move, opt)`.

    It is given minus the move, as an optimizer's update is. None is no transformation, with the state `()`. A round in
    which nobody is `present` has no move, and the state stays.
    """
    if tx is None:
        return move, opt
    u, new = tx.update(-move, opt, x)
    return jax.tree.map(lambda a, b: jnp.where(present, a, b), (-jnp.asarray(u), new), (jnp.zeros_like(x), opt))
