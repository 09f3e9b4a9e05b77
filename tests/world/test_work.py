"""Stragglers: how many, for how long, and that what they do is the same whether it is kept or dropped."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from common import digits_world, rounds

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.data import partition
from jaxfl.data.sets import digits
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.learn import local, task
from jaxfl.world import cohort
from jaxfl.world.clock import buffered
from jaxfl.world.durations import lognormal
from jaxfl.world.scenario import scenario
from jaxfl.world.work import delayed, random_steps, straggling


@partial(jax.jit, static_argnames=("init", "step", "rounds"))
def _draws(init, step, arrays, rounds):
    keys = jax.random.split(jax.random.key(3), rounds)
    state = init(keys[0], arrays)
    return jax.vmap(lambda k, t: step(k, arrays, state, t)[1])(keys, jnp.arange(rounds))


def draws(process, rounds=400, **changed):
    """Cohorts of many rounds, each field `[rounds, c]`, with some arrays of the process changed."""
    arrays = process.arrays | {name: jnp.float32(v) for name, v in changed.items()}
    return jax.device_get(_draws(process.init, process.step, arrays, rounds))


def test_exactly_the_share_of_members_straggles_uniformly_long_and_dropping_takes_their_weight():
    size = np.arange(1.0, 31)
    members = cohort.uniform(30, 10, weight=size)
    process = straggling(members, 0.5, epochs=6, steps=4)
    for fraction in (0.0, 0.5, 0.9, 1.0):
        memory = draws(process, fraction=fraction)
        epochs = memory.steps / 4
        slow = epochs < 6
        assert (slow.sum(1) == round(10 * fraction)).all()
        np.testing.assert_array_equal(memory.weight, size[memory.ids])
        if fraction:
            share = np.bincount(epochs[slow].astype(int), minlength=6)[1:] / slow.sum()
            np.testing.assert_allclose(share, 0.2, atol=0.03)
            np.testing.assert_allclose(slow.mean(0), fraction, atol=0.1)  # no slot is preferred
        dropped = draws(process, fraction=fraction, drop=1)
        np.testing.assert_array_equal(memory.ids, dropped.ids)
        np.testing.assert_array_equal(memory.steps, dropped.steps)
        np.testing.assert_array_equal(dropped.weight, np.where(slow, 0, memory.weight))
    made = straggling(members, 0.25, epochs=6, drop=1.0).arrays
    assert (made["fraction"], made["drop"]) == (0.25, 1.0)


def test_the_absent_are_no_stragglers_of_the_present():
    process = straggling(cohort.markov(20, 8, 0.6, 0.9), 0.5, epochs=4)
    c = draws(process)
    present = c.weight > 0
    slow = present & (c.steps < 4)
    expected = present.sum(1) - np.round(0.5 * present.sum(1))
    assert present.sum(1).min() < 8
    np.testing.assert_array_equal(slow.sum(1), expected)


def test_a_limit_of_e_epochs_is_e_epochs_on_every_shard():
    """On shards of unequal size the limit stops each of them after the same epoch."""
    shards = partition.quantity_skew(digits(), 6, seed=1)
    per_epoch = -(-int(np.max(shards.size)) // 8)
    learn = local.local_sgd(task.logistic_regression(64, 10), optax.sgd(0.1), epochs=5, batch=8)
    each = -(-np.asarray(shards.size) // 8)
    x = jnp.zeros(650)
    steps_run = jax.jit(lambda i, limit: learn(jax.random.key(0), shards, i, x, steps=limit)[1]["steps"])
    assert each.min() < per_epoch
    for e in (1, 3):
        np.testing.assert_array_equal([steps_run(i, e * per_epoch) for i in range(6)], e * each)


def test_fedavg_runs_on_it_and_nobody_left_leaves_the_model():
    model, world = digits_world(n=12)
    who = straggling(cohort.uniform(12, 4), 1.0, epochs=3, drop=1.0)
    world, system = scenario(world.data, cohort=who), fedavg(model, steps=3)
    result = run(system, world, model.init, 2)
    assert not np.asarray(result.state.shared["x"]).any()
    half = world._replace(arrays=world.arrays | {"cohort": world.arrays["cohort"] | {"drop": jnp.float32(0.5)}})
    result = run(system, half, model.init, 2)
    assert np.asarray(result.state.shared["x"]).any()
    assert (result.history["gradients"][1:].between(4, 8)).all()


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"fraction": 1.5}, "fraction"),
        ({"fraction": float("nan")}, "fraction"),
        ({"drop": -0.1}, "drop"),
        ({"epochs": 1}, "epochs"),
        ({"steps": 0}, "steps"),
    ],
)
def test_bad_numbers_are_refused(bad, word):
    with pytest.raises(InputError, match=f"^{word} = "):
        straggling(cohort.uniform(5, 2), **({"fraction": 0.5, "epochs": 3} | bad))


def test_steps_cannot_be_set_twice():
    once = straggling(cohort.uniform(5, 2), 0.5, epochs=3)
    with pytest.raises(InputError, match="members sets"):
        draws(straggling(once, 0.5, epochs=3), rounds=1)


def test_as_many_steps_and_as_late_as_chance_has_it():
    """Uniform, independent, a node's own in any slot; who takes part and a clock's seconds stay as they are."""
    members, wide = cohort.uniform(30, 10), cohort.uniform(30, 20)
    c, more = jax.device_get([rounds(p, 2000) for p in (delayed(random_steps(members, 4), 5), random_steps(wide, 4))])
    for value, low, count in ((c.steps, 1, 4), (c.age, 0, 6)):
        share = np.bincount(value.ravel() - low, minlength=count) / value.size
        np.testing.assert_allclose(share, np.full(count, 1 / count), atol=0.015)
    assert abs(np.corrcoef(c.steps.ravel(), c.age.ravel())[0, 1]) < 0.03
    np.testing.assert_array_equal(c.ids, rounds(members, 2000).ids)
    both = [(t, i) for t in range(20) for i in set(c.ids[t]) & set(more.ids[t])]
    at = lambda c, t, i: c.steps[t][list(c.ids[t]).index(i)]
    assert both
    assert all(at(c, t, i) == at(more, t, i) for t, i in both)
    clock = buffered(8, 4, 2, lognormal())
    (a, seconds), (b, same) = rounds(random_steps(clock, 3, least=0), 20), rounds(clock, 20)
    np.testing.assert_array_equal(a.age, b.age)
    np.testing.assert_array_equal(seconds, same)
    assert a.steps.min() == 0


@pytest.mark.parametrize(
    ("wrap", "word"),
    [
        (lambda m: random_steps(m, 0), "most is 0"),
        (lambda m: random_steps(m, 2.5), "most is 2.5"),  # type: ignore[arg-type]
        (lambda m: random_steps(m, 2, least=-1), "least is -1"),
        (lambda m: rounds(random_steps(random_steps(m, 2), 2), 1), "members sets Cohort.steps"),
        (lambda m: delayed(m, -1), "longest is -1"),
    ],
)
def test_bad_wrappers_are_refused(wrap, word):
    with pytest.raises(InputError, match=f"^{word}"):
        wrap(cohort.uniform(5, 2))
