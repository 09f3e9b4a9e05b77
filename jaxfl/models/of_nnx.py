"""flax.nnx modules as functions (`models.modules`)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxfl.core import Array, Tree, is_key
from jaxfl.errors import InputError
from jaxfl.models.modules import Functional, along, depends, dropout_rates, flags


def functions(make: Callable, sample_x: Tree) -> tuple[Functional, str | None]:
    """The functions of the module that `make(rngs=)` returns, and what of it drops at random, in words."""
    try:
        shape: Any = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    except TypeError as error:
        name = getattr(make, "__name__", type(make).__name__)
        raise InputError(f"module is {name}, must be a function of `rngs` alone ({error}).") from error
    if not isinstance(shape, nnx.Module):
        raise InputError("module returns something else, must be a function of `rngs` that returns a flax.nnx module.")
    using, training = flags(shape.__call__, False), flags(shape.__call__, True)
    graph, random, rest = nnx.split(shape, nnx.RngState, ...)
    held, structure = jax.tree.flatten(random)
    kinds = tuple(held)  # as a tuple it can be compared with that of a task built anew
    kept = tuple(not issubclass(v.type, nnx.Param) for _, v in sorted(nnx.to_flat_state(rest)))

    def init(key: Array) -> Tree:
        return nnx.to_pure_dict(nnx.state(make(rngs=nnx.Rngs(key)), nnx.Not(nnx.RngState)))

    def module(keys: Sequence[Array], tree: Tree) -> Any:
        return nnx.merge(graph, tree, structure.unflatten(keys))

    def drawing(keys: Sequence[Array], tree: Tree, x: Tree) -> Array:
        model = module(keys, tree)
        model.eval()
        return model(x, **using)

    def apply(tree: Tree, x: Tree) -> Array:
        # recurrent cells hold keys, from which they draw a first state of zeros
        return drawing([_key(a, None, i) for i, a in enumerate(kinds)], tree, x)

    def train(tree: Tree, x: Tree, key: Array, mask: Array | None) -> tuple[Array, Tree]:
        model = module([_key(a, key, i) for i, a in enumerate(kinds)], tree)
        model.train()
        if mask is not None:
            for _, part in nnx.iter_graph(model):
                if isinstance(part, nnx.BatchNorm):
                    part.__class__ = _masked(type(part), mask)
        out = model(x, **training)
        return out, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Any(nnx.RngState, nnx.Intermediate))))

    if depends(drawing, held, jax.eval_shape(init, jax.random.key(0)), sample_x):
        raise InputError("module draws random numbers when it is used, not only when it is trained.")
    drops = dropout_rates(part for _, part in nnx.iter_graph(shape))

    def whole(tree: Tree) -> Any:
        model = make(rngs=nnx.Rngs(0))
        nnx.update(model, tree)
        model.eval()
        return model

    return Functional(init, apply, train, kept, whole), drops


def _masked(norm: type, mask: Array) -> type:
    """A kind of BatchNorm whose statistics are those of the examples in `mask` `[b]`."""

    class Masked(norm):
        def __call__(self, x: Array, *args: Any, **kwargs: Any) -> Array:
            return super().__call__(x, *args, **{"mask": along(mask, x)} | kwargs)

    return Masked


def _key(a: Any, key: Array | None, place: int) -> Array:
    """What a module holds to draw from, the `place`-th, in a call with `key`; None where it draws nothing."""
    if not is_key(a):
        return jnp.zeros(a.shape, a.dtype)
    return jax.random.split(jax.random.key(0) if key is None else jax.random.fold_in(key, place), a.shape)
