"""Small networks in float64 NumPy, and a world of unequal clients with few samples of two classes or more."""

import jax.numpy as jnp
import numpy as np
from members import WEIGHT, absent, changed, cohorts  # noqa: F401

from jaxfl.core import Shards
from jaxfl.learn.layers import layers
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario

N, FEATURES, CLASSES = 6, 5, 3
SIZE = np.array([3, 2, 4, 3, 2, 4])
START = np.cumsum(SIZE) - SIZE
RNG = np.random.default_rng(3)
X = RNG.normal(size=(SIZE.sum(), FEATURES)).astype(np.float32)
Y = (RNG.permutation(SIZE.sum()) % CLASSES).astype(np.int32)
DATA = Shards(jnp.asarray(X), jnp.asarray(Y), *(jnp.asarray(a, jnp.int32) for a in (np.arange(len(X)), START, SIZE)), 4)


def world(c=4, change=absent, **parts):
    """`c` of six clients, one of them absent."""
    return scenario(DATA, cohort=changed(cohort.uniform(N, c, weight=WEIGHT), change), **parts)


def own(i):
    """The samples of a node."""
    at = slice(START[i], START[i] + SIZE[i])
    return X[at].astype(float), Y[at]


def tree(task, row):
    """The arrays of a row by path, in float64."""
    row = np.asarray(row, float)
    return {a.path: row[a.start : a.stop].reshape(a.shape) for a in layers(task)}


def flat(task, arrays):
    return np.concatenate([np.asarray(arrays[a.path], float).ravel() for a in layers(task)])


def depth_of(task):
    """The number 0, 1, ... of the block or exit of each number of a row; 0 for what is in none."""
    level = lambda path: int(path.split("/")[1]) if path.split("/")[0] in ("blocks", "exits") else 0
    return np.concatenate([np.full(a.stop - a.start, level(a.path)) for a in layers(task)])


def slopes(logits, y):
    """The gradient of mean cross-entropy by logits."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return p / len(y)


def residual(task, row, x, y, weights=None):
    """The gradient of a residual perceptron with a head, or with exits that count by `weights`."""
    p, g, blocks = tree(task, row), {}, 1 + int(depth_of(task).max())
    h, inside = [x @ p["stem/kernel"] + p["stem/bias"]], []
    for e in range(blocks):
        up = h[-1] @ p[f"blocks/{e}/up/kernel"] + p[f"blocks/{e}/up/bias"]
        inside.append(np.maximum(up, 0))
        h.append(h[-1] + inside[-1] @ p[f"blocks/{e}/down/kernel"] + p[f"blocks/{e}/down/bias"])
    back = np.zeros_like(h[0])
    for e in reversed(range(blocks)):
        leave = f"exits/{e}" if "exits/0/bias" in p else "head" if e + 1 == blocks else None
        if leave:
            s = slopes(h[e + 1] @ p[f"{leave}/kernel"] + p[f"{leave}/bias"], y)
            s = s * (1.0 if weights is None else weights[e])
            g[f"{leave}/kernel"], g[f"{leave}/bias"] = h[e + 1].T @ s, s.sum(0)
            back = back + s @ p[f"{leave}/kernel"].T
        g[f"blocks/{e}/down/kernel"], g[f"blocks/{e}/down/bias"] = inside[e].T @ back, back.sum(0)
        up = (back @ p[f"blocks/{e}/down/kernel"].T) * (inside[e] > 0)
        g[f"blocks/{e}/up/kernel"], g[f"blocks/{e}/up/bias"] = h[e].T @ up, up.sum(0)
        back = back + up @ p[f"blocks/{e}/up/kernel"].T
    g["stem/kernel"], g["stem/bias"] = x.T @ back, back.sum(0)
    return flat(task, g)


def perceptron(task, row, x, y):
    """The gradient of a chain of dense layers with ReLU between them."""
    p, g, count = tree(task, row), {}, len(layers(task)) // 2
    h = [x]
    for j in range(count):
        a = h[-1] @ p[f"layers/{j}/kernel"] + p[f"layers/{j}/bias"]
        h.append(np.maximum(a, 0) if j + 1 < count else a)
    back = slopes(h[-1], y)
    for j in reversed(range(count)):
        g[f"layers/{j}/kernel"], g[f"layers/{j}/bias"] = h[j].T @ back, back.sum(0)
        back = (back @ p[f"layers/{j}/kernel"].T) * (h[j] > 0)
    return flat(task, g)
