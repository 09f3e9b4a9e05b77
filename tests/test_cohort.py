import itertools

import jax
import numpy as np
import pytest
from common import QUICK, rounds
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxfl.core import InputError
from jaxfl.world import cohort as C


def many(process, count, seed=0):
    """Independent draws of the first round, stacked."""
    keys = jax.random.split(jax.random.key(seed), count)

    def one(key):
        return process.step(key, process.arrays, process.init(key, process.arrays), 0)[1]

    return jax.jit(jax.vmap(one), compiler_options=QUICK)(keys)


def counts(cohorts, n):
    """How often each node was in with a positive weight, `[n]`."""
    ids, weight = np.asarray(cohorts.ids), np.asarray(cohorts.weight)
    return np.bincount(ids[weight > 0], minlength=n)


BASE = np.arange(1.0, 21.0)
PROCESSES = {
    "everyone": C.everyone(20, weight=BASE),
    "uniform": C.uniform(20, 3, weight=BASE),
    "uniform_half": C.uniform(20, 15, weight=BASE),
    "poisson": C.poisson(20, 0.2, weight=BASE),
    "importance": C.importance(20, 4, np.arange(1, 21), weight=BASE),
    "cyclic": C.cyclic(20, 6, weight=BASE),
    "markov": C.markov(20, 6, 0.8, 0.8, weight=BASE),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_cohorts_are_distinct_ascending_and_weighted(name):
    drawn = rounds(PROCESSES[name], 60)
    ids, weight = np.asarray(drawn.ids), np.asarray(drawn.weight)
    assert ids.dtype == np.int32
    assert (np.diff(ids, axis=1) > 0).all()
    assert ids.min() >= 0
    assert ids.max() <= 19
    assert (np.asarray(drawn.age) == 0).all()
    assert drawn.steps is None
    if name != "importance":
        np.testing.assert_array_equal(weight, np.where(weight > 0, BASE[ids], 0))
    if name not in ("poisson", "markov"):
        assert (weight > 0).all()


def test_base_weights_default_to_one():
    for make in (C.everyone, lambda n: C.uniform(n, 2), lambda n: C.poisson(n, 0.5), lambda n: C.cyclic(n, 2)):
        np.testing.assert_array_equal(make(6).arrays["weight"], np.ones(6))
    for process in (C.markov(6, 2, 0.5, 0.5), C.importance(6, 2, np.ones(6))):
        np.testing.assert_array_equal(process.arrays["weight"], np.ones(6))


@pytest.mark.parametrize("name", [n for n in PROCESSES if n not in ("everyone", "cyclic")])
def test_the_key_decides(name):
    first, again, other = (rounds(PROCESSES[name], 60, seed) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first.ids * (first.weight > 0), other.ids * (other.weight > 0))


@pytest.mark.parametrize(("n", "c"), [(5, 2), (6, 3)])
def test_every_subset_is_equally_likely(n, c):
    drawn = np.asarray(many(C.uniform(n, c), 8000).ids)
    order = {s: i for i, s in enumerate(itertools.combinations(range(n), c))}
    seen = np.bincount([order[tuple(row)] for row in drawn.tolist()], minlength=len(order))
    assert stats.chisquare(seen).pvalue > 1e-3


def test_uniform_marginals_of_a_large_world():
    n, c, count = 200, 20, 4000
    drawn = many(C.uniform(n, c), count)
    seen = counts(drawn, n)
    assert seen.sum() == c * count
    # without replacement the counts vary by (1 - c / n) less than a multinomial's
    chi = ((seen - c * count / n) ** 2).sum() / (c * count / n * (1 - c / n)) * (n - 1) / n
    assert 1e-3 < stats.chi2.sf(chi, n - 1) < 1 - 1e-3


@settings(max_examples=7, deadline=None, derandomize=True)
@given(st.integers(1, 60), st.data())
def test_subset_is_distinct_for_any_size(n, data):
    c = data.draw(st.integers(1, n))
    draw = jax.jit(jax.vmap(lambda k: C.subset(k, n, c)), compiler_options=QUICK)
    ids = np.asarray(draw(jax.random.split(jax.random.key(n), 20)))
    assert ids.shape == (20, c)
    assert (np.diff(ids, axis=1) > 0).all()
    assert ids.min() >= 0
    assert ids.max() < n


def test_a_million_nodes_cost_nothing_extra():
    process = C.uniform(1_000_000, 100)
    program = jax.jit(lambda key: C.subset(key, 1_000_000, 100)).lower(jax.random.key(0)).compile()
    assert program.memory_analysis().temp_size_in_bytes < 100_000
    ids = np.asarray(many(process, 2000).ids)
    assert (np.diff(ids, axis=1) > 0).all()
    assert abs(ids.mean() - 499_999.5) < 5 * 1e6 / np.sqrt(12 * ids.size)


def test_poisson_counts_are_binomial():
    n, p, count = 30, 0.15, 6000
    drawn = many(C.poisson(n, p), count)
    size = (np.asarray(drawn.weight) > 0).sum(1)
    expected = stats.binom(n, p).pmf(np.arange(12)) * count
    seen = np.bincount(size, minlength=12)[:12]
    big = expected > 5
    assert stats.chisquare(seen[big], expected[big] * seen[big].sum() / expected[big].sum()).pvalue > 1e-3
    assert abs(size.mean() - n * p) < 4 * np.sqrt(n * p * (1 - p) / count)
    each = counts(drawn, n) / count
    assert np.abs(each - p).max() < 4.5 * np.sqrt(p * (1 - p) / count)
    assert abs(size.var() / (n * p * (1 - p)) - 1) < 0.1


def test_poisson_capacity():
    slots = C.poisson(1000, 0.05).arrays["below"].size
    assert stats.binom(1000, 0.05).sf(slots) < 1e-6 <= stats.binom(1000, 0.05).sf(slots - 1)
    assert many(C.poisson(1000, 0.05, capacity=slots + 7), 2).ids.shape == (2, slots + 7)
    with pytest.raises(InputError, match=f"capacity = {slots - 1}: at least {slots} slots"):
        C.poisson(1000, 0.05, capacity=slots - 1)
    assert (np.asarray(many(C.poisson(6, 1.0), 5).weight) == 1).all()  # p = 1 is everyone
    rare = many(C.poisson(10, 1e-9), 50)
    assert rare.ids.shape == (50, 1)
    assert (np.asarray(rare.weight) == 0).all()  # an empty round


@pytest.mark.parametrize("c", [1, 3, 7])
def test_importance_is_unbiased(c):
    n, count = 8, 20_000
    r = np.random.default_rng(0)
    p, base, v = r.random(n) + 0.05, r.random(n) + 0.5, r.standard_normal(n)
    drawn = many(C.importance(n, c, p * 100, weight=base), count)  # the scale of p does not matter
    ids, weight = np.asarray(drawn.ids), np.asarray(drawn.weight, np.float64)
    estimate = (weight * v[ids]).sum(1) / c
    assert abs(estimate.mean() - (base * v).sum() / n) < 4.5 * estimate.std() / np.sqrt(count)
    if c == 1:  # one draw: in proportion to p
        seen = np.bincount(ids[:, 0], minlength=n)
        assert stats.chisquare(seen, p / p.sum() * count).pvalue > 1e-3


def test_importance_of_everyone_is_the_base_weight():
    drawn = many(C.importance(6, 6, np.arange(1, 7), weight=np.arange(1, 7)), 3)
    np.testing.assert_allclose(drawn.weight, np.tile(np.arange(1, 7), (3, 1)))
    favoured = counts(many(C.importance(6, 2, [1, 1, 1, 1, 1, 20]), 500), 6)
    assert favoured[5] > 2 * favoured[:5].max()


@pytest.mark.parametrize(("n", "c"), [(12, 4), (10, 4), (7, 5), (5, 5)])
def test_cyclic_visits_everyone_in_turn(n, c):
    drawn = np.asarray(rounds(C.cyclic(n, c), 3 * n).ids)
    for t in range(3 * n):
        np.testing.assert_array_equal(drawn[t], np.sort((t * c + np.arange(c)) % n))
    assert np.bincount(drawn[:n].reshape(-1)).tolist() == [c] * n
    seen = np.bincount(drawn[: -(-n // c)].reshape(-1), minlength=n)
    assert seen.min() >= 1


def test_availability_is_a_markov_chain_in_its_stationary_law():
    n, count = 400, 300
    stay_on = np.where(np.arange(n) < n // 2, 0.9, 0.5)
    on = np.asarray(rounds(C.availability(n, stay_on, 0.8), count))
    for part, p in ((slice(0, n // 2), 0.9), (slice(n // 2, n), 0.5)):
        a = on[:, part]
        share = 0.2 / (1.2 - p)  # (1 - stay_off) / (2 - stay_on - stay_off)
        assert a.mean() == pytest.approx(share, abs=0.02)
        assert a[0].mean() == pytest.approx(share, abs=0.12)  # no burn-in: 200 nodes at the start
        assert a[1:][a[:-1]].mean() == pytest.approx(p, abs=0.02)
        assert (~a[1:])[~a[:-1]].mean() == pytest.approx(0.8, abs=0.02)


def test_markov_draws_uniformly_among_the_available():
    n, c = 10, 3
    drawn = many(C.markov(n, c, 0.7, 0.6), 6000)
    share = 0.4 / 0.7
    size = (np.asarray(drawn.weight) > 0).sum(1)
    expected = sum(min(k, c) * stats.binom(n, share).pmf(k) for k in range(n + 1))
    assert size.mean() == pytest.approx(expected, abs=0.03)
    each = counts(drawn, n) / 6000
    assert np.abs(each - expected / n).max() < 4.5 * np.sqrt(0.25 / 6000)
    never = many(C.markov(n, c, 0.0, 1.0), 20)  # nobody is ever on
    assert (np.asarray(never.weight) == 0).all()
    assert (np.diff(np.asarray(never.ids), axis=1) > 0).all()
    always = many(C.markov(n, c, 1.0, 0.0), 20)
    assert (np.asarray(always.weight) == 1).all()


def test_the_cohort_is_on():
    process = C.markov(12, 5, 0.6, 0.6)
    s = process.init(jax.random.key(0), process.arrays)
    for t in range(10):
        s, drawn = process.step(jax.random.key(t), process.arrays, s, t)
        np.testing.assert_array_equal(np.asarray(drawn.weight) > 0, np.asarray(s)[np.asarray(drawn.ids)])
        assert int((drawn.weight > 0).sum()) == min(5, int(s.sum()))


def test_a_simulation_through_cohorts_is_differentiable():
    process = C.uniform(1000, 10)

    def end(x):
        def body(x, key):
            ids = process.step(key, process.arrays, (), 0)[1].ids
            return x * (1 + 1e-3 * ids.sum() / 1000), None

        return jax.lax.scan(body, x, jax.random.split(jax.random.key(0), 5))[0]

    assert float(jax.grad(end)(2.0)) == pytest.approx(float(end(1.0)), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: C.everyone(0), "n = 0"),
        (lambda: C.everyone(3, weight=[1, 2]), r"weight has shape \[2\]"),
        (lambda: C.everyone(2, weight=[1, -1]), "weight runs from -1"),
        (lambda: C.everyone(2, weight=[0, 0]), "weight runs from 0"),
        (lambda: C.everyone(2, weight=[1, np.nan]), "weight runs from nan"),
        (lambda: C.uniform(5, 6), "c = 6"),
        (lambda: C.uniform(5, 0), "c = 0"),
        (lambda: C.poisson(5, 0.0), "p = 0.0"),
        (lambda: C.poisson(5, 1.1), "p = 1.1"),
        (lambda: C.poisson(5, 0.5, capacity=6), "c = 6"),
        (lambda: C.importance(3, 4, np.ones(3)), "c = 4"),
        (lambda: C.importance(3, 2, [1, 0, 1]), "p has"),
        (lambda: C.importance(3, 2, [1, 1]), r"p has shape \[2\]"),
        (lambda: C.cyclic(3, 4), "c = 4"),
        (lambda: C.markov(3, 4, 0.5, 0.5), "c = 4"),
        (lambda: C.markov(3, 2, 1.5, 0.5), "stay_on = 1.5"),
        (lambda: C.markov(3, 2, 0.5, [0.5, 0.5]), "stay_off"),
        (lambda: C.availability(3, 1.0, [0.5, 1.0, 0.5]), "stay_on = stay_off = 1"),
    ],
)
def test_bad_input_is_refused(call, says):
    with pytest.raises(InputError, match=says):
        call()
