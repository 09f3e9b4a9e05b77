"""Local training against float64 NumPy, and its batches against counting."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from common import one_sample_each, quadratics, same

from jaxfl import zoo
from jaxfl.algorithms.gossip.dfedsam import dfedsam, dfedsam_mgs
from jaxfl.algorithms.gossip.dsgd import dfedavgm, dsgd
from jaxfl.algorithms.gossip.gradient_tracking import gradient_tracking
from jaxfl.algorithms.reference.centralized import centralized
from jaxfl.algorithms.reference.local_only import local_only
from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.fedopt import fedadagrad, fedadam, fedyogi
from jaxfl.algorithms.server.fedprox import fedprox
from jaxfl.algorithms.server.momentum_fl import fedavg_m
from jaxfl.algorithms.server.scaffold import scaffold
from jaxfl.core import Env, Shards
from jaxfl.errors import InputError, require
from jaxfl.learn import hooks, task
from jaxfl.learn.local import displacement, drawn_batches, epoch_batches, local_gradient, local_sgd, whole_shard
from jaxfl.learn.server import adam_moment, scale_by_moments, yogi_moment
from jaxfl.mapping.at import at
from jaxfl.options.systems import takes

KEY = jax.random.key(0)


def ragged():
    """Three shards of 5, 2 and 9 samples of a one-dimensional regression, in shuffled order."""
    rng = np.random.default_rng(0)
    order = rng.permutation(16).astype(np.int32)
    x, y = rng.normal(size=(16, 1)).astype(np.float32), rng.normal(size=16).astype(np.float32)
    start, size = np.array([0, 5, 7], np.int32), np.array([5, 2, 9], np.int32)
    return Shards(*map(jnp.asarray, (x, y, order, start, size)), 9)


def test_an_epoch_visits_every_sample_of_the_shard_once():
    data = ragged()
    for i, size in enumerate(data.size):
        index, mask = epoch_batches(KEY, data, i, epochs=3, batch=4)
        assert index.shape == (9, 4)
        for e in range(3):
            rows = slice(3 * e, 3 * e + 3)
            seen = np.sort(np.asarray(index[rows])[np.asarray(mask[rows]) > 0])
            mine = np.asarray(data.order)[data.start[i] : data.start[i] + size]
            np.testing.assert_array_equal(seen, np.sort(mine))
    assert not np.array_equal(index[:3], index[3:6])


def test_drawn_batches_stay_in_the_shard_and_are_uniform():
    data = ragged()
    drawn = np.asarray(drawn_batches(KEY, data, 0, 400, 5))
    counts = np.unique_counts(drawn)
    assert set(counts.values) == set(np.asarray(data.order)[:5])
    np.testing.assert_allclose(counts.counts / 2000, 0.2, atol=0.04)


def test_the_whole_shard_is_the_shard():
    data = ragged()
    index, mask = whole_shard(data, 1, 2)
    assert index.shape == mask.shape == (2, 9)
    assert set(np.asarray(index[0])[np.asarray(mask[0]) > 0]) == set(np.asarray(data.order)[5:7])
    assert mask.sum() == 4


def test_whole_shard_gradients_and_masked_epochs_against_numpy():
    data, t = ragged(), task.linear_regression(1)
    for i in range(3):
        mine = np.asarray(data.order)[data.start[i] : data.start[i] + data.size[i]]
        x, y = np.asarray(data.x, np.float64)[mine, 0], np.asarray(data.y, np.float64)[mine]
        g, log = local_gradient(t)(KEY, data, i, jnp.array([0.7]))
        np.testing.assert_allclose(g, [np.mean((0.7 * x - y) * x)], rtol=1e-5)
        np.testing.assert_allclose(log["loss"], np.mean(0.5 * (0.7 * x - y) ** 2), rtol=1e-5)
        learn = local_sgd(t, optax.sgd(0.1), epochs=2, batch=4, keep_gradient=True)
        got, log = learn(KEY, data, i, jnp.array([0.7]))
        index, mask = epoch_batches(jax.random.split(KEY)[0], data, i, 2, 4)
        w, seen, losses = 0.7, [], []
        for rows, live in zip(np.asarray(index), np.asarray(mask) > 0, strict=True):
            if live.any():
                bx, by = np.asarray(data.x)[rows[live], 0], np.asarray(data.y)[rows[live]]
                losses.append(np.mean(0.5 * (w * bx - by) ** 2))
                seen.append(np.mean((w * bx - by) * bx))
                w -= 0.1 * seen[-1]
        np.testing.assert_allclose(got, [w], rtol=1e-5)
        np.testing.assert_allclose(log["loss"], np.mean(losses), rtol=1e-5)
        np.testing.assert_allclose(log["gradient"], [np.mean(seen)], rtol=1e-4)
        assert int(log["steps"]) == int(log["gradients"]) == len(seen) == 2 * -(-int(data.size[i]) // 4)


def test_a_bound_on_steps_stops_the_node_and_its_momentum_there():
    _, t, data = quadratics(n=4, d=3)
    short = local_sgd(t, optax.sgd(0.05, momentum=0.9), steps=2, batch=1, keep_gradient=True)
    long = local_sgd(t, optax.sgd(0.05, momentum=0.9), steps=6, batch=1, keep_gradient=True)
    env = Env(0, 0.0, data, None, None, jnp.zeros(4, bool))
    ids = jnp.array([1, 3])
    got = at(ids, long)(KEY, env, jnp.ones(3), steps=jnp.array([2, 0]))
    want = at(ids, short)(KEY, env, jnp.ones(3))
    np.testing.assert_allclose(got.rows[0], want.rows[0], rtol=1e-6)
    np.testing.assert_allclose(got.each["gradient"][0], want.each["gradient"][0], rtol=1e-6)
    np.testing.assert_array_equal(got.rows[1], np.ones(3))
    np.testing.assert_array_equal(got.each["steps"], [2, 0])
    np.testing.assert_allclose(got.log["loss"], want.each["loss"][0], rtol=1e-6)  # not halved by who ran no step
    assert float(got.log["gradients"]) == 2


@pytest.mark.parametrize("far", [1.0, np.inf])
def test_who_runs_no_step_logs_zeros_even_of_a_model_that_diverged(far):
    _, t, data = quadratics(n=2, d=3)
    x = jnp.full(3, far)
    y, log = local_sgd(t, optax.sgd(0.1), steps=2, batch=1)(KEY, data, 0, x, steps=jnp.int32(0))
    np.testing.assert_array_equal(y, x)
    assert {name: float(v) for name, v in log.items()} == {"loss": 0, "steps": 0, "gradients": 0}
    g, log = local_gradient(t)(KEY, data, 0, x, steps=jnp.int32(0))
    np.testing.assert_array_equal(g, np.zeros(3))
    assert {name: float(v) for name, v in log.items()} == {"loss": 0, "steps": 0, "gradients": 0}


def test_a_gradient_is_the_same_under_any_bound_and_in_any_round():
    _, t, data = quadratics(n=2, d=3)
    plain = local_gradient(t)(KEY, data, 1, jnp.ones(3))
    bound = local_gradient(t)(KEY, data, 1, jnp.ones(3), t=7, steps=jnp.int32(3))
    assert same(plain, bound)
    assert np.any(plain[0])


def test_displacement_is_the_move():
    _, t, data = quadratics(n=4, d=3)
    learn = local_sgd(t, optax.sgd(0.05), steps=2, batch=1)
    x = jnp.ones(3)
    np.testing.assert_array_equal(displacement(learn)(KEY, data, 1, x)[0], learn(KEY, data, 1, x)[0] - x)


def test_hooks_are_the_formulas():
    rng = np.random.default_rng(1)
    g, p, a, c, s, m, old = map(jnp.asarray, rng.normal(size=(7, 4)).astype(np.float32))
    curvature = jnp.asarray([1.0, 2.0, 3.0, 4.0])
    extra = {"anchor": a, "control": c, "shared_control": s, "direction": m, "previous": old}
    extra["grad_fn"] = lambda q: curvature * q

    def apply(hook):
        return hook.update(g, hook.init(p), p, value=0.0, key=KEY, **extra)[0]

    np.testing.assert_allclose(apply(hooks.prox(0.3)), g + 0.3 * (p - a), rtol=1e-5)
    np.testing.assert_allclose(apply(hooks.sam(0.2)), curvature * (p + 0.2 * g / np.linalg.norm(g)), rtol=1e-5)
    np.testing.assert_allclose(apply(hooks.drift(0.7)), g - 0.7 * (c - s), rtol=1e-4)
    np.testing.assert_allclose(apply(hooks.blend(0.2)), 0.2 * g + 0.8 * m, rtol=1e-5)
    np.testing.assert_allclose(apply(hooks.storm(0.2)), g + 0.8 * (m - curvature * old), rtol=1e-4)


def test_hooks_get_the_key_of_their_step_and_sam_counts_twice():
    _, t, data = quadratics(n=2, d=3)
    seen = hooks.stateless(lambda g, p, *, key, **_: jax.tree.map(lambda a: jax.random.normal(key, a.shape), g))
    learn = local_sgd(t, optax.chain(seen, optax.sgd(1.0)), steps=2, batch=1)
    one, two = (learn(KEY, data, 0, jnp.zeros(3), steps=jnp.int32(k))[0] for k in (1, 2))
    assert not np.allclose(two - one, one)
    _, log = local_sgd(t, optax.chain(hooks.sam(0.1), optax.sgd(0.1)), steps=3, batch=1)(KEY, data, 0, jnp.ones(3))
    assert int(log["gradients"]) == 6


def test_vectors_reach_hooks_as_trees_and_may_differ_by_node():
    t = task.linear_regression(2, bias=True)
    data = one_sample_each(np.zeros((3, 2), np.float32), np.zeros(3, np.float32))
    learn = local_sgd(t, optax.chain(hooks.blend(0.0), optax.sgd(1.0)), steps=1, batch=1)
    env = Env(0, 0.0, data, None, None, jnp.zeros(3, bool))
    each = jnp.arange(9.0).reshape(3, 3)
    y = at(jnp.arange(3), learn)(KEY, env, jnp.zeros(3), direction=each).rows
    np.testing.assert_array_equal(y, -each)
    y = at(jnp.arange(3), learn)(KEY, env, jnp.ones((3, 3)), {"direction": each[1]}).rows
    np.testing.assert_array_equal(y, 1 - np.tile(each[1], (3, 1)))


def test_yogi_never_moves_the_moment_by_more_than_its_share():
    v, square = jnp.array([1.0, 0.1, 2.0]), jnp.array([0.5, 0.5, 2.0])
    change = yogi_moment(0.9)(v, square) - v
    np.testing.assert_allclose(change, [-0.05, 0.05, 0.0], atol=1e-7)
    tx = scale_by_moments(adam_moment(0.5), b1=0.0, tau=0.1)
    u, state = tx.update(jnp.array([2.0]), tx.init(jnp.zeros(1)))
    np.testing.assert_allclose(state.v, [0.5 * 0.01 + 0.5 * 4])
    np.testing.assert_allclose(u, [2 / (np.sqrt(2.005) + 0.1)], rtol=1e-6)


@pytest.mark.parametrize(
    ("kw", "words"),
    [
        ({}, "exactly one"),
        ({"steps": 1, "epochs": 1}, "exactly one"),
        ({"steps": 0}, "steps is 0"),
        ({"epochs": -1}, "epochs is -1"),
        ({"steps": 1, "batch": 0}, "batch is 0"),
    ],
)
def test_bad_counts(kw, words):
    with pytest.raises(InputError, match=words):
        local_sgd(task.quadratic(2), optax.sgd(0.1), **kw)


def test_ranges_are_said_in_one_sentence():
    for value in (0.0, -1, float("nan")):
        with pytest.raises(InputError, match=r"lr is .*, but must be (finite and )?above 0"):
            require("lr", value, above=0)
    with pytest.raises(InputError, match=r"m is 1.0, but must be at least 0 and below 1\."):
        require("m", 1.0, least=0, below=1)
    with pytest.raises(InputError, match="b is 2, but must be at most 1"):
        require("b", 2, most=1)


SOUND = {"above": 0, "below": 1}


@pytest.mark.parametrize(
    ("value", "bounds", "says"),
    [
        (None, SOUND, "a is None, but must be a number above 0 and below 1."),
        (True, SOUND, "a is True, but must be a number above 0 and below 1."),
        (np.bool_(True), SOUND, "must be a number above 0"),
        ("0.1", SOUND, "a is '0.1', but must be a number above 0"),
        ([0.1], SOUND, r"a is \[0.1\], but must be a number above 0"),
        (np.int64(-1), SOUND, "a is -1, but must be above 0 and below 1."),
        (np.float32(-0.5), SOUND, "a is -0.5, but must be above 0"),
        (np.array([0.5, 1.5]), SOUND, "a is 1.5, but must be above 0"),
        (jnp.float32(-1), SOUND, "a is -1.0, but must be above 0"),
        (jnp.bfloat16(2), SOUND, "a is 2.0, but must be above 0"),
        (jnp.array([0.5, -1.0]), SOUND, "a is -1.0, but must be above 0"),
        (jnp.array(True), SOUND, "must be a number above 0"),
        (float("inf"), {"above": 0}, "a is inf, but must be finite and above 0."),
        (jnp.float32("nan"), {}, "a is nan, but must be finite."),
        (np.float64("nan"), {"most": float("inf")}, "a is nan, but must be finite."),
        (2.0, {"least": 1, "whole": True}, "a is 2.0, but must be a whole number of at least 1."),
        (np.float64(2.5), {"least": 1, "whole": True}, "a is 2.5, but must be a whole number of at least 1."),
        (None, {"least": 1, "whole": True}, "a is None, but must be a whole number of at least 1."),
        (0, {"least": 1, "whole": True}, "a is 0, but must be at least 1."),
        (len, {"least": 1, "whole": True}, "must be a whole number of at least 1."),
    ],
)
def test_a_number_is_seen_of_whatever_kind(value, bounds, says):
    with pytest.raises(InputError, match=says):
        require("a", value, **bounds)


def test_what_is_sound_or_cannot_be_known_passes():
    for value in (0.5, np.float64(0.5), jnp.float32(0.5), np.array([0.1, 0.9]), optax.constant_schedule(-1.0)):
        require("lr", value, above=0, below=1)
    require("tau", jnp.inf, least=0, most=float("inf"))
    require("batch", None, least=1, whole=True, none=True)
    for value in (3, np.int64(3), jnp.int32(3)):
        require("steps", value, least=1, whole=True)
    jax.eval_shape(lambda lr: require("lr", lr, above=0), jnp.float32(-1))


@pytest.mark.parametrize(
    ("make", "kw", "words"),
    [
        (fedavg, {"lr": 0}, "lr is 0"),
        (fedavg, {"server_momentum": 1.0}, "server_momentum is 1"),
        (fedprox, {"mu": -0.1}, "mu is -0.1"),
        (fedadam, {"server_lr": 0.0}, "server_lr is 0"),
        (fedyogi, {"b1": 1.0}, "b1 is 1"),
        (fedyogi, {"b2": 1.0}, "b2 is 1"),
        (fedyogi, {"b2": -0.1}, "b2 is -0.1"),
        (fedadam, {"b2": 1.5}, "b2 is 1.5"),
        (fedadam, {"b2": np.float32("nan")}, "b2 is nan"),
        (fedadam, {"steps": np.float64(2.5)}, "steps is 2.5, but must be a whole number"),
        (fedavg, {"batch": True}, "batch is True"),
        (gradient_tracking, {"batch": 2.0}, "batch is 2.0"),
        (fedadagrad, {"tau": 0.0}, "tau is 0"),
        (scaffold, {"server_rate": 0}, "server_rate is 0"),
        (fedavg_m, {"beta": 0.0}, "beta is 0"),
        (dsgd, {"lr": -1}, "lr is -1"),
        (dfedavgm, {"momentum": 1.0}, "momentum is 1"),
        (dfedsam, {"rho": -1.0}, "rho is -1"),
        (dfedsam_mgs, {"gossip_steps": 0}, "gossip_steps is 0"),
        (gradient_tracking, {"lr": 0.0}, "lr is 0"),
        (centralized, {"lr": 0.0}, "lr is 0"),
        (local_only, {"lr": 0.0}, "lr is 0"),
    ],
)
def test_every_system_refuses_numbers_out_of_range(make, kw, words):
    with pytest.raises(InputError, match=words):
        make(task.quadratic(2), **kw)


def needs(name):
    """What a system must be given."""
    parameters = inspect.signature(zoo.find(name).make).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]


LEARN = [name for name in zoo.systems() if needs(name) == ["task"] and "lr" in takes(zoo.find(name).make)]


@pytest.mark.parametrize("name", LEARN)
@pytest.mark.parametrize("lr", [None, True, np.int64(-1), jnp.float32(-0.5), float("inf"), jnp.float32("nan")])
def test_every_system_refuses_a_rate_that_is_none(name, lr):
    with pytest.raises(InputError, match=r"^lr is .*, but must be "):
        zoo.find(name).make(task.quadratic(2), lr=lr)
