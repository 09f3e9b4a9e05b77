"""Metrics against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import digits_world, quadratics

from jaxfl.errors import InputError
from jaxfl.learn import task
from jaxfl.learn.groups import Group
from jaxfl.measure import metrics
from jaxfl.measure.personal import one_head, personal_accuracy

RNG = np.random.default_rng(0)


def accuracy(row, x, y):
    logits = x @ row[10:].reshape(64, 10) + row[:10]
    soft = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return (logits.argmax(1) == y).mean(), -soft[np.arange(len(y)), y].mean()


@pytest.mark.parametrize("batch", [None, 7])
def test_shared_test_set(batch):
    x, y = RNG.normal(size=(40, 64)), RNG.integers(0, 10, 40)
    rows = RNG.normal(size=(25, 650)) * 0.3
    t = task.logistic_regression(64, 10)
    metric = metrics.shared_test(t, jnp.float32(x), jnp.asarray(y), batch=batch)
    got = jax.jit(metric.measure)(metric.arrays, jnp.float32(rows))
    each = np.array([accuracy(r, x, y)[0] for r in rows])
    mean = rows.mean(0)
    want = {
        "accuracy": accuracy(mean, x, y)[0],
        "test_loss": accuracy(mean, x, y)[1],
        "node_accuracy": each.mean(),
        "worst_decile": np.sort(each)[:2].mean(),
        "node_spread": each.std(),
        "consensus": np.sqrt(((rows - mean) ** 2).sum(1).mean()),
    }
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, err_msg=name)
    one = jax.jit(metric.measure)(metric.arrays, jnp.float32(mean))
    np.testing.assert_allclose(one["worst_decile"], one["accuracy"])
    assert float(one["node_spread"]) == float(one["consensus"]) == 0
    brief = metrics.shared_test(t, jnp.float32(x), jnp.asarray(y), nodes=False)
    assert jax.eval_shape(brief.measure, brief.arrays, jnp.float32(rows)).keys() == {"accuracy", "test_loss"}


@pytest.mark.parametrize(
    ("share", "n", "count"),
    [(0.29, 100, 29), (0.57, 100, 57), (0.07, 100, 7), (0.1, 10, 1), (0.99, 10, 9), (0.01, 10, 1), (1.0, 10, 10)],
)
def test_the_worst_share_holds_as_many_as_by_hand(share, n, count):
    """Of the values 0, 1, ... the mean of the lowest `count` is `(count - 1) / 2`."""
    assert float(metrics.worst(jnp.arange(n, dtype=jnp.float32), share)) == pytest.approx((count - 1) / 2)


def test_regression_has_losses_in_place_of_accuracies():
    x, y = RNG.normal(size=(30, 3)), RNG.normal(size=30)
    rows = RNG.normal(size=(4, 3))
    metric = metrics.shared_test(task.linear_regression(3), jnp.float32(x), jnp.float32(y))
    got = jax.jit(metric.measure)(metric.arrays, jnp.float32(rows))
    each = np.array([np.mean(0.5 * (x @ r - y) ** 2) for r in rows])
    np.testing.assert_allclose(got["node_loss"], each.mean(), rtol=1e-5)
    np.testing.assert_allclose(got["test_loss"], np.mean(0.5 * (x @ rows.mean(0) - y) ** 2), rtol=1e-5)


def test_equal_models_have_no_distance_whatever_their_scale():
    row = jnp.asarray(RNG.normal(size=500) * 1e3, jnp.float32)
    assert float(metrics.consensus_distance(jnp.tile(row, (1000, 1)))) == 0


def test_training_objective_and_distance_on_quadratics():
    q, t, data = quadratics(n=6, d=3)
    rows = RNG.normal(size=(6, 3))
    mean = rows.mean(0)
    metric = metrics.together(metrics.training_objective(t, data), metrics.distance_to(q.optimum))
    got = jax.jit(metric.measure)(metric.arrays, jnp.float32(rows))
    gap = mean - q.b
    np.testing.assert_allclose(got["train_loss"], np.mean(0.5 * np.einsum("ni,nij,nj->n", gap, q.A, gap)), rtol=1e-5)
    slope = np.einsum("nij,nj->ni", q.A, gap).mean(0)
    np.testing.assert_allclose(got["gradient_norm"], np.linalg.norm(slope), rtol=1e-5)
    np.testing.assert_allclose(got["error"], ((rows - q.optimum) ** 2).sum(1).mean(), rtol=1e-5)
    np.testing.assert_allclose(got["mean_error"], ((mean - q.optimum) ** 2).sum(), rtol=1e-5)
    with pytest.raises(InputError, match="one row"):
        metrics.distance_to(rows)


def test_names_and_answers_that_a_metric_cannot_take_are_refused():
    q, _, data = quadratics(n=6, d=3)
    t = task.linear_regression(3)
    both = metrics.together(metrics.distance_to(q.optimum), metrics.shared_test(t, jnp.ones((4, 3)), jnp.ones(4)))
    with pytest.raises(InputError, match="metrics measure consensus twice"):
        both.measure(both.arrays, jnp.zeros((6, 3)))
    alone = metrics.shared_test(t, jnp.ones((4, 3)), jnp.ones(4))
    with pytest.raises(InputError, match=r"has the shapes \[\[2, 3\], \[4, 5\]\]"):
        alone.measure(alone.arrays, (jnp.zeros((2, 3)), jnp.zeros((4, 5))))
    with pytest.raises(InputError, match="metrics hold function"):
        metrics.together(alone, lambda arrays, answer: {})
    with pytest.raises(InputError, match="metrics hold function"):
        metrics.among(lambda arrays, answer: {}, [0])
    with pytest.raises(InputError, match="task is a Shards, but must be a Task"):
        metrics.shared_test(data, jnp.ones((4, 3)), jnp.ones(4))


def test_a_servers_model_is_every_nodes_model():
    """The accuracy of one model, weighed by the labels of 4 nodes, against float64 NumPy."""
    x, y = RNG.normal(size=(60, 64)), np.arange(60) % 10
    row, counts = RNG.normal(size=650) * 0.3, RNG.integers(1, 9, (4, 10))
    t = task.logistic_regression(64, 10)
    crowd = (Group(t, (2, 0, 1, 3)),)
    metric = personal_accuracy(crowd, jnp.float32(x), y, counts, logits=one_head)
    got = jax.jit(metric.measure)(metric.arrays, jnp.float32(row))
    hit = (x @ row[10:].reshape(64, 10) + row[:10]).argmax(1) == y
    by_class = np.array([hit[y == c].mean() for c in range(10)])
    private = (counts / counts.sum(1, keepdims=True)) @ by_class
    want = {"private_0": private.mean(), "private_0_spread": private.std()}
    want |= {"shared_0": by_class.mean(), "shared_0_spread": 0.0}
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    tiled = jax.jit(metric.measure)(metric.arrays, jnp.tile(jnp.float32(row), (4, 1)))
    np.testing.assert_allclose(tiled["private_0"], got["private_0"], rtol=1e-6)
    with pytest.raises(InputError, match=r"has the shapes \[\(5, 650\)\]"):
        metric.measure(metric.arrays, jnp.zeros((5, 650)))


def test_training_objective_weighs_nodes_equally():
    t, world = digits_world(n=6)
    metric = metrics.training_objective(t, world.data)
    got = jax.jit(metric.measure)(metric.arrays, jnp.zeros(650))
    np.testing.assert_allclose(got["train_loss"], np.log(10), rtol=1e-5)
    data, slopes = world.data, []
    for i in range(6):
        mine = np.asarray(data.order)[data.start[i] : data.start[i] + data.size[i]]
        off = 0.1 - np.eye(10)[np.asarray(data.y)[mine]]
        slopes.append(np.concatenate([off.mean(0), (np.asarray(data.x)[mine].T @ off / len(mine)).ravel()]))
    np.testing.assert_allclose(got["gradient_norm"], np.linalg.norm(np.mean(slopes, 0)), rtol=1e-4)
