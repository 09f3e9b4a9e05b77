"""Who takes part: distinct, weighted, as often as said."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import digits_world, quadratics, rounds, same
from scipy import stats

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.core import Cohort
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.world import cohort as C
from jaxfl.world.clock import buffered
from jaxfl.world.deadline import deadline
from jaxfl.world.durations import lognormal
from jaxfl.world.process import process
from jaxfl.world.scenario import scenario
from jaxfl.world.work import straggling


def many(process, count, seed=0):
    """Independent draws of the first round, stacked."""
    keys = jax.random.split(jax.random.key(seed), count)

    def one(key):
        return process.step(key, process.arrays, process.init(key, process.arrays), 0)[1]

    return jax.jit(jax.vmap(one))(keys)


def counts(cohorts, n):
    """How often each node was in with a positive weight, `[n]`."""
    ids, weight = np.asarray(cohorts.ids), np.asarray(cohorts.weight)
    return np.bincount(ids[weight > 0], minlength=n)


BASE = np.arange(1.0, 21.0)
SIZE = np.array([1.0, 2.0, 1.0, 3.0])
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
    assert drawn.age is None
    assert drawn.strata.everyone == (name == "everyone")
    assert drawn.steps is None
    if name != "importance":
        assert drawn.total is None
        np.testing.assert_array_equal(weight, np.where(weight > 0, BASE[ids], 0))
    if name not in ("poisson", "markov"):
        assert (weight > 0).all()


DEFAULT = {
    "everyone": lambda **kw: C.everyone(12, **kw),
    "uniform": lambda **kw: C.uniform(12, 4, **kw),
    "stratified": lambda **kw: C.stratified(12, 4, 2, **kw),
    "poisson": lambda **kw: C.poisson(12, 0.5, **kw),
    "importance": lambda **kw: C.importance(12, 4, np.arange(1, 13), **kw),
    "cyclic": lambda **kw: C.cyclic(12, 5, **kw),
    "in_turn": lambda **kw: C.in_turn(12, 4, 3, reshuffle=True, **kw),
    "markov": lambda **kw: C.markov(12, 4, 0.8, 0.6, **kw),
    "buffered": lambda **kw: buffered(12, 5, 3, lognormal(), **kw),
    "straggling": lambda **kw: straggling(C.uniform(12, 4, **kw), 0.5, epochs=3),
    "deadline": lambda **kw: deadline(straggling(C.uniform(12, 4, **kw), 0.5, 3), lognormal(), keep=3),
}


def values_of(process, count=5):
    drawn = rounds(process, count)
    return drawn if isinstance(drawn, Cohort) else drawn[0]


@pytest.mark.parametrize("name", DEFAULT)
def test_by_default_members_weigh_as_much_as_they_have_samples(name):
    shards, ones = digits_world(n=12)[1].data, np.ones(12)
    size = np.asarray(shards.size, np.float32)
    make = DEFAULT[name]
    world = lambda process, data=shards, **kw: scenario(data, cohort=process, **kw)
    who = lambda world, process: process._replace(arrays=world.arrays["cohort"])
    bare, given, equal = make(), make(weight=size), make(weight=ones)
    assert size.min() < size.max()
    np.testing.assert_array_equal(C.base_of(bare), ones)
    for made, want in ((bare, size), (given, size), (equal, ones)):
        here = who(world(made), made)
        np.testing.assert_array_equal(C.base_of(here), want)
        assert jax.tree.structure(here.arrays) == jax.tree.structure(given.arrays)  # one program serves all
        assert same(values_of(here), values_of(make(weight=want)))
    elsewhere = world(bare, jnp.zeros(12), nodes=12)
    np.testing.assert_array_equal(C.base_of(who(elsewhere, bare)), ones)
    with pytest.raises(InputError, match="not drawn from 11 nodes"):
        scenario(jnp.zeros(11), nodes=11, cohort=bare)


def test_everyone_is_the_default_cohort():
    world = digits_world(n=12)[1]
    assert same(world.arrays, scenario(world.data, cohort=C.everyone(12)).arrays)


def test_a_process_of_a_user_has_the_weights_it_says_or_none():
    assert C.base_of(process(lambda key, arrays, s, t: (s, None), {"x": (jnp.ones(3),)})) is None
    assert C.base_of(process(lambda key, arrays, s, t: (s, None))) is None


@pytest.mark.parametrize("name", [n for n in PROCESSES if n not in ("everyone", "cyclic")])
def test_the_key_decides(name):
    first, again, other = (rounds(PROCESSES[name], 60, seed) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first.ids * (first.weight > 0), other.ids * (other.weight > 0))


@pytest.mark.parametrize(("n", "c"), [(6, 3)])
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


@pytest.mark.parametrize(("n", "c"), [(1, 1), (60, 2), (31, 30)])
def test_subset_is_distinct_for_any_size(n, c):
    draw = jax.jit(jax.vmap(lambda k: C.subset(k, n, c)))
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


def mean(drawn, v):
    """What a network makes of the values `v` of the members, a round each."""
    weight, total = np.asarray(drawn.weight, np.float64), np.asarray(drawn.total, np.float64)
    return (weight * v[np.asarray(drawn.ids)]).sum(1) / total


@pytest.mark.parametrize(("n", "c"), [(4, 1), (4, 3), (8, 3)])
def test_importance_is_unbiased(n, c):
    count, r = 20_000, np.random.default_rng(n)
    p, base, v = np.arange(1.0, n + 1), r.random(n) + 0.5, r.standard_normal(n) + 1
    drawn = many(C.importance(n, c, p * 100, weight=base), count)  # the scale of p does not matter
    got = mean(drawn, v)
    assert abs(got.mean() - base @ v / base.sum()) < 4.5 * got.std() / np.sqrt(count)
    assert abs(mean(drawn, np.ones(n)).mean() - 1) < 4.5 * mean(drawn, np.ones(n)).std() / np.sqrt(count)
    if c == 1:  # one draw: in proportion to p, and weights are exact
        seen = np.bincount(np.asarray(drawn.ids)[:, 0], minlength=n)
        assert stats.chisquare(seen, p / p.sum() * count).pvalue > 1e-3
        at = np.asarray(drawn.ids)[:, 0]
        np.testing.assert_allclose(drawn.weight[:, 0], (base * p.sum() / p)[at], rtol=1e-5)


def one_round(who, **kw):
    """The model after a round of FedAvg on four quadratics, for each seed."""
    _, task, data = quadratics(n=4, d=2)
    algorithm = fedavg(task, lr=0.05, steps=2, batch=None)
    return np.asarray(run(algorithm, scenario(data, cohort=who), jnp.ones(2), 1, **kw).state.shared["x"], np.float64)


@functools.cache
def with_everyone():
    return one_round(C.everyone(4, weight=SIZE))


@pytest.mark.parametrize(("c", "wrap"), [(2, None), (3, "straggling"), (3, "deadline")])
def test_a_round_of_fedavg_with_importance_is_in_the_mean_that_of_all_clients(c, wrap):
    """Also where chance takes a part of the members' weight away."""
    who, seeds = C.importance(4, c, np.array([4.0, 3.0, 2.0, 1.0]), weight=SIZE), 3000
    wrapped = {
        None: who,
        "straggling": straggling(who, 0.5, 2, steps=2, drop=0.5),  # no fewer steps than FedAvg runs anyway
        "deadline": deadline(who, lognormal(), keep=max(c - 1, 1)),
    }
    got = one_round(wrapped[wrap], seeds=seeds)
    assert (np.abs(got.mean(0) - with_everyone()) < 4.5 * got.std(0) / np.sqrt(seeds)).all()


def test_a_total_stays_above_0_where_nobody_is_left():
    nobody = rounds(straggling(C.importance(4, 3, np.ones(4)), 1.0, 2, drop=1.0), 3)
    assert not np.asarray(nobody.weight).any()
    assert (np.asarray(nobody.total) > 0).all()


def test_importance_of_everyone_is_the_base_weight():
    drawn = many(C.importance(6, 6, np.arange(1, 7), weight=np.arange(1, 7)), 3)
    np.testing.assert_allclose(drawn.weight, np.tile(np.arange(1, 7), (3, 1)))
    np.testing.assert_array_equal(drawn.total, 21)
    favoured = counts(many(C.importance(6, 2, [1, 1, 1, 1, 1, 20]), 500), 6)
    assert favoured[5] > 2 * favoured[:5].max()


def test_preferences_may_be_as_unequal_as_numbers_are():
    """Against the law of drawing one after the other: with a far smaller preference a node is last, not now and then.

    A grain of 2^-23 in the draws would put a node of preference 1e-9 first in 1 of 1e7 draws, not of 1e9.
    """
    count = 6000
    for small in (1e-9, 1e-46, 1e-300):
        p = np.array([small, 1, 3 * small, 2])
        drawn = many(C.importance(4, 3, p), count)
        assert np.isfinite(drawn.weight).all()
        assert (counts(drawn, 4)[[1, 3]] == count).all()
        third = counts(drawn, 4)[2]  # the third is node 2 with probability 3 / 4
        assert stats.binomtest(int(third), count, 0.75).pvalue > 1e-3
        got = mean(drawn, np.array([3.0, 0.0, -1.0, 0.0]))  # only the two rare nodes matter
        assert abs(got.mean() - 0.5) < 4.5 * got.std() / np.sqrt(count)
    # the extremes of float64, and sums beyond it
    edge = many(C.importance(3, 2, [5e-324, 1.7e308, 1.7e308]), 200)
    np.testing.assert_array_equal(edge.ids, np.tile([1, 2], (200, 1)))
    np.testing.assert_allclose(edge.weight, 1)


@pytest.mark.parametrize("small", [1e-9, 1e-300])
def test_races_are_those_of_float64_whatever_the_preferences(small, monkeypatch):
    """Draws of all scales, among them those with which a node of a tiny preference comes first, and its weight.

    That draws of such scales come as often as they should is said by test_exponential.
    """
    r, n = np.random.default_rng(0), 5
    p = np.array([small, 1.0, 3 * small, 2.0, 5.0])
    draw = 10.0 ** r.uniform(-18, 1.5, (300, n)).astype(np.float32)
    arrival = draw.astype(np.float64) / p
    order = np.argsort(arrival, 1)
    for c in (1, 4, 5):
        process = C.importance(n, c, p)

        def step(e, process=process, c=c):
            monkeypatch.setattr(C, "exponential", lambda key, shape: e)
            return process.step(jax.random.key(0), process.arrays, (), 0)[1]

        got = jax.jit(jax.vmap(step))(draw)
        ids = np.sort(order[:, :c], 1)
        np.testing.assert_array_equal(got.ids, ids)
        tau = np.inf if c == n else np.take_along_axis(arrival, order[:, c:], 1)[:, :1]
        inside = p[ids] / p.sum() if c == 1 else -np.expm1(-p[ids] * tau)
        with np.errstate(over="ignore"):  # a node of 1e-46, alone: what weighs 1e46 is drawn once in 1e46 rounds
            want = (1 / inside).astype(np.float32)
        np.testing.assert_allclose(got.weight, want, rtol=2e-4)


@pytest.mark.parametrize(("n", "c"), [(12, 4), (7, 5), (5, 5)])
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
    step = jax.jit(process.step)
    for t in range(10):
        s, drawn = step(jax.random.key(t), process.arrays, s, t)
        np.testing.assert_array_equal(np.asarray(drawn.weight) > 0, np.asarray(s)[np.asarray(drawn.ids)])
        assert int((drawn.weight > 0).sum()) == min(5, int(s.sum()))


def test_a_simulation_through_cohorts_is_differentiable():
    process = C.uniform(1000, 10)

    def end(x):
        def body(x, key):
            ids = process.step(key, process.arrays, (), 0)[1].ids
            return x * (1 + 1e-3 * ids.sum() / 1000), None

        return jax.lax.scan(body, x, jax.random.split(jax.random.key(0), 5))[0]

    assert float(jax.jit(jax.grad(end))(2.0)) == pytest.approx(float(jax.jit(end)(1.0)), rel=1e-6)


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
        (lambda: C.in_turn(6, 4, 2), "c = 4: group 0 has only 3 nodes"),
        (lambda: C.in_turn(6, 0, 2), "c is 0"),
        (lambda: C.in_turn(6, 1, 7), "groups is 7"),
        (lambda: C.markov(3, 2, 1.5, 0.5), "stay_on = 1.5"),
        (lambda: C.markov(3, 2, 0.5, [0.5, 0.5]), "stay_off"),
        (lambda: C.availability(3, 1.0, [0.5, 1.0, 0.5]), "stay_on = stay_off = 1"),
    ],
)
def test_bad_input_is_refused(call, says):
    with pytest.raises(InputError, match=says):
        call()
