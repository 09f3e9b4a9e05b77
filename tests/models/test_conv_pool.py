"""Images on sub-lattices against `lax` convolutions and pools."""

from functools import partial
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.errors import InputError
from jaxfl.models import conv_pool as M
from jaxfl.models.conv_pool import ConvPool, conv_pool

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})  # these programs run for milliseconds


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def network(image, layers, seed=0):
    """Weights of layers (k, features, padding) and of a dense layer to 3 outputs."""
    channels, sides, made = image[-1], image[:2], []
    for i, (k, features, padding) in enumerate(layers):
        made.append((normal(seed + 2 * i, k, k, channels, features) / k, normal(seed + 2 * i + 1, features)))
        sides = [(n if padding == "SAME" else n - k + 1) // 2 for n in sides]
        channels = features
    return made, normal(seed + 99, sides[0] * sides[1] * channels, 3) / 5


def ours(layers, x, weights):
    return conv_pool(
        x, [ConvPool(kernel, bias, p) for (kernel, bias), (_, _, p) in zip(weights[0], layers, strict=True)], weights[1]
    )


def by_lax(layers, x, weights):
    for (kernel, bias), (_, _, padding) in zip(weights[0], layers, strict=True):
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=layout)
        x = jax.lax.reduce_window(jax.nn.relu(x + bias), -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return x.reshape(x.shape[0], -1) @ weights[1]


CASES = {
    "cnn": ((28, 28, 1), [(3, 4, "SAME"), (3, 5, "SAME")], True),
    "lenet": ((28, 28, 1), [(5, 6, "SAME"), (5, 4, "VALID")], True),
    "three layers, no square": ((16, 24, 3), [(3, 4, "SAME"), (5, 3, "SAME"), (2, 4, "SAME")], True),
    "no neighbours": ((4, 6, 2), [(1, 4, "VALID")], True),
    "wider than its image": ((8, 8, 1), [(7, 3, "SAME"), (9, 2, "SAME")], True),
    "valid first": ((12, 8, 2), [(3, 4, "VALID")], True),
    "odd": ((9, 12, 2), [(3, 4, "SAME"), (3, 2, "SAME")], False),
    "odd in between": ((12, 12, 1), [(4, 3, "VALID"), (2, 2, "SAME")], False),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_lax(name):
    image, layers, divides = CASES[name]
    x, weights = normal(7, 3, *image), network(image, layers)
    assert ("optimization_barrier" in str(jax.make_jaxpr(partial(ours, layers))(x, weights))) == divides

    def both(net, x, w):
        def loss(x, w):
            y = net(layers, x, w)
            return jnp.sin(y).sum(), y

        slope, y = jax.grad(loss, (0, 1), has_aux=True)(x, w)
        return y, slope

    got, want = jit(lambda x, w: (both(ours, x, w), both(by_lax, x, w)))(x, weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=5e-4), got, want)


def test_a_network_for_each_node_and_its_hessian():
    image, layers, _ = CASES["lenet"]
    x = normal(7, 2, 2, *image)
    weights = jax.tree.map(lambda a, b: jnp.stack([a, b]), network(image, layers), network(image, layers, seed=20))

    def curvature(net, x, w):
        gradient = jax.grad(lambda w: jnp.sin(net(layers, x, w)).sum())
        return jax.jvp(gradient, (w,), (w,))[1]  # forward over reverse

    got = jit(jax.vmap(partial(curvature, ours)))(x, weights)
    want = [jit(partial(curvature, by_lax))(*jax.tree.map(itemgetter(i), (x, weights))) for i in (0, 1)]
    want = jax.tree.map(lambda *a: np.stack(a), *want)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-2), got, want)


def test_lattices_and_the_plain_form_agree(monkeypatch):
    image, layers, _ = CASES["cnn"]
    x, weights = normal(7, 3, *image), network(image, layers)
    got = ours(layers, x, weights)
    monkeypatch.setattr(M.jax, "default_backend", lambda: "gpu")
    assert "optimization_barrier" not in str(jax.make_jaxpr(partial(ours, layers))(x, weights))
    np.testing.assert_allclose(ours(layers, x, weights), got, rtol=1e-5, atol=1e-4)


def test_one_bad_pixel_spoils_its_sample_only():
    image, layers, _ = CASES["cnn"]
    x, weights = normal(7, 3, *image), network(image, layers)
    spoilt = ours(layers, x.at[1, 5, 6, 0].set(jnp.nan), weights)
    assert np.isnan(spoilt[1]).all()
    np.testing.assert_array_equal(spoilt[::2], ours(layers, x, weights)[::2])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, made, dense: (x[0], made, dense), "x has shape"),
        (lambda x, made, dense: (x, [], dense), "0 layers"),
        (lambda x, made, dense: (x, [made[1], made[0]], dense), "kernel has shape"),
        (lambda x, made, dense: (x, [made[0]._replace(padding="FULL"), made[1]], dense), "padding is 'FULL'"),
        (lambda x, made, dense: (x, made, dense[1:]), "dense has shape"),
        (lambda x, made, dense: (x[:, :3], made, dense), "too small"),
    ],
)
def test_bad_input_is_named(change, words):
    image, layers, _ = CASES["cnn"]
    weights, dense = network(image, layers)
    made = [ConvPool(kernel, bias, p) for (kernel, bias), (_, _, p) in zip(weights, layers, strict=True)]
    with pytest.raises(InputError, match=words):
        conv_pool(*change(normal(7, 3, *image), made, dense))
