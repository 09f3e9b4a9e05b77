from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import f1_score, hamming_loss, log_loss

from jaxfl.errors import InputError
from jaxfl.learn.multilabel import multilabel
from jaxfl.learn.task import scores
from jaxfl.models.networks import MLP

X = jnp.asarray(np.random.default_rng(0).normal(size=(40, 5)), jnp.float32)
Y = np.random.default_rng(1).integers(0, 2, (40, 3))
Y[:4] = 0  # samples without a label


def made(**how):
    return multilabel(partial(MLP, (5, 4, 3)), X, **how)


def test_loss_and_scores_are_those_of_scikit_learn():
    task = made(labels=3)
    row = 3 * task.init(jax.random.key(0))
    logits = np.asarray(task.predict(task.unravel(row), X), np.float64)
    p, told = 1 / (1 + np.exp(-logits)), logits > 0
    told[:2] = False  # nothing told where nothing is true
    got = scores(task, row, X, jnp.asarray(Y))
    want = np.mean([log_loss(Y[:, k], p[:, k]) for k in range(3)])
    np.testing.assert_allclose(got["loss"], want, rtol=1e-5)
    out = jnp.where(jnp.asarray(told), 1.0, -1.0)
    np.testing.assert_allclose(task.correct(out, jnp.asarray(Y)).mean(), 1 - hamming_loss(Y, told), rtol=1e-6)
    f1 = made(score="f1").correct(out, jnp.asarray(Y)).mean()
    np.testing.assert_allclose(f1, f1_score(Y, told, average="samples", zero_division=1), rtol=1e-6)


def test_what_is_no_table_of_0_and_1_is_refused_or_nan():
    task = made()
    params = task.unravel(task.init(jax.random.key(0)))
    assert np.isnan(task.loss(params, X[:2], jnp.array([[0, 1, 2], [0, -1, 1]]))).all()
    with pytest.raises(InputError, match=r"y has shape \[40\], labels for logits \(40, 3\)"):
        task.loss(params, X, jnp.zeros(40, int))
    with pytest.raises(InputError, match=r"module gives logits \(40, 3\), must be \[b, 4\]"):
        made(labels=4)
    with pytest.raises(InputError, match="score is 'auc'"):
        made(score="auc")
