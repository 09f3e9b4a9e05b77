"""FedAST and Sync-ST against their equations in float64.

Clients have one to three samples, so the world counts them unlike; in both papers an answer counts whoever sends it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import same

from jaxfl.algorithms.server.fedast import fedast, shares_of, sync_st, timeless
from jaxfl.claims import fedast as claim
from jaxfl.core import Shards, stream
from jaxfl.engine.keys import init_key, round_key, run_key
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange.network import Network
from jaxfl.learn.layers import part
from jaxfl.learn.task import logistic_regression, quadratic
from jaxfl.world import cohort, requests
from jaxfl.world.durations import Seconds
from jaxfl.world.process import process
from jaxfl.world.scenario import scenario

N, M, D = 12, 2, 3
RNG = np.random.default_rng(0)
SIZE = np.tile([1, 2, 3], N // 3)
BEGIN = SIZE.cumsum() - SIZE
CENTRE = RNG.normal(size=(SIZE.sum(), M, D)).astype(np.float32) + np.array([[0.0], [3.0]], np.float32)
CURVE = RNG.uniform(0.5, 1.5, size=(SIZE.sum(), M)).astype(np.float32)
ALIVE = np.arange(N) != 5
TASK, SOFTMAX = quadratic(D), logistic_regression(3, 2)
LAW = Seconds(lambda key, arrays, i: 1.0 * jax.random.randint(key, (), 1, 6), ())
KW: dict[str, Any] = {"tasks": M, "lr": 0.1, "steps": 3, "batch": None, "seconds": LAW, "work": (1.0, 2.0)}
LATE: dict[str, Any] = KW | {"sample": 4, "buffer": 2, "longest": 7, "server_lr": 0.7}
FIRST = jnp.arange(6.0)


def away(alive):
    """Who is up in all rounds, as a process."""
    return process(lambda key, arrays, s, t: (s, arrays["up"]), {"up": jnp.asarray(alive)})


def world(alive=None):
    x = jnp.eye(D) * CURVE[:, :, None, None]
    order = jnp.arange(len(CENTRE), dtype=jnp.int32)
    data = Shards(x, jnp.asarray(CENTRE), order, jnp.int32(BEGIN), jnp.int32(SIZE), 3)
    churn = None if alive is None else away(alive)
    return scenario(data, cohort=timeless(cohort.everyone(N)), churn=churn)


def trained(m, i, x):
    curve, centre = (a[BEGIN[i] : BEGIN[i] + SIZE[i], m].astype(float) for a in (CURVE, CENTRE))
    for _ in range(3):
        x = x - 0.1 * (curve[:, None] * (x - centre)).mean(0)
    return x


def versions_of(count, held):
    """What the clock gives in each round, from the keys of seed 0: the clock itself is tested in `tests/world`."""
    draw = lambda key, m, i: jnp.array([1.0, 2.0])[m] * LAW.draw(key, (), i)
    key = lambda t: stream(round_key(run_key(0), jnp.int32(t), "algorithm"), "requests")
    at = stream(init_key(run_key(0), "algorithm"), "requests")
    s = requests.first(at, draw, N, jnp.full(M, 4), 8, 3)
    step = jax.jit(lambda k, s, goals: requests.until_full(k, draw, s, jnp.clip(goals * 8 // 4, 1, N - goals), goals))
    for t in range(count):
        s, full, over, answers = step(key(t), s, jnp.asarray(held[0], jnp.int32))
        held[1] = s
        yield jax.device_get((*full, over, answers))


def test_sixty_versions_from_the_equations():
    """Buffers, ages, moments, and requests that move to the task whose answers vary more; one client is down."""
    got = run(fedast(TASK, dynamic=True, **LATE), world(ALIVE), FIRST, 60, every=1)
    x = np.array(FIRST, float).reshape(M, D)
    past = [[row.copy()] for row in x]
    mean, square, score, seen = np.zeros((M, D)), np.zeros(M), np.zeros(M), np.zeros(M)
    made, goals, answers, moves, down, most = np.zeros(M, int), np.array([2, 2]), 0, 0, 0, 0
    log, held = got.history, [goals, None]
    for t, (m, ids, ages, count, over, number) in enumerate(versions_of(60, held)):
        there = [(int(i), int(a)) for i, a in zip(ids[:count], ages[:count], strict=True) if ALIVE[i]]
        down += count - len(there)
        if there:
            begun = [past[m][-1 - min(a, 7)] if min(a, 7) < len(past[m]) else past[m][0] for _, a in there]
            D_i = np.array([trained(m, i, x0) - x0 for (i, _), x0 in zip(there, begun, strict=True)])
            x[m] = x[m] + 0.7 * D_i.mean(0)
            g = 1.0 if made[m] == 0 else min(count / 8, 1)
            mean[m] += g * (D_i.mean(0) - mean[m])
            square[m] += g * ((D_i**2).sum(1).mean() - square[m])
        past[m].append(x[m].copy())
        size = mean[m] @ mean[m]
        score[m], seen[m], made[m] = score[m] + max(square[m] - size, 0) / max(size, 1e-30), seen[m] + 1, made[m] + 1
        answers += number
        assert int(log["task"][t + 1]) == m
        np.testing.assert_allclose(log["seconds"][t + 1], over)
        if answers >= 0.75 * 8 * M and (made > 8).all() and (seen > 0).all():
            a = score / seen
            goals = held[0] = np.ones(M, int)
            for _ in range(2):
                goals[np.argmax(4 * a / a.sum() - goals)] += 1
            most = max(most, goals.max())
            score, seen, answers, moves = np.zeros(M), np.zeros(M), 0, moves + 1
    s = got.state.shared
    np.testing.assert_allclose(s["x"].reshape(M, D), x, atol=1e-5)
    np.testing.assert_allclose(s["mean"], mean, atol=1e-5)
    np.testing.assert_allclose(s["square"], square, atol=1e-4)
    np.testing.assert_allclose(s["score"], score, rtol=1e-3)
    for name, want in {"goals": goals, "made": made, "seen": seen, "answers": answers}.items():
        np.testing.assert_array_equal(s[name], want, err_msg=name)
    rows, newest = np.asarray(s["past"].rows), np.asarray(s["past"].newest)
    for m in range(M):
        for age in range(8):
            np.testing.assert_allclose(rows[m, (newest[m] - age) % 8], past[m][-1 - age], atol=1e-5)
    assert same(s["queue"], held[1])
    assert moves > 0
    assert down > 0
    assert most == 3


def test_a_buffer_of_all_who_are_asked_is_a_round_that_nobody_is_late_for():
    """One request a task, a buffer of one: each job reads the model that the one before wrote."""
    got = run(fedast(TASK, **dict(LATE, sample=1, buffer=1)), world(), FIRST, 20, every=1)
    assert not got.history["age"].any()
    assert (got.history["task"].iloc[1:].value_counts() > 3).all()


def test_synchronous_rounds_from_the_equations():
    """Three of four clients a task count, if they are up; the round waits for the slower task; tasks take turns."""
    got = run(sync_st(TASK, keep=0.75, sample=4, server_lr=0.7, **KW), world(ALIVE), FIRST, 6, every=1)
    x, log, down = np.array(FIRST, float).reshape(M, D), got.history.iloc[1:], 0
    for t in range(0, 6, 2):
        who, lasts = jax.random.split(stream(round_key(run_key(0), jnp.int32(t), "algorithm"), "requests"))
        ids = np.asarray(jax.random.permutation(who, N))[:8].reshape(M, 4)
        spent = np.array(
            [
                [float(LAW.draw(k, (), 0)) * (1 + m) for k in row]
                for m, row in enumerate(jax.random.split(lasts, (M, 4)))
            ]
        )
        first = np.argsort(spent, 1, kind="stable")[:, :3]
        for m in range(M):
            there = [i for i in ids[m][first[m]] if ALIVE[i]]
            x[m], down = x[m] + 0.7 * np.mean([trained(m, i, x[m]) - x[m] for i in there], 0), down + 3 - len(there)
        assert log["seconds"].iloc[t : t + 2].tolist() == [np.take_along_axis(spent, first, 1).max(), 0.0]
    np.testing.assert_allclose(got.state.shared["x"].reshape(M, D), x, atol=1e-5)
    assert log["task"].tolist() == [0, 1] * 3
    np.testing.assert_array_equal(got.state.shared["ids"], ids)
    np.testing.assert_array_equal(np.asarray(got.state.shared["here"]).sum(1), [3, 3])
    assert down > 0


def test_units_follow_the_scores():
    np.testing.assert_array_equal(shares_of(jnp.array([1.0, 1.0, 4.0]), 9), [2, 1, 6])
    np.testing.assert_array_equal(shares_of(jnp.zeros(3), 6), [2, 2, 2])
    got = shares_of(jnp.array([3.0, 1.0, 2.0]), 12)
    np.testing.assert_array_equal(got, [6, 2, 4])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: fedast(TASK, **dict(LATE, buffer=0)), "buffer"),
        (lambda: fedast(TASK, **dict(LATE, work=(1.0,))), "work is"),
        (lambda: fedast(TASK, **dict(LATE, period=0.0)), "period"),
        (lambda: sync_st(TASK, keep=0.0, **KW), "keep"),
        (lambda: run(fedast(TASK, **dict(LATE, sample=11)), world(), FIRST, 1), "sample = 11: of 12 nodes"),
        (lambda: run(sync_st(TASK, sample=7, **KW), world(), FIRST, 1), "sample = 7: of 12 nodes"),
        (
            lambda: run(fedast(TASK, **dict(LATE, tasks=3, work=None)), world(), jnp.zeros(9), 1),
            "samples of 3 tasks",
        ),
        (lambda: run(fedast(TASK, **LATE), world(), jnp.zeros(3), 1), "model has shape"),
        (lambda: fedast(SOFTMAX, Network(personal=part(SOFTMAX, "bias")), **LATE), "net.personal is set"),
    ],
)
def test_bad_input_is_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()


def test_the_worlds_of_its_claim():
    """Centres by task, the optimum is their mean, noise sums to zero at every client."""
    (setting,) = claim.quadratics(0).values()
    y = np.asarray(setting.world.data.y, float)
    best = y.mean(0)
    for m, name in enumerate(("error 0", "error 1", "error 2")):
        got = setting.evaluate.measure(setting.evaluate.arrays, jnp.asarray(best.ravel(), jnp.float32))
        assert float(got[name]) < 1e-3, m
    assert same(setting.world.data.size, jnp.full(200, y.shape[0] // 200))
