"""Models with several exits: one task whose loss is that of all exits together (`measure.submodels.exit_accuracy`)."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import optax

from jaxfl.core import Array, Tree
from jaxfl.errors import InputError, require
from jaxfl.learn.task import Task, task_of
from jaxfl.models.modules import functional


def multi_exit(module: Any, sample_x: Tree, classes: int | None = None, weights: Sequence[float] | None = None) -> Task:
    """Cross-entropy in nats, summed over the exits of a flax module that maps `x [b, ...]` to `[b, exits, classes]`.

    `weights` counts the exits (None: 1 each). Accuracy is the mean over exits. `models.residual.MultiExit` is such a
    module. An exit whose parameters are 0 adds the constant `log classes` to the loss, and no gradient.

    Raises:
        InputError: a module of another output, or not one weight an exit; a negative weight.
    """
    made, out = functional(module, sample_x)
    if len(out.shape) != 3 or classes not in (None, out.shape[-1]):
        raise InputError(f"module gives {list(out.shape)}, must be [b, exits, {classes or 'classes'}].")
    counts = [1.0] * out.shape[1] if weights is None else list(weights)
    for weight in counts:
        require("weights", weight, least=0)
    if len(counts) != out.shape[1]:
        raise InputError(f"weights has {len(counts)} entries, must have one for each of {out.shape[1]} exits.")

    def loss(logits: Array, y: Array) -> Array:
        each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.broadcast_to(y[:, None], logits.shape[:2]))
        return each @ jnp.asarray(counts, each.dtype)

    return task_of(made, loss, lambda logits, y: hits(logits, y).mean(1), out.shape[-1])


def hits(logits: Array, y: Array) -> Array:
    """Which exits are right `[b, exits]`, 1 or 0."""
    return (logits.argmax(-1) == y[:, None]).astype(jnp.float32)
