"""Fake quantisation: matrices of a model rounded to few bits wherever they are used, gradients straight through.

Devices that compute with few bits are simulated on floats: each matrix becomes integers times one scale, vectors
(biases, norms) stay. Two bits are ternary weights (Li, Zhang, Liu; 2016; https://arxiv.org/abs/1605.04711): 0 below
0.7 times the mean magnitude, else the sign times the mean of the magnitudes above. `bits` may be traced and differ by
node; from 32 on nothing is rounded.
"""

import math

import jax
import jax.numpy as jnp

from jaxfl.core import Array, Tree
from jaxfl.errors import require
from jaxfl.exchange.codecs import FLOAT, symmetric
from jaxfl.learn.layers import layers
from jaxfl.learn.task import Task
from jaxfl.mapping.sums import total


def ternary(w: Array) -> Array:
    """`w` rounded to `-s`, 0 and `s`."""
    size = jnp.abs(w)
    kept = size > 0.7 * total(size) / size.size
    scale = total(jnp.where(kept, size, 0)) / jnp.maximum(total(kept.astype(w.dtype)), 1)
    return scale * jnp.sign(w) * kept


def rounded(params: Tree, bits: int | Array) -> Tree:
    """The leaves of two axes and more, rounded to `bits` each with a scale of its own."""

    def one(w: Array) -> Array:
        if w.ndim < 2:
            return w
        few = symmetric(w.ravel(), jnp.clip(bits, 2, 24)).reshape(w.shape)
        return jnp.where(bits >= FLOAT, w, jnp.where(bits == 2, ternary(w), few))

    return jax.tree.map(one, params)


def rounded_row(task: Task, x: Array, bits: int | Array) -> Array:
    """`rounded` of a row `[d]`."""
    return task.ravel(rounded(task.unravel(x), bits))


def quantised(task: Task, bits: int | Array) -> Task:
    """`task` whose model is `rounded` in its loss and its predictions; the gradient is that at the rounded weights.

    Raises:
        InputError: `bits` below 2 or not whole.
    """
    require("bits", bits, least=2, whole=True)

    def through(params: Tree) -> Tree:
        few = rounded(params, bits)
        return jax.tree.map(lambda w, q: jnp.where(bits >= FLOAT, w, w + jax.lax.stop_gradient(q - w)), params, few)

    predict, train = task.predict, task.train
    return task._replace(
        loss=lambda p, x, y: task.loss(through(p), x, y),
        predict=None if predict is None else lambda p, x: predict(through(p), x),
        train=None if train is None else lambda p, *batch: train(through(p), *batch),
    )


def model_bits(task: Task, bits: int | Array) -> Array:
    """Bits of a model: `bits` a number and a scale of 32 for each matrix, 32 for what is not rounded."""
    bits = jnp.asarray(bits, jnp.float32)
    sizes = [(math.prod(a.shape), len(a.shape) > 1) for a in layers(task)]
    few = sum(bits * count + FLOAT if matrix else FLOAT * count for count, matrix in sizes)
    return jnp.where(bits >= FLOAT, FLOAT * task.dim, few)
