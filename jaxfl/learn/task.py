"""What is learned: a task is a loss of one model, and the way between that model and its flat row `[d]`.

Models travel as rows and are trained as trees. `unravel` is a split and reshapes, `ravel` one concatenation, both of
static shape, so a local loop pays for them once. What a flax module computes is in `models.modules`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from jaxfl.core import Array, Shards, Tree
from jaxfl.data.cut import owned
from jaxfl.errors import InputError, require
from jaxfl.models.modules import Functional, functional

Trained = str | Sequence[str] | None


class Task(NamedTuple):
    """One learning problem. `loss`, `predict` and `correct` see one model, as a tree, and a batch of `b` examples."""

    init: Callable[[Array], Array]  # (key) -> [d] float32, a fresh model row
    loss: Callable[[Tree, Tree, Array], Array]  # (params, x [b, ...], y [b, ...]) -> [b]
    predict: Callable[[Tree, Tree], Array] | None  # (params, x [b, ...]) -> [b, ...], logits or predictions
    correct: Callable[[Array, Array], Array] | None  # (prediction, y) -> [b] in [0, 1]; None where there is no accuracy
    unravel: Callable[[Array], Tree]  # (row [d]) -> params
    ravel: Callable[[Tree], Array]  # (params) -> [d]
    dim: int  # d
    train: Callable | None = None  # (params, x, y, key, mask [b] or None) -> ([b], params); None: the loss is `loss`
    untrained: tuple[bool, ...] = ()  # leaf by leaf of params, what `train` renews and no gradient moves; (): nothing
    module: Callable[[Tree], Any] | None = None  # (params) -> the flax module that has them
    classes: int | None = None  # labels are whole numbers from 0 to below it; None: there are none


def require_task(task: Any) -> None:
    """Raise `InputError` unless `task` is a Task."""
    if not isinstance(task, Task):
        kind = getattr(task, "__name__", f"a {type(task).__name__}")
        raise InputError(
            f"task is {kind}, but must be a Task: `classification(module, x)` makes one of a flax module, "
            "`from_functions(init, loss)` of functions."
        )


def check_labels(task: Task, data: Any, what: str) -> None:
    """Raise `InputError` if `data`, targets or Shards that `what` names, hold a label that the task has no class for.

    Of Shards only what some node owns is looked at. Traced ones pass.
    """
    y = data.y if isinstance(data, Shards) else data
    if task.classes is None or isinstance(y, Tracer) or not jnp.issubdtype(jnp.result_type(y), jnp.integer):
        return
    beyond = lambda y: y[(y < 0) | (y >= task.classes)]
    bad = beyond(y := np.asarray(y))
    bad = beyond(y[owned(data)[1]]) if bad.size and isinstance(data, Shards) else bad
    if bad.size:
        raise InputError(f"{what} holds the label {bad[0]}, but the model has classes 0 to {task.classes - 1}.")


def from_functions(
    init_params: Callable[[Array], Tree],
    loss: Callable[[Tree, Tree, Array], Array],
    predict: Callable[[Tree, Tree], Array] | None = None,
    correct: Callable[[Array, Array], Array] | None = None,
    train: Callable | None = None,
    untrained: Sequence[bool] = (),
) -> Task:
    """A task from plain functions of a parameter tree.

    Args:
        init_params: `(key) -> params`, any pytree of floating arrays; traced, so it computes nothing yet.
        loss: `(params, x [b, ...], y [b, ...]) -> [b]`, one loss an example.
        predict: `(params, x) -> [b, ...]`.
        correct: `(prediction, y) -> [b]`, each in [0, 1].
        train: what local training minimises, where that is not `loss`: `(params, x, y, key, mask) -> (losses [b],
            params)`. It may draw (dropout) and renews what is `untrained`; `mask` `[b]`, None for all, is 0 for
            examples that only fill the batch.
        untrained: leaf by leaf of the tree, whether it is state (`BatchNorm`'s statistics) in place of a parameter. It
            is in the row: it travels, is averaged and costs bits, but no optimizer moves it.

    Raises:
        InputError: there is no parameter, or one is not floating; while tracing, `row` is not `[d]`, `params` is not
            the model's tree, or `loss` does not return `[b]`; `correct` is given without `predict`, `untrained`
            without `train` or not leaf by leaf.
    """
    if correct is not None and predict is None:
        raise InputError("correct is given but predict is None, accuracy needs a prediction.")
    leaves, structure = jax.tree.flatten(jax.eval_shape(init_params, jax.random.key(0)))
    if not leaves or any(not jnp.issubdtype(a.dtype, jnp.floating) for a in leaves):
        raise InputError(f"init_params gives leaves {[str(a.dtype) for a in leaves]}, allowed are one or more floats.")
    untrained = tuple(untrained) if any(untrained) else ()
    if untrained and (train is None or len(untrained) != len(leaves)):
        raise InputError(f"untrained names {len(untrained)} of {len(leaves)} leaves, and needs `train` to renew them.")
    shapes = [a.shape for a in leaves]
    sizes = [math.prod(shape) for shape in shapes]
    dim = sum(sizes)

    def unravel(row: Array) -> Tree:
        if row.shape != (dim,):
            raise InputError(f"row has shape {row.shape}, a row of this task is ({dim},).")
        # the transpose of split is one concatenation; that of a slice for each layer would be a sum of padded rows
        parts = jax.lax.split(row, sizes)
        return structure.unflatten([part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)])

    def ravel(params: Tree) -> Array:
        given, other = jax.tree.flatten(params)
        if other != structure or [jnp.shape(a) for a in given] != shapes:
            raise InputError(f"params has the structure {other}, the tree of this task is {structure} of {shapes}.")
        return jnp.concatenate([jnp.ravel(a) for a in given])

    def init(key: Array) -> Array:
        return ravel(init_params(key)).astype(jnp.float32)

    def one_each(params: Tree, x: Tree, y: Array) -> Array:
        out = loss(params, x, y)
        if out.shape != y.shape[:1]:
            raise InputError(f"loss returned shape {out.shape} for {y.shape[0]} examples, must be one number each.")
        return out

    return Task(init, one_each, predict, correct, unravel, ravel, dim, train, untrained)


def task_of(made: Functional, loss: Callable, correct: Callable | None = None, classes: int | None = None) -> Task:
    """The task of `models.modules.functional`, with losses `loss(output, y) -> [b]` and hits `correct(output, y)`."""
    drawn = made.train

    def train(params: Tree, x: Tree, y: Array, key: Array, mask: Array | None) -> tuple[Array, Tree]:
        assert drawn is not None
        out, new = drawn(params, x, key, mask)
        return loss(out, y), new

    of_use = lambda params, x, y: loss(made.apply(params, x), y)
    more = {} if drawn is None else {"train": train, "untrained": made.untrained}
    return from_functions(made.init, of_use, made.apply, correct, **more)._replace(module=made.module, classes=classes)


def _check_labels(logits: Array, y: Array) -> None:
    if y.shape != logits.shape[:-1] or not jnp.issubdtype(y.dtype, jnp.integer):
        raise InputError(
            f"y is {y.dtype}{list(y.shape)}, labels for logits {logits.shape} are integers {logits.shape[:-1]}."
        )


def _cross_entropy(logits: Array, y: Array) -> Array:
    """Cross-entropy of labels `[b, ...]` under logits `[b, ..., classes]`, mean over all but the first axis: `[b]`."""
    _check_labels(logits, y)
    # a negative label would count from the last class; past the last it is NaN
    y = jnp.where(y < 0, logits.shape[-1], y.astype(jnp.int32))
    each = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return each.reshape(y.shape[0], -1).mean(axis=1)


def _hits(logits: Array, y: Array) -> Array:
    _check_labels(logits, y)
    return (logits.argmax(-1) == y).astype(jnp.float32).reshape(y.shape[0], -1).mean(axis=1)


def classification(
    module: Any, sample_x: Tree, classes: int | None = None, compute: Any = None, trained: Trained = None
) -> Task:
    """Softmax cross-entropy in nats of a flax module that maps `x [b, ...]` to logits `[b, classes]`.

    Args:
        module: a flax.linen module, or a function of `rngs` that returns a flax.nnx module
            (`functools.partial(MLP, (784, 64, 10))`).
        sample_x: a batch of inputs `[b, ...]`, or its `jax.ShapeDtypeStruct`; only shape and type are read.
        classes: where given, the number of logits the module must have.
        compute: type of the module's arithmetic, such as "bfloat16", which an accelerator multiplies faster and in half
            the memory of activations; parameters, updates and the loss stay float32. None: that of the parameters.
        trained: paths of the parameters that are learned and sent, such as "*lora*", with `*` for anything; the row
            has no others, these stay as the module draws them of key 0 (or as it loads them: a function of `rngs` may
            return a module with weights of its own). None: all of them.

    What the module keeps beside its parameters (`BatchNorm`'s statistics) is in the row and renewed by training:
    averaged with the parameters, or kept by the node (`Network.personal`). Dropout draws by seed, node, round and step.
    Evaluation does neither.

    Labels are integers `[b]`; a label out of range (-1 for unknown) makes the loss NaN, and a run on such is refused.

    Raises:
        InputError: `module` is neither, or asks for more than its input and whether it trains, keeps what is no float,
            draws random numbers when it is used, or has dropout or statistics that are off in training; or its output
            is not `[b, classes]`; `trained` matches nothing; while tracing, labels of another shape or type.
    """
    made, logits = functional(module, sample_x, compute, trained)
    if len(logits.shape) != 2 or classes not in (None, logits.shape[-1]):
        raise InputError(f"module gives logits {logits.shape}, must be [b, {classes or 'classes'}].")
    return task_of(made, _cross_entropy, _hits, logits.shape[-1])


def language_model(module: Any, sample_x: Tree, compute: Any = None, trained: Trained = None) -> Task:
    """Next-token cross-entropy in nats a token: `x [b, length]` integers, `y [b, length]` the tokens that follow.

    Loss and accuracy of an example are means over its tokens. `module` maps `x` to logits `[b, length, vocabulary]`;
    arguments and errors are those of `classification`.

    Raises:
        InputError: as `classification`, for an output that is not `[b, length, vocabulary]`.
    """
    made, logits = functional(module, sample_x, compute, trained)
    if logits.shape[:-1] != sample_x.shape or len(logits.shape) != 3:
        raise InputError(
            f"module gives logits {logits.shape} for tokens {sample_x.shape}, must be [b, length, vocabulary]."
        )
    return task_of(made, _cross_entropy, _hits, logits.shape[-1])


def _half_square(prediction: Array, y: Array) -> Array:
    """Half the squared error of each example. A last axis of 1 in the prediction may be missing from the target."""
    if prediction.shape == (*y.shape, 1):
        prediction = prediction[..., 0]
    if prediction.shape != y.shape:
        raise InputError(f"y has shape {y.shape}, targets must have the shape of the predictions, {prediction.shape}.")
    return 0.5 * ((prediction - y) ** 2).reshape(y.shape[0], -1).sum(axis=1)


def regression(module: Any, sample_x: Tree, compute: Any = None, trained: Trained = None) -> Task:
    """Half the squared error, summed over outputs, of a flax module that maps `x [b, ...]` to the shape of `y`.

    An output `[b, 1]` also serves targets `[b]`. Arguments are those of `classification`; there is no accuracy.

    Raises:
        InputError: as `classification`; while tracing, targets of another shape than the predictions.
    """
    made, _ = functional(module, sample_x, compute, trained)
    return task_of(made, _half_square)


def logistic_regression(features: int, classes: int, l2: float = 0.0) -> Task:
    """Softmax regression from zeros: cross-entropy in nats plus `l2 / 2` times the squared norm of the whole row.

    The penalty includes the bias, so the loss is `l2`-strongly convex. Inputs `[b, ...]` are flattened to `features`.

    Raises:
        InputError: `features` below 1, `classes` below 2 or `l2` negative; while tracing, inputs of another size.
    """
    require("features", features, least=1, whole=True)
    require("classes", classes, least=2, whole=True)
    require("l2", l2, least=0)

    def init(key: Array) -> Tree:
        return {"bias": jnp.zeros(classes), "kernel": jnp.zeros((features, classes))}

    def predict(params: Tree, x: Array) -> Array:
        return _flat(x, features) @ params["kernel"] + params["bias"]

    def loss(params: Tree, x: Array, y: Array) -> Array:
        penalty = sum((a**2).sum() for a in jax.tree.leaves(params)) if l2 else 0.0
        return _cross_entropy(predict(params, x), y) + 0.5 * l2 * penalty

    return from_functions(init, loss, predict, _hits)._replace(classes=classes)


def linear_regression(features: int, bias: bool = False) -> Task:
    """Least squares from zeros, `0.5 * (x . w - y)^2`, with an intercept where `bias`; `x [b, features]`, `y [b]`.

    Raises:
        InputError: `features` below 1; while tracing, inputs of another size or targets that are not `[b]`.
    """
    require("features", features, least=1, whole=True)

    def init(key: Array) -> Tree:
        return {"kernel": jnp.zeros(features)} | ({"bias": jnp.zeros(())} if bias else {})

    def predict(params: Tree, x: Array) -> Array:
        return _flat(x, features) @ params["kernel"] + params.get("bias", 0.0)

    return from_functions(init, lambda p, x, y: _half_square(predict(p, x), y), predict)


def _flat(x: Array, features: int) -> Array:
    if math.prod(x.shape[1:]) != features:
        raise InputError(f"x has shape {x.shape}, this task takes {features} features an example.")
    return x.reshape(x.shape[0], features)


def quadratic(d: int) -> Task:
    """`0.5 (p - b)^T A (p - b)` from zeros, with curvature and centre as data: `x = A [b, d, d]`, `y = b [b, d]`.

    A node whose one sample is `(A_i, b_i)` has this objective exactly (gradient `A_i (p - b_i)` for a symmetric `A_i`),
    which gives closed-form optima for tests of drift, mixing and asynchrony. The parameters are one bare array `[d]`.

    Raises:
        InputError: `d` below 1; while tracing, `x` or `y` of another shape.
    """
    require("d", d, least=1, whole=True)

    def loss(p: Array, x: Array, y: Array) -> Array:
        if x.shape[1:] != (d, d) or y.shape[1:] != (d,):
            raise InputError(f"x has shape {x.shape} and y {y.shape}, must be [b, {d}, {d}] and [b, {d}].")
        e = p - y
        return 0.5 * jnp.einsum("bi,bij,bj->b", e, x, e)

    return from_functions(lambda key: jnp.zeros(d), loss)


def quadratic_noise(d: int, sigma: float) -> Task:
    """`quadratic(d)` with noise in the data: `x = (A [b, d, d], xi [b, d])` adds `sigma * xi` to the gradient.

    A node with many samples of one `(A_i, b_i)` and standard normal `xi` of mean zero has stochastic gradients of
    variance `sigma^2` a coordinate, and (if its `xi` sum to zero exactly) an unchanged objective.

    Raises:
        InputError: `d` below 1 or `sigma` negative; while tracing, `x` or `y` of another shape.
    """
    require("sigma", sigma, least=0)
    clean = quadratic(d)

    def loss(p: Array, x: tuple[Array, Array], y: Array) -> Array:
        curvature, xi = x
        if xi.shape != y.shape:
            raise InputError(f"the noise in x has shape {xi.shape}, must be that of y, {y.shape}.")
        return clean.loss(p, curvature, y) + sigma * (xi @ p)

    return from_functions(lambda key: jnp.zeros(d), loss)


def mean_loss(task: Task, row: Array, x: Tree, y: Array) -> Array:
    """Mean loss `[]` of the model `row [d]` over the examples `x [b, ...]`, `y [b, ...]`."""
    return task.loss(task.unravel(row), x, y).mean()


def judged(task: Task, row: Array) -> Callable:
    """`(x [b, ...], y [b, ...]) -> {"loss": [b], "accuracy": [b]}` of the model `row [d]`, the latter if there is one.

    Both are NaN if the model is not finite, accuracy also if a prediction is NaN or inf: its argmax would be any
    class.
    """
    params, finite = task.unravel(row), jnp.isfinite(row).all()

    def each(x: Tree, y: Array) -> dict[str, Array]:
        out = {"loss": task.loss(params, x, y)}
        if task.correct is not None and task.predict is not None:
            said = task.predict(params, x)
            lost = jnp.stack([~(a < jnp.inf).all() for a in jax.tree.leaves(said)]).any()
            out["accuracy"] = jnp.where(lost, jnp.nan, task.correct(said, y))
        return {name: jnp.where(finite, value, jnp.nan) for name, value in out.items()}

    return each


def scores(task: Task, row: Array, x: Tree, y: Array, batch: int | None = None) -> dict[str, Array]:
    """Mean `loss` and, where the task has one, `accuracy` of the model `row [d]` over `N` examples, as of `judged`.

    Args:
        task: the task.
        row: `[d]`.
        x: leaves `[N, ...]`.
        y: `[N, ...]`.
        batch: examples evaluated at a time, which bounds the memory of activations (None: all at once).

    Raises:
        InputError: no example, or `batch` below 1.
    """
    count = y.shape[0]
    require("the number of examples", count, least=1)
    require("batch", batch, least=1, whole=True, none=True)
    size = count if batch is None else min(batch, count)
    each = judged(task, row)

    def part(start: Array | int, length: int) -> dict[str, Array]:
        return each(*jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, length), (x, y)))

    chunks, rest = divmod(count, size)
    if chunks == 1 and not rest:
        return jax.tree.map(jnp.mean, each(x, y))
    total = jax.tree.map(jnp.sum, jax.lax.map(lambda i: part(i * size, size), jnp.arange(chunks)))
    if rest:
        total = jax.tree.map(lambda a, b: a + b.sum(), total, part(count - rest, rest))
    return jax.tree.map(lambda a: a / count, total)


def to_module(task: Task, row: Array) -> Any:
    """The flax module with the parameters of the row `[d]`, to be used: `to_module(task, row)(x)` are its outputs.

    Of flax.nnx a module of its own after `eval()`; of flax.linen the module bound to its variables (`unbind()` parts
    them), which is still told that it does not train where it must be.

    Raises:
        InputError: the task was made of functions.
    """
    if task.module is None:
        raise InputError("task is made of functions, but only one made of a flax module has a module to go back to.")
    return task.module(task.unravel(row))
