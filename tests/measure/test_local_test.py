"""Accuracy of every node on its own samples, against scikit-learn and float64 NumPy."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import digits_world
from sklearn.metrics import accuracy_score

from jaxfl.core import Algorithm, State, n_nodes, tile
from jaxfl.data import partition
from jaxfl.data.cut import cut
from jaxfl.engine import distribution
from jaxfl.engine.arguments import check_scores
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.learn import task
from jaxfl.mapping.blocks import block_of
from jaxfl.measure import metrics

RNG = np.random.default_rng(0)
SIZES = [5, 0, 1, 17, 3, 0, 8, 2, 9, 4, 6, 12, 1]
N = len(SIZES)
X, Y, ORDER = RNG.normal(size=(100, 6)), RNG.integers(0, 4, 100), RNG.permutation(100)[: sum(SIZES)]
ROWS = RNG.normal(size=(N, 28))
TASK = task.logistic_regression(6, 4)
TEST = cut(jnp.float32(X), jnp.asarray(Y, jnp.int32), ORDER, np.array(SIZES))


def of(metric, answer):
    """Columns and what is by node."""
    return check_scores(jax.jit(metric.measure)(metric.arrays, jax.tree.map(jnp.float32, answer)))


def truth(rows, sizes=SIZES):
    """Accuracy and number of samples that are right, by node."""
    each = np.full(N, np.nan)
    for i, mine in enumerate(np.split(ORDER, np.cumsum(SIZES)[:-1])):
        if sizes[i]:
            row = np.broadcast_to(rows, (N, 28))[i]
            each[i] = accuracy_score(Y[mine], (X[mine] @ row[4:].reshape(6, 4) + row[:4]).argmax(1))
    return each


@pytest.mark.parametrize("batch", [None, 1, 4, 99])
@pytest.mark.parametrize("rows", [ROWS, ROWS[3]], ids=["a model a node", "one model"])
def test_columns_and_nodes(rows, batch):
    columns, by_node = of(metrics.local_test(TASK, TEST, batch=batch), rows)
    each, there = truth(rows), np.array(SIZES) > 0
    np.testing.assert_allclose(by_node.pop("local_accuracy"), each, rtol=1e-6)
    assert not by_node
    v = each[there]
    want = {
        "local_accuracy": v.mean(),
        "local_accuracy_worst_decile": np.sort(v)[: max(1, len(v) // 10)].mean(),
        "local_accuracy_spread": v.std(),
        "local_accuracy_jain": v.sum() ** 2 / (len(v) * (v**2).sum()),
        "local_accuracy_weighted": np.average(v, weights=np.array(SIZES)[there]),
    }
    assert columns.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(columns[name], value, rtol=1e-5, err_msg=name)


def test_nodes_that_do_not_count_are_as_if_they_had_no_sample():
    ids = [0, 3, 5, 8]
    columns, by_node = of(metrics.local_test(TASK, TEST, ids=ids), ROWS)
    want = truth(ROWS, np.where(np.isin(np.arange(N), ids), SIZES, 0))
    np.testing.assert_allclose(by_node["local_accuracy"], want, rtol=1e-6)
    np.testing.assert_allclose(columns["local_accuracy"], np.nanmean(want), rtol=1e-6)
    masked = of(metrics.local_test(TASK, TEST, ids=np.isin(np.arange(N), ids)), ROWS)[1]
    np.testing.assert_array_equal(masked["local_accuracy"], by_node["local_accuracy"])


def test_nodes_renamed_have_their_own_values():
    new = RNG.permutation(N)
    renamed = dataclasses.replace(TEST, start=TEST.start[new], size=TEST.size[new])
    one, other = of(metrics.local_test(TASK, TEST), ROWS), of(metrics.local_test(TASK, renamed), ROWS[new])
    np.testing.assert_array_equal(other[1]["local_accuracy"], one[1]["local_accuracy"][new])
    for name, value in one[0].items():
        np.testing.assert_allclose(other[0][name], value, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("rows", [ROWS, ROWS[3]], ids=["a model a node", "one model"])
def test_blocks_of_nodes_give_the_numbers_of_all_at_once(size, rows):
    metric = metrics.local_test(TASK, TEST, batch=4)
    with block_of(size):
        blocks = of(metric, rows)[1]["local_accuracy"]
    with block_of(N):
        np.testing.assert_array_equal(of(metric, rows)[1]["local_accuracy"], blocks)


def test_parts_of_an_answer_have_columns_of_their_own():
    """The personal models stand where a server's one model stands, in one comparison."""
    metric = metrics.local_test(TASK, TEST)
    both, nodes = of(metric, {"personal": ROWS, "x": ROWS[0]})
    for suffix, rows in (("", ROWS), ("_x", ROWS[0])):
        columns, by_node = of(metric, rows)
        np.testing.assert_array_equal(nodes[f"local_accuracy{suffix}"], by_node["local_accuracy"])
        for name, value in columns.items():
            np.testing.assert_array_equal(both[name.replace("accuracy", f"accuracy{suffix}")], value)
    assert len(both) == 10
    shared = metrics.shared_test(TASK, jnp.float32(X), jnp.asarray(Y))
    mine, theirs, its = (of(shared, a)[0] for a in ({"personal": ROWS, "x": ROWS[0]}, ROWS, ROWS[0]))
    assert mine["accuracy"] == its["accuracy"]
    assert mine["test_loss"] == its["test_loss"]
    assert mine["node_accuracy"] == theirs["node_accuracy"]
    assert mine["consensus"] == theirs["consensus"]


def test_losses_where_there_is_no_accuracy():
    """The worst decile of losses are the highest; a model that is not finite is no absent node."""
    line, y = task.linear_regression(6), RNG.normal(size=100)
    test = dataclasses.replace(TEST, y=jnp.float32(y))
    rows = RNG.normal(size=(N, 6))
    columns, by_node = of(metrics.local_test(line, test, batch=3), rows)
    mine = np.split(ORDER, np.cumsum(SIZES)[:-1])
    each = np.array(
        [np.mean(0.5 * (X[m] @ r - y[m]) ** 2) if len(m) else np.nan for m, r in zip(mine, rows, strict=True)]
    )
    np.testing.assert_allclose(by_node["local_loss"], each, rtol=1e-5)
    np.testing.assert_allclose(columns["local_loss_worst_decile"], np.nanmax(each), rtol=1e-5)
    np.testing.assert_allclose(columns["local_loss_spread"], np.nanstd(each), rtol=1e-5)
    rows[3] = np.nan
    columns, by_node = of(metrics.local_test(line, test), rows)
    assert np.isnan(list(columns.values())).all()
    assert list(np.flatnonzero(np.isinf(by_node["local_loss"]))) == [3]


def test_worst_and_jain_leave_out_who_has_nothing():
    v = np.array([0.2, np.nan, 0.9, 0.1, np.nan, 0.4])
    np.testing.assert_allclose(distribution.worst(jnp.float32(v), 0.5), 0.15, rtol=1e-6)
    np.testing.assert_allclose(distribution.jain(jnp.float32([3, 0, jnp.nan])), 0.5)
    assert np.isnan(distribution.worst(jnp.full(3, jnp.nan)))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.local_test(TASK, X), "shards is a ndarray"),
        (lambda: metrics.local_test(TASK, TEST, ids=[1, 5]), "no test sample of any node that counts"),
        (lambda: metrics.local_test(TASK, TEST, batch=0), "batch is 0"),
        (lambda: of(metrics.local_test(TASK, TEST), ROWS[:4]), r"has shape \[4, 28\], but \[28\] or \[13, 28\]"),
        (lambda: of(metrics.local_test(TASK, TEST), (ROWS, ROWS)), r"shapes \[\[13, 28\], \[13, 28\]\]"),
        (lambda: of(metrics.among(metrics.local_test(TASK, TEST), [0]), ROWS[0]), "where among has no say"),
        (lambda: of(metrics.among(metrics.local_test(TASK, TEST), [0]), ROWS), r"has shape \[1, 28\]"),
    ],
)
def test_what_cannot_be_measured_is_a_sentence(call, words):
    with pytest.raises(InputError, match=words):
        call()


def personal(task):
    """Nobody learns; every node has a model of its own, drawn."""

    def init(key, env, x):
        return State({"x": x}, tile(x, n_nodes(env)) + 0.1 * jax.random.normal(key, (n_nodes(env), x.size)))

    read = lambda s: {"x": s.shared["x"], "personal": s.nodes}
    return Algorithm(init, lambda key, env, s: (s, {}), read)


def spread() -> dict:
    """What a run measures by node, of 20 nodes (which 8 devices do not divide) and of 40."""
    out = {}
    for n in (20, 40):
        model, world = digits_world(n=n)
        train, test = partition.hold_out(world.data, 0.3)
        metric = metrics.local_test(model, test, batch=7)
        result = run(personal(model), world._replace(data=train), model.init, 1, seeds=3, evaluate=metric)
        out |= {f"{name} {n}": a for name, a in result.nodes.items()}
    return out


EIGHT = """
import sys
sys.path[:0] = sys.argv[2:]
import jax
jax.config.update("jax_num_cpu_devices", 8)
import numpy as np
from test_local_test import spread
np.savez(sys.argv[1], **spread())
"""


def test_the_same_numbers_on_one_and_eight_devices(tmp_path):
    assert jax.device_count() == 1
    here = Path(__file__).parent
    args = [sys.executable, "-W", "error", "-c", EIGHT, str(tmp_path / "8.npz"), str(here), str(here.parent)]
    subprocess.run(args, check=True)
    one = spread()
    with np.load(tmp_path / "8.npz") as kept:
        eight = dict(kept)
    assert eight.keys() == one.keys()
    assert one["local_accuracy_x 40"].shape == (3, 2, 40)
    for name, values in one.items():
        np.testing.assert_allclose(eight[name], values, atol=1e-6, err_msg=name)
