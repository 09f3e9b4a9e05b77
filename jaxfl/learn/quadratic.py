"""Objectives that are quadratic in the model: what a node's is, and its proximal point in closed form.

For F(w) = w^T G w / 2 - b^T w + const the point argmin a F(w) + <z, w> + rho/2 |w - v|^2 is N (a b - z + rho v) with
N = (a G + rho I)^-1. N is made once, before the rounds; a round then costs a product.
"""

import jax
import jax.numpy as jnp

from jaxfl.core import Array, Shards
from jaxfl.learn.local import batch_loss, whole_shard
from jaxfl.learn.task import Task
from jaxfl.mapping import linalg


def quadratic_of(task: Task, data: Shards, i: Array) -> tuple[Array, Array]:
    """`(G [d, d], b [d])` of node `i`'s mean loss over its shard, which must be quadratic."""
    index, mask = jax.tree.map(lambda a: a[0], whole_shard(data, i, 1))
    loss = batch_loss(task, data, index, mask, jax.random.key(0))
    mean, zero = lambda row: loss(task.unravel(row))[0], jnp.zeros(task.dim)
    return jax.hessian(mean)(zero), -jax.grad(mean)(zero)


def quadratics_of(task: Task, data: Shards, n: int) -> tuple[Array, Array]:
    """`quadratic_of` of all nodes, `([n, d, d], [n, d])`."""
    return jax.lax.map(lambda i: quadratic_of(task, data, i), jnp.arange(n))


def resolvent(G: Array, rho: float | Array) -> Array:
    """`(G + rho I)^-1` of symmetric matrices `[..., d, d]`, positive semidefinite, `rho` above 0."""
    w, v = linalg.eigh(G)
    return jnp.matmul(v / (w[..., None, :] + rho), v.mT, precision="highest")
