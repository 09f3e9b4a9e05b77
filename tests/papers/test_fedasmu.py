"""FedASMU against its equations in float64, with pulls by absolute times."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import quadratics
from members import WEIGHT, N, changed, drawn, slope

from jaxfl.algorithms.asynchronous.fedasmu import fedasmu
from jaxfl.algorithms.asynchronous.fedasync import fedasync
from jaxfl.claims import fedasmu as claim
from jaxfl.core import node_keys, stream
from jaxfl.engine.keys import round_key, run_key
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange.network import Network
from jaxfl.exchange.staleness import constant
from jaxfl.learn.layers import part
from jaxfl.learn.task import logistic_regression
from jaxfl.world.clock import buffered
from jaxfl.world.durations import fixed, lognormal
from jaxfl.world.scenario import scenario

KW: dict[str, Any] = {"lr": 0.05, "steps": 5, "batch": None}
LEARNED: dict[str, Any] = {
    "controls": 0.02,
    "slots": 4,
    "explore": 0.5,
    "longest": 5,
    "iota": 0.1,
    "nu": 0.3,
    "mu": 0.8,
} | KW


def away(both, t):
    """The third client is never heard."""
    c, seconds = both
    return c._replace(weight=jnp.where(c.ids == 2, 0.0, c.weight)), seconds


def world(goal=2, concurrency=4, seconds=None):
    q, task, data = quadratics(n=N, d=3)
    law = lognormal(np.linspace(0.5, 3, N), 0.4) if seconds is None else seconds
    clock = buffered(N, concurrency, goal, law, weight=WEIGHT)
    return q, task, scenario(data, cohort=changed(clock, away) if goal > 1 else clock)


def slots_of(t, ids, tables, at):
    """Where jobs pull, from the keys of seed 0: `(slot, action)` a member."""
    keys = node_keys(stream(round_key(run_key(0), t, "algorithm"), "slot"), jnp.asarray(ids))
    for key, i in zip(keys, ids, strict=True):
        whether, which = jax.random.split(key)
        row = tables[i][at[i] - 1]
        a = 1 if row[1] >= row.max() else int(np.argmax(row))
        if float(jax.random.uniform(whether)) < 0.5:
            a = int(jax.random.randint(which, (), 0, 3))
        yield int(np.clip(at[i] + a - 1, 1, 3)), a


def share(xi):
    return min(max(0.8 * xi / (1 + 0.8 * xi), 0), 1)


def derivative(f, control, j):
    """By central differences, exact enough in float64."""
    step = np.eye(5)[j] * 1e-6
    return (f(control + step) - f(control - step)) / 2e-6


def test_thirty_rounds_from_the_equations():
    """Two answers a round, unequal weights, one client away: models, controls, slots and their values."""
    q, task, w = world()
    got = run(fedasmu(task, **LEARNED), w, jnp.ones(3), 30, every=1)
    c, times = drawn(w, 30), np.concatenate([[0], np.cumsum(got.history["seconds"][1:].to_numpy(float))])
    x, past, dropped, newer_seen = np.ones(3), [], 0, []
    own = np.tile([1.0, 1.0, 0.1, 1.0, 0.3], (N, 1))
    tables, at = np.zeros((N, 3, 3)), np.full(N, 2)
    loss = lambda i, y: 0.5 * (y - q.b[i]) @ q.A[i].astype(float) @ (y - q.b[i])
    for t in range(30):
        past.append(x)
        picked = list(slots_of(t, c.ids[t].tolist(), tables, at))
        total, weights = np.zeros(3), 0.0
        for i, p, a, (l, action) in zip(
            c.ids[t].tolist(), c.weight[t].tolist(), c.age[t].tolist(), picked, strict=True
        ):
            if p == 0 or a > 5:
                dropped += a > 5
                continue
            o, run_first = t - a, l * 5 // 4
            moment = times[o] + run_first / 5 * (times[t + 1] - times[o])
            g = max(v for v in range(o, t + 1) if times[v] <= moment + 1e-4)
            y = past[o].copy()
            for _ in range(run_first):
                y -= 0.05 * slope(q, i, y)
            beta = lambda k, g=g, o=o: share(max(k[3] / np.sqrt(g + 1) * (1 - k[4] / np.sqrt(g - o + 1)), 0))
            d, k = np.zeros(5), own[i].copy()
            if g > o:
                met = y + beta(k) * (past[g] - y)
                d += [slope(q, i, met) @ (past[g] - y) * derivative(beta, k, j) for j in range(5)]
                gain = loss(i, y) - loss(i, met)
                tables[i][at[i] - 1, action] += 0.1 * (
                    gain + 0.9 * tables[i][l - 1].max() - tables[i][at[i] - 1, action]
                )
                y = met
            newer_seen.append(g - o)
            at[i] = l
            for _ in range(5 - run_first):
                y = y - 0.05 * slope(q, i, y)
            alpha = lambda k, a=a, t=t: share(k[0] / (np.sqrt(t + 1) * (a + 1) ** (k[1] / 2)) + k[2])
            new = x + alpha(k) * (y - x)
            d += [slope(q, i, new) @ (y - x) * derivative(alpha, k, j) for j in range(5)]
            own[i] = np.maximum(k - 0.02 * d, 0)
            total, weights = total + p * alpha(k) * (y - x), weights + p
        x = x + total / weights if weights else x
    s = got.state
    np.testing.assert_allclose(s.shared["x"], x, atol=2e-5)
    np.testing.assert_allclose(s.nodes["control"], own, atol=1e-4)
    np.testing.assert_allclose(s.nodes["q"], tables, atol=1e-4)
    np.testing.assert_array_equal(s.nodes["at"], at)
    np.testing.assert_allclose(s.shared["since"][:4], times[-1] - times[-1:-5:-1], rtol=1e-5)
    assert dropped == got.history["dropped"].sum()
    assert max(newer_seen) > 1
    assert np.ptp(own, 0).min() > 1e-4
    assert len(np.unique(at)) > 1


def test_a_pull_is_of_the_version_that_is_there_at_that_moment():
    """Jobs of whole quarters of a second: who began when, and had which version before it, is known without the log."""
    lasts = 1 + np.arange(N) / 4
    _, task, w = world(1, 3, fixed(lasts))
    got = run(fedasmu(task, adapt=False, longest=20, **dict(KW, steps=4)), w, jnp.ones(3), 60, every=1)
    c, times = drawn(w, 60), np.concatenate([[0], np.cumsum(got.history["seconds"][1:].to_numpy(float))])
    for t in range(60):
        i, o = int(c.ids[t, 0]), t - int(c.age[t, 0])
        begin = times[t + 1] - lasts[i]
        assert begin == times[o]
        versions = [v for v in range(t + 1) if times[v] <= begin + lasts[i] / 2]
        assert got.history["pulled"].iloc[t + 1] == max(versions) - o
    assert got.history["pulled"].max() > 1


def test_without_its_parts_it_is_fedasync_of_one_weight():
    """lambda = 0: alpha is mu iota / (1 + mu iota) at any age."""
    _, task, w = world(1, 3)
    plain = fedasmu(task, merge=False, adapt=False, lam=0.0, iota=1.0, longest=8, **KW)
    a = run(plain, w, jnp.ones(3), 12, every=12)
    b = run(fedasync(task, alpha=0.5, discount=constant(), longest=8, **KW), w, jnp.ones(3), 12, every=12)
    np.testing.assert_allclose(a.state.shared["x"], b.state.shared["x"], rtol=1e-5)
    np.testing.assert_array_equal(a.history["up_bits"], b.history["up_bits"])
    np.testing.assert_array_equal(a.history["down_bits"][1:], 32 * (3 + 0))


@pytest.mark.parametrize(
    ("kw", "said"),
    [
        ({"slots": 1}, "slots"),
        ({"steps": 0}, "steps"),
        ({"explore": 1.5}, "explore"),
        ({"iota": -1.0}, "iota"),
        ({"controls": -1.0}, "controls"),
    ],
)
def test_bad_numbers_are_refused(kw, said):
    with pytest.raises(InputError, match=said):
        fedasmu(logistic_regression(3, 2), **kw)


def test_a_personal_part_is_refused():
    task = logistic_regression(3, 2)
    with pytest.raises(InputError, match=r"net.personal is set"):
        fedasmu(task, Network(personal=part(task, "bias")))


def test_the_worlds_of_its_claim():
    (setting,) = claim.quadratics(0).values()
    y = np.asarray(setting.world.data.y, float)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-6)  # the optimum is 0
    assert setting.world.arrays["cohort"]["seconds"]["seconds"].shape == (40,)
