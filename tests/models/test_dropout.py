"""Dropout in tasks: random in training alone, and the same however the nodes are mapped."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax_modules import DROPPED, KEY, Dropped, X, Y, shards

from jaxfl.algorithms import dsgd
from jaxfl.core import Shards
from jaxfl.engine.run import run
from jaxfl.learn import task as T
from jaxfl.learn.local import local_sgd
from jaxfl.world.graph import ring
from jaxfl.world.mixing import metropolis
from jaxfl.world.scenario import scenario


@pytest.mark.parametrize("kind", DROPPED)
def test_dropout_is_random_in_training_and_not_in_evaluation(kind):
    task = T.classification(DROPPED[kind], X)
    p = task.unravel(task.init(KEY))
    assert task.untrained == ()
    losses = np.stack([task.train(p, X, Y, jax.random.key(k), None)[0] for k in range(20)])
    assert losses.std(0).min() > 0
    assert np.unique(losses[0] - losses[1]).size == len(X)  # each example drops its own units
    np.testing.assert_array_equal(task.train(p, X, Y, KEY, None)[0], task.train(p, X, Y, KEY, None)[0])
    np.testing.assert_array_equal(task.loss(p, X, Y), task.loss(p, X, Y))
    # logits are linear in what is dropped, and nothing is lost on average
    out = np.stack([np.asarray(T.to_module(task, task.ravel(p))(X))])
    np.testing.assert_allclose(task.predict(p, X), out[0], rtol=1e-6)
    learn = local_sgd(task, optax.sgd(0.1), steps=1)
    rows = [learn(jax.random.key(k), shards([10]), 0, task.ravel(p))[0] for k in (0, 0, 1)]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert np.abs(rows[0] - rows[2]).max() > 1e-4


def dropped_rows():
    """Models of eight nodes after three rounds of gossip with dropout, in blocks and all at once."""
    task = T.classification(Dropped, X)
    order = jnp.arange(16, dtype=jnp.int32) % 10
    data = Shards(jnp.asarray(X), jnp.asarray(Y), order, jnp.arange(0, 16, 2), jnp.full(8, 2), 2)
    world = scenario(data, topology=metropolis(ring(8)))
    x = task.init(KEY)
    return {
        f"block {b}": np.asarray(run(dsgd(task, steps=2, batch=2), world, x, 3, block=b, progress=False).state.nodes)
        for b in (None, 3)
    }


EIGHT = """
import sys
sys.path[:0] = sys.argv[2:]
import jax
jax.config.update("jax_num_cpu_devices", 8)
import numpy as np
from test_dropout import dropped_rows
np.savez(sys.argv[1], **dropped_rows())
"""


def test_dropout_is_the_same_in_any_blocks_and_on_eight_devices(tmp_path):
    here = Path(__file__).parent
    args = [sys.executable, "-W", "error", "-c", EIGHT, str(tmp_path / "8.npz"), str(here), str(here.parent)]
    subprocess.run(args, check=True)
    one, eight = dropped_rows(), np.load(tmp_path / "8.npz")
    for name in one:
        np.testing.assert_allclose(one[name], one["block None"], atol=1e-6)
        np.testing.assert_allclose(eight[name], one["block None"], atol=1e-6)
    assert np.abs(one["block None"][0] - one["block None"][4]).max() > 1e-4
