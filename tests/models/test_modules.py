"""Flax modules in tasks: statistics, dropout, recurrent cells and adapters, of nnx and linen alike."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from jaxfl.algorithms import dsgd, fedasync, fedavg
from jaxfl.algorithms.server.fedopt import fedadam
from jaxfl.core import Shards
from jaxfl.data import partition
from jaxfl.data.sets import from_arrays
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange.network import Network
from jaxfl.learn import task as T
from jaxfl.learn.distill import distilled_sgd
from jaxfl.learn.layers import layers, part, statistics
from jaxfl.learn.local import local_gradient, local_sgd
from jaxfl.mapping.canonical import canonical
from jaxfl.measure.metrics import Metric
from jaxfl.models.modules import along
from jaxfl.world.graph import ring
from jaxfl.world.mixing import metropolis
from jaxfl.world.scenario import scenario

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(10, 4)).astype(np.float32)
Y = RNG.integers(0, 3, 10).astype(np.int32)


class Normed(nnx.Module):
    def __init__(self, *, rngs):
        self.dense, self.norm, self.out = (
            nnx.Linear(4, 5, rngs=rngs),
            nnx.BatchNorm(5, momentum=0.8, rngs=rngs),
            nnx.Linear(5, 3, rngs=rngs),
        )

    def __call__(self, x):
        return self.out(nnx.relu(self.norm(self.dense(x))))


class LinenNormed(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        x = linen.BatchNorm(use_running_average=not train, momentum=0.8, name="norm")(linen.Dense(5, name="dense")(x))
        return linen.Dense(3, name="out")(linen.relu(x))


class Dropped(nnx.Module):
    def __init__(self, *, rngs):
        self.dense, self.drop, self.out = (
            nnx.Linear(4, 8, rngs=rngs),
            nnx.Dropout(0.5, rngs=rngs),
            nnx.Linear(8, 3, rngs=rngs),
        )

    def __call__(self, x):
        return self.out(self.drop(self.dense(x)))


class LinenDropped(linen.Module):
    @linen.compact
    def __call__(self, x, *, deterministic=True):
        return linen.Dense(3)(linen.Dropout(0.5)(linen.Dense(8)(x), deterministic=deterministic))


class Adapted(nnx.Module):
    def __init__(self, *, rngs):
        self.body, self.head = nnx.LoRALinear(4, 6, lora_rank=2, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.body(x))


NORMED = {"nnx": Normed, "linen": LinenNormed()}
DROPPED = {"nnx": Dropped, "linen": LinenDropped()}


def shards(sizes):
    index = (jnp.asarray(a, jnp.int32) for a in (np.arange(sum(sizes)), np.cumsum(sizes) - np.array(sizes), sizes))
    return Shards(jnp.asarray(X[: sum(sizes)]), jnp.asarray(Y[: sum(sizes)]), *index, max(sizes))


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
from test_modules import dropped_rows
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


def test_statistics_stay_in_float32_where_arithmetic_does_not():
    task = T.classification(Normed, X, compute="bfloat16")
    y, _ = local_sgd(task, optax.sgd(0.0), steps=1)(KEY, shards([10]), 0, task.init(KEY))
    full = T.classification(Normed, X)
    want, _ = local_sgd(full, optax.sgd(0.0), steps=1)(KEY, shards([10]), 0, full.init(KEY))
    np.testing.assert_allclose(y, want, rtol=2e-2, atol=2e-3)
    moved = np.asarray(y)[statistics(task).columns]
    assert (moved != np.asarray(jnp.asarray(moved, jnp.bfloat16), np.float32)).any()


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


# ---- refused


class Penalised(linen.Module):
    @linen.compact
    def __call__(self, x):
        self.sow("losses", "penalty", (x**2).mean())
        return linen.Dense(3)(x)


class TwoOutputs(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(3)(x), x


class Noisy(nnx.Module):
    def __init__(self, *, rngs):
        self.dense, self.rngs = nnx.Linear(4, 3, rngs=rngs), rngs

    def __call__(self, x):
        return self.dense(x) + jax.random.normal(self.rngs.noise(), (3,))


class LinenNoisy(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(3)(x) + jax.random.normal(self.make_rng("noise"), (3,))


class NeverDrops(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(3)(linen.Dropout(0.5, deterministic=True)(x))


class NeverRenews(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(3)(linen.BatchNorm(use_running_average=True)(x))


class Counts(nnx.Module):
    def __init__(self, *, rngs):
        self.dense, self.calls = nnx.Linear(4, 3, rngs=rngs), nnx.BatchStat(jnp.int32(0))

    def __call__(self, x):
        return self.dense(x)


class NeedsMore(linen.Module):
    @linen.compact
    def __call__(self, x, temperature):
        return linen.Dense(3)(x) / temperature


class Sized(nnx.Module):
    def __init__(self, width, *, rngs):
        self.dense = nnx.Linear(4, width, rngs=rngs)

    def __call__(self, x):
        return self.dense(x)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: T.classification(Noisy, X), "draws random numbers when it is used"),
        (lambda: T.classification(LinenNoisy(), X), "draws random numbers when it is used"),
        (
            lambda: T.classification(NeverDrops(), X),
            "Dropout with a dropout rate of 0.5, but drops nothing in training",
        ),
        (lambda: T.classification(NeverRenews(), X), "never renews batch_stats/BatchNorm_0/mean"),
        (lambda: T.classification(Penalised(), X), "keeps losses/penalty/1, which training makes larger"),
        (lambda: along(jnp.ones(6), jnp.zeros((4, 6))), "4 rows of 6 examples"),
        (lambda: T.classification(TwoOutputs(), X), "returns a tuple, must return one array"),
        (
            lambda: T.classification(Normed, X, trained="out/*"),
            "trained leaves out norm/mean, norm/var, which training renews",
        ),
        (lambda: T.classification(Counts, X), "keeps calls, which are no floats"),
        (lambda: T.classification(NeedsMore(), X), "called with x and temperature"),
        (lambda: T.classification(LinenNormed, X), r"the class LinenNormed, must be an instance of it: LinenNormed\("),
        (lambda: T.classification(Sized, X), "must be a function of `rngs` alone"),
        (lambda: T.classification(lambda rngs: 3, X), "returns something else"),
        (lambda: T.classification(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), X), "function of `rngs`"),
        (lambda: T.classification(3, X), "function of `rngs`"),
        (
            lambda: T.classification(Normed, X[:, :2]),
            r"cannot be called with inputs \[\[10, 2\]\] \(TypeError: dot_gen",
        ),
        (
            lambda: T.classification(Adapted, X, trained="*adapter*"),
            "matches no part of the model, its parts are body/",
        ),
        (lambda: local_gradient(T.classification(Normed, X)), "sends gradients, which renew none"),
        (
            lambda: distilled_sgd(T.classification(Dropped, X), optax.sgd(0.1), steps=1, batch=1),
            "distillation does not",
        ),
        (lambda: T.to_module(T.logistic_regression(4, 3), jnp.zeros(15)), "made of functions"),
        (lambda: T.from_functions(lambda key: jnp.zeros(2), lambda p, x, y: y, untrained=(True,)), "needs `train`"),
    ],
)
def test_a_module_that_would_not_do_what_it_says_is_refused(build, words):
    with pytest.raises(InputError, match=words):
        build()
