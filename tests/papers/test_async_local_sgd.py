"""Asynchronous Local-SGD against its equations in float64, Nesterov and DiLoCo; local steps in proportion to speed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from common import rounds
from members import WEIGHT, N, changed, drawn, slope
from members import world as plain

from jaxfl.algorithms.asynchronous.async_local_sgd import async_local_sgd
from jaxfl.algorithms.server.diloco import diloco
from jaxfl.claims import async_local_sgd as claim
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.learn import task as tasks
from jaxfl.learn.server import DelayedState, delayed_nesterov
from jaxfl.world import cohort
from jaxfl.world.clock import buffered
from jaxfl.world.delivery import quorum
from jaxfl.world.durations import fixed, lognormal
from jaxfl.world.scenario import scenario
from jaxfl.world.work import bounded, dynamic_steps


def by_hand(g, lr, b, delay, c):
    """Where the server goes, float64: models `[t, d]`, momentum, buffer."""
    x, m, buffer, found = np.zeros(g.shape[1]), 0.0, 0.0, []
    for t, now in enumerate(g.astype(float)):
        buffer = buffer + now
        if (t + 1) % delay == 0:
            m, buffer = b * m + buffer / delay, 0 * buffer
            x = x - lr * ((1 - c * delay + c) * b * m + now / delay)
        else:
            x = x - lr * (c * b * m + now / delay)
        found.append(x)
    return np.array(found), m, buffer


def steps_of(tx, g):
    """The same of an optax transformation, and its last state."""

    def step(carry, g):
        x, s = carry
        u, s = tx.update(g, s, x)
        x = optax.apply_updates(x, u)
        return (x, s), x

    x = jnp.zeros(g.shape[1])
    (_, s), found = jax.lax.scan(step, (x, tx.init(x)), jnp.asarray(g))
    return np.asarray(found), s


def test_the_momentum_moves_once_in_so_many_updates():
    g = np.random.default_rng(0).normal(size=(14, 3)).astype(np.float32)
    for lr, b, delay, c in ((0.7, 0.9, 4, 0.0), (0.3, 0.5, 3, 0.2), (0.3, 0.5, 4, 0.25)):
        found, s = steps_of(delayed_nesterov(lr, b, delay, c), g)
        x, m, buffer = by_hand(g, lr, b, delay, c)
        assert isinstance(s, DelayedState)
        np.testing.assert_allclose(found, x, atol=2e-6)
        np.testing.assert_allclose(np.asarray(s.m), m, atol=2e-6)
        np.testing.assert_allclose(np.asarray(s.buffer), buffer, atol=2e-6)
        assert s.count == 14 % delay
    nesterov = steps_of(optax.sgd(0.7, momentum=0.9, nesterov=True), g)[0]
    np.testing.assert_allclose(steps_of(delayed_nesterov(0.7, 0.9, 1), g)[0], nesterov, atol=2e-6)
    # so many updates with c = 0, or spread, are one step of Nesterov's on their mean
    means = steps_of(optax.sgd(0.7, momentum=0.9, nesterov=True), g[:12].reshape(4, 3, 3).mean(1))[0]
    np.testing.assert_allclose(steps_of(delayed_nesterov(0.7, 0.9, 3), g[:12])[0][2::3], means, atol=2e-6)


def away(both, t):
    """The third client is never heard."""
    c, seconds = both
    return c._replace(weight=jnp.where(c.ids == 2, 0, c.weight)), seconds


def test_forty_versions_from_the_equations():
    """Pairs of arrivals, unlike weights and steps, one client away, answers that are too old, AdamW's state dropped."""
    q, task, made = plain()
    most = np.array([1, 2, 3, 3, 2, 1])
    clock = buffered(N, 4, 2, lognormal(np.linspace(0.3, 2, N)), weight=WEIGHT)
    w = scenario(made.data, cohort=changed(bounded(clock, most), away))
    kw = {"server_lr": 0.5, "momentum": 0.8, "delay": 3, "spread": 0.1, "longest": 2, "keep_state": False}
    system = async_local_sgd(task, local=optax.sgd(0.03), steps=3, batch=None, **kw)
    got = run(system, w, jnp.ones(3), 40, every=1)
    c, x, past = drawn(w, 40), np.ones(3), []
    m, buffer, count, dropped = np.zeros(3), np.zeros(3), 0, 0
    for t in range(40):
        past.append(x)
        g, total = np.zeros(3), 0.0
        for i, p, a in zip(c.ids[t], c.weight[t].astype(float), c.age[t], strict=True):
            dropped += p > 0 and a > 2
            if p == 0 or a > 2:
                continue
            y = past[t - a].copy()
            for _ in range(most[i]):
                y -= 0.03 * slope(q, i, y)
            g, total = g + p * (past[t - a] - y), total + p
        if total:  # else nothing changes
            g, count = g / total, count + 1
            buffer = buffer + g
            part = 0.1 * 0.8
            if count % 3 == 0:
                m, buffer, part = 0.8 * m + buffer / 3, np.zeros(3), (1 - 0.3 + 0.1) * 0.8
            x = x - 0.5 * (part * m + g / 3)
    np.testing.assert_allclose(got.state.shared["x"], x, atol=1e-5)
    state = got.state.shared["server"]
    assert isinstance(state, DelayedState)
    np.testing.assert_allclose(np.asarray(state.m), m, atol=1e-5)
    np.testing.assert_allclose(np.asarray(state.buffer), buffer, atol=1e-5)
    assert state.count == count % 3
    assert got.history["dropped"].sum() == dropped > 0


def test_at_equal_speeds_and_without_delay_it_is_diloco():
    """Everybody fresh, AdamW's state with the worker."""
    _, task, made = plain()
    kw = {"lr": 0.05, "steps": 3, "batch": None}
    w = scenario(made.data, cohort=quorum(N, N, fixed(2.0), weight=WEIGHT))
    late = run(async_local_sgd(task, delay=1, longest=0, **kw), w, jnp.ones(3), 5, every=1)
    mean = run(diloco(task, **kw), scenario(made.data, cohort=cohort.everyone(N, WEIGHT)), jnp.ones(3), 5, every=1)
    np.testing.assert_allclose(late.state.shared["x"], mean.state.shared["x"], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(late.state.nodes), jax.tree.leaves(mean.state.nodes), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_steps_in_proportion_to_speed_make_equal_ages():
    speed = claim.SPEED
    np.testing.assert_array_equal(dynamic_steps(speed, 16), [2, 2, 4, 4, 8, 8, 16, 16])
    np.testing.assert_array_equal(dynamic_steps([0.1, 0.3, 0.29, 0.3 - 1e-12], 3), [1, 3, 2, 3])
    slow, _ = rounds(claim.alone(), 200)
    even, took = rounds(claim.dylu(), 200)
    assert even.age[8:].min() == even.age[8:].max() == 7
    assert slow.age[50:].std() > 3
    np.testing.assert_array_equal(even.steps[:, 0], dynamic_steps(speed, 16)[even.ids[:, 0]])
    np.testing.assert_allclose(took[::8], 2.0)
    assert not took.reshape(-1, 8)[:, 1:].any()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: async_local_sgd(tasks.quadratic(2), delay=0), "delay is 0"),
        (lambda: async_local_sgd(tasks.quadratic(2), spread=0.3), "spread is 0.3"),
        (lambda: async_local_sgd(tasks.quadratic(2), momentum=1.0), "momentum is 1.0"),
        (lambda: async_local_sgd(tasks.quadratic(2), server_lr=0.0), "lr is 0.0"),
        (lambda: async_local_sgd(tasks.quadratic(2), longest=-1), "longest is -1"),
        (lambda: dynamic_steps([1.0, 0.0], 3), r"speed = \[1.0, 0.0\]"),
        (lambda: dynamic_steps([1.0], 0), "steps is 0"),
        (lambda: bounded(cohort.uniform(4, 2), [1, 2, 0, 1]), "steps = "),
        (lambda: bounded(cohort.uniform(4, 2), [1, 2]), "steps = "),
        (lambda: rounds(bounded(bounded(cohort.uniform(2, 2), [1, 2]), [1, 2]), 1), "already|sets Cohort.steps"),
    ],
)
def test_bad_numbers_are_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()
