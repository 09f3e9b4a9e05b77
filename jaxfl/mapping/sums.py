"""Sums that XLA does well: of many floats as products with ones, and how many there are as a sum of floats.

XLA cuts a sum over more than a few hundred floats into windows, and on a CPU reads what it makes for them from memory
again; a product with ones it joins with what makes the floats.
"""

import jax
import jax.numpy as jnp

from jaxfl.core import Array, Tree


def total(a: Array) -> Array:
    """The sum of all numbers of `a`."""
    return jnp.vdot(a, jnp.ones_like(a), precision=jax.lax.Precision.HIGHEST)


def count(mask: Array) -> Array:
    """How many of `mask` are true, `[]` float32, exact up to 2^24.

    Over nodes on several devices sums of one type meet in one exchange, and a number of integers would need its own.
    """
    return mask.astype(jnp.float32).sum()


def norm(tree: Tree) -> Array:
    """The Euclidean norm of a tree, as of one vector."""
    return jnp.sqrt(sum(total(a * a) for a in jax.tree.leaves(tree)))
