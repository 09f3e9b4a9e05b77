"""flax.linen modules as functions (`models.modules`)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen
from flax.errors import InvalidRngError

from jaxfl.core import Array, Tree
from jaxfl.errors import InputError
from jaxfl.models.modules import Functional, along, dropout_rates, flags

SOWN = "intermediates"  # what a module shows of itself and does not need


def functions(module: linen.Module, sample_x: Tree) -> tuple[Functional, str | None]:
    """The functions of a module, and what of it drops at random, in words.

    The tree is that of its parameters, or, where there are more, of all its collections.
    """
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), sample_x)
    using: dict[str, Any] = flags(module.__call__, False)
    training: dict[str, Any] = flags(module.__call__, True)
    met = []

    def meet(method: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        met.append(context.module)
        return method(*args, **kwargs)

    def first(key: Array) -> Tree:
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), one)
        found: Any = module.init(key, zeros, **using)
        return {name: tree for name, tree in found.items() if name != SOWN}

    with linen.intercept_methods(meet):
        shapes = jax.eval_shape(first, jax.random.key(0))
    more = sorted(set(shapes) - {"params"})

    def variables(tree: Tree) -> Tree:
        return tree if more else {"params": tree}

    def init(key: Array) -> Tree:
        return first(key) if more else first(key)["params"]

    def apply(tree: Tree, x: Tree) -> Array:
        out: Any = module.apply(variables(tree), x, **using)
        return out

    def train(tree: Tree, x: Tree, key: Array, mask: Array | None) -> tuple[Array, Tree]:
        draws, other = jax.random.split(key)

        def masked(method: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
            if mask is not None and isinstance(context.module, linen.BatchNorm) and context.method_name == "__call__":
                kwargs = {"mask": along(mask, args[0])} | kwargs
            return method(*args, **kwargs)

        rngs = {"dropout": draws, "params": other}
        with linen.intercept_methods(masked):
            out, new = module.apply(variables(tree), x, **training, rngs=rngs, mutable=more)
        return out, {**tree, **new} if more else tree

    try:
        jax.eval_shape(apply, jax.eval_shape(init, jax.random.key(0)), sample_x)
    except InvalidRngError:
        raise InputError("module draws random numbers when it is used, not only when it is trained.") from None
    kept = tuple(bool(more) and path[0].key != "params" for path, _ in jax.tree_util.tree_leaves_with_path(shapes))
    bind = lambda tree: module.bind(variables(tree))
    return Functional(init, apply, train, kept, bind), dropout_rates(met)
