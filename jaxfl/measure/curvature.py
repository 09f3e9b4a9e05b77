"""Curvature of the loss at the mean model: the extreme eigenvalues of the Hessian, from Hessian-vector products."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxfl.core import Array, Metric, Tree, stream
from jaxfl.errors import require
from jaxfl.learn.task import Task, mean_loss
from jaxfl.mapping import linalg
from jaxfl.measure.metrics import mean_model


def hessian_product(f: Callable, x: Array) -> Callable:
    """`v -> H v` for vectors `[d]`, `H` the Hessian of the scalar function `f` at `x` `[d]`; never forms `H`."""
    return lambda v: jax.jvp(jax.grad(f), (x,), (v,))[1]


def extreme_eigenvalues(product: Callable, d: int, steps: int = 20, key: Array | None = None) -> tuple[Array, Array]:
    """Smallest and largest eigenvalue of a symmetric operator `[d] -> [d]`, by Lanczos with reorthogonalisation.

    They lie inside the spectrum; `steps = d` gives them to rounding. Power iteration needs the same products and finds
    only the eigenvalue of largest modulus, and that more slowly (Golub and Van Loan, Matrix Computations, chapter 10;
    for neural networks Ghorbani, Krishnan and Xiao, ICML 2019, https://arxiv.org/abs/1901.10159).

    Args:
        product: `v -> H v`.
        d: dimension.
        steps: products computed; memory is `steps` vectors.
        key: of the start vector (None: a fixed one).

    Raises:
        InputError: `steps` or `d` below 1.
    """
    for name, value in (("d", d), ("steps", steps)):
        require(name, value, least=1, whole=True)
    steps = min(steps, d)
    start = jax.random.normal(stream(jax.random.key(0), "lanczos") if key is None else key, (d,))

    def step(carry: tuple, j: Array) -> tuple[tuple, tuple]:
        basis, v, alive = carry
        basis = basis.at[j].set(v)
        w = product(v)
        alpha, size = v @ w, jnp.linalg.norm(w)
        for _ in range(2):  # once is not enough in float32
            w = w - (basis @ w) @ basis
        beta = jnp.linalg.norm(w)
        more = beta > 1e-5 * size  # else the vectors so far span an invariant space
        return (basis, jnp.where(more, w / jnp.where(more, beta, 1), 0), alive & more), (alpha, beta * more, alive)

    carry = jnp.zeros((steps, d)), start / jnp.linalg.norm(start), jnp.bool_(True)
    _, (alpha, beta, alive) = jax.lax.scan(step, carry, jnp.arange(steps))
    alpha = jnp.where(alive, alpha, alpha[0])  # fills up with a number inside the spectrum
    beta = jnp.where(alive, beta, 0)[:-1]
    values = linalg.eigvalsh(jnp.diag(alpha) + jnp.diag(beta, 1) + jnp.diag(beta, -1))
    return values[0], values[-1]


def sharpness(task: Task, x: Tree, y: Array, steps: int = 20) -> Metric:
    """`sharpness` and `least_curvature`: largest and smallest eigenvalue of the Hessian of the mean loss.

    The model is the one read, or the mean `[d]` of models `[n, d]`. Costs `steps` Hessian-vector products over all
    examples at once.

    Args:
        task: the task.
        x: inputs `[N, ...]`.
        y: targets `[N, ...]`.
        steps: Lanczos steps.
    """

    def measure(arrays, answer):
        row = mean_model(answer)
        product = hessian_product(lambda p: mean_loss(task, p, *arrays), row)
        least, most = extreme_eigenvalues(product, task.dim, steps)
        return {"sharpness": most, "least_curvature": least}

    return Metric(measure, (x, y))
