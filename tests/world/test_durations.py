"""Laws of durations against those of scipy; speeds that change with the rounds; traces, good and bad."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import rounds
from scipy import stats

from jaxfl.errors import InputError
from jaxfl.world import cohort, durations, pace, traces
from jaxfl.world.clock import buffered
from jaxfl.world.deadline import deadline
from jaxfl.world.durations import (
    by_samples,
    exponential,
    fixed,
    gamma,
    jittered,
    lognormal,
    pareto,
    scaled,
    settled,
    shifted_exponential,
    tiers,
    timed_out,
    total,
    uniform,
)
from jaxfl.world.links import links


def sample(law, i=0, count=20_000, seed=0):
    key = jax.random.split(jax.random.key(seed), count)
    return np.asarray(jax.vmap(lambda k: law.draw(k, law.arrays, jnp.int32(i)))(key), np.float64)


@pytest.mark.parametrize(
    ("law", "exact"),
    [
        (uniform([1, 0.5], [2, 2.5]), stats.uniform(0.5, 2)),
        (shifted_exponential(2, [1, 3]), stats.expon(2, 3)),
        (gamma([1, 6], 3), stats.gamma(3, scale=2)),
        (gamma(2, 0.5), stats.gamma(0.5, scale=4)),
        (pareto([1, 2], 2.5), stats.pareto(2.5, scale=2)),
        (scaled(lognormal(2, 0.5), [1, 3]), stats.lognorm(0.5, scale=6)),
        (by_samples(exponential(2), [10, 30]), stats.expon(scale=3)),
        (by_samples(exponential(2), [10, 30], -1), stats.expon(scale=2 / 1.5)),
        (jittered(fixed([1, 4]), [0.1, 0.3]), stats.lognorm(0.3, scale=4)),
        (jittered(lognormal(2, 0.4), 0.3), stats.lognorm(0.5, scale=2)),  # independent of what it jitters
    ],
)
def test_laws_are_those_of_scipy(law, exact):
    assert stats.kstest(sample(law, 1), exact.cdf).pvalue > 1e-3


def test_the_rare_long_jobs_of_a_pareto_are_as_rare_as_they_should_be():
    long = sample(pareto(1, 1), count=200_000)
    assert stats.kstest(long[long > 1e3] / 1e3, stats.pareto(1).cdf).pvalue > 1e-3
    assert long.min() >= 1


def test_a_job_that_times_out_ends_there():
    law, end = exponential(1), 1.5
    np.testing.assert_array_equal(sample(timed_out(law, end)), np.minimum(sample(law), end))


def test_a_node_that_settled_keeps_its_time_and_the_population_has_the_law():
    law = settled(lognormal(2, 1), 5000, seed=3)
    assert stats.kstest(np.asarray(law.arrays["seconds"]), stats.lognorm(1, scale=2).cdf).pvalue > 1e-3
    assert len(set(sample(law, 7, 50))) == 1
    by_node = settled(fixed([1.0, 5.0]), 2)
    np.testing.assert_array_equal(by_node.arrays["seconds"], [1, 5])
    again, other = settled(lognormal(2, 1), 5000, seed=3), settled(lognormal(2, 1), 5000, seed=4)
    np.testing.assert_array_equal(law.arrays["seconds"], again.arrays["seconds"])
    assert not np.array_equal(law.arrays["seconds"], other.arrays["seconds"])


def test_tiers_have_their_shares_to_one_node():
    factor = tiers(10, [0.25, 0.0, 0.75], [1, 2, 8], seed=1)
    assert sorted(factor) == [1] * 2 + [8] * 8  # 2.5 is rounded to even
    assert not np.array_equal(factor, np.sort(factor))
    counts = np.unique(tiers(1001, [1 / 3, 1 / 3, 1 / 3], [1, 2, 3]), return_counts=True)[1]
    assert counts.max() - counts.min() <= 1


def test_laws_are_made_once_and_their_numbers_are_traced():
    make = lambda v: timed_out(jittered(scaled(gamma(v, 2), v), v), v)
    assert make(1.0).draw is make(2.0).draw
    way = links(3, up=8.0, latency=0.5)
    both = total(settled(uniform(), 3), durations.on_links(way, up_bits=16.0))
    np.testing.assert_allclose(sample(both, 1, 3), settled(uniform(), 3).arrays["seconds"][1] + 2.5, rtol=1e-6)


def test_a_round_takes_as_long_as_the_trace_says():
    trace = traces.Trace(np.array([[1, 2, 0], [5, 0, 0], [3, 4, 7]], np.float32), np.array([2, 1, 3], np.int32))
    clock = pace.varied(deadline(cohort.everyone(3), pace.by_round(fixed(1.0), 3)), traces.played(trace))
    _, took = rounds(clock, 7)
    np.testing.assert_array_equal(took, [5, 5, 7, 5, 5, 7, 5])
    law = traces.drawn(trace)
    for node, jobs in enumerate(([1, 2], [5], [3, 4, 7])):
        seen, count = np.unique(sample(law, node, 3000), return_counts=True)
        np.testing.assert_array_equal(seen, jobs)
        assert (np.abs(count / 3000 - 1 / len(jobs)) < 0.04).all()
    _, took = rounds(buffered(3, 2, 1, law), 200)
    assert took.min() >= 0


def test_bursts_are_the_chain_of_gilbert_and_elliott():
    n, begin, end = 400, 0.05, 0.2
    factor = np.asarray(rounds(pace.bursts(n, begin, end, 10), 400))
    assert set(np.unique(factor)) == {1, 10}
    slow = factor > 1
    assert abs(slow.mean() - begin / (begin + end)) < 0.01
    assert abs(slow[0].mean() - begin / (begin + end)) < 0.08  # stationary from the start
    before, after = slow[:-1], slow[1:]
    assert abs(after[~before].mean() - begin) < 0.004
    assert abs(1 - after[before].mean() - end) < 0.01
    clock = deadline(cohort.uniform(n, 20), pace.by_round(fixed(np.arange(n)), n))
    members, took = rounds(pace.varied(clock, pace.bursts(n, 0.3, 0.3, 10)), 50)
    ids, times = np.asarray(members.ids), np.asarray(took)
    assert ((times == ids.max(1)) | (times % 10 == 0)).all()
    assert (times > ids.max(1)).any()


def test_a_clock_that_nothing_varies_is_as_it_was():
    plain, same = buffered(30, 8, 3, lognormal()), buffered(30, 8, 3, pace.by_round(lognormal(), 30))
    varied = pace.varied(same, traces.played(traces.Trace(np.ones((30, 1), np.float32), np.ones(30, np.int32))))
    one = rounds(plain, 60)
    for clock in (same, varied):
        for a, b in zip(jax.tree.leaves(rounds(clock, 60)), jax.tree.leaves(one), strict=True):
            np.testing.assert_array_equal(a, b)


def test_estimated_speeds_are_the_moving_average_of_numpy():
    rng = np.random.default_rng(0)
    speeds, mean, count = pace.unseen(6), np.zeros(6), np.zeros(6, int)
    for _ in range(20):
        ids, took, steps = rng.permutation(6)[:3], rng.uniform(1, 9, 3), rng.integers(0, 4, 3)
        speeds = jax.jit(pace.seen)(speeds, jnp.asarray(ids), jnp.asarray(took, jnp.float32), jnp.asarray(steps), 0.25)
        for i, s, k in zip(ids, took, steps, strict=True):
            if k:
                mean[i] = s / k if not count[i] else 0.75 * mean[i] + 0.25 * s / k
                count[i] += 1
    np.testing.assert_allclose(speeds.seconds, mean, rtol=1e-5)
    np.testing.assert_array_equal(speeds.seen, count)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"node,seconds\n0,1\n0,-2\n", r"line 3: seconds is '-2', but must be a finite number of at least 0"),
        (b"node,seconds\n0,1\n0,1e39\n", r"line 3: seconds is '1e39', but must be .* at most 1e38"),
        (b"node,seconds\n0,1_000\n", r"line 2: seconds is '1_000'"),
        (b"node,seconds\n0,1\n1,\n", "line 3: seconds is ''"),
        (b"node,seconds\n0,1\n1,nan\n", "line 3: seconds is 'nan'"),
        (b"node,seconds\n0,1\n5,1\n", "line 3: node is '5', but must be a whole number from 0 to 1"),
        (b"node,seconds\n0,1\n\n-1,1\n", "line 4: node is '-1'"),
        (b"node,seconds\n0,1\n1,1\n1\n", "line 4: 1 cells, but there are 2 columns"),
        (b"node,seconds\n0,1\n1,\xff\n", "line 3: not text in UTF-8"),
        (b'node,seconds\n0,1\n1,"2\n', "line 3: not a line of CSV"),
        (b"node,second\n0,1\n", "line 1: column 'second' is unknown; did you mean seconds"),
        (b"node\n0\n", "line 1: the columns are node, but must be node,seconds"),
        (b"node,seconds\n0,1\n0,2\n", "line 3, the last: node 1 of 2 has no job"),
        (b"node,seconds\n", "there is no row in it"),
        (b"", "the columns are none"),
        (None, "there is no such file"),
    ],
)
def test_bad_traces_are_refused_with_their_line(tmp_path, text, said):
    path = tmp_path / "jobs.csv"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(InputError, match=said):
        traces.load_trace(path, 2)


def test_a_trace_of_mixed_lines_keeps_their_order(tmp_path):
    path = tmp_path / "jobs.csv"
    path.write_bytes(b"\xef\xbb\xbfSeconds , node\r\n7, 1\r\n1,0\r\n8.5,1\r\n\r\n")
    trace = traces.load_trace(path)
    np.testing.assert_array_equal(trace.seconds, [[1, 0], [7, 8.5]])
    np.testing.assert_array_equal(trace.jobs, [1, 2])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: uniform(2, 1), "high = 1: at least low = 2"),
        (lambda: gamma(0), "mean = 0"),
        (lambda: pareto(1, 0), "shape = 0"),
        (lambda: shifted_exponential(-1), "shift = -1"),
        (lambda: by_samples(fixed(), [1, 0]), r"sizes has shape \[2\]"),
        (lambda: tiers(9, [0.5, 0.4], [1, 2]), "whose sum is 1"),
        (lambda: tiers(9, [0.5, 0.5], [1]), r"factors = \[1\]"),
        (lambda: jittered(fixed(), -1), "sigma = -1"),
        (lambda: timed_out(fixed(), 0), "most = 0"),
        (lambda: settled(fixed(), 0), "n is 0"),
        (lambda: fixed(1e39), "seconds = 1e[+]39: a finite number of at least 0, as float32"),
        (lambda: exponential(1e-50), "mean = 1e-50: a finite number above 0, as float32"),
        (lambda: by_samples(fixed(), [1, 30], 1e3), "power is 1000.0, with which a job of 1 or 30 samples never ends"),
        (lambda: pace.bursts(4, 0, 0), "begin = end = 0"),
        (lambda: pace.bursts(4, 2, 0), "begin = 2"),
        (lambda: pace.bursts(4, 0.1, 0.1, -1), "slower = -1"),
        (lambda: pace.varied(buffered(9, 2, 1, fixed()), pace.bursts(9, 0.1, 0.1)), "no durations that change"),
        (
            lambda: pace.varied(buffered(9, 2, 1, pace.by_round(fixed(), 9)), pace.bursts(8, 0.1, 0.1)),
            r"do not yield \[9\]",
        ),
        (lambda: buffered(9, 2, 1, pace.by_round(fixed(), 8)), r"one a node \[9\]"),
    ],
)
def test_bad_durations_are_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()
