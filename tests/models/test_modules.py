"""Flax modules in tasks: adapters, models to take home, what training computes otherwise."""

import jax
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax_modules import DROPPED, KEY, NORMED, Adapted, LinenNormed, X, Y, shards

from jaxfl.algorithms import fedavg
from jaxfl.engine.run import run
from jaxfl.learn import task as T
from jaxfl.learn.layers import layers
from jaxfl.learn.local import local_sgd
from jaxfl.mapping.canonical import canonical
from jaxfl.world.scenario import scenario


def test_an_adapter_alone_is_in_the_row_and_travels():
    task = T.classification(Adapted, X, trained="*lora*")
    assert [a.path for a in layers(task)] == ["body/lora/lora_a", "body/lora/lora_b"]
    assert task.dim == 4 * 2 + 2 * 6
    result = run(fedavg(task, steps=2, batch=None), scenario(shards([6, 4])), task.init, 2, progress=False)
    np.testing.assert_array_equal(result.history["up_bits"].dropna(), 2 * 32 * task.dim)
    whole, first = T.to_module(task, result.state.shared["x"]), Adapted(rngs=nnx.Rngs(KEY))
    np.testing.assert_array_equal(whole.head.kernel[...], first.head.kernel[...])
    np.testing.assert_array_equal(whole.body.kernel[...], first.body.kernel[...])
    assert np.abs(np.asarray(whole.body.lora.lora_b[...] - first.body.lora.lora_b[...])).max() > 1e-4
    np.testing.assert_allclose(whole(X), task.predict(task.unravel(result.state.shared["x"]), X), atol=1e-6)


@pytest.mark.parametrize("module", [*NORMED.values(), *DROPPED.values()])
def test_a_model_can_be_taken_home(module):
    task = T.classification(module, X)
    row = task.init(jax.random.key(5))
    home = T.to_module(task, row)
    using = {"train": False} if isinstance(home, LinenNormed) else {}
    np.testing.assert_allclose(home(X, **using), task.predict(task.unravel(row), X), atol=1e-6)
    assert canonical(task) is canonical(T.classification(module, X))  # built anew it compiles nothing


class Louder(linen.Module):
    """Twice as loud in training, without a draw and without statistics."""

    @linen.compact
    def __call__(self, x, train):
        return linen.Dense(3)(2 * x if train else x)


class LouderNnx(nnx.Module):
    def __init__(self, *, rngs):
        self.dense = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x, train):
        return self.dense(2 * x if train else x)


@pytest.mark.parametrize("module", [LouderNnx, Louder()])
def test_what_training_computes_otherwise_is_trained_so(module):
    task = T.classification(module, X)
    _, log = local_sgd(task, optax.sgd(0.1), steps=1)(KEY, shards([10]), 0, task.init(KEY))
    p = task.unravel(task.init(KEY))
    p = p.get("dense", p.get("Dense_0"))
    logits = 2 * X.astype(float) @ np.asarray(p["kernel"], float) + np.asarray(p["bias"], float)
    want = np.log(np.exp(logits).sum(1)) - logits[np.arange(10), Y]
    np.testing.assert_allclose(log["loss"], want.mean(), rtol=1e-5)


class Shows(nnx.Module):
    def __init__(self, *, rngs):
        self.dense, self.drop = nnx.Linear(4, 3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = self.drop(self.dense(x))
        self.sow(nnx.Intermediate, "seen", x)
        return x


@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")
def test_what_a_module_shows_of_itself_is_not_in_the_row():
    task = T.classification(Shows, X)
    y, _ = local_sgd(task, optax.sgd(0.1), steps=2)(KEY, shards([10]), 0, task.init(KEY))
    assert y.shape == (15,)
    assert task.untrained == ()
