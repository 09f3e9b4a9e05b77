"""Several linear heads on one backbone: head 0 is the main one, the others learn from other nodes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxfl.core import Array, Tree
from jaxfl.errors import InputError, require
from jaxfl.learn.groups import Groups, in_node_order, map_groups
from jaxfl.learn.task import Task, from_functions

EPS = 1e-12


class Output(NamedTuple):
    """What a model with heads says about `b` examples; stacked over nodes each leaf leads with `[n]`."""

    logits: Array  # [heads, b, classes]
    embedding: Array  # [b, width], what the heads see


def multi_head(backbone: Task, sample_x: Tree, classes: int, heads: int) -> Task:
    """A task whose `predict` gives an `Output`; its loss and its accuracy are those of head 0, the main head.

    Args:
        backbone: any task that predicts `[b, width]`, such as `classification(partial(MLP, (64, 64, 32)), x)`; only its
            model is used. The embedding is the ReLU of its prediction.
        sample_x: a batch of inputs `[b, ...]`, or its `jax.ShapeDtypeStruct`.
        classes: logits of a head, labels are integers `[b]` below it.
        heads: number of heads, main head included; each is drawn on its own, LeCun uniform, with a bias of zero.

    Raises:
        InputError: `classes` below 2, `heads` below 1, or a backbone that does not predict `[b, width]`.
    """
    require("classes", classes, least=2, whole=True)
    require("heads", heads, least=1, whole=True)
    if backbone.predict is None:
        raise InputError("backbone predicts nothing, but heads need a prediction [b, width].")
    params = jax.eval_shape(lambda key: backbone.unravel(backbone.init(key)), jax.random.key(0))
    shape = jax.eval_shape(backbone.predict, params, sample_x).shape
    if len(shape) != 2:
        raise InputError(f"backbone predicts {shape}, but heads need a prediction [b, width].")
    embed, width = backbone.predict, shape[1]

    def init(key: Array) -> Tree:
        below, above = jax.random.split(key)
        bound = (3 / width) ** 0.5
        kernel = jax.random.uniform(above, (heads, width, classes), minval=-bound, maxval=bound)
        return {
            "backbone": backbone.unravel(backbone.init(below)),
            "bias": jnp.zeros((heads, classes)),
            "kernel": kernel,
        }

    def say(params: Tree, x: Tree) -> Any:
        e = jax.nn.relu(embed(params["backbone"], x))
        return Output(jnp.einsum("be,hec->hbc", e, params["kernel"]) + params["bias"][:, None], e)

    def loss(params: Tree, x: Tree, y: Array) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(say(params, x).logits[0], y)

    def correct(output: Any, y: Array) -> Array:
        return (output.logits[0].argmax(-1) == y).astype(jnp.float32)

    return from_functions(init, loss, say, correct)._replace(classes=classes)


def unit(embedding: Array) -> Array:
    """Vectors `[..., width]` of length one; a zero vector stays zero, and so does its gradient."""
    square = (embedding**2).sum(-1, keepdims=True)
    return embedding * jax.lax.rsqrt(jnp.maximum(square, EPS))


def predict(task: Task, params: Tree, x: Tree) -> Output:
    """What a model with heads says about `x` `[b, ...]`. Raises `InputError` for a task without heads."""
    out: Any = None if task.predict is None else task.predict(params, x)
    if not isinstance(out, Output):
        raise InputError("a task of groups has no heads: heads.multi_head makes one that has.")
    return out


def outputs(groups: Groups, rows: tuple[Array, ...], x: Tree) -> Output:
    """What every node says about the same `b` examples: logits `[n, heads, b, classes]`, embedding `[n, b, width]`.

    Embeddings narrower than the widest are padded by zeros; `widths` tells which are comparable.

    Raises:
        InputError: the groups differ in heads or classes.
    """
    said = map_groups(groups, lambda task, x, row: predict(task, task.unravel(row), x), x, rows)
    shapes = {out.logits.shape[1:] for out in said}
    if len(shapes) > 1:
        raise InputError(f"groups give logits {sorted(shapes)}, but all must have the same heads and classes.")
    widest = max(out.embedding.shape[-1] for out in said)
    pad = lambda e: jnp.pad(e, ((0, 0), (0, 0), (0, widest - e.shape[-1])))
    return in_node_order(groups, [out._replace(embedding=pad(out.embedding)) for out in said])


def widths(groups: Groups, x: Tree) -> Array:
    """The width of every node's embedding of inputs like `x`, `[n]` int32."""

    def of(task: Task) -> int:
        row = jax.ShapeDtypeStruct((task.dim,), jnp.float32)
        return jax.eval_shape(lambda row, x: predict(task, task.unravel(row), x), row, x).embedding.shape[-1]

    return in_node_order(groups, [jnp.full(len(g.ids), of(g.task), jnp.int32) for g in groups])
