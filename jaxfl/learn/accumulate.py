"""AccumAdam: Adam whose moments see gradients averaged over several steps, while every step moves the model.

With `s` steps a period, `g` the gradient of a step, `t` its number from 1, `k = ceil(t / s)`:

    a <- a + g / s
    d = m' / (1 - b1^k) / (sqrt(v' / (1 - b2^k)) + eps),   m' = b1 m + (1 - b1) g,   v' = b2 v + (1 - b2) g^2
    if s divides t:   m <- b1 m + (1 - b1) a,   v <- b2 v + (1 - b2) a^2,   a <- 0

Small batches make `g^2` mostly noise; averaged over `s` steps, as over `s` workers, less of it gets into `v`. `s = 1`
is Adam. Wang, Zhang, Wu, Johansson, From promise to practice, ICLR 2025.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxfl.core import Array, Tree
from jaxfl.errors import require


class AccumAdamState(NamedTuple):
    """Steps so far, moments, and the mean of the gradients of this period so far."""

    step: Array  # int32
    mu: Tree
    nu: Tree
    mean: Tree


def scale_by_accum_adam(
    accumulate: int = 4, b1: float | Array = 0.9, b2: float | Array = 0.999, eps: float | Array = 1e-8
) -> optax.GradientTransformation:
    """The direction `d` of AccumAdam, `accumulate` steps a period.

    Raises:
        InputError: a period below 1, a decay outside 0..1 or an `eps` below 0.
    """
    require("accumulate", accumulate, least=1, whole=True)
    for name, decay in (("b1", b1), ("b2", b2)):
        require(name, decay, least=0, below=1)
    require("eps", eps, least=0)

    def init(params: Tree) -> AccumAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AccumAdamState(jnp.zeros((), jnp.int32), zeros, zeros, zeros)

    def update(updates, state, params=None):
        del params
        g, s = updates, state
        step = s.step + 1
        k = (s.step // accumulate + 1).astype(jnp.float32)
        mean = jax.tree.map(lambda a, g: a + g / accumulate, s.mean, g)
        mu = lambda g: jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, s.mu, g)
        nu = lambda g: jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, s.nu, g)
        d = jax.tree.map(lambda m, v: m / (1 - b1**k) / (jnp.sqrt(v / (1 - b2**k)) + eps), mu(g), nu(g))
        over = step % accumulate == 0
        chosen = lambda new, old: jax.tree.map(lambda a, b: jnp.where(over, a, b), new, old)
        zeros = jax.tree.map(jnp.zeros_like, mean)
        return d, AccumAdamState(step, chosen(mu(mean), s.mu), chosen(nu(mean), s.nu), chosen(zeros, mean))

    return optax.GradientTransformation(init, update)


def accum_adam(
    lr: Any,
    *,
    accumulate: int = 4,
    b1: float | Array = 0.9,
    b2: float | Array = 0.999,
    eps: float | Array = 1e-8,
    weight_decay: float | Array = 0.0,
) -> optax.GradientTransformation:
    """AccumAdam with rate `lr` and, decoupled, `weight_decay` (AccumAdamW); the rest as in `scale_by_accum_adam`."""
    require("weight_decay", weight_decay, least=0)
    return optax.chain(
        scale_by_accum_adam(accumulate, b1, b2, eps),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(lr),
    )
