"""Of which mixture of several models is a model: estimates `u` `[S]` in the simplex, from what a server has."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxfl.core import Array, Tree
from jaxfl.errors import InputError, require
from jaxfl.learn.task import Task, mean_loss, require_task


def onto_simplex(v: Array) -> Array:
    """The nearest point to `v` `[S]` with entries of at least 0 that sum to 1.

    Held, Wolfe and Crowder, Validation of subgradient optimization, Mathematical Programming 1974.
    """
    down = -jnp.sort(-v)
    excess = (jnp.cumsum(down) - 1) / jnp.arange(1, v.size + 1)
    last = (down > excess).sum() - 1  # the smallest entry that stays above 0
    return jnp.maximum(v - excess[last], 0)


def projected(steps: int = 200) -> Callable:
    """`argmin_u |w - sum_s u_s C_s|^2` over the simplex, by so many accelerated projected gradient steps.

    It needs no data. Where models of mixtures are the mixtures of models, as for least squares of equal covariances, it
    finds the mixture.
    """
    require("steps", steps, least=1, whole=True)

    def estimate(w: Array, clusters: Array) -> Array:
        apart = clusters - w  # sum_s u_s (C_s - w): equal models cost no precision
        gram = jnp.matmul(apart, apart.T, precision=jax.lax.Precision.HIGHEST)
        rate = 1 / jnp.maximum(jnp.abs(gram).sum(1).max(), jnp.finfo(w.dtype).tiny)
        first = jnp.full(len(clusters), 1 / len(clusters), w.dtype)

        def step(k: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
            u, ahead = now
            new = onto_simplex(ahead - rate * (gram @ ahead))
            return new, new + k / (k + 3) * (new - u)

        return jax.lax.fori_loop(0, steps, step, (first, first))[0]

    return estimate


def by_proxy(task: Task, x: Tree, y: Array, *, mix: float = 0.5, power: float = 2.0) -> Callable:
    """From few public samples of every cluster, `x` leaves `[S, m, ...]`, `y` `[S, m, ...]`, and from distances.

    `z_s = mix l_s / mean(l) + (1 - mix) d_s / mean(d)` with the loss `l_s` of the model on the samples of s and its
    distance `d_s` from model s, and `u_s` in proportion to `z_s^-power`.
    """
    require_task(task)
    require("mix", mix, least=0, most=1)
    require("power", power, above=0)

    def estimate(w: Array, clusters: Array) -> Array:
        if y.shape[0] != len(clusters):
            raise InputError(f"y has samples of {y.shape[0]} clusters, but there are {len(clusters)} models.")
        least = jnp.finfo(w.dtype).tiny
        loss = jax.vmap(lambda x, y: mean_loss(task, w, x, y))(x, y)
        far = jnp.sqrt(((clusters - w) ** 2).sum(1))
        z = mix * loss / jnp.maximum(loss.mean(), least) + (1 - mix) * far / jnp.maximum(far.mean(), least)
        score = jnp.maximum(z, 1e-6) ** -power
        return score / score.sum()

    return estimate


def uniform() -> Callable:
    """All models alike, whatever is known."""
    return lambda w, clusters: jnp.full(len(clusters), 1 / len(clusters), w.dtype)
