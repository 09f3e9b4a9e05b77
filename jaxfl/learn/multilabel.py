"""Several labels a sample: sigmoid cross-entropy, and how many of them are right."""

from typing import Any

import jax.numpy as jnp
import optax

from jaxfl.core import Array, Tree
from jaxfl.errors import InputError
from jaxfl.learn.task import Task, Trained, task_of
from jaxfl.models.modules import functional


def multilabel(
    module: Any,
    sample_x: Tree,
    labels: int | None = None,
    compute: Any = None,
    score: str = "labels",
    trained: Trained = None,
) -> Task:
    """Sigmoid cross-entropy in nats, mean over labels, of a flax module that maps `x [b, ...]` to logits `[b, labels]`.

    Targets are `[b, labels]`, 0 or 1; another value makes the loss NaN. A label is told where its logit is above 0.
    Other arguments are those of `classification`.

    Args:
        module: as in `classification`.
        sample_x: as in `classification`.
        labels: where given, the number of logits the module must have.
        compute: as in `classification`.
        score: what `accuracy` is, the mean over examples of "labels", the share of the labels that are right (1 minus
            the Hamming loss), or "f1", `2 |A & B| / (|A| + |B|)` of predicted A and true B, 1 where both are empty.
        trained: as in `classification`.

    Raises:
        InputError: as `classification`; another `score`; while tracing, targets of another shape than the logits.
    """
    if score not in ("labels", "f1"):
        raise InputError(f"score is {score!r}, but must be 'labels' or 'f1'.")
    made, logits = functional(module, sample_x, compute, trained)
    if len(logits.shape) != 2 or labels not in (None, logits.shape[-1]):
        raise InputError(f"module gives logits {logits.shape}, must be [b, {labels or 'labels'}].")

    def loss(out: Array, y: Array) -> Array:
        _check_table(out, y)
        bad = (y != 0) & (y != 1)
        return jnp.where(bad, jnp.nan, optax.sigmoid_binary_cross_entropy(out, y.astype(out.dtype))).mean(axis=1)

    def correct(out: Array, y: Array) -> Array:
        _check_table(out, y)
        told, true = out > 0, y == 1
        if score == "labels":
            return (told == true).mean(axis=1)
        size = told.sum(axis=1) + true.sum(axis=1)
        return jnp.where(size == 0, 1.0, 2 * (told & true).sum(axis=1) / jnp.maximum(size, 1))

    return task_of(made, loss, correct)


def _check_table(logits: Array, y: Array) -> None:
    if y.shape != logits.shape:
        raise InputError(f"y has shape {list(y.shape)}, labels for logits {logits.shape} are a table of 0 and 1.")
