"""Which numbers a client holds: each policy against what its paper says, on models whose layers are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.errors import InputError
from jaxfl.learn import submodels
from jaxfl.learn.layers import layers
from jaxfl.learn.task import classification, from_functions
from jaxfl.models.networks import CNN, MLP, ResNet

TASK = classification(functools.partial(MLP, (6, 8, 4, 3)), np.zeros((1, 6), np.float32))
X = TASK.init(jax.random.key(0))
KEY = jax.random.key(1)


def masks(policy, n=4, t=0, x=X):
    return np.asarray(jax.vmap(lambda i, key: policy(key, i, jnp.int32(t), x).held)(
        jnp.arange(n), jax.random.split(KEY, n)))  # fmt: skip


def tree(mask, task=TASK):
    return {a.path: mask[a.start : a.stop].reshape(a.shape) for a in layers(task)}


def chain(first, second):
    """Masks of an MLP 6-8-4-3 whose hidden units are these, by hand."""
    units = np.ones(6, bool), np.asarray(first, bool), np.asarray(second, bool), np.ones(3, bool)
    found = {}
    for j in range(3):
        found[f"layers/{j}/kernel"] = units[j][:, None] & units[j + 1]
        found[f"layers/{j}/bias"] = units[j + 1]
    return found


def same(mask, want):
    got = tree(mask)
    assert got.keys() == want.keys()
    for path in want:
        np.testing.assert_array_equal(got[path], want[path], err_msg=path)


def test_a_slice_holds_the_first_units_of_each_hidden_layer():
    got = masks(submodels.width(TASK, (1.0, 0.5, 0.3)))
    same(got[0], chain([1] * 8, [1] * 4))
    same(got[1], chain([1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 0, 0]))
    same(got[2], chain([1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 0]))
    np.testing.assert_array_equal(got[3], got[0], "profiles start again after their last entry")
    assert masks(submodels.width(TASK, 1e-3), 1).sum() == 6 + 1 + 1 + 1 + 3 + 3, "one unit at least"


def test_a_sliced_model_computes_what_the_small_model_does():
    small = classification(functools.partial(MLP, (6, 4, 2, 3)), np.zeros((1, 6), np.float32))
    held = masks(submodels.width(TASK, 0.5), 1)[0]
    assert held.sum() == small.dim
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    got = TASK.predict(TASK.unravel(jnp.where(held, X, 0)), x)
    full, cut = (dict(zip([a.path for a in layers(t)], jax.tree.leaves(t.unravel(r)), strict=True)) for t, r in
                 ((TASK, X), (small, jnp.zeros(small.dim))))  # fmt: skip
    row = jnp.concatenate([full[a.path][tuple(slice(k) for k in a.shape)].ravel() for a in layers(small)])
    assert cut.keys() == full.keys()
    np.testing.assert_allclose(got, small.predict(small.unravel(row), x), rtol=1e-5, atol=1e-6)


def test_a_window_rolls_around_each_layer():
    policy = submodels.rolling(TASK, 0.5)
    same(masks(policy, 1, 0)[0], chain([1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 0, 0]))
    same(masks(policy, 1, 3)[0], chain([0, 0, 0, 1, 1, 1, 1, 0], [1, 0, 0, 1]))
    cover = np.sum([masks(policy, 1, t)[0] for t in range(8)], 0)
    assert cover.min() > 0, "in as many rounds as a layer has units every number is held"
    same(masks(submodels.rolling(TASK, 0.5, 2), 1, 3)[0], chain([1, 1, 0, 0, 0, 0, 1, 1], [0, 0, 1, 1]))


def test_ordered_dropout_draws_a_share_that_the_node_can():
    policy = submodels.ordered(TASK, (1.0, 0.5))
    sizes = {i: set() for i in range(2)}
    for t in range(40):
        for i in range(2):
            held = policy(jax.random.fold_in(KEY, 2 * t + i), jnp.int32(i), t, X).held
            sizes[i].add(int(tree(np.asarray(held))["layers/0/bias"].sum()))
    assert sizes == {0: {2, 4, 6, 8}, 1: {2, 4}}


def test_random_largest_and_balanced_masks():
    held = masks(submodels.random(TASK, (0.5, 0.9)), 2000)
    np.testing.assert_allclose([held[::2].mean(), held[1::2].mean()], [0.5, 0.9], atol=0.01)
    x = jnp.asarray(np.random.default_rng(1).permutation(TASK.dim) - TASK.dim / 2 + 0.25, jnp.float32)
    held = masks(submodels.magnitude(TASK, (0.25, 1.0)), 2, x=x)
    count = -(-TASK.dim // 4)
    np.testing.assert_array_equal(held[0], np.abs(x) >= np.sort(np.abs(x))[-count])
    assert held[1].all()
    matrix = {path: m.sum() for path, m in tree(np.asarray(submodels.pruned(TASK, x, 0.25))).items()}
    assert matrix == {f"layers/{j}/{name}": count for j, (kernel, bias) in enumerate(((12, 8), (8, 4), (3, 3)))
                      for name, count in (("kernel", kernel), ("bias", bias))}  # fmt: skip
    table = np.random.default_rng(2).random((3, TASK.dim)) < 0.5
    np.testing.assert_array_equal(masks(submodels.fixed(table), 3), table)
    held = masks(submodels.balanced(TASK, 3, 7), 7)
    assert (held.sum(0) == 3).all()


def test_depth_and_assignments_are_by_layers():
    groups = [("layers/0/*", "layers/2/*"), ("layers/1/*",)]
    held = masks(submodels.depth(TASK, groups, (1, 2)), 2)
    assert held[1].all()
    assert {path: m.all() for path, m in tree(held[0]).items() if m.any()} == {
        f"layers/{j}/{a}": True for j in (0, 2) for a in ("bias", "kernel")
    }
    assert submodels.by_layer(TASK) == [("layers/0/*",), ("layers/1/*",), ("layers/2/*",)]
    np.testing.assert_array_equal(np.unique(submodels.levels(TASK, submodels.by_layer(TASK)), return_counts=True)[1],
                                  [56, 36, 15])  # fmt: skip
    table = np.array([[True, False], [False, True]])
    held = masks(submodels.assigned(TASK, groups, table), 2)
    np.testing.assert_array_equal(held[0], ~held[1])


def test_channels_of_a_convolution_are_units_of_what_follows():
    image = classification(functools.partial(CNN, (8, 8, 1), 5, widths=(4, 6)), np.zeros((1, 64), np.float32))
    x = image.init(jax.random.key(3))
    held = np.asarray(submodels.width(image, 0.5)(KEY, jnp.int32(0), 0, x).held)
    found = tree(held, image)
    assert found["conv1/kernel"][..., :2].all()
    assert not found["conv1/kernel"][..., 2:].any()
    assert found["conv2/kernel"][:, :, :2, :3].all()
    assert found["conv2/kernel"].sum() == 9 * 2 * 3
    small = classification(functools.partial(CNN, (8, 8, 1), 5, widths=(2, 3)), np.zeros((1, 64), np.float32))
    assert held.sum() == small.dim
    images = np.random.default_rng(2).normal(size=(3, 64)).astype(np.float32)
    full = dict(zip([a.path for a in layers(image)], jax.tree.leaves(image.unravel(x)), strict=True))
    dense = full["dense/kernel"].reshape(4, 6, 5)[:, :3].reshape(-1, 5)
    pick = {a.path: full[a.path][tuple(slice(k) for k in a.shape)] for a in layers(small)} | {"dense/kernel": dense}
    row = jnp.concatenate([pick[a.path].ravel() for a in layers(small)])
    got = image.predict(image.unravel(jnp.where(held, x, 0)), images)
    np.testing.assert_allclose(got, small.predict(small.unravel(row), images), rtol=1e-5, atol=1e-6)


def test_what_cannot_be_cut_is_refused():
    deep = classification(functools.partial(ResNet, (8, 8, 3), 4, widths=(8, 8)), np.zeros((1, 8, 8, 3), np.float32))
    plain = from_functions(lambda key: jnp.zeros(3), lambda p, x, y: x @ p - y)
    for task in (deep, plain):
        with pytest.raises(InputError, match="no chain of layers"):
            submodels.width(task, 0.5)
    for profile in (0.0, 1.5, (0.5, float("nan"))):
        with pytest.raises(InputError, match="profile is"):
            submodels.width(TASK, profile)
    with pytest.raises(InputError, match="leaves out layers/1/bias"):
        submodels.depth(TASK, [("layers/0/*",), ("layers/2/*",)], 1)
    with pytest.raises(InputError, match="count is 8"):
        submodels.balanced(TASK, 8, 7)


def test_nested_models_have_the_first_blocks_of_each_stage():
    net = functools.partial(ResNet, (4, 4, 1), 3, widths=(2, 4), blocks=2, groups=2)
    task = classification(net, np.zeros((1, 16), np.float32))
    assert submodels.stages(task, 2) == (("blocks/0", "blocks/1"), ("blocks/2", "blocks/3"))
    got = masks(submodels.nested(task, submodels.stages(task, 2), (0, 1, 2)), x=task.init(KEY))
    assert not got[0].any()
    assert got[2].all()
    without = tree(got[1], task)
    assert {path.split("/")[1] for path, a in without.items() if not a.any()} == {"1", "3"}
    assert all(a.all() or path.startswith(("blocks/1/", "blocks/3/")) for path, a in without.items())
    with pytest.raises(InputError, match="which are not 3 stages"):
        submodels.stages(task, 3)
    with pytest.raises(InputError, match="0 blocks called exits"):
        submodels.stages(task, name="exits")
    with pytest.raises(InputError, match="profile is 3, but must be at least 0 and at most 2"):
        submodels.nested(task, submodels.stages(task, 2), (1, 3))
