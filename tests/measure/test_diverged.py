"""What a model that is not finite scores: nothing, whatever the task and the metric; and labels that have no class."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from common import digits_world, jaxfl, ring

from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.data.sets import digits, from_arrays
from jaxfl.engine.arguments import check_scores
from jaxfl.engine.plan import plan
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.learn import task
from jaxfl.learn.groups import Group
from jaxfl.learn.heads import multi_head
from jaxfl.learn.multilabel import multilabel
from jaxfl.measure.metrics import local_test, shared_test
from jaxfl.measure.personal import one_head, personal_accuracy
from jaxfl.models.networks import MLP, Transformer
from jaxfl.options import learning
from jaxfl.options.config import Setup
from jaxfl.report import sweeps, tables

X, N = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32), 3
Y = jnp.arange(6) % N
TOKENS = jnp.arange(12).reshape(6, 2) % 5
MLP_OF = partial(MLP, (4, 3, N))
OWN = task.from_functions(
    lambda key: jnp.ones((4, N)),
    lambda p, x, y: ((x @ p) ** 2).sum(1),
    lambda p, x: x @ p,
    lambda said, y: (said.argmax(1) == y).astype(jnp.float32),
)
TASKS = {
    "classification": (task.classification(MLP_OF, X), X, Y),
    "logistic": (task.logistic_regression(4, N), X, Y),
    "a user's own": (OWN, X, Y),
    "heads": (multi_head(task.regression(MLP_OF, X), X, N, 2), X, Y),
    "language": (task.language_model(partial(Transformer, 5, 8, 1, length=2), TOKENS), TOKENS, TOKENS),
    "multilabel": (multilabel(MLP_OF, X), X, jax.nn.one_hot(Y, N, dtype=jnp.int32)),
    "f1": (multilabel(MLP_OF, X, score="f1"), X, jax.nn.one_hot(Y, N, dtype=jnp.int32)),
    "regression": (task.regression(MLP_OF, X), X, jax.nn.one_hot(Y, N)),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_model_that_is_not_finite_has_no_score(name):
    of, x, y = TASKS[name]
    found = jax.jit(lambda row: task.scores(of, row, x, y, batch=4))
    row = of.init(jax.random.key(0))
    assert np.isfinite(list(found(row).values())).all()
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        for at in (0, -1):  # one number is enough, though it may reach no prediction
            assert np.isnan(list(found(row.at[at].set(bad)).values())).all()
    if of.correct is not None:  # a finite model whose prediction is none
        assert np.isnan(found(jnp.full_like(row, 3e38).at[::2].multiply(-1))["accuracy"]) or name == "language"


def test_one_node_that_diverged_is_not_averaged_away():
    of, world = digits_world(n=4)
    rows = jnp.tile(of.init(jax.random.key(0)), (4, 1)).at[2, 5].set(jnp.inf)
    test = shared_test(of, jnp.asarray(digits().test_x[:20]), jnp.asarray(digits().test_y[:20]))
    found = test.measure(test.arrays, rows)
    assert np.isnan(list(found.values())).all()
    own = local_test(of, world.data)
    columns, by_node = check_scores(own.measure(own.arrays, rows))
    assert np.isnan(list(columns.values())).all()
    assert list(np.isneginf(by_node["local_accuracy"])) == [False, False, True, False]
    others = local_test(of, world.data, ids=[0, 1, 3])
    assert np.isfinite(list(check_scores(others.measure(others.arrays, rows))[0].values())).all()
    groups = (Group(of, tuple(range(4))),)
    each = personal_accuracy(groups, digits().test_x, digits().test_y, np.ones((4, 10)), logits=one_head)
    assert all(np.isnan(v).any() for v in each.measure(each.arrays, (rows,)).values())


def test_a_run_that_diverges_has_no_accuracy():
    of, world = digits_world(n=4, topology=ring(4))
    test = shared_test(of, jnp.asarray(digits().test_x[:20]), jnp.asarray(digits().test_y[:20]))
    history = run(dsgd(of, lr=1e38, steps=3, batch=4), world, of.init, 2, every=1, evaluate=test).history
    assert list(history["diverged"]) == [0, 4, 4]
    assert np.isfinite(history.loc[0, list(test.measure(test.arrays, jnp.zeros((4, 650))))].astype(float)).all()
    for name in ("accuracy", "node_accuracy", "worst_decile", "test_loss"):
        assert np.isnan(history[name][1:]).all()


@pytest.mark.parametrize(
    "of",
    [
        task.logistic_regression(64, 5),
        task.classification(partial(MLP, (64, 5)), jnp.zeros((1, 64))),
        multi_head(task.regression(partial(MLP, (64, 8)), jnp.zeros((1, 64))), jnp.zeros((1, 64)), 5, 2),
    ],
    ids=["logistic", "mlp", "heads"],
)
def test_labels_without_a_class_are_refused(of, nothing_compiled):
    _, world = digits_world(n=4, topology=ring(4))
    says = r"data holds the label [5-9], but the model has classes 0 to 4\.$"
    with pytest.raises(InputError, match=says):
        run(dsgd(of), world, of.init, 2)
    with pytest.raises(InputError, match=says):
        plan(partial(dsgd, of), world, of.init, hyper={"lr": 0.1})
    with pytest.raises(InputError, match=says.replace("data", "y")):
        shared_test(of, digits().test_x, digits().test_y)
    with pytest.raises(InputError, match=says.replace("data", "shards")):
        local_test(of, world.data)


def test_a_label_that_nobody_owns_is_none():
    of, world = digits_world(n=4, topology=ring(4))
    order, start = np.asarray(world.data.order), np.asarray(world.data.start)
    y = np.asarray(world.data.y).copy()
    y[order[start[1]]] = -1
    unknown = dataclasses.replace(world.data, y=jnp.asarray(y))
    with pytest.raises(InputError, match="data holds the label -1, but the model has classes 0 to 9"):
        run(dsgd(of), world._replace(data=unknown), of.init, 2)
    start, size = start.copy(), np.asarray(world.data.size).copy()
    start[1], size[1] = start[1] + 1, size[1] - 1
    task.check_labels(of, dataclasses.replace(unknown, start=start, size=size), "data")


def test_a_command_line_refuses_them_too(monkeypatch):
    text = from_arrays(TOKENS, TOKENS, TOKENS[:2], TOKENS[:2], task="language_model", classes=9, tokens=True)
    text = text._replace(y=np.asarray(TOKENS) + 1)
    monkeypatch.setattr(learning, "_module", lambda *given: partial(Transformer, 5, 8, 1, length=2))
    with pytest.raises(InputError, match=r"^y of data mine.npz holds the label 5, but the model has classes 0 to 4"):
        learning.task_of(Setup(data="mine.npz", model="transformer"), text)


def test_what_diverged_is_said_under_the_table():
    rows = {
        "seed": [0, 0, 1, 1],
        "round": [0, 2, 0, 2],
        "diverged": [0.0, 3, 0, 0],
        "accuracy": [0.1, np.nan, 0.1, 0.5],
    }
    mixed, fine = pd.DataFrame(rows), pd.DataFrame(rows).assign(diverged=0.0, accuracy=0.5)
    line = pd.DataFrame({"seed": [0, 0], "round": [0, 1], "diverged": [0.0, 0.0], "test_loss": [1.0, np.inf]})
    assert tables.divergence({"fine": fine, "bare": fine[["seed", "round"]]}) == ""
    assert tables.divergence({"a": mixed, "fine": fine, "line": line}) == (
        "diverged: a (1 of 2 seeds, 3 models), line (1 of 1 seeds); what is not finite has no score."
    )
    assert "and 2 more;" in tables.divergence({str(i): line for i in range(tables.SHOWN + 2)})


def test_a_picture_of_points_that_all_diverged_does_not_fall_back_to_the_start():
    rows = [
        {
            "lr": lr,
            "seed": s,
            "round": r,
            "diverged": 4.0 * (r and lr > least),
            "accuracy": np.nan if r and lr > least else 0.1 + r,
        }
        for lr in (1.0, 2.0)
        for s, least in ((0, 0), (1, 1))
        for r in (0, 2)
    ]
    table = sweeps.last(pd.DataFrame(rows), ["lr"], "accuracy")
    assert table.isna().all(axis=None)  # at lr 1 one of two seeds is left, at 2 none
    sweeps.figure(pd.DataFrame(rows), ["lr"], "accuracy")


def test_a_sweep_that_diverges_names_no_best_point(tmp_path, capsys):
    options = ["--nodes", 4, "--data", "digits", "--rounds", 2, "--seeds", 1]
    assert jaxfl("sweep", "fedavg", "--grid", "lr=1e20,1e30", *options, "--out", tmp_path / "o") == 0
    said = capsys.readouterr().out
    assert "no point has a finite accuracy" in said
    assert "diverged: lr=1e+20 (1 of 1 seeds, 1 models), lr=1e+30 (1 of 1 seeds, 1 models);" in said
