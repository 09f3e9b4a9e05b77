"""CA-Fed and its baselines against their equations in float64, and where each ends."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from common import quadratics, same
from members import SHARE, N, cohorts, slope, world

from jaxfl.algorithms.server.cafed import adafed, cafed, f3ast, unbiased_fedavg
from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.world import availability, cohort
from jaxfl.world.scenario import scenario

PI, MEMORY = np.array([0.9, 0.5, 0.3, 0.6, 0.2, 0.8]), np.array([0.0, -0.3, 0.6, 0.1, 0.8, 0.05])
BEST = np.linspace(0, 0.1, 6)
KW = {"lr": 0.03, "server_lr": 0.7, "batch": None, "up": PI, "memory": MEMORY}


def left_out(kappa, loss):
    """Both greedy passes over plain lists."""
    q = SHARE / PI

    def error(q):
        F = loss - BEST
        p = PI * q / (PI * q).sum()
        return p @ F + kappa * F.max() * (abs(SHARE - p).sum() / 2) ** 2

    for k in [*sorted(range(N), key=lambda k: -abs(MEMORY[k])), *sorted(range(N), key=lambda k: PI[k])]:
        tried = q.copy()
        tried[k] = 0
        if tried.sum() > 0 and error(tried) <= error(q):
            q = tried
    return q


@pytest.mark.parametrize(("make", "kappa"), [(cafed, 0.3), (unbiased_fedavg, None), (adafed, None), (f3ast, None)])
def test_four_rounds_from_the_equations_in_float64(make, kappa):
    """Four of six, one of them absent, unequal weights: model, losses, allocation, what was seen."""
    q_, task, w = world()
    more = {cafed: {"kappa": 0.3, "optimum": BEST}, f3ast: {"most": 2}}.get(make, {})
    state = run(make(task, **KW, **more), w, jnp.ones(3), 4, every=1).state
    x, F, seen, skipped = np.ones(3), np.zeros(N), np.zeros(N), 0
    for t, members in enumerate(cohorts(w, 4)):
        there = [i for i, *_ in members]
        seen[there] += 1
        q = SHARE / PI
        if make is cafed:
            for i in there:
                F[i] = 0.5 * (x - q_.b[i]) @ slope(q_, i, x)
            F[~np.isin(np.arange(N), there)] = F[there].mean() if t == 0 else F[~np.isin(np.arange(N), there)]
            q = left_out(0.3, F)
            skipped += (q[there] == 0).sum()
        if make is f3ast:
            q = np.where(np.isin(np.arange(N), sorted(there, key=lambda i: -q[i])[:2]), q, 0)
        total = np.zeros(3)
        for i in there:
            y = x.copy()
            for _ in range(2):
                y -= 0.03 * slope(q_, i, y)
            total += q[i] * (y - x)
        x = x + 0.7 * total / (q[there].sum() if make is adafed else 1)
    np.testing.assert_allclose(state.shared["x"], x, atol=1e-5)
    np.testing.assert_array_equal(state.shared["seen"].on, seen)
    if make is cafed:
        assert 0 < skipped < 12
        np.testing.assert_allclose(state.shared["loss"], F, rtol=1e-4)
        np.testing.assert_allclose(state.shared["q"], q, rtol=1e-5)


def test_where_a_bias_costs_much_nobody_is_left_out():
    """CA-Fed is then the unbiased scheme bit for bit, but for the losses, which travel too."""
    _, task, w = world()
    a = run(cafed(task, kappa=1e6, **KW), w, jnp.ones(3), 4, every=1)
    b = run(unbiased_fedavg(task, **KW), w, jnp.ones(3), 4, every=1)
    assert same(a.state.shared["x"], b.state.shared["x"])
    assert a.history["left_out"].iloc[1:].sum() == 0
    np.testing.assert_array_equal((a.history["up_bits"] - b.history["up_bits"]).iloc[1:], [3 * 32] * 4)
    np.testing.assert_array_equal(a.history["down_bits"], b.history["down_bits"])


def test_each_ends_where_its_weights_say():
    """The mean over runs: FedAvg at the optimum weighted by participation, the corrected at that of alpha."""
    up, alpha = np.array([0.9, 0.3, 0.5, 0.8]), np.array([1.0, 4, 2, 3]) / 10
    _, task, data = quadratics(n=4, d=3, seed=1)
    eye = jnp.broadcast_to(jnp.eye(3), (4, 3, 3))  # of equal curvatures the mean over runs is exact
    b = 2 * np.asarray(data.y, float)
    data = type(data)(eye, jnp.asarray(b, jnp.float32), data.order, data.start, data.size, 1)
    w = scenario(data, cohort=cohort.everyone(4, 10 * alpha), churn=availability.markov(4, up))
    weights = np.zeros(4)  # of FedAvg in expectation, by all ways to be there
    for there in itertools.product([0, 1], repeat=4):
        on = np.array(there)
        weights += np.where(on, up, 1 - up).prod() * on * alpha / max(on @ alpha, 1e-9)
    ends = {
        "biased": (fedavg(task, lr=0.02, steps=1, batch=None), weights / weights.sum() @ b),
        "cafed": (cafed(task, lr=0.02, kappa=1e3, steps=1, batch=None, up=up, memory=np.zeros(4)), alpha @ b),
        "estimated": (unbiased_fedavg(task, lr=0.02, steps=1, batch=None, strength=1.0), alpha @ b),
    }
    assert np.linalg.norm(ends["biased"][1] - alpha @ b) > 0.2
    for name, (f, end) in ends.items():
        x = np.asarray(run(f, w, jnp.zeros(3), 400, seeds=200, every=400).state.shared["x"])
        error = x.std(0) / np.sqrt(len(x))
        assert (abs(x.mean(0) - end) < 4.5 * error + 0.02 * (name == "estimated")).all(), name
        assert error.max() < 0.03


def test_bad_input_gets_a_sentence():
    _, task, _ = world()
    for kw, says in (
        ({"kappa": -1.0}, "kappa is -1"),
        ({"up": np.zeros(6)}, "up is 0"),
        ({"memory": 2.0}, "memory is"),
    ):
        with pytest.raises(InputError, match=says):
            cafed(task, **kw)
    with pytest.raises(InputError, match="most is 0"):
        f3ast(task, most=0)
