"""Linear flows: what a node's vectors do by themselves between two events, `s' = M s`.

Nothing is computed until a node's next event; then its vectors move by the seconds since its last one, each node by its
own. `exp(M t)` is made by scaling and squaring of a Taylor polynomial: it needs no eigenvectors, which a defective
matrix does not have, and no solver. Carried is `exp - 1`, so that a short time is as exact as a long one.
"""

import jax
import jax.numpy as jnp

from jaxfl.core import Array
from jaxfl.errors import InputError

DEGREE = {4: 8, 8: 14}  # terms that leave less than the rounding of numbers of so many bytes, below a norm of 1/2


def growth(matrix: Array, seconds: Array) -> Array:
    """`exp(matrix * t) - 1`, `[..., a, a]`, for `matrix` `[a, a]` and every one of the `seconds` `[...]`.

    Raises:
        InputError: the matrix is not square.
    """
    if jnp.ndim(matrix) != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"matrix has shape {list(jnp.shape(matrix))}, but must be square, [a, a].")
    return jnp.vectorize(_growth, excluded=(0,), signature="()->(a,a)")(matrix, seconds)


def _growth(matrix: Array, t: Array) -> Array:
    times = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    a = matrix * t
    _, halvings = jnp.frexp(2 * jnp.abs(a).sum(1).max())  # below 1/2 after so many
    halvings = jnp.maximum(halvings, 0)
    a = a * jnp.exp2(-halvings.astype(a.dtype))
    grown = jnp.zeros_like(a)  # a (1 + a/2 (1 + a/3 (...))), Horner's scheme
    for k in range(DEGREE[a.dtype.itemsize], 0, -1):
        grown = (a + times(a, grown)) / k
    return jax.lax.fori_loop(0, halvings, lambda _, g: 2 * g + times(g, g), grown)


def flowed(matrix: Array, seconds: Array, vectors: Array) -> Array:
    """Each node's `vectors` `[n, a, d]` after its own `seconds` `[n]` of the flow; bit for bit the same after none."""
    moved = jnp.einsum("nab,nbd->nad", growth(matrix, seconds), vectors, precision=jax.lax.Precision.HIGHEST)
    return vectors + moved
