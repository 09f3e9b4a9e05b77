from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxfl.errors import InputError
from jaxfl.learn.task import classification, language_model, mean_loss
from jaxfl.models import convolution as C
from jaxfl.models.networks import CNN, MLP, MODELS, Conv, LeNet, ResNet, Transformer

KEY = jax.random.key(0)
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})  # these programs run for milliseconds


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tokens(seed, vocab, *shape):
    return np.random.default_rng(seed).integers(0, vocab, shape, dtype=np.int32)


def lax_conv(x, kernel, stride, padding):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=layout)


# ---- convolution


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_conv_and_its_gradients_equal_lax(size, stride, padding):
    x, kernel = normal(1, 2, 9, 6, 3), normal(2, size, size, 3, 4)

    def both(conv, x, kernel):
        def loss(x, k):
            y = conv(x, k, stride, padding)
            return (normal(3, *y.shape) * y).sum(), y

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(x, kernel)

    got, want = jit(lambda x, k: (both(C.conv, x, k), both(lax_conv, x, k)))(x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4), got, want)


def test_conv_with_a_kernel_for_each_node():
    x, kernel = normal(1, 3, 2, 7, 7, 2), normal(2, 3, 3, 3, 2, 5)
    got = jax.vmap(C.conv)(x, kernel)
    want = np.stack([lax_conv(a, k, 1, "SAME") for a, k in zip(x, kernel, strict=True)])
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    batched = jax.make_jaxpr(jax.vmap(jax.grad(lambda x, k: C.conv(x, k).sum(), (0, 1))))(x, kernel)
    assert "conv_general_dilated" not in str(batched)


def test_patches_are_windows_in_row_column_channel_order():
    x = normal(1, 2, 6, 5, 3)
    got = C.patches(x, 3, 2, "VALID")
    assert got.shape == (2, 2, 2, 27)
    assert np.array_equal(got[1, 1, 1], x[1, 2:5, 2:5].ravel())
    assert np.array_equal(C.patches(x, 3)[:, 0, 0, :9], np.zeros((2, 9)))


def window(x, start, op):
    return jax.lax.reduce_window(x, start, op, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


@pytest.mark.parametrize("shape", [(6, 4), (7, 5)])
def test_pooling_equals_reduce_window(shape):
    x = np.maximum(normal(1, 2, *shape, 3), 0)  # zeros tie
    weight = normal(2, 2, shape[0] // 2, shape[1] // 2, 3)

    def gradient(pool):
        return jax.value_and_grad(lambda x: (weight * pool(x)).sum())(x)

    value, g = gradient(C.max_pool)
    want, h = gradient(lambda x: window(x, -jnp.inf, jax.lax.max))
    np.testing.assert_allclose(value, want, rtol=1e-5)
    assert np.array_equal(g, h)
    mean = C.avg_pool(x)
    np.testing.assert_allclose(mean, window(x, 0.0, jax.lax.add) / 4, rtol=1e-5)


def test_max_pool_does_not_hide_nan():
    for position in range(4):
        x = np.zeros((1, 2, 2, 1), np.float32)
        x.reshape(-1)[position] = np.nan
        assert np.isnan(C.max_pool(jnp.asarray(x))).all()


def test_conv_module_equals_flax():
    x = normal(1, 2, 9, 8, 3)
    ours = Conv(3, 4, 5, stride=2, padding="VALID", rngs=nnx.Rngs(0))
    theirs = nnx.Conv(3, 4, (5, 5), strides=2, padding="VALID", rngs=nnx.Rngs(1))
    ours.bias[...] = jnp.asarray(normal(2, 4))
    assert ours.kernel.shape == theirs.kernel.shape
    nnx.update(theirs, nnx.state(ours, nnx.Param))
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    bare = Conv(3, 4, use_bias=False, rngs=nnx.Rngs(0))
    assert bare(np.zeros_like(x)).shape == (2, 9, 8, 4)
    assert len(jax.tree.leaves(nnx.state(bare, nnx.Param))) == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: C.conv(x, jnp.zeros((3, 3, 1, 2)), padding="FULL"), "padding is 'FULL'"),
        (lambda x: C.conv(x, jnp.zeros((3, 3, 1, 2)), 0), "stride is 0"),
        (lambda x: C.conv(x, jnp.zeros((3, 3, 2, 2))), "kernel has shape"),
        (lambda x: C.conv(x, jnp.zeros((3, 2, 1, 2))), "kernel has shape"),
        (lambda x: C.patches(x, 5, 1, "VALID"), "smaller than the 5 x 5 window"),
        (lambda x: C.patches(x[0], 3), "must be"),
        (lambda x: C.max_pool(x[:, :1]), "pooling needs"),
        (lambda x: C.avg_pool(x[0]), "pooling needs"),
    ],
)
def test_bad_images_are_refused(call, words):
    with pytest.raises(InputError, match=words):
        call(jnp.zeros((1, 4, 4, 1)))


# ---- models


def dim(module, *shape):
    return classification(module, jax.ShapeDtypeStruct((2, *shape), jnp.float32)).dim


def resnet_size(channels, classes, widths, blocks):
    count, before = 9 * channels * widths[0] + 2 * widths[0], widths[0]
    for stage, w in enumerate(widths):
        for i in range(blocks):
            count += 9 * before * w + 9 * w * w + 4 * w + (before * w if (stage and not i) or before != w else 0)
            before = w
    return count + widths[-1] * classes + classes


def test_parameter_counts():
    assert dim(partial(MLP, (784, 64, 10)), 784) == 784 * 64 + 64 + 64 * 10 + 10 == 50_890
    assert dim(CNN, 784) == (9 * 16 + 16) + (9 * 16 * 32 + 32) + (7 * 7 * 32 * 10 + 10) == 20_490
    assert dim(partial(CNN, (13, 8, 3), 5, widths=(2, 4)), 13, 8, 3) == (27 * 2 + 2) + (18 * 4 + 4) + 3 * 2 * 4 * 5 + 5
    lenet = (25 * 6 + 6) + (25 * 6 * 16 + 16) + (400 * 120 + 120) + (120 * 84 + 84) + (84 * 10 + 10)
    assert dim(LeNet, 28, 28) == lenet == 61_706
    assert dim(ResNet, 32, 32, 3) == resnet_size(3, 10, (16, 32, 64), 1)
    other = partial(ResNet, (8, 8, 1), 4, widths=(6, 6, 9), blocks=2, groups=3)
    assert dim(other, 8, 8, 1) == resnet_size(1, 4, (6, 6, 9), 2)
    v, w, n, t = 90, 64, 4, 80
    size = (v + t) * w + n * (12 * w * w + 13 * w) + 2 * w + w * v + v
    assert language_model(Transformer, jax.ShapeDtypeStruct((1, t), jnp.int32)).dim == size == 216_794


def small(name):
    """A small task of each model, with inputs `[8, ...]` and labels."""
    if name == "transformer":
        task = language_model(partial(Transformer, 11, 12, 2, 3, 6), jnp.zeros((1, 6), jnp.int32))
        return task, tokens(1, 11, 8, 6), tokens(2, 11, 8, 6)
    made = {
        "mlp": partial(MLP, (144, 6, 3)),
        "cnn": partial(CNN, (12, 12, 1), 3, widths=(2, 4)),
        "lenet": partial(LeNet, (12, 12, 1), 3),
        "resnet": partial(ResNet, (12, 12, 1), 3, widths=(4, 8), groups=2),
    }
    return classification(made[name], jnp.zeros((1, 144)), 3), normal(1, 8, 12, 12, 1), tokens(2, 3, 8)


@pytest.mark.parametrize("name", MODELS)
def test_models_fit_a_batch_and_nodes_and_examples_are_independent(name):
    task, x, y = small(name)

    def learn(key):
        """A fresh model, its predictions, and the model and losses of thirty gradient steps on the batch."""

        def descend(row, _):
            value, g = jax.value_and_grad(lambda r: mean_loss(task, r, x, y))(row)
            return row - 0.1 * g, value

        row = task.init(key)
        return row, task.predict(task.unravel(row), x), *jax.lax.scan(descend, row, length=30)

    keys = jax.random.split(KEY, 3)
    nodes = jit(jax.vmap(learn))
    rows, predictions, trained, losses = nodes(keys[:2])
    assert (losses[:, -1] < 0.8 * losses[:, 0]).all()
    assert np.abs(rows[0] - rows[1]).max() > 0.1
    beside_another = nodes(keys[1:])[2]
    np.testing.assert_allclose(beside_another[0], trained[1], rtol=1e-4, atol=1e-5)
    few = x[:3].reshape(3, -1) if name != "transformer" else x[:3]  # flat images are the same images
    predict = jit(lambda row: task.predict(task.unravel(row), few))
    for row, of_all in zip(rows, predictions, strict=True):
        np.testing.assert_allclose(predict(row), of_all[:3], rtol=1e-4, atol=1e-5)


def test_kernels_start_lecun_normal_and_biases_at_zero():
    conv, dense = Conv(6, 16, 5, rngs=nnx.Rngs(0)), MLP((400, 6), rngs=nnx.Rngs(1)).layers[0]
    for layer, inputs in ((conv, 25 * 6), (dense, 400)):
        unit = np.asarray(layer.kernel[...]) * np.sqrt(inputs)
        np.testing.assert_allclose([unit.mean(), unit.std()], [0, 1], atol=0.05)
        assert np.abs(unit).max() <= 2 / 0.8796 + 1e-3
        assert not np.asarray(layer.bias[...]).any()


def layer_norm(x, p):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def test_transformer_equals_numpy_in_float64():
    heads, width = 3, 12
    task, x, _ = small("transformer")
    row = jnp.asarray(0.3 * normal(5, task.dim))
    predict = jit(lambda row: task.predict(task.unravel(row), x))
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), task.unravel(row))
    h = p["token"][x] + p["position"][: x.shape[1]]
    for i in range(2):
        q = p["layers"][i]
        parts = dense(layer_norm(h, q["norm1"]), q["qkv"]).reshape(*x.shape, 3, heads, width // heads)
        heard = np.zeros((*x.shape, heads, width // heads))
        for t in range(x.shape[1]):
            s = np.einsum("bhd,bkhd->bhk", parts[:, t, 0], parts[:, : t + 1, 1]) / np.sqrt(width / heads)
            a = np.exp(s) / np.exp(s).sum(-1, keepdims=True)
            heard[:, t] = np.einsum("bhk,bkhd->bhd", a, parts[:, : t + 1, 2])
        h = h + dense(heard.reshape(*x.shape, width), q["out"])
        u = dense(layer_norm(h, q["norm2"]), q["up"])
        u = 0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
        h = h + dense(u, q["down"])
    want = dense(layer_norm(h, p["norm"]), p["head"])
    np.testing.assert_allclose(predict(row), want, rtol=1e-3, atol=1e-3)


def test_transformer_hears_only_the_past():
    task, x, _ = small("transformer")
    row = jit(task.init)(KEY)
    predict = jit(lambda x: task.predict(task.unravel(row), x))
    changed = x.copy()
    changed[:, 4] = (x[:, 4] + 1) % 11
    before, after = predict(x), predict(changed)
    assert np.array_equal(before[:, :4], after[:, :4])
    assert np.abs(before[:, 4:] - after[:, 4:]).max(axis=(0, 2)).min() > 1e-3
    np.testing.assert_allclose(predict(x[:, :3]), before[:, :3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda r: MLP((4,), rngs=r), "sizes is"),
        (lambda r: MLP((4, 0), rngs=r), "sizes is"),
        (lambda r: ResNet(groups=5, rngs=r), "groups 5"),
        (lambda r: ResNet(blocks=0, rngs=r), "blocks is 0"),
        (lambda r: Transformer(width=10, heads=4, rngs=r), "heads is 4"),
        (lambda r: Transformer(length=3, depth=0, rngs=r)(jnp.zeros((1, 4), int)), "at most 3"),
        (lambda r: Transformer(depth=0, rngs=r)(jnp.zeros((1, 4))), "integer tokens"),
        (lambda r: CNN((8, 8, 1), rngs=r)(jnp.zeros((2, 7, 7, 1))), "takes images"),
    ],
)
def test_bad_models_are_refused(build, words):
    with pytest.raises(InputError, match=words):
        build(nnx.Rngs(0))
