"""Statistics of batch norms in tasks: trained, averaged, kept, of nnx and linen alike."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax_modules import KEY, NORMED, Normed, X, Y, shards

from jaxfl.algorithms import fedasync, fedavg
from jaxfl.algorithms.server.fedopt import fedadam
from jaxfl.data import partition
from jaxfl.data.sets import from_arrays
from jaxfl.engine.run import run
from jaxfl.exchange.network import Network
from jaxfl.learn import task as T
from jaxfl.learn.layers import part, statistics
from jaxfl.learn.local import local_sgd
from jaxfl.measure.metrics import Metric
from jaxfl.world.scenario import scenario


def flat(tree):
    """Leaves by the last two names of their paths, so that nnx and linen have the same ones."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {
        "/".join(jax.tree_util.keystr(p[-2:], simple=True, separator="/").split("/")): np.asarray(a, np.float64)
        for p, a in found
    }


def normed_by_hand(p, x, y, old):
    """One step of rate 0.1 of the network above in float64, by finite differences of its loss, and its statistics."""

    def loss(p):
        z = x @ p["dense/kernel"] + p["dense/bias"]
        z = (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) * p["norm/scale"] + p["norm/bias"]
        logits = np.maximum(z, 0) @ p["out/kernel"] + p["out/bias"]
        return (np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]).mean()

    new = {}
    for name in (n for n in p if n not in ("norm/mean", "norm/var")):
        g = np.zeros_like(p[name])
        for at in np.ndindex(g.shape):
            up, down = ({**p, name: p[name].copy()} for _ in range(2))
            up[name][at] += 1e-6
            down[name][at] -= 1e-6
            g[at] = (loss(up) - loss(down)) / 2e-6
        new[name] = p[name] - 0.1 * g
    z = x @ p["dense/kernel"] + p["dense/bias"]
    return new | {
        "norm/mean": 0.8 * old["norm/mean"] + 0.2 * z.mean(0),
        "norm/var": 0.8 * old["norm/var"] + 0.2 * z.var(0),
    }


@pytest.mark.parametrize("kind", NORMED)
def test_a_step_with_batch_norm_equals_numpy_and_padding_counts_nothing(kind):
    """Node 1 has 4 of at most 6 samples: what fills its batch enters neither loss nor statistics."""
    task = T.classification(NORMED[kind], X)
    assert statistics(task) is not None
    data, row = shards([6, 4]), task.init(KEY)
    learn = local_sgd(task, optax.chain(optax.add_decayed_weights(0.0), optax.sgd(0.1)), steps=1)
    for node, own in ((0, slice(0, 6)), (1, slice(6, 10))):
        y, log = jax.jit(learn)(KEY, data, node, row)
        old = flat(task.unravel(row))
        want = normed_by_hand(old, X[own].astype(np.float64), Y[own], old)
        got = flat(task.unravel(y))
        assert got.keys() == want.keys()
        for name, value in want.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=2e-6, err_msg=name)
        assert log["gradients"] == 1


def test_nnx_and_linen_learn_the_same():
    tasks = {kind: T.classification(module, X) for kind, module in NORMED.items()}
    tree = tasks["nnx"].unravel(tasks["nnx"].init(KEY))
    other = {
        "params": {k: {n: v for n, v in sub.items() if n not in ("mean", "var")} for k, sub in tree.items()},
        "batch_stats": {"norm": {n: tree["norm"][n] for n in ("mean", "var")}},
    }
    starts = {"nnx": tree, "linen": other}
    ends = {}
    for kind, task in tasks.items():
        learn = local_sgd(task, optax.adam(0.01), epochs=2, batch=4)
        y, _ = jax.jit(learn)(KEY, shards([6, 4]), 1, task.ravel(starts[kind]))
        ends[kind] = flat(task.unravel(y)), np.asarray(task.predict(task.unravel(y), X))
    for name, value in ends["nnx"][0].items():
        np.testing.assert_allclose(ends["linen"][0][name], value, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(ends["linen"][1], ends["nnx"][1], atol=1e-5)


def test_what_runs_no_step_keeps_its_statistics():
    task = T.classification(Normed, X)
    row = task.init(KEY)
    learn = local_sgd(task, optax.sgd(0.1), steps=3, batch=2)
    np.testing.assert_array_equal(learn(KEY, shards([6, 4]), 0, row, steps=0)[0], row)


@pytest.mark.parametrize("make", [fedadam, partial(fedavg, lr=0.05)])
def test_a_server_averages_statistics_whatever_its_optimizer(make):
    task = T.classification(Normed, X)
    kept, data, x = statistics(task), shards([6, 4]), task.init(KEY)
    log = run(make(task, steps=1, batch=None), scenario(data), x, 1, progress=False)
    learn = local_sgd(task, optax.sgd(0.1), steps=1)
    each = np.stack([learn(KEY, data, i, x)[0] for i in range(2)])[:, kept.columns]
    np.testing.assert_allclose(log.state.shared["x"][kept.columns], np.array([0.6, 0.4]) @ each, rtol=1e-5)


def test_who_mixes_models_mixes_their_statistics():
    task = T.classification(Normed, X)
    data, x = shards([10]), task.init(KEY)
    after = run(fedasync(task, alpha=0.25, lr=0.1, steps=1, batch=None), scenario(data), x, 1, progress=False)
    y, _ = local_sgd(task, optax.sgd(0.1), steps=1)(KEY, data, 0, x)
    np.testing.assert_allclose(after.state.shared["x"], x + 0.25 * (y - x), atol=1e-6)


def scaled_clients(n=6, each=60):
    """Clients whose inputs have scales from 0.1 to 30, one rule for all: the case for norms that stay at home."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n, each, 4))
    y = (x @ rng.normal(size=(4, 3))).argmax(-1)
    scale, shift = np.geomspace(0.1, 30, n), 3 * rng.normal(size=(n, 1, 4))
    x = x * scale[:, None, None] + shift * scale[:, None, None]
    data = from_arrays(x.reshape(-1, 4).astype(np.float32), y.ravel(), clients=np.repeat(np.arange(n), each))
    return partition.by_client(data)


def test_batch_norm_kept_by_the_node_beats_averaged_where_inputs_are_scaled_differently():
    task, data = T.classification(Normed, X), scaled_clients()
    x, y = data.x.reshape(6, -1, 4), data.y.reshape(6, -1)

    def own_loss(arrays, answer):
        rows = jnp.broadcast_to(answer, (6, task.dim))
        return {"own_loss": jax.vmap(lambda r, x, y: T.mean_loss(task, r, x, y))(rows, *arrays).mean()}

    ends = {}
    for name, net in {"averaged": Network(), "kept": Network(personal=part(task, "norm/*"))}.items():
        system = fedavg(task, net, lr=0.1, steps=5, batch=20)
        result = run(system, scenario(data), task.init, 40, evaluate=Metric(own_loss, (x, y)), progress=False)
        ends[name] = result.history
    assert ends["kept"]["own_loss"].iloc[-1] < 0.6 * ends["averaged"]["own_loss"].iloc[-1]
    bits = ends["kept"]["up_bits"].dropna() / ends["averaged"]["up_bits"].dropna()
    np.testing.assert_allclose(bits, 1 - 20 / task.dim)


@pytest.mark.parametrize("kind", NORMED)
def test_a_variance_that_an_average_made_negative_counts_as_0(kind):
    task = T.classification(NORMED[kind], X)
    tree = task.unravel(task.init(KEY))
    below, zero = (
        jax.tree.map_with_path(lambda path, a, v=v: a * 0 + v if path[-1].key == "var" else a, tree) for v in (-0.1, 0)
    )
    np.testing.assert_array_equal(task.predict(below, X), task.predict(zero, X))
    assert np.isfinite(task.predict(below, X)).all()


def test_statistics_stay_in_float32_where_arithmetic_does_not():
    task = T.classification(Normed, X, compute="bfloat16")
    y, _ = local_sgd(task, optax.sgd(0.0), steps=1)(KEY, shards([10]), 0, task.init(KEY))
    full = T.classification(Normed, X)
    want, _ = local_sgd(full, optax.sgd(0.0), steps=1)(KEY, shards([10]), 0, full.init(KEY))
    np.testing.assert_allclose(y, want, rtol=2e-2, atol=2e-3)
    moved = np.asarray(y)[statistics(task).columns]
    assert (moved != np.asarray(jnp.asarray(moved, jnp.bfloat16), np.float32)).any()
