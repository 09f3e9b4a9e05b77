"""Clocks against an event simulation on a heap, written here in Python with absolute times in float64."""

import heapq
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import one_sample_each, rounds
from scipy import special, stats

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.core import Cohort, stream
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.learn import task
from jaxfl.world import durations
from jaxfl.world import exponential as numbers
from jaxfl.world.clock import buffered
from jaxfl.world.cohort import subset
from jaxfl.world.delivery import quorum
from jaxfl.world.durations import Seconds, exponential, fixed, half_normal, lognormal, on_links, total
from jaxfl.world.links import links
from jaxfl.world.scenario import scenario

# multiples of 1/4: sums are exact in float32, many are tied, some are 0
DYADIC = Seconds(lambda key, arrays, i: jax.random.randint(key, (), 0, 9) / 4, ())


def draws(n, C, K, law, count, seed=0):
    """What chance decides, from the round's keys: first order, places of idle nodes, durations by job of the round."""

    def lasting(key, jobs):  # [n, jobs]
        keys = jax.vmap(lambda j: jax.random.fold_in(stream(key, "job seconds"), j))(jnp.arange(jobs))
        return jax.vmap(lambda i: jax.vmap(lambda k: law.draw(k, law.arrays, i))(keys))(jnp.arange(n))

    def of_round(key):
        which, order, last = jax.random.split(stream(key, "jobs"), 3)
        places = jax.random.permutation(order, subset(which, n - C, K - 1)) if K > 1 else jnp.zeros(0, jnp.int32)
        return places, jax.random.randint(last, (), 0, n - C + 1), lasting(key, K)

    def everything(base):
        keys = jax.vmap(lambda t: jax.random.fold_in(base, t))(jnp.arange(count))
        return jax.random.permutation(stream(base, "jobs"), n), lasting(base, C), jax.lax.map(of_round, keys)

    return jax.device_get(jax.jit(everything)(jax.random.key(seed)))


def heap_simulation(n, C, K, law, count, seed=0):
    """`(ids [count, K], ages [count, K], seconds [count], longest duration)`, event by event."""
    order, first, (places, lasts, lengths) = draws(n, C, K, law, count, seed)  # lengths [count, n, K]
    idle, busy, queue, dispatched = list(map(int, order[C:])), set(), [], 0

    def send(node, now, seconds, version):
        nonlocal dispatched
        assert node not in busy
        busy.add(node)
        heapq.heappush(queue, (now + float(seconds), dispatched, node, version))
        dispatched += 1

    for slot, node in enumerate(map(int, order[:C])):
        send(node, 0.0, first[node, slot], 0)
    ids, ages, ends = [], [], [0.0]
    for t in range(count):
        delivered, taken = [], {}
        for j in range(K):
            now, _, node, version = heapq.heappop(queue)
            busy.remove(node)
            assert node not in [i for i, _ in delivered]
            delivered.append((node, t - version))
            if j < K - 1:  # the slot goes to an idle node that has not delivered to this buffer
                position = int(places[t, j])
                assert position not in taken
                taken[position] = idle[position]
                assert taken[position] not in [i for i, _ in delivered]
                send(taken[position], now, lengths[t, taken[position], j], t)
            assert len(busy) == C - (j == K - 1)
        for j, position in enumerate(taken):
            idle[position] = delivered[j][0]
        idle.append(delivered[-1][0])
        assert sorted([*idle, *busy]) == list(range(n))
        node, end = idle[lasts[t]], idle.pop()
        if node != end:
            idle[lasts[t]] = end
        send(node, now, lengths[t, node, K - 1], t + 1)
        ids.append([i for i, _ in delivered])
        ages.append([a for _, a in delivered])
        ends.append(now)
    return np.array(ids), np.array(ages), np.diff(ends), lengths.max()


@pytest.mark.parametrize(
    ("n", "C", "K", "count", "law"),
    [
        (40, 12, 5, 400, "lognormal"),
        (6, 6, 1, 500, "dyadic"),  # nobody is idle
        (12, 4, 9, 150, "dyadic"),  # as few nodes as are allowed
    ],
)
def test_the_schedule_is_that_of_a_heap(n, C, K, count, law):
    seconds = lognormal(np.linspace(0.5, 3, n), 1.2) if law == "lognormal" else DYADIC
    members, took = rounds(buffered(n, C, K, seconds), count)
    assert isinstance(members, Cohort)
    assert members.ids.dtype == members.age.dtype == jnp.int32
    assert took.dtype == members.weight.dtype == jnp.float32
    ids, ages, ends, longest = heap_simulation(n, C, K, seconds, count)
    np.testing.assert_array_equal(members.ids, ids)
    np.testing.assert_array_equal(members.age, ages)
    if law == "dyadic":
        np.testing.assert_array_equal(took, ends)
    else:
        np.testing.assert_allclose(took, ends, rtol=1e-6, atol=5e-7 * longest)


def test_time_stays_exact_after_many_rounds():
    """A job of 1000 s among jobs of 1/8 s arrives in the very round it should, however much time has passed."""
    length = np.full(12, 0.125)
    length[3] = 1000
    process = buffered(12, 2, 1, fixed(length))
    members, took = rounds(process, 20_000)
    ends = np.cumsum(np.asarray(took, np.float64))
    arrivals = ends[np.asarray(members.ids)[:, 0] == 3]
    assert len(arrivals) >= 1
    np.testing.assert_array_equal(arrivals * 8 % 1, 0)
    assert took.max() <= 0.125
    # the other slot turns over every 1/8 s, so the slow job is that many versions old
    assert members.age.max() in (8000, 8001, 7999)


def test_weights_ages_and_the_seconds_reach_a_system_and_other_numbers_compile_nothing():
    weight = np.arange(1.0, 21)
    process = buffered(20, 6, 4, lognormal(), weight=weight)
    c, _ = rounds(process, 50)
    np.testing.assert_array_equal(c.weight, weight[c.ids])
    assert c.age.min() == 0
    assert c.age.max() > 0
    assert c.selected is None
    data = one_sample_each(np.tile(np.eye(2, dtype=np.float32), (20, 1, 1)), np.ones((20, 2), np.float32))
    world = scenario(data, cohort=process)
    system = fedavg(task.quadratic(2), lr=0.1, steps=1, batch=1)
    one = run(system, world, jnp.zeros(2), 6)
    slow = {"median": jnp.float32(8), "sigma": jnp.float32(1)}
    later = world._replace(arrays=world.arrays | {"cohort": world.arrays["cohort"] | {"seconds": slow}})
    two = run(system, later, jnp.zeros(2), 6)
    np.testing.assert_allclose(two.history["time"], 8 * one.history["time"], rtol=1e-5)
    again = buffered(20, 6, 4, lognormal(2.0))
    assert (process.init, process.step) == (again.init, again.step)


def test_who_is_sent_out_is_uniform_and_littles_law_holds():
    n, C, K = 30, 10, 4
    c, took = rounds(buffered(n, C, K, exponential(2.0)), 4000)
    counts = np.bincount(np.asarray(c.ids).ravel(), minlength=n)
    assert counts.sum() == 16_000
    # exponential jobs make arrivals a Poisson process of rate C / mean
    assert abs(took.mean() - K * 2.0 / C) < 4 * 2.0 / C * math.sqrt(K / 4000)
    # more regular than independent draws, as a node is never in two jobs: a bound on the spread suffices
    assert stats.chi2.sf(((counts - counts.mean()) ** 2).sum() / counts.mean(), n - 1) > 1e-3
    # Little's law: a job lasts C arrivals on average, its own one among them
    assert abs(np.asarray(c.age)[500:].mean() - (C - 1) / K) < 0.02
    # after a round the next node may be any but those at work: with K = 1 sometimes the one that just delivered
    same = np.asarray(rounds(buffered(6, 3, 1, fixed()), 900)[0].ids)[:, 0]
    assert stats.binomtest(int((same[3:] == same[:-3]).sum()), 897, 1 / 4).pvalue > 1e-3


def test_the_laws_of_durations():
    key = jax.random.split(jax.random.key(0), 20_000)
    sample = lambda law, i=0: np.asarray(jax.vmap(lambda k: law.draw(k, law.arrays, jnp.int32(i)))(key), np.float64)
    for law, exact in (
        (lognormal(2.0, 0.5), stats.lognorm(0.5, scale=2.0)),
        (exponential([1.0, 3.0]), stats.expon(scale=3.0)),
        (half_normal(1.5), stats.halfnorm(scale=1.5)),
    ):
        assert stats.kstest(sample(law, 1), exact.cdf).pvalue > 1e-3
    assert set(sample(fixed([1.0, 4.0]), 1)) == {4.0}
    both = sample(total(half_normal(), half_normal(), fixed(1.0)))
    assert abs(both.mean() - 1 - 2 * math.sqrt(2 / math.pi)) < 0.03
    assert abs(both.var() - 2 * (1 - 2 / math.pi)) < 0.04  # independent parts
    way = links(2, up=[100.0, 50.0], down=[200.0, math.inf], latency=0.5, step=[0.1, 1.0])
    assert set(sample(on_links(way, down_bits=400, up_bits=100, steps=3), 0)) == {np.float32(0.5 + 2 + 0.3 + 0.5 + 1)}
    assert set(sample(on_links(way, down_bits=400, up_bits=100, steps=3), 1)) == {0.5 + 0 + 3 + 0.5 + 2}
    assert set(sample(on_links(way, up_bits=100), 1)) == {2.5}


def test_short_and_long_jobs_are_as_rare_as_their_law_has_it(monkeypatch):
    """Against scipy in float64, at distances from either end of the distribution down to 1e-18."""
    u = np.float32(10.0) ** np.linspace(-18, -0.302, 60, dtype=np.float32)
    for late in (False, True):
        half = special.erfcinv if late else special.erfinv
        of = (lambda p: -np.log(p)) if late else (lambda p: -np.log1p(-p))
        for made, exact in ((exponential(2.0), of), (half_normal(2.0), lambda p, f=half: math.sqrt(2) * f(p))):
            for module in (durations, numbers):
                monkeypatch.setattr(module, "tail", lambda key, shape=(), late=late: (late, jnp.asarray(u)))
            got = made.draw(jax.random.key(0), made.arrays, 0)
            np.testing.assert_allclose(got, 2 * exact(u.astype(np.float64)), rtol=2e-6)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: buffered(10, 0, 2, fixed()), "concurrency = 0"),
        (lambda: buffered(10, 2, 1.5, fixed()), "goal = 1.5"),
        (lambda: buffered(10, 8, 4, fixed()), "at least concurrency [+] goal - 1 = 11"),
        (lambda: buffered(10, 3, 2, fixed([1.0, 2.0])), r"one a node \[10\]"),
        (lambda: fixed(-1.0), "seconds = -1.0"),
        (lambda: lognormal(0.0), "median = 0.0"),
        (lambda: exponential(math.inf), "mean = inf"),
        (total, "parts is empty"),
    ],
)
def test_bad_clocks_are_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()


@pytest.mark.parametrize("law", [durations.pareto(1, 0.01), durations.jittered(fixed(0.0), 1e3)])
def test_jobs_that_nobody_lives_to_see_leave_time_a_number(law):
    for clock in (buffered(23, 7, 3, law), quorum(23, 4, law)):
        seconds = np.asarray(rounds(clock, 12)[1])
        assert np.isfinite(seconds).all()
        assert (seconds >= 0).all()
