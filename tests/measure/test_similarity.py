"""CKA against its formula in float64, and between models that two nodes make of one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxfl.core import Shards
from jaxfl.learn import submodels
from jaxfl.learn.local import local_sgd
from jaxfl.learn.task import classification
from jaxfl.measure.metrics import shared_test
from jaxfl.measure.similarity import cka, layer_similarity
from jaxfl.measure.submodels import handed
from jaxfl.models.residual import ResidualMLP

RNG = np.random.default_rng(0)


def by_hand(a, b):
    a, b = (np.asarray(v, float) - np.mean(v, 0, dtype=float) for v in (a, b))
    square = lambda u, v: np.linalg.norm(u.T @ v) ** 2
    return square(a, b) / np.sqrt(square(a, a) * square(b, b))


def test_cka_is_that_of_the_paper():
    a, b = RNG.normal(size=(20, 4)).astype(np.float32), RNG.normal(size=(20, 6)).astype(np.float32)
    np.testing.assert_allclose(cka(a, b), by_hand(a, b), rtol=1e-5)
    turn = np.linalg.qr(RNG.normal(size=(4, 4)))[0].astype(np.float32)
    np.testing.assert_allclose(cka(a, 1e-12 * (a @ turn) + 3e-12), 1.0, rtol=1e-4)
    assert cka(a, jnp.ones((20, 3))) == 0


def test_layers_are_compared_among_those_who_have_them():
    x, y = RNG.normal(size=(12, 5)).astype(np.float32), np.arange(12, dtype=np.int32) % 3
    task = classification(functools.partial(ResidualMLP, 5, 4, 2, 3), x[:1])
    index = (jnp.asarray(a, jnp.int32) for a in (np.arange(12), [0, 4, 8], [4, 4, 4]))
    data = Shards(jnp.asarray(x), jnp.asarray(y), *index, 4)
    policy, learn = submodels.nested(task, submodels.stages(task), (2, 1, 2)), local_sgd(task, optax.sgd(0.3), steps=2)
    says = lambda row, x: jnp.stack(task.module(task.unravel(row)).hidden(x))
    columns = [int(np.flatnonzero(submodels.levels(task, [("blocks/0/*",), ("*",)]) == 0)[0])]
    columns.append(int(np.flatnonzero(submodels.levels(task, [("blocks/1/*",), ("*",)]) == 0)[0]))
    metric = layer_similarity(data, learn, policy, says, columns, jnp.asarray(x), (0, 1, 2))
    row = task.init(jax.random.key(0))
    got = jax.jit(metric.measure)(metric.arrays, row)
    models = []
    for i in range(3):
        held = policy(None, jnp.int32(i), 0, row).held
        models.append(says(learn(jax.random.key(0), data, jnp.int32(i), jnp.where(held, row, 0), held=held)[0], x))
    first = np.mean([by_hand(models[i][0], models[j][0]) for i, j in ((0, 1), (0, 2), (1, 2))])
    np.testing.assert_allclose([got["cka_1"], got["cka_2"]], [first, by_hand(models[0][1], models[2][1])], rtol=1e-4)
    assert got["cka_2"] < 1 - 1e-6


def test_what_clients_are_handed_is_measured():
    """A server's model by its parts; a node's own model by its own."""
    x, y = RNG.normal(size=(30, 5)).astype(np.float32), RNG.integers(0, 3, 30)
    task = classification(functools.partial(ResidualMLP, 5, 4, 2, 3), x[:1])
    policy = submodels.nested(task, submodels.stages(task), (1, 2))
    metric = handed(shared_test(task, jnp.asarray(x), jnp.asarray(y)), policy, (0, 1, 2))
    row = task.init(jax.random.key(1))
    right = lambda row: float((task.predict(task.unravel(row), x).argmax(-1) == y).mean())
    masks = [policy(None, jnp.int32(i), 0, row).held for i in range(4)]
    got = metric.measure(metric.arrays, row)
    want = [right(jnp.where(m, row, 0)) for m in masks[:3]]
    np.testing.assert_allclose([got["accuracy"], got["node_accuracy"]], [right(row), np.mean(want)], rtol=1e-5)
    rows = jnp.stack([task.init(jax.random.key(k)) for k in range(4)])
    got = metric.measure(metric.arrays, rows)
    want = [right(jnp.where(m, r, 0)) for m, r in zip(masks[:3], rows, strict=False)]
    np.testing.assert_allclose([got["accuracy"], got["node_accuracy"]], [right(rows.mean(0)), np.mean(want)], rtol=1e-5)
