"""Flax modules as pure functions of one tree of floats. Flax is imported only where there is a module.

The tree holds the parameters and, where the module has some, what it keeps beside them (`BatchNorm`'s statistics): that
travels in the row with the parameters, but no gradient moves it. A module is told whether it trains by its own
arguments (`FLAGS`) and, in flax.nnx, by `train()` and `eval()`.
"""

import fnmatch
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from jaxfl.core import Array, Tree
from jaxfl.errors import InputError

FLAGS = {"train": True, "training": True, "is_training": True, "deterministic": False, "use_running_average": False}


class Functional(NamedTuple):
    """A module as functions of `tree`, the part of its variables that is in the row."""

    init: Callable[[Array], Tree]  # (key) -> tree
    apply: Callable[[Tree, Tree], Array]  # (tree, x [b, ...]) -> output, as the model is used
    train: Callable | None  # (tree, x, key, mask [b] or None) -> (output, tree); None: training computes the same
    untrained: tuple[bool, ...]  # leaf by leaf, what no gradient moves
    module: Callable[[Tree], Any]  # (tree) -> the flax module that has these variables


def functional(
    module: Any, sample_x: Tree, compute: Any = None, trained: str | Sequence[str] | None = None
) -> tuple[Functional, Any]:
    """The functions of a flax module, and the shape and type of its output.

    `compute` is the type of its arithmetic, None that of its parameters; the output is float32 again. `trained` are
    patterns of the paths of what is in the row, None all of it (`learn.task.classification`).
    """
    from flax import linen, nnx

    if isinstance(module, type) and issubclass(module, linen.Module):
        raise InputError(f"module is the class {module.__name__}, must be an instance of it: {module.__name__}(...).")
    if isinstance(module, linen.Module):
        from jaxfl.models.of_linen import functions
    elif callable(module) and not isinstance(module, nnx.Module):
        from jaxfl.models.of_nnx import functions
    else:
        raise InputError(
            f"module is {type(module).__name__}, must be a flax.linen module or a function of `rngs` that returns a "
            "flax.nnx module, such as functools.partial(MLP, (784, 64, 10))."
        )
    try:
        return _checked(*functions(module, sample_x), sample_x, compute, trained)  # type: ignore[arg-type]
    except InputError:
        raise
    except Exception as error:  # of the module's own code, or of flax
        shapes = [list(a.shape) for a in jax.tree.leaves(sample_x)]
        says = (str(error).splitlines() or [""])[0].rstrip(".")
        raise InputError(f"module cannot be called with inputs {shapes} ({type(error).__name__}: {says}).") from error


def _checked(
    made: Functional, drops: str | None, sample_x: Tree, compute: Any, trained: str | Sequence[str] | None
) -> tuple[Functional, Any]:
    """`functional` of what linen or nnx made of a module, some part of which may drop at random."""
    shapes = jax.eval_shape(made.init, jax.random.key(0))
    odd = [path for path, a in paths_of(shapes) if not jnp.issubdtype(a.dtype, jnp.floating)]
    if odd:
        raise InputError(f"module keeps {', '.join(odd)}, which are no floats, and a model is a row of floats.")
    out, new = jax.eval_shape(made.train, shapes, sample_x, jax.random.key(0), None)  # type: ignore[misc]
    if not isinstance(out, jax.ShapeDtypeStruct):
        raise InputError(f"module returns a {type(out).__name__}, must return one array.")
    if paths_of(new) != paths_of(shapes):
        found, kept = dict(paths_of(new)), dict(paths_of(shapes))
        odd = sorted(path for path in found.keys() | kept.keys() if found.get(path) != kept.get(path))
        raise InputError(
            f"module keeps {', '.join(odd)}, which training makes larger or smaller, and a row stays as long."
        )
    made = _with_variances(made, shapes)
    if not _draws(made, shapes, sample_x, drops) and not any(made.untrained) and _alike(made, shapes, sample_x):
        made = made._replace(train=None)
    if trained is not None:
        made, shapes = _part(made, shapes, trained)
    if compute not in (None, "float32"):
        made = _in_type(made, compute)
    return made, jax.eval_shape(made.apply, shapes, sample_x)


def flags(call: Callable, training: bool) -> dict[str, bool]:
    """What `call(x, ...)` of a module is given beside `x`.

    Raises:
        InputError: it asks for something else.
    """
    first, *more = (p for p in inspect.signature(call).parameters.values() if p.name != "self")
    needs = [p.name for p in more if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    unknown = [name for name in needs if name not in FLAGS]
    if unknown:
        raise InputError(
            f"module is called with {first.name} and {', '.join(unknown)}, but beside {first.name} it can be told only "
            f"whether it trains: {', '.join(FLAGS)}."
        )
    return {p.name: FLAGS[p.name] == training for p in more if p.name in FLAGS}


def dropout_rates(modules: Any) -> str | None:
    """What of the modules drops at random, in words."""
    for part in modules:
        rate = part.rate if type(part).__name__ == "Dropout" else getattr(part, "dropout_rate", None)
        if isinstance(rate, int | float) and rate > 0:
            return f"{type(part).__name__} with a dropout rate of {rate}"
    return None


def along(mask: Array, x: Array) -> Array:
    """The examples `mask` `[b]` of the array `x`, whose first axis is that of the batch or `[b * steps]` of it."""
    if x.shape[0] % mask.shape[0]:
        raise InputError(f"BatchNorm sees {x.shape[0]} rows of {mask.shape[0]} examples, must see the batch first.")
    mask = jnp.where(mask.any(), mask != 0, True)  # statistics of nothing are NaN; who has no example runs no step
    return jnp.repeat(mask, x.shape[0] // mask.shape[0]).reshape(-1, *[1] * (x.ndim - 1))


def _draws(made: Functional, shapes: Tree, sample_x: Tree, drops: str | None) -> bool:
    """Whether training draws random numbers. What would silently not happen is refused."""
    train = lambda key, tree, x: made.train(tree, x, key, None)  # type: ignore[misc]
    traced = jax.make_jaxpr(train)(jax.random.key(0), shapes, sample_x).jaxpr
    leaves = len(made.untrained)
    old, new = traced.invars[1 : 1 + leaves], traced.outvars[-leaves:]
    still = [
        p for (p, _), a, b, kept in zip(paths_of(shapes), old, new, made.untrained, strict=True) if kept and a is b
    ]
    if still:
        raise InputError(
            f"module never renews {', '.join(still)} in training: use_running_average must be False there, by an "
            "argument such as `train` of its call."
        )
    _, used = partial_eval.dce_jaxpr(traced, [True] * (len(traced.outvars) - leaves) + [False] * leaves)
    if drops and not used[0]:
        raise InputError(f"module has {drops}, but drops nothing in training: deterministic must be False there.")
    return bool(used[0])


def _alike(made: Functional, shapes: Tree, sample_x: Tree) -> bool:
    """Whether training computes what use does, by their programs without the addresses of functions in them."""

    def text(f: Callable) -> str:
        traced = jax.make_jaxpr(f)(jax.random.key(0), shapes, sample_x).jaxpr
        return re.sub(r" at 0x\w+", "", str(partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))[0]))

    train = lambda key, tree, x: made.train(tree, x, key, None)[0]  # type: ignore[misc]
    return text(train) == text(lambda key, tree, x: made.apply(tree, x))


def depends(f: Callable, keys: Sequence, *args: Tree) -> bool:
    """Whether `f(keys, *args)` uses any of the `keys`, known from its traced program."""
    if not keys:
        return False
    traced = jax.make_jaxpr(f)(keys, *args).jaxpr
    _, used = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))
    return any(used[: len(keys)])


def _with_variances(made: Functional, shapes: Tree) -> Functional:
    """`made` whose variances are used as 0 where an average of messages (coded, from liars, beyond it) is below."""
    below = [kept and path.endswith("var") for (path, _), kept in zip(paths_of(shapes), made.untrained, strict=True)]
    if not any(below):
        return made

    def apply(tree: Tree, x: Tree) -> Array:
        leaves, structure = jax.tree.flatten(tree)
        at_least = [jnp.maximum(a, 0) if var else a for a, var in zip(leaves, below, strict=True)]
        return made.apply(structure.unflatten(at_least), x)

    return made._replace(apply=apply)


def paths_of(tree: Tree) -> list[tuple[str, Any]]:
    """The leaves of a tree with their paths, "conv1/kernel", in JAX's order."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in found]


def matching(paths: Sequence[str], patterns: str | Sequence[str]) -> list[bool]:
    """Which of the paths match one of the patterns, as file names do (`*` matches `/` too).

    Raises:
        InputError: a pattern matches none.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    idle = [p for p in patterns if not fnmatch.filter(paths, p)] or ([] if patterns else ["(none)"])
    if idle:
        raise InputError(f"{', '.join(idle)} matches no part of the model, its parts are {', '.join(paths)}.")
    return [any(fnmatch.fnmatchcase(path, p) for p in patterns) for path in paths]


def _part(made: Functional, shapes: Tree, trained: str | Sequence[str]) -> tuple[Functional, Tree]:
    """`made` with the trained leaves alone in its tree, a dict by path; others stay as `init` of key 0 draws them."""
    paths = [path for path, _ in paths_of(shapes)]
    mine = matching(paths, trained)
    lost = [path for path, kept, yes in zip(paths, made.untrained, mine, strict=True) if kept and not yes]
    if lost:
        raise InputError(f"trained leaves out {', '.join(lost)}, which training renews: name them too.")
    structure = jax.tree.structure(shapes)
    fixed = [a for a, yes in zip(jax.tree.leaves(made.init(jax.random.key(0))), mine, strict=True) if not yes]
    names = [path for path, yes in zip(paths, mine, strict=True) if yes]
    order = sorted(range(len(names)), key=lambda i: names[i])  # as JAX flattens a dict

    def whole(tree: Tree) -> Tree:
        held, given = iter(fixed), iter(tree[name] for name in names)
        return structure.unflatten([next(given) if yes else next(held) for yes in mine])

    def part(tree: Tree) -> Tree:
        return dict(zip(names, (a for a, yes in zip(jax.tree.leaves(tree), mine, strict=True) if yes), strict=True))

    def train(tree: Tree, x: Tree, key: Array, mask: Array | None) -> tuple[Array, Tree]:
        assert made.train is not None
        out, new = made.train(whole(tree), x, key, mask)
        return out, part(new)

    kept = [kept for kept, yes in zip(made.untrained, mine, strict=True) if yes]
    out = Functional(
        lambda key: part(made.init(key)),
        lambda tree, x: made.apply(whole(tree), x),
        None if made.train is None else train,
        tuple(kept[i] for i in order),
        lambda tree: made.module(whole(tree)),
    )
    return out, part(shapes)


def _in_type(made: Functional, compute: Any) -> Functional:
    """`made` whose arithmetic is of the type `compute`, with float32 variables (and gradients) and outputs."""
    dtype = jnp.dtype(compute)
    if dtype not in (jnp.bfloat16, jnp.float16):
        raise InputError(f"compute is {dtype}, allowed are bfloat16, float16 and float32.")
    cast = lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a

    def inside(tree: Tree) -> Tree:
        """Statistics stay as they are: small steps towards a mean would be rounded away."""
        leaves, structure = jax.tree.flatten(tree)
        return structure.unflatten([a if k else cast(a) for a, k in zip(leaves, made.untrained, strict=True)])

    def train(tree: Tree, x: Tree, key: Array, mask: Array | None) -> tuple[Array, Tree]:
        assert made.train is not None
        out, new = made.train(inside(tree), jax.tree.map(cast, x), key, mask)
        return out.astype(jnp.float32), jax.tree.map(lambda a: a.astype(jnp.float32), new)

    apply = lambda tree, x: made.apply(inside(tree), jax.tree.map(cast, x)).astype(jnp.float32)
    return made._replace(apply=apply, train=None if made.train is None else train)
