"""FedFix against its equations in float64, its fixed points, and against FedBuff and FedAvg."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from common import one_sample_each, rounds, same
from members import WEIGHT, N, changed, drawn, slope
from members import world as plain

from jaxfl.algorithms.asynchronous.fedbuff import fedbuff
from jaxfl.algorithms.asynchronous.fedfix import fedfix, paced
from jaxfl.algorithms.server.fedopt import fedopt
from jaxfl.core import Metric
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange.staleness import constant
from jaxfl.learn import task as tasks
from jaxfl.paper import Workers
from jaxfl.world import cohort
from jaxfl.world.clock import buffered
from jaxfl.world.delivery import quorum, ticks
from jaxfl.world.durations import exponential, fixed, lognormal
from jaxfl.world.participation import frequency, mean_seconds, summed, tick_periods
from jaxfl.world.scenario import scenario

KW = {"lr": 0.03, "steps": 2, "batch": None}
WHERE = Metric(lambda arrays, x: {"x0": x[0], "x1": x[1]})
TAU = np.array([0.5, 0.6, 1.2, 1.9, 2.3, 0.9])


def away(both, t):
    """The third client is never heard."""
    c, seconds = both
    return c._replace(weight=jnp.where(c.ids == 2, 0, c.weight)), seconds


def test_forty_ticks_from_the_equations():
    """Unlike weights, a place for four of six, one client away, answers that are too old."""
    q, task, made = plain()
    factor = np.ceil(TAU)
    clock = changed(summed(ticks(N, 1.0, fixed(TAU), capacity=2, weight=WEIGHT), factor), away)
    w = scenario(made.data, cohort=clock)
    got = run(fedfix(task, server_lr=0.7, longest=2, **KW), w, jnp.ones(3), 40, every=1)
    c, x, past, dropped, p = drawn(w, 40), np.ones(3), [], 0, WEIGHT / WEIGHT.sum()
    for t in range(40):
        past.append(x)
        move = np.zeros(3)
        for i, here, a in zip(c.ids[t], c.weight[t] > 0, c.age[t], strict=True):
            dropped += here and a > 2
            if not here or a > 2:
                continue
            y = past[t - a].copy()
            for _ in range(KW["steps"]):
                y -= KW["lr"] * slope(q, i, y)
            move += factor[i] * p[i] * (y - past[t - a])
        x = x + 0.7 * move
    np.testing.assert_allclose(got.state.shared["x"], x, atol=2e-5)
    ring, newest = np.asarray(got.state.shared["past"].rows), int(got.state.shared["past"].newest)
    np.testing.assert_allclose(ring[(newest - np.arange(3)) % 3], [x, *past[:-3:-1]], atol=2e-5)
    assert got.history["dropped"].sum() == dropped > 0
    np.testing.assert_array_equal(got.history["waiting"][1:], c.waiting)
    assert c.waiting.max() > 0


def late_mean(clock, centre, lr, count):
    """Where the server is on average after the first half."""
    world = scenario(one_sample_each(np.tile(np.eye(2, dtype=np.float32), (len(centre), 1, 1)), centre), cohort=clock)
    system = fedfix(tasks.quadratic(2), lr=lr, steps=1, batch=1, longest=63)
    rows = run(system, world, jnp.zeros(2), count, every=count // 60, evaluate=WHERE).history.dropna()
    return rows[["x0", "x1"]].to_numpy()[30:].mean(0)


def test_the_fixed_point_is_that_of_the_weights():
    """Uncorrected: the optima weighted by participation. Corrected: the true optimum, of unlike p_i."""
    n, rng = 6, np.random.default_rng(0)
    centre, p = rng.normal(size=(n, 2)).astype(np.float32), np.array([1.0, 2, 1, 3, 1, 2])
    centre[:, 0] = np.linspace(-2, 2, n)
    p /= p.sum()
    tau = np.array([2.0, 1.7, 1.1, 0.9, 0.4, 0.3])
    every = ticks(n, 0.5, fixed(tau), weight=p)
    any_of = quorum(n, 1, fixed(tau), weight=p)
    rate = (1 / tau).sum()
    cases = (  # clock, its weights in the fixed point, rate of learning, rounds
        (summed(every), p / np.ceil(tau / 0.5), 0.02, 1260),
        (summed(every, np.ceil(tau / 0.5)), p, 0.02, 1260),
        (any_of, 1 / tau, 0.002, 6000),
        (summed(any_of, tau * rate), p, 0.002, 6000),
    )
    found = [late_mean(clock, centre, lr, count) for clock, _, lr, count in cases]
    goals = [w @ centre / w.sum() for _, w, *_ in cases]
    np.testing.assert_allclose(found, goals, atol=0.03)
    for biased in (goals[0], goals[2]):
        assert np.linalg.norm(biased - p @ centre) > 0.3


def test_it_is_fedbuff_without_a_discount_where_means_are_taken():
    _, task, made = plain()
    w = scenario(made.data, cohort=buffered(N, 3, 2, lognormal(), weight=WEIGHT))
    a, b = (
        run(f(task, server_lr=0.7, longest=4, **kw, **KW), w, jnp.ones(3), 8, every=1).state
        for f, kw in ((fedfix, {}), (fedbuff, {"discount": constant()}))
    )
    assert same(a, b)


def test_long_ticks_are_rounds_of_everyone():
    """Everybody delivers at every tick, with the weights of the objective: FedAvg."""
    _, task, made = plain()
    clock = ticks(N, 5.0, fixed(TAU), weight=WEIGHT)
    late = run(fedfix(task, longest=0, **KW), scenario(made.data, cohort=summed(clock)), jnp.ones(3), 5, every=1)
    system = fedopt(task, local=optax.sgd(KW["lr"]), steps=2, batch=None)
    mean = run(system, scenario(made.data, cohort=cohort.everyone(N, WEIGHT)), jnp.ones(3), 5, every=1)
    np.testing.assert_allclose(late.state.shared["x"], mean.state.shared["x"], rtol=2e-6)


def test_periods_are_those_of_the_clock():
    law, n = exponential(np.linspace(0.2, 3, 8)), 8
    for working in (None, 4):
        clock = ticks(n, 0.7, law, concurrency=working)
        seen = 1 / frequency(clock, 20_000)
        np.testing.assert_allclose(tick_periods(n, 0.7, law, working, draws=2000), seen, rtol=0.12)
    np.testing.assert_array_equal(tick_periods(3, 0.2, fixed([0.2, 0.6, 1.1])), [1, 3, 6])
    np.testing.assert_allclose(mean_seconds(law, n, 4000), np.linspace(0.2, 3, 8), rtol=0.1)
    c, _ = rounds(paced(Workers(8, 4, 2, fixed(1.0))), 200)
    assert abs((c.weight > 0).sum(1).mean() - 2) < 0.1
    np.testing.assert_allclose(c.weight.max(), 4 / 8, rtol=1e-3)  # every second tick, half of the time at work


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: fedfix(tasks.quadratic(2), server_lr=0.0), "server_lr is 0.0"),
        (lambda: fedfix(tasks.quadratic(2), longest=-1), "longest is -1"),
        (lambda: summed(ticks(4, 1.0, fixed()), [1.0, 2.0]), r"factor = \[1.0, 2.0\]"),
        (lambda: summed(ticks(4, 1.0, fixed()), 0.0), "factor = 0.0"),
        (lambda: rounds(summed(summed(ticks(4, 1.0, fixed()))), 1), "unbiased as they are"),
        (lambda: frequency(ticks(4, 1.0, fixed()), 0), "rounds is 0"),
        (lambda: tick_periods(4, 1.0, fixed(), 5), "concurrency is 5"),
    ],
)
def test_bad_numbers_are_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()
