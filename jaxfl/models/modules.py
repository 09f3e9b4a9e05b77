"""Flax modules as pure functions of their parameters. Flax is imported only where there is a module."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from jaxfl.core import Array, Tree
from jaxfl.errors import InputError


def functional(
    module: Any, sample_x: Tree, compute: Any = None
) -> tuple[Callable[[Array], Tree], Callable[[Tree, Tree], Array], Array]:
    """`(key) -> params`, `(params, x) -> output` and the abstract output of a flax module.

    `compute` is the type of its arithmetic, None that of its parameters; the output is float32 again.
    """
    from flax import linen, nnx

    if isinstance(module, linen.Module):
        one = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), sample_x)
        met = []

        def meet(method: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
            met.append(context.module)
            return method(*args, **kwargs)

        with linen.intercept_methods(meet):
            extra = sorted(set(jax.eval_shape(module.init, jax.random.key(0), one)) - {"params"})
        _refuse_dropout(met)

        def init(key: Array) -> Tree:
            zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), one)
            return module.init(key, zeros)["params"]

        def apply(params: Tree, x: Tree) -> Array:
            out: Any = module.apply({"params": params}, x)
            return out

    elif callable(module) and not isinstance(module, nnx.Module):
        shape: Any = nnx.eval_shape(lambda: module(rngs=nnx.Rngs(0)))
        _refuse_dropout(part for _, part in nnx.iter_modules(shape))
        graph, _, random, rest = nnx.split(shape, nnx.Param, nnx.RngState, ...)
        extra = ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(rest)]

        def init(key: Array) -> Tree:
            return nnx.to_pure_dict(nnx.state(module(rngs=nnx.Rngs(key)), nnx.Param))

        held, structure = jax.tree.flatten(random)
        kinds = tuple(held)  # as a tuple it can be compared with that of a task built anew

        def drawing(keys: Sequence[Array], params: Tree, x: Tree) -> Array:
            model: Any = nnx.merge(graph, params, structure.unflatten(keys))
            return model(x)

        def apply(params: Tree, x: Tree) -> Array:
            # recurrent cells hold keys, from which they draw a first state of zeros
            return drawing([_no_key(a) for a in kinds], params, x)

        if not extra and _depends(drawing, held, jax.eval_shape(init, jax.random.key(0)), sample_x):
            raise InputError("module draws random numbers when it is called, but a loss is given no key for them.")

    else:
        raise InputError(
            f"module is {type(module).__name__}, must be a flax.linen module or a function of `rngs` that returns a "
            "flax.nnx module, such as functools.partial(MLP, (784, 64, 10))."
        )
    if extra:
        raise InputError(
            f"module has variables that are not parameters ({', '.join(extra)}), allowed is a model of parameters "
            "only: GroupNorm or LayerNorm for BatchNorm."
        )
    forward = apply if compute in (None, "float32") else _in_type(apply, compute)
    return init, forward, jax.eval_shape(forward, jax.eval_shape(init, jax.random.key(0)), sample_x)


def _refuse_dropout(modules: Iterable) -> None:
    """A call without a key would leave dropout out, and train another model than the one that is written down."""
    for part in modules:
        rate = part.rate if type(part).__name__ == "Dropout" else getattr(part, "dropout_rate", None)
        if isinstance(rate, int | float) and rate > 0:
            raise InputError(
                f"module has {type(part).__name__} with a dropout rate of {rate}, but a loss is given no key for it, "
                "so that nothing would be dropped: leave it out."
            )


def _no_key(a: Any) -> Array:
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), a.shape)
    return jnp.zeros(a.shape, a.dtype)


def _depends(f: Callable, keys: Sequence, *args: Tree) -> bool:
    """Whether `f(keys, *args)` uses any of the `keys`, known from its traced program."""
    if not keys:
        return False
    traced = jax.make_jaxpr(f)(keys, *args).jaxpr
    _, used = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))
    return any(used[: len(keys)])


def _in_type(apply: Callable, compute: Any) -> Callable:
    """`apply` whose arithmetic is of the type `compute`, with float32 parameters (and gradients) and outputs."""
    dtype = jnp.dtype(compute)
    if dtype not in (jnp.bfloat16, jnp.float16):
        raise InputError(f"compute is {dtype}, allowed are bfloat16, float16 and float32.")
    cast = lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a
    return lambda params, x: apply(*jax.tree.map(cast, (params, x))).astype(jnp.float32)
