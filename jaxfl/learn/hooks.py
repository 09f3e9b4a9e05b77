"""Hooks of local training: optax transformations that correct a mini-batch gradient.

`local_sgd` hands every transformation the extra arguments `value` (the loss), `grad_fn` (the gradient of the same
mini-batch at other parameters), `anchor` (the model the node started from), `key` (of seed, node, round and step),
`t` (the round, int32), `step` (the local step, from 0), and the named vectors of the algorithm (`control`, `direction`,
...). What is the size of a model is a parameter tree. Chain a hook before an optimizer:
`optax.chain(prox(0.1), optax.sgd(0.05))`. Gradient clipping and weight decay are optax's own. A schedule of optax
counts rounds where the optimizer starts anew every round, and the node's own steps where its state is kept; a hook has
`t` in both.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxfl.core import Array, Tree
from jaxfl.errors import InputError, require
from jaxfl.learn.layers import Part
from jaxfl.learn.preconditioner import divided
from jaxfl.learn.task import Task
from jaxfl.mapping.sums import norm

Hook = optax.GradientTransformationExtraArgs


def stateless(f: Callable) -> Hook:
    """Turn `f(gradient, params, **extra) -> gradient` into an optax transformation.

    Raises:
        InputError: while tracing, a system that does not give what `f` needs: its keyword arguments without a default.
    """
    arguments = inspect.signature(f).parameters.values()
    needs = [p.name for p in arguments if p.kind is p.KEYWORD_ONLY and p.default is p.empty]

    def update(updates, state, params=None, **extra):
        _needed(extra, needs)
        return f(updates, params, **extra), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _needed(extra: dict, names: Sequence[str]) -> dict:
    """What of `extra` a hook needs; an `InputError` where a system does not give it."""
    missing = [name for name in names if name not in extra]
    if missing:
        raise InputError(f"a hook needs {', '.join(missing)}, but this system gives {', '.join(sorted(extra))}.")
    return {name: extra[name] for name in names}


def prox(mu: float | Array) -> Hook:
    """The proximal term: gradient of `mu / 2 * |p - anchor|^2` added (FedProx, Li et al., MLSys 2020)."""
    require("mu", mu, least=0)
    return stateless(lambda g, p, *, anchor, **_: jax.tree.map(lambda g, p, a: g + mu * (p - a), g, p, anchor))


def sam(rho: float | Array, alpha: float | Array = 1.0, *, normalised: bool = True) -> Hook:
    """Sharpness-aware minimisation: the gradient at `p + rho * g / |g|`, same mini-batch (Foret et al., ICLR 2021).

    Of it a share `alpha` is taken, the rest is that at `p`; not `normalised`, the point is `p + rho * g`.
    """
    require("rho", rho, least=0)
    require("alpha", alpha, least=0, most=1)

    def ascend(g, p, *, grad_fn, **_):
        scale = rho / (norm(g) + 1e-12) if normalised else rho
        there = grad_fn(jax.tree.map(lambda p, g: p + scale * g, p, g))
        return jax.tree.map(lambda g, a: (1 - alpha) * g + alpha * a, g, there)

    return stateless(ascend)


def lagrangian(mu: float | Array) -> Hook:
    """An augmented Lagrangian: gradient of `mu / 2 * |p - anchor|^2 - <dual, p>` added (FedDyn, Acar et al., 2021)."""
    require("mu", mu, least=0)
    return stateless(
        lambda g, p, *, anchor, dual, **_: jax.tree.map(lambda g, p, a, d: g - d + mu * (p - a), g, p, anchor, dual)
    )


def drift(scale: float | Array = 1.0) -> Hook:
    """Control variates: `g - scale * (control - shared_control)` (SCAFFOLD, Karimireddy et al., ICML 2020)."""
    require("scale", scale)
    return stateless(
        lambda g, p, *, control, shared_control, **_: jax.tree.map(
            lambda g, c, s: g - scale * (c - s), g, control, shared_control
        )
    )


def blend(beta: float | Array) -> Hook:
    """Global momentum in every local step: `beta * g + (1 - beta) * direction` (FedAvg-M, Cheng et al., ICLR 2024)."""
    require("beta", beta, least=0, most=1)
    return stateless(lambda g, p, *, direction, **_: jax.tree.map(lambda g, m: beta * g + (1 - beta) * m, g, direction))


def scaled() -> Hook:
    """A handed diagonal: `g / diagonal`, the same in all steps of a round (`learn.preconditioner`)."""
    return stateless(lambda g, p, *, diagonal, **_: divided(g, diagonal))


def part_first(task: Task, part: Part, steps: int | Array) -> Hook:
    """The local steps before `steps` move the part alone, those after it all the rest. Chained after the optimizer.

    With `Network(personal=part)` this is FedRep (Collins et al., ICML 2021, https://arxiv.org/abs/2102.07078): each
    client fits its head to the body it was handed, then moves the body.
    """

    def chosen(u, p, *, step, **_):
        moves = task.unravel(jnp.asarray(part.mask))
        return jax.tree.map(lambda u, inside: jnp.where(inside == (step < steps), u, 0.0), u, moves)

    return stateless(chosen)


def storm(beta: float | Array) -> Hook:
    """Variance-reduced global momentum: `g + (1 - beta) * (direction - gradient at previous)`, same mini-batch.

    The `-VR` methods of Cheng et al. (ICLR 2024), after STORM (Cutkosky and Orabona, NeurIPS 2019).
    """
    require("beta", beta, least=0, most=1)

    def correct(g, p, *, grad_fn, direction, previous, **_):
        old = grad_fn(previous)
        return jax.tree.map(lambda g, m, o: g + (1 - beta) * (m - o), g, direction, old)

    return stateless(correct)


class Recursive(NamedTuple):
    """State of `sarah`."""

    estimate: Tree  # of the last step
    previous: Tree  # where the last step began


def sarah() -> Hook:
    """Recursive gradients: `d <- d + g - gradient at the previous iterate`, same mini-batch; at first `direction`.

    In the first step the two gradients cancel, so that it goes along `direction`. Its state starts anew every round.
    SARAH, Nguyen, Liu, Scheinberg and Takac, ICML 2017.
    """

    def init(params: Tree) -> Recursive:
        return Recursive(optax.tree.zeros_like(params), params)

    def update(updates: Tree, state: Tree, params: Tree = None, **extra) -> tuple[Tree, Tree]:
        grad_fn, direction, step = _needed(extra, ("grad_fn", "direction", "step")).values()
        last = jax.tree.map(lambda first, later: jnp.where(step == 0, first, later), direction, state.estimate)
        d = jax.tree.map(lambda d, g, o: d + g - o, last, updates, grad_fn(state.previous))
        return d, Recursive(d, params)

    return optax.GradientTransformationExtraArgs(init, update)


class WorkerMomentum(NamedTuple):
    """State of `worker_momentum`."""

    count: Array  # int32, gradients seen
    momentum: Tree


def worker_momentum(beta: float | Array) -> optax.GradientTransformation:
    """Momentum of one worker, `m <- beta m + (1 - beta) g`, and `m = g` at its first step.

    Of noise of variance `sigma^2` a share `(1 - beta) / (1 + beta)` is left. The state must stay with the worker from
    round to round. Karimireddy, He and Jaggi, Learning from History, ICML 2021.
    """
    require("beta", beta, least=0, below=1)

    def init(params: Tree) -> WorkerMomentum:
        return WorkerMomentum(jnp.int32(0), optax.tree.zeros_like(params))

    def update(updates: Tree, state: Tree, params: Tree = None) -> tuple[Tree, WorkerMomentum]:
        del params
        keep = jnp.where(state.count == 0, 0.0, beta)
        m = jax.tree.map(lambda m, g: keep * m + (1 - keep) * g, state.momentum, updates)
        return m, WorkerMomentum(state.count + 1, m)

    return optax.GradientTransformation(init, update)
