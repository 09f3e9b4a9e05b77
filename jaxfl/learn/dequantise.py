"""Progressive dequantisation: small networks that raise the precision of rounded weights step by step.

Weights travel through them in chunks of 64, each divided by its root mean square. Block `b` takes weights of
`LEVELS[b]` bits to those of `LEVELS[b + 1]`, the last one to floats; each adds a correction to its input, none at
first. Yoon, Park, Jeong, Hwang; ICML 2022; https://arxiv.org/abs/2202.11453, whose networks and loss weights are not
public: these are ours.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxfl.core import Array, Tree
from jaxfl.learn.layers import layers
from jaxfl.learn.quantised import rounded_row
from jaxfl.learn.task import Task

LEVELS = (2, 4, 8, 16)
CHUNK, HIDDEN = 64, 64


def blocks(key: Array) -> Tree:
    """Fresh networks, one a level, stacked."""
    first = jax.random.normal(key, (len(LEVELS), CHUNK, HIDDEN)) / CHUNK**0.5
    return {"in": first, "bias": jnp.zeros((len(LEVELS), HIDDEN)), "out": jnp.zeros((len(LEVELS), HIDDEN, CHUNK))}


def matrices(task: Task) -> Array:
    """Which numbers of a row `[d]` stand in matrices, which are those that are rounded."""
    return jnp.concatenate([jnp.full(a.stop - a.start, len(a.shape) > 1) for a in layers(task)])


def _chunks(x: Array) -> Array:
    return jnp.pad(x, (0, -x.shape[0] % CHUNK)).reshape(-1, CHUNK)


def _raised(block: Tree, chunks: Array) -> Array:
    scale = jnp.sqrt((chunks**2).mean(1, keepdims=True) + 1e-12)  # a chunk of zeros has a gradient, too
    return chunks + scale * (jax.nn.relu(chunks / scale @ block["in"] + block["bias"]) @ block["out"])


def dequantised(task: Task, phi: Tree, x: Array, bits: int | Array) -> Array:
    """A row `[d]` of `bits` bits as floats: all blocks from its level on, one after the other."""
    chunks = _chunks(x)
    for b, level in enumerate(LEVELS):
        chunks = jnp.where(bits <= level, _raised(jax.tree.map(lambda a, b=b: a[b], phi), chunks), chunks)
    return jnp.where(matrices(task), chunks.ravel()[: x.shape[0]], x)


def loss(task: Task, phi: Tree, x: Array, buffer: Tree = None) -> Array:
    """What is minimised at a model `x` of floats.

    Each block's squared distance to the next level, over the squared size of the model, plus, on the inputs of a
    `buffer`, the divergence of the predictions of the model rounded to 2 bits and raised again from those of the model.
    """
    inside = _chunks(matrices(task).astype(jnp.float32))
    levels = [_chunks(rounded_row(task, x, bits)) for bits in LEVELS] + [_chunks(x)]
    size = ((levels[-1] * inside) ** 2).sum()
    total = jnp.float32(0)
    for b in range(len(LEVELS)):
        off = _raised(jax.tree.map(lambda a, b=b: a[b], phi), levels[b]) - levels[b + 1]
        total += ((off * inside) ** 2).sum() / jnp.maximum(size, 1e-12)
    if buffer is None:
        return total
    predict: Callable = task.predict  # type: ignore[assignment]
    logits = lambda row: jax.nn.log_softmax(predict(task.unravel(row), buffer))
    true, raised = logits(x), logits(dequantised(task, phi, rounded_row(task, x, 2), 2))
    return total + (jnp.exp(true) * (true - raised)).sum(-1).mean()


def fit(
    task: Task, phi: Tree, opt: optax.OptState, x: Array, tx: optax.GradientTransformation, steps: int, buffer: Tree
) -> tuple[Tree, optax.OptState]:
    """`steps` steps of `tx` on `loss` at the model `x`."""

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        phi, opt = carry
        u, opt = tx.update(jax.grad(lambda p: loss(task, p, x, buffer))(phi), opt, phi)
        return (optax.apply_updates(phi, u), opt), None

    return jax.lax.scan(step, (phi, opt), None, steps)[0]
