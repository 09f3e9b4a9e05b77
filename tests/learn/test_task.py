from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from hypothesis import given, settings

from jaxfl.errors import InputError
from jaxfl.learn import task as T
from jaxfl.learn.layers import layers, part
from jaxfl.mapping.canonical import canonical
from jaxfl.models.networks import MLP, Transformer

KEY = jax.random.key(0)
few = settings(max_examples=10, deadline=None, derandomize=True)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def labels(seed, classes, *shape):
    return np.random.default_rng(seed).integers(0, classes, shape, dtype=np.int32)


def mlp(sizes=(6, 5, 3)):
    return T.classification(partial(MLP, sizes), jnp.zeros((2, sizes[0])), sizes[-1])


# ---- the row


@few
@given(st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=5), st.integers(0, 99))
def test_row_and_tree_are_the_same_bits(shapes, seed):
    task = T.from_functions(lambda key: [jnp.zeros(s) for s in shapes], lambda p, x, y: y)
    row = jnp.asarray(normal(seed, task.dim))
    tree = task.unravel(row)
    assert [a.shape for a in tree] == [tuple(s) for s in shapes]
    assert np.array_equal(task.ravel(tree), row)
    for layer, leaf in zip(layers(task), tree, strict=True):
        assert np.array_equal(row[layer.start : layer.stop].reshape(layer.shape), leaf)
    assert [a.stop for a in layers(task)][:-1] == [a.start for a in layers(task)][1:]
    assert layers(task)[-1].stop == task.dim


def test_unravel_is_a_split_and_its_gradient_a_concatenation():
    task = mlp()
    forward = jax.make_jaxpr(task.unravel)(jnp.zeros(task.dim))
    assert {e.primitive.name for e in forward.eqns} == {"split", "reshape"}
    tree = task.unravel(jnp.zeros(task.dim))
    back = jax.make_jaxpr(lambda t: jax.vjp(task.unravel, jnp.zeros(task.dim))[1](t)[0])(tree)
    assert not {"pad", "add", "add_any", "scatter-add"} & {e.primitive.name for e in back.eqns}


def test_init_is_float32_and_the_same_under_jit_and_vmap():
    keys = jax.random.split(KEY, 3)
    for task in (mlp(), T.classification(linen.Dense(3), jnp.zeros((2, 4)))):
        one = jnp.stack([task.init(k) for k in keys])
        assert one.shape == (3, task.dim)
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(jax.jit(jax.vmap(task.init))(keys), one, rtol=1e-5, atol=1e-7)
        assert not np.array_equal(one[0], one[1])


def test_building_a_task_allocates_no_model():
    assert T.classification(partial(MLP, (200_000, 200_000)), jnp.zeros((1, 200_000))).dim == 200_000 * 200_001


def test_layers_name_the_row_and_parts_select_them():
    task = mlp((6, 5, 3))
    assert layers(task)[1] == ("layers/0/kernel", 5, 35, (6, 5))
    assert np.array_equal(part(task, "layers/1/*").mask, np.arange(task.dim) >= 35)
    biases = task.unravel(jnp.asarray(part(task, "*bias").mask, jnp.float32))
    assert float(biases["layers"][1]["bias"].min()) == 1
    assert float(biases["layers"][1]["kernel"].max()) == 0


# ---- losses


@pytest.mark.parametrize("module", [partial(nnx.Linear, 4, 3), linen.Dense(3)])
def test_flax_modules_equal_the_softmax_regression_of_the_same_row(module):
    x, y = normal(1, 7, 4), labels(2, 3, 7)
    task, plain = T.classification(module, jax.ShapeDtypeStruct((1, 4), jnp.float32), 3), T.logistic_regression(4, 3)
    row = jnp.asarray(normal(3, task.dim))
    assert [layer.path for layer in layers(task)] == [layer.path for layer in layers(plain)] == ["bias", "kernel"]
    params = task.unravel(row)
    loss = task.loss(params, x, y)
    np.testing.assert_allclose(loss, plain.loss(plain.unravel(row), x, y), rtol=1e-5)
    np.testing.assert_allclose(loss, optax.softmax_cross_entropy(task.predict(params, x), np.eye(3)[y]), rtol=1e-5)
    np.testing.assert_allclose(T.mean_loss(task, row, x, y), loss.mean(), rtol=1e-6)
    hits = task.correct(task.predict(params, x), y)
    assert np.array_equal(hits, np.argmax(x @ np.asarray(params["kernel"]) + np.asarray(params["bias"]), 1) == y)


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_logistic_regression_gradient_is_the_closed_form(l2):
    n, f, c = 9, 4, 3
    x, y = normal(1, n, 2, 2), labels(2, c, n)
    task = T.logistic_regression(f, c, l2=l2)
    assert not task.init(KEY).any()
    row = normal(3, task.dim)
    b, w = row[:c].astype(np.float64), row[c:].astype(np.float64).reshape(f, c)
    flat = x.reshape(n, f).astype(np.float64)
    p = np.exp(flat @ w + b)
    p /= p.sum(1, keepdims=True)
    e = (p - np.eye(c)[y]) / n
    want = np.concatenate([e.sum(0) + l2 * b, (flat.T @ e + l2 * w).ravel()])
    got = jax.grad(lambda r: T.mean_loss(task, r, x, y))(jnp.asarray(row))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    value = -np.log(p[np.arange(n), y]).mean() + l2 / 2 * (row.astype(np.float64) ** 2).sum()
    np.testing.assert_allclose(T.mean_loss(task, jnp.asarray(row), x, y), value, rtol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_linear_regression_is_least_squares(bias):
    x, y = normal(1, 20, 3), normal(2, 20)
    task = T.linear_regression(3, bias=bias)
    design = np.hstack([np.ones((20, 1)), x]) if bias else x  # the bias is first in the row
    best = np.linalg.lstsq(design.astype(np.float64), y.astype(np.float64), rcond=None)[0].astype(np.float32)
    assert task.dim == len(best)
    assert task.correct is None
    np.testing.assert_allclose(task.predict(task.unravel(jnp.asarray(best)), x), design @ best, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda r: T.mean_loss(task, r, x, y))(jnp.asarray(best)), 0, atol=1e-6)
    np.testing.assert_allclose(T.mean_loss(task, task.init(KEY), x, y), 0.5 * (y**2).mean(), rtol=1e-6)


def test_regression_of_a_module_is_half_the_squared_error():
    x, y = normal(1, 5, 4), normal(2, 5, 2)
    task = T.regression(partial(nnx.Linear, 4, 2), jnp.zeros((1, 4)))
    params = task.unravel(task.init(KEY))
    want = 0.5 * ((x @ np.asarray(params["kernel"]) - y) ** 2).sum(1)
    np.testing.assert_allclose(task.loss(params, x, y), want, rtol=1e-5)
    single, plain = T.regression(linen.Dense(1), jnp.zeros((1, 4))), T.linear_regression(4, bias=True)
    row = jnp.asarray(normal(3, 5))
    for target in (y[:, 0], y[:, :1]):
        got = single.loss(single.unravel(row), x, target)
        np.testing.assert_allclose(got, plain.loss(plain.unravel(row), x, y[:, 0]), rtol=1e-5)


def test_quadratic_gradient_is_curvature_times_distance():
    d = 4
    root, b, p = normal(1, 3, d, d), normal(2, 3, d), jnp.asarray(normal(3, d))
    a = root @ root.swapaxes(1, 2)
    task = T.quadratic(d)
    assert not task.init(KEY).any()
    gradients = jax.jacobian(lambda r: task.loss(task.unravel(r), a, b))(p)
    want = np.einsum("nij,nj->ni", a.astype(np.float64), np.asarray(p, np.float64) - b)
    np.testing.assert_allclose(gradients, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(task.loss(jnp.asarray(b[0]), a, b)[0], 0, atol=1e-6)
    noisy, xi = T.quadratic_noise(d, 0.5), normal(4, 3, d)
    shifted = jax.jacobian(lambda r: noisy.loss(noisy.unravel(r), (a, xi), b))(p)
    np.testing.assert_allclose(shifted - gradients, 0.5 * xi, rtol=1e-3, atol=1e-4)


def test_language_model_loss_is_the_mean_over_tokens():
    task = T.language_model(partial(Transformer, 7, 8, 1, 2, 5), jnp.zeros((1, 5), jnp.int32))
    x, y = labels(1, 7, 3, 5), labels(2, 7, 3, 5)
    params = jax.jit(lambda key: task.unravel(task.init(key)))(KEY)
    logits = jax.jit(task.predict)(params, x)
    want = optax.softmax_cross_entropy(logits, np.eye(7)[y]).mean(1)
    np.testing.assert_allclose(jax.jit(task.loss)(params, x, y), want, rtol=1e-5)
    np.testing.assert_allclose(task.correct(logits, y), (np.argmax(logits, -1) == y).mean(1), rtol=1e-6)


def test_a_label_out_of_range_is_not_scored_as_a_class():
    task = T.logistic_regression(2, 3)
    loss = task.loss(task.unravel(task.init(KEY)), jnp.ones((4, 2)), jnp.array([2, 3, -1, 0]))
    assert np.isnan(loss).tolist() == [False, True, True, False]


# ---- evaluation


@pytest.mark.parametrize("batch", [None, 1, 4, 5, 10, 11, 50])
def test_scores_do_not_depend_on_the_chunks(batch):
    task = mlp()
    row, x, y = task.init(KEY), normal(1, 11, 6), labels(2, 3, 11)
    got = jax.jit(partial(T.scores, task, batch=batch))(row, x, y)
    params = task.unravel(row)
    np.testing.assert_allclose(got["loss"], np.asarray(task.loss(params, x, y), np.float64).mean(), rtol=1e-5)
    np.testing.assert_allclose(got["accuracy"], (np.argmax(task.predict(params, x), 1) == y).mean(), rtol=1e-6)


def test_scores_of_many_rows_and_of_a_task_without_accuracy():
    d = 3
    a, b = np.stack([np.eye(d, dtype=np.float32)] * 5), normal(2, 5, d)
    task = T.quadratic_noise(d, 1.0)
    rows = jnp.asarray(normal(3, 4, d))
    got = jax.vmap(lambda r: T.scores(task, r, (a, np.zeros_like(b)), b, batch=2))(rows)
    want = 0.5 * ((np.asarray(rows)[:, None] - b) ** 2).sum(-1).mean(1)
    assert list(got) == ["loss"]
    np.testing.assert_allclose(got["loss"], want, rtol=1e-5)


def test_scores_in_chunks_need_the_memory_of_one_chunk():
    task = mlp((8, 512, 3))
    args = jnp.zeros(task.dim), jnp.zeros((4096, 8)), jnp.zeros(4096, jnp.int32)

    def temporary(batch):
        return jax.jit(partial(T.scores, task, batch=batch)).lower(*args).compile().memory_analysis().temp_size_in_bytes

    assert temporary(128) < temporary(None) / 8


# ---- recurrent modules


class Recurrent(nnx.Module):
    def __init__(self, cell, *, rngs):
        self.rnn, self.out = nnx.RNN(cell(4, 5, rngs=rngs)), nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(self.rnn(x)[:, -1])


@pytest.mark.parametrize("cell", [nnx.LSTMCell, nnx.GRUCell])
def test_a_recurrent_module_keeps_keys_and_uses_none(cell):
    make, x = partial(Recurrent, cell), jnp.asarray(normal(1, 2, 6, 4))
    task = T.classification(make, x)
    row = task.init(KEY)
    np.testing.assert_allclose(task.predict(task.unravel(row), x), make(rngs=nnx.Rngs(KEY))(x), atol=1e-6)
    assert jnp.abs(jax.grad(lambda r: T.mean_loss(task, r, x, jnp.zeros(2, int)))(row)).max() > 0
    assert canonical(task) is canonical(T.classification(make, x))  # built anew it compiles nothing


def test_attention_without_dropout_is_a_model_of_parameters():
    assert T.classification(partial(Attends, 0.0), X3).dim == 4 * (3 * 4 + 3) + 4 * 5 + 3 * 5


# ---- bad input


class Attends(nnx.Module):
    def __init__(self, rate, *, rngs):
        self.mix = nnx.MultiHeadAttention(2, 4, dropout_rate=rate, deterministic=True, decode=False, rngs=rngs)
        self.out = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(self.mix(x).mean(1))


X3 = jax.ShapeDtypeStruct((2, 6, 4), jnp.float32)
X = jax.ShapeDtypeStruct((2, 4), jnp.float32)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: T.require_task(nnx.Linear(4, 3, rngs=nnx.Rngs(0))), "task is a Linear, but must be a Task"),
        (lambda: T.classification(linen.Dense(3), X, classes=5), r"must be \[b, 5\]"),
        (lambda: T.classification(linen.Dense(3), jax.ShapeDtypeStruct((2, 5, 4), jnp.float32)), "must be"),
        (lambda: T.language_model(linen.Dense(3), X), "for tokens"),
        (lambda: T.from_functions(lambda key: (), lambda p, x, y: y), "one or more floats"),
        (lambda: T.from_functions(lambda key: jnp.zeros(2, int), lambda p, x, y: y), "int32"),
        (lambda: T.from_functions(jnp.zeros, lambda p, x, y: y, correct=lambda p, y: y), "predict is None"),
        (lambda: T.logistic_regression(0, 3), "features is 0"),
        (lambda: T.logistic_regression(3, 1), "classes is 1"),
        (lambda: T.logistic_regression(3, 2, l2=-1.0), "l2 is -1.0"),
        (lambda: T.linear_regression(0), "features is 0"),
        (lambda: T.quadratic(0), "d is 0"),
        (lambda: T.quadratic_noise(2, -0.1), "sigma is -0.1"),
    ],
)
def test_a_bad_task_is_refused_in_one_sentence(build, words):
    with pytest.raises(InputError, match=words):
        build()


@pytest.mark.parametrize(
    ("task", "x", "y"),
    [
        (T.logistic_regression(4, 3), (5, 4), (5, 1)),
        (T.logistic_regression(4, 3), (5, 4), (5, 3)),
        (T.logistic_regression(4, 3), (5, 3), (5,)),
        (T.linear_regression(4), (5, 4), (5, 2)),
        (T.linear_regression(4), (5, 3), (5,)),
        (T.quadratic(2), (5, 2), (5, 2)),
        (T.quadratic(2), (5, 2, 2), (5,)),
        (T.regression(linen.Dense(2), X), (5, 4), (5, 3)),
        (T.from_functions(lambda key: jnp.zeros(2), lambda p, x, y: p.sum()), (5, 2), (5,)),
    ],
)
def test_examples_of_a_wrong_shape_are_refused_while_tracing(task, x, y):
    label = jnp.int32 if task.correct else jnp.float32
    args = [jax.ShapeDtypeStruct((task.dim,), jnp.float32), jax.ShapeDtypeStruct(x, jnp.float32)]
    with pytest.raises(InputError):
        jax.eval_shape(partial(T.mean_loss, task), *args, jax.ShapeDtypeStruct(y, label))


def test_other_bad_arguments_are_refused():
    task = T.logistic_regression(2, 3)
    params = task.unravel(task.init(KEY))
    with pytest.raises(InputError, match="integers"):
        task.loss(params, jnp.ones((4, 2)), jnp.ones(4))
    with pytest.raises(InputError, match="integers"):
        task.correct(jnp.ones((4, 3)), jnp.ones((4, 1), int))
    with pytest.raises(InputError, match="row has shape"):
        task.unravel(jnp.zeros(8))
    with pytest.raises(InputError, match="structure"):
        task.ravel({"bias": jnp.zeros(3)})
    with pytest.raises(InputError, match="structure"):
        task.ravel({"bias": jnp.zeros(2), "kernel": jnp.zeros((2, 3))})
    with pytest.raises(InputError, match="batch is 0"):
        T.scores(task, task.init(KEY), jnp.ones((4, 2)), jnp.zeros(4, int), batch=0)
    with pytest.raises(InputError, match="examples is 0"):
        T.scores(task, task.init(KEY), jnp.ones((0, 2)), jnp.zeros(0, int))
    noisy = T.quadratic_noise(2, 1.0)
    with pytest.raises(InputError, match="noise in x"):
        noisy.loss(jnp.zeros(2), (jnp.ones((4, 2, 2)), jnp.ones((4, 3))), jnp.ones((4, 2)))


@pytest.mark.parametrize("build", ["classification", "regression", "language_model"])
def test_bfloat16_rounds_the_arithmetic_and_nothing_else(build):
    key = jax.random.key(0)
    if build == "language_model":
        x = jax.random.randint(key, (8, 12), 0, 17)
        module, y = partial(Transformer, 17, 16, 2, length=12), jnp.roll(x, -1, 1)
    else:
        x = jax.random.normal(key, (8, 30))
        module = partial(MLP, (30, 16, 5))
        y = jnp.arange(8) % 5 if build == "classification" else jax.random.normal(key, (8, 5))
    full, half = (getattr(T, build)(module, x, compute=c) for c in (None, "bfloat16"))

    def one(t):
        row = t.init(key)
        value, slope = jax.value_and_grad(lambda r: T.mean_loss(t, r, x, y))(row)
        return row, t.loss(t.unravel(row), x, y), value, slope

    rows, each, losses, grads = zip(*jax.jit(lambda: (one(full), one(half)))(), strict=True)
    np.testing.assert_array_equal(*rows)
    assert grads[1].dtype == each[1].dtype == jnp.float32
    apart = np.linalg.norm(grads[1] - grads[0]) / np.linalg.norm(grads[0])
    assert 1e-5 < apart < 0.03  # bfloat16 has 8 bits
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)


def test_another_type_is_refused():
    with pytest.raises(InputError, match="compute is int32, allowed are bfloat16"):
        T.classification(partial(MLP, (3, 2)), jnp.zeros((1, 3)), compute="int32")
