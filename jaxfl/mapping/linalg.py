"""LAPACK inside compiled programs, one matrix a call; nothing else in jaxfl may call it there (a test looks).

jaxlib 0.10.0 to 0.10.2 cut a call on several matrices (of 2e5 operations in all) into tasks for the CPU's thread pool
and wait for them on a thread of that pool: as many such calls at once as threads, two on two cores, wait for ever. A
call on one matrix is never cut. (`GetLapackBatchChunkSize`, `ParallelBatchMap` in jaxlib/cpu/lapack_kernels.cc; undone
for later releases in jax-ml/jax 8599924, July 2026.) Accelerators take all matrices at once, as ever.

Matrices are real, `[..., a, b]`, and results those of `jnp.linalg`, in plain tuples.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxfl.core import Array


def alone(f: Callable, signature: str) -> Callable:
    """`f` of matrices as a function of stacks of them, which a CPU takes one at a time under any vmap.

    The result may be jitted, vmapped, scanned, sharded, and differentiated forward (`jax.jvp`). For reverse put a
    `jax.custom_jvp` around it whose tangents are products with what LAPACK found, as `eigh` and `qr` have.

    Args:
        f: takes and returns arrays of the axes in `signature`.
        signature: as `jnp.vectorize` takes it; leading axes broadcast.
    """
    one = jax.custom_batching.sequential_vmap(f)
    return jnp.vectorize(lambda *a: jax.lax.platform_dependent(*a, cpu=one, default=f), signature=signature)


_eigh = alone(lambda x: tuple(jnp.linalg.eigh(x)), "(n,n)->(n),(n,n)")
_eigvalsh = alone(lambda x: jnp.linalg.eigvalsh(x), "(n,n)->(n)")
_solve = alone(lambda a, b: jnp.linalg.solve(a, b), "(n,n),(n,k)->(n,k)")
_qr = alone(lambda x: tuple(jnp.linalg.qr(x)), "(a,b)->(a,k),(k,b)")


def _dot(*factors: Array) -> Array:
    product = factors[0]
    for factor in factors[1:]:
        product = jnp.matmul(product, factor, precision=jax.lax.Precision.HIGHEST)
    return product


@jax.custom_jvp
def eigh(x: Array) -> tuple[Array, Array]:
    """Eigenvalues `[..., n]`, ascending, and their vectors, the columns of `[..., n, n]`, of `(x + x^T) / 2`.

    Differentiates both ways; the vectors of equal eigenvalues have no derivative (not finite).
    """
    return _eigh(x)


@eigh.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    w, v = _eigh(x)
    eye = jnp.eye(w.shape[-1], dtype=w.dtype)
    turned = _dot(v.mT, (dx + dx.mT) / 2, v)
    gaps = w[..., None, :] - w[..., :, None]
    return (w, v), (jnp.diagonal(turned, axis1=-2, axis2=-1), _dot(v, turned * (1 / (eye + gaps) - eye)))


@jax.custom_jvp
def eigvalsh(x: Array) -> Array:
    """The eigenvalues of `eigh`, at less cost where nothing is differentiated."""
    return _eigvalsh(x)


@eigvalsh.defjvp
def _(primals, tangents):
    (w, _), (dw, _) = jax.jvp(eigh, primals, tangents)
    return w, dw


@jax.custom_jvp
def qr(x: Array) -> tuple[Array, Array]:
    """`x = q r`: q `[..., a, k]` with orthonormal columns, r `[..., k, b]` upper triangular, k = min(a, b).

    Differentiates both ways where a >= b and the columns are independent (not finite elsewhere).

    Raises:
        NotImplementedError: differentiated with a < b.
    """
    return _qr(x)


@qr.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    if x.shape[-2] < x.shape[-1]:
        raise NotImplementedError(
            f"x has shape {list(x.shape)}: qr differentiates with at least as many rows as columns."
        )
    q, r = _qr(x)
    rise = _dot(dx, _solve(r, jnp.eye(r.shape[-1], dtype=r.dtype)))
    seen = _dot(q.mT, rise)
    low = jnp.tril(seen, -1)
    turn = low - low.mT
    return (q, r), (_dot(q, turn - seen) + rise, _dot(seen - turn, r))
