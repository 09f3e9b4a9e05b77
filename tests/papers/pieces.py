"""Sub-models by hand: three linear layers with offsets, six unlike clients, four of them a round, one absent."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from members import WEIGHT, N, absent, changed, drawn

from jaxfl.core import Shards, node_keys, stream
from jaxfl.engine.keys import round_key, run_key
from jaxfl.learn.task import from_functions
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario

WIDTHS, RATE, STEPS = (3, 8, 4, 2), 0.03, 2
KW = {"lr": RATE, "steps": STEPS, "batch": None}
SHAPES = [s for a, b in pairwise(WIDTHS) for s in ((b,), (a, b))]  # offsets, weights: as in a row
ENDS = np.cumsum([np.prod(s) for s in SHAPES])
SIZE = np.array([3, 2, 4, 3, 5, 2])
BEGIN = SIZE.cumsum() - SIZE
_rng = np.random.default_rng(3)
X, Y = (_rng.normal(size=(SIZE.sum(), k)).astype(np.float32) for k in (WIDTHS[0], WIDTHS[-1]))


def _predict(p, x):
    for layer in ("0", "1", "2"):
        x = x @ p[layer]["kernel"] + p[layer]["bias"]
    return x


TASK = from_functions(
    lambda key: {str(k): {"bias": jnp.zeros(SHAPES[2 * k]), "kernel": jnp.zeros(SHAPES[2 * k + 1])} for k in range(3)},
    lambda p, x, y: 0.5 * ((_predict(p, x) - y) ** 2).sum(1),
    _predict,
)
FIRST = 0.5 * _rng.normal(size=TASK.dim).astype(np.float32)
LAYER = np.repeat([0, 0, 1, 1, 2, 2], np.diff(ENDS, prepend=0))  # the layer of each number


def world(change=absent):
    """Unequal weights, a partial cohort."""
    data = Shards(X, Y, jnp.arange(len(X)), jnp.asarray(BEGIN), jnp.asarray(SIZE), int(SIZE.max()))
    return scenario(data, cohort=changed(cohort.uniform(N, 4, weight=WEIGHT), change))


def cut(row):
    """Offsets and weights of each layer."""
    return [a.reshape(s) for a, s in zip(np.split(np.asarray(row), ENDS[:-1]), SHAPES, strict=True)]


def slope(row, i):
    """The gradient of client `i` in float64."""
    layers, (x, y) = cut(row), (np.asarray(a[BEGIN[i] : BEGIN[i] + SIZE[i]], np.float64) for a in (X, Y))
    seen = [x]
    for b, w in zip(layers[::2], layers[1::2], strict=True):
        seen.append(seen[-1] @ w + b)
    error, found = (seen[-1] - y) / len(x), []
    for w, h in zip(layers[::-2], seen[-2::-1], strict=True):
        found = [error.sum(0), h.T @ error, *found]
        error = error @ w.T
    return np.concatenate([a.ravel() for a in found])


def between(share, first=0):
    """The numbers of a row between a `share` of the units of both hidden layers, from unit `first` on, around them."""
    inside = [(np.arange(k) - first) % k < max(np.ceil(share * k), 1) for k in WIDTHS[1:-1]]
    units = [np.ones(WIDTHS[0], bool), *inside, np.ones(WIDTHS[-1], bool)]
    return np.concatenate([a.ravel() for before, after in pairwise(units) for a in (after, before[:, None] & after)])


def by_hand(masks, rounds=3, sent=None):
    """The papers' round in float64: `masks(t, i, x)` and, where less is sent, `sent(t, i, x)`; x, and all models."""
    x, own, c = np.asarray(FIRST, np.float64), {}, drawn(world(), rounds)
    for t in range(rounds):
        total, covers = np.zeros(len(x)), np.zeros(len(x))
        for i, p in zip(c.ids[t].tolist(), c.weight[t].tolist(), strict=True):
            if p == 0:
                continue
            m = masks(t, i, x)
            y = np.where(m, x, 0)
            for _ in range(STEPS):
                y = y - RATE * np.where(m, slope(y, i), 0)
            says = m if sent is None else sent(t, i, x)
            total, covers, own[i] = total + p * np.where(says, y, 0), covers + p * says, y
        x = np.where(covers > 0, total / np.where(covers > 0, covers, 1), x)
    return x, own


def key_of(t, i):
    """By which client `i` draws its sub-model in round `t` of seed 0."""
    return stream(node_keys(stream(round_key(run_key(0), t, "algorithm"), "learn"), jnp.array([i]))[0], "submodel")


def random_share(key, share):
    """What a client holds of independent numbers."""
    return np.asarray(jax.random.uniform(key, (TASK.dim,)) < share)
