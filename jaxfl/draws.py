"""What a function of one node draws, apart from what it does with it.

JAX's generator is a chain of small loops on a CPU, and costs the same for ten nodes as for a thousand. Where nodes are
mapped in blocks, the draws of all nodes are therefore made at once before the blocks; the numbers stay the same.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from jaxfl.core import Tree

SMALL = 2**14  # bytes; a larger draw, such as noise for every parameter, is made where it is used


def draws_apart(f: Callable, shared: Tree, row: Tree) -> tuple[Callable, Callable]:
    """`f(shared, row)` as `rest(shared, row, draw(shared, row))`.

    `draw` holds the operations that depend on keys and whole numbers only and make nothing large: batches and their
    order, but no data and no model. `row` may be abstract.
    """
    closed, out = jax.make_jaxpr(f, return_shape=True)(shared, row)
    jaxpr, structure = closed.jaxpr, jax.tree.structure(out)
    size = lambda v: v.aval.size * v.aval.dtype.itemsize
    known = {v for v in (*jaxpr.invars, *jaxpr.constvars) if not jnp.issubdtype(v.aval.dtype, jnp.inexact)}
    first, then = [], []
    for eqn in jaxpr.eqns:
        early = not eqn.effects and all(isinstance(v, Literal) or v in known for v in eqn.invars)
        early &= all(size(v) <= SMALL for v in eqn.outvars)
        (first if early else then).append(eqn)
        known |= set(eqn.outvars) if early else set()
    made = {v for eqn in first for v in eqn.outvars}
    used = [v for eqn in then for v in eqn.invars] + list(jaxpr.outvars)
    across = list(dict.fromkeys(v for v in used if not isinstance(v, Literal) and v in made))

    def part(invars: list, eqns: list, outvars: list) -> Callable:
        return jaxpr_as_fun(ClosedJaxpr(jaxpr.replace(invars=invars, eqns=eqns, outvars=outvars), closed.consts))

    draw = part(jaxpr.invars, first, across)
    rest = part([*jaxpr.invars, *across], then, jaxpr.outvars)
    flat = lambda *trees: jax.tree.leaves(trees)
    return (
        lambda shared, row: draw(*flat(shared, row)),
        lambda shared, row, drawn: structure.unflatten(rest(*flat(shared, row), *drawn)),
    )
