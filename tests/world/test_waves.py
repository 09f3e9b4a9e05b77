"""Waves: the schedule and the result of one round at a time."""

import math
from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from common import quadratics, rounds

from jaxfl.algorithms.asynchronous.fedasync import fedasync
from jaxfl.algorithms.server.fedopt import fedopt
from jaxfl.algorithms.server.scaffold import scaffold
from jaxfl.core import Metric
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange import codecs
from jaxfl.exchange.network import Network
from jaxfl.exchange.staleness import Staleness, polynomial
from jaxfl.world import cohort
from jaxfl.world.clock import buffered
from jaxfl.world.delivery import quorum
from jaxfl.world.durations import exponential, fixed, lognormal
from jaxfl.world.links import links
from jaxfl.world.scenario import scenario
from jaxfl.world.waves import waves

KW = {"steps": 2, "batch": None}
WHERE = Metric(lambda arrays, x: {f"x{j}": x[j] for j in range(3)})


def small():
    _, problem, data = quadratics(n=16, d=3)
    stale = Staleness(12, polynomial(0.5))
    local, server = optax.sgd(0.05, momentum=0.5), optax.sgd(0.5, momentum=0.9)
    coded = Network(codec=codecs.error_feedback(codecs.top_k(1)))
    kept = fedopt(problem, coded, local=local, server=server, stale=stale, keep_state=True, **KW)
    one, few = buffered(16, 6, 1, exponential()), buffered(16, 10, 2, lognormal(), weight=np.arange(1.0, 17))
    x = jnp.ones(3)
    return {
        "fedasync": (fedasync(problem, lr=0.1, longest=5, **KW), scenario(data, cohort=waves(one, 4)), x, 8),
        "with memory": (kept, scenario(data, cohort=waves(few, 5)), x, 8),
    }


def blocks(process, count):
    """The rounds of waves: `(wave, ids, weights, ages)` each, and the seconds of the waves."""
    c, took = rounds(process, count)
    u = c.updates.shape[1]
    parts = [np.asarray(a).reshape(count, u, -1) for a in (c.ids, c.weight, c.age)]
    for t in range(count):
        assert len(set(c.ids[t].tolist())) == c.ids.shape[1]
        assert not parts[1][t][~np.asarray(c.updates[t])].any()
    return [(t, *(p[t, j] for p in parts)) for t in range(count) for j in range(int(c.updates[t].sum()))], took


@pytest.mark.parametrize(
    ("clock", "most"),
    [
        (buffered(40, 16, 1, exponential()), 10),
        (quorum(12, 2, exponential(), timeout=0.2), 6),
    ],
)
def test_waves_are_the_longest_runs_of_a_schedule(clock, most):
    one, seconds = blocks(waves(clock, 1), 300)
    found, took = blocks(waves(clock, most), 30)
    assert len(found) > 40
    for (_, ids, weight, age), (_, *alone) in zip(found, one, strict=False):
        present = weight > 0
        np.testing.assert_array_equal(weight, alone[1])
        for a, b in ((ids, alone[0]), (age, alone[2])):
            np.testing.assert_array_equal(a[present], b[present])
    number = np.array([t for t, *_ in found])
    begins = np.flatnonzero(np.diff(number, prepend=-1))
    np.testing.assert_allclose(took, np.add.reduceat(np.asarray(seconds)[: len(found)], begins), rtol=1e-5, atol=1e-6)
    for begin, end in pairwise(begins):
        waits = lambda k, begin=begin: (found[k][3] < k - begin)[found[k][2] > 0]  # read a model made in the wave
        assert not any(waits(k).any() for k in range(begin, end))
        assert end - begin == most or waits(end).any()


@pytest.mark.parametrize("name", ["fedasync", "with memory"])
def test_the_result_is_that_of_one_round_at_a_time(name):
    system, world, x, _ = small()[name]
    clock = {"fedasync": buffered(16, 6, 1, exponential())}.get(
        name, buffered(16, 10, 2, lognormal(), weight=np.arange(1.0, 17))
    )
    many = run(system, world, x, 12, every=1, evaluate=WHERE).history
    made = many["updates"].fillna(0).cumsum().astype(int).to_numpy()
    assert made[-1] > 15
    single = run(system, scenario(world.data, cohort=waves(clock, 1)), x, made[-1], every=1, evaluate=WHERE).history
    at = single.iloc[made]
    for column in ("x0", "x1", "x2", "time", "total_up_bits", "total_down_bits"):
        np.testing.assert_allclose(many[column], at[column], rtol=2e-5, atol=1e-6)
    lost = np.add.reduceat(single["dropped"].to_numpy()[1:], made[:-1])
    np.testing.assert_array_equal(many["dropped"][1:], lost)


def test_equal_jobs_train_all_at_once():
    c, took = rounds(waves(buffered(20, 8, 1, fixed(2.0)), 16), 5)
    np.testing.assert_array_equal(c.updates.sum(1), 8)
    np.testing.assert_array_equal(took, np.full(5, 2.0))
    np.testing.assert_array_equal(c.age[1, :8], np.full(8, 7))


def test_a_wave_has_about_the_root_of_the_jobs_at_work():
    """Exponential jobs: the next arrival is any of C at work, and a new one after sqrt(pi C / 2) on average."""
    c, _ = rounds(waves(buffered(300, 128, 1, exponential()), 64), 60)
    assert abs(c.updates.sum(1).mean() / math.sqrt(math.pi * 128 / 2) - 1) < 0.2


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p, d: waves(cohort.uniform(4, 2), 2), "clock is no clock of single rounds"),
        (lambda p, d: waves(waves(buffered(8, 2, 1, fixed()), 2), 2), "clock is no clock of single rounds"),
        (lambda p, d: waves(buffered(8, 3, 3, fixed()), 3), "most = 3: a wave of 3 rounds of 3 members"),
        (lambda p, d: waves(buffered(8, 3, 3, fixed()), 0), "most is 0"),
        (lambda p, d: run(scaffold(p), d(), jnp.ones(3), 1), "updates in turn"),
        (lambda p, d: run(fedasync(p), d(links=links(8)), jnp.ones(3), 1), "links are given"),
    ],
)  # fmt: skip
def test_bad_waves_are_refused(make, said):
    _, problem, data = quadratics(n=8, d=3)
    with pytest.raises(InputError, match=said):
        make(problem, lambda **kw: scenario(data, cohort=waves(buffered(8, 2, 1, fixed()), 2), **kw))
