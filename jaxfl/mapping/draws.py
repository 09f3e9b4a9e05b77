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
    whole = lambda v: not jnp.issubdtype(v.aval.dtype, jnp.inexact)
    known = {v for v in (*jaxpr.invars, *jaxpr.constvars) if whole(v)}
    varies = set(jaxpr.invars[len(jax.tree.leaves(shared)) :])
    first, then, made = [], [], set()
    for eqn in jaxpr.eqns:
        early = not eqn.effects and all(isinstance(v, Literal) or v in known for v in eqn.invars)
        if not early or any(size(v) > SMALL for v in eqn.outvars):
            then.append(eqn)
            continue
        first.append(eqn)
        known |= set(eqn.outvars)
        if any(not isinstance(v, Literal) and v in varies | made for v in eqn.invars):
            made |= set(eqn.outvars)
        else:  # the same for every node: made again where it is used, not once a node
            then.append(eqn)
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
