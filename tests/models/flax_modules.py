"""Flax modules with statistics, dropout and adapters, of nnx and linen alike, and shards for them."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from jaxfl.core import Shards

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(10, 4)).astype(np.float32)
Y = RNG.integers(0, 3, 10).astype(np.int32)


class Normed(nnx.Module):
    def __init__(self, *, rngs):
        self.dense, self.norm, self.out = (
            nnx.Linear(4, 5, rngs=rngs),
            nnx.BatchNorm(5, momentum=0.8, rngs=rngs),
            nnx.Linear(5, 3, rngs=rngs),
        )

    def __call__(self, x):
        return self.out(nnx.relu(self.norm(self.dense(x))))


class LinenNormed(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        x = linen.BatchNorm(use_running_average=not train, momentum=0.8, name="norm")(linen.Dense(5, name="dense")(x))
        return linen.Dense(3, name="out")(linen.relu(x))


class Dropped(nnx.Module):
    def __init__(self, *, rngs):
        self.dense, self.drop, self.out = (
            nnx.Linear(4, 8, rngs=rngs),
            nnx.Dropout(0.5, rngs=rngs),
            nnx.Linear(8, 3, rngs=rngs),
        )

    def __call__(self, x):
        return self.out(self.drop(self.dense(x)))


class LinenDropped(linen.Module):
    @linen.compact
    def __call__(self, x, *, deterministic=True):
        return linen.Dense(3)(linen.Dropout(0.5)(linen.Dense(8)(x), deterministic=deterministic))


class Adapted(nnx.Module):
    def __init__(self, *, rngs):
        self.body, self.head = nnx.LoRALinear(4, 6, lora_rank=2, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.body(x))


NORMED = {"nnx": Normed, "linen": LinenNormed()}
DROPPED = {"nnx": Dropped, "linen": LinenDropped()}


def shards(sizes):
    index = (jnp.asarray(a, jnp.int32) for a in (np.arange(sum(sizes)), np.cumsum(sizes) - np.array(sizes), sizes))
    return Shards(jnp.asarray(X[: sum(sizes)]), jnp.asarray(Y[: sum(sizes)]), *index, max(sizes))
