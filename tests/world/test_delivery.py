"""Clocks of rounds that wait, against event simulations on a heap in Python, with absolute times."""

import heapq
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import quadratics, rounds

from jaxfl.algorithms.asynchronous.cdfl import cdfl
from jaxfl.algorithms.asynchronous.fedbuff import fedbuff
from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.core import stream
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.world import cohort, delivery
from jaxfl.world.durations import Seconds, fixed, lognormal
from jaxfl.world.interruption import interrupted
from jaxfl.world.scenario import scenario

# multiples of 1/4: sums are exact in float32, many are tied, some are 0
DYADIC = Seconds(lambda key, arrays, i: jax.random.randint(key, (), 0, 13) / 4, ())


def small():
    _, problem, data = quadratics(n=16, d=3)
    system, law = fedbuff(problem, lr=0.05, longest=4, steps=2, batch=1), lognormal(np.linspace(0.5, 2, 16))
    clocks = {
        "ticks": delivery.ticks(16, 1.0, law, concurrency=10, capacity=4),
        "groups": delivery.groups(np.arange(16) % 5, law),
        "interrupted": interrupted(16, 4, law, lognormal(2.0), lognormal(), timeout=3.0),
    }
    return {name: (system, scenario(data, cohort=clock), jnp.ones(3), 6) for name, clock in clocks.items()}


def lengths(law, count, n, seed=0):
    """Seconds of the jobs sent out first `[n]`, and at the end of each round `[count, n]`; and numbers drawn then."""

    def each(key):
        keys = jax.vmap(lambda i: jax.random.fold_in(stream(key, "job seconds"), i))(jnp.arange(n))
        return jax.vmap(lambda k, i: law.draw(k, law.arrays, i))(keys, jnp.arange(n))

    def everything(key):
        later = jax.vmap(lambda t: jax.random.fold_in(key, t))(jnp.arange(count))
        order = jax.random.permutation(stream(key, "jobs"), n)
        number = jax.vmap(lambda k: jax.random.uniform(stream(k, "jobs"), (n,)))(later)
        return each(key), jax.vmap(each)(later), order, number

    return jax.device_get(jax.jit(everything)(jax.random.key(seed)))


def heap_simulation(n, C, most, drawn, count, every=None, goal=0, timeout=math.inf):
    """`(who and how old by round, seconds, waiting)`, event by event."""
    first, later, order, number = drawn
    queue, ready, now, sent, got = [], [], 0.0, 0, []
    version = {}

    def send(node, seconds, t):
        nonlocal sent
        assert node not in version
        version[node] = t
        heapq.heappush(queue, (now + float(seconds), node))
        sent += 1

    for node in range(n) if n == C else map(int, order[:C]):
        send(node, first[node], 0)
    delivered = 0
    for t in range(count):
        start = now
        last = start + (timeout if every is None else every)
        while queue and queue[0][0] <= last:
            if every is None and len(ready) >= goal and queue[0][0] > max(start, ready[goal - 1][0]):
                break
            ready = sorted([*ready, heapq.heappop(queue)])
        if every is None and len(ready) >= goal:
            last = max(start, ready[goal - 1][0])
        now, came, ready = last, ready[:most], ready[most:]
        got.append(([(i, t - version.pop(i)) for _, i in came], now - start, len(ready)))
        delivered += len(came)
        free = sorted((i for i in range(n) if i not in version), key=lambda i: -number[t, i])
        for node in [i for _, i in came] if n == C else free[: len(came)]:
            send(node, later[t, node], t + 1)
        assert len(version) == C
        assert sent == delivered + len(queue) + len(ready)  # no job is lost or counted twice
    return got


def agrees(values, simulated, n):
    """Whether who, how old, when and how many wait are as they were simulated, in every round."""
    c, took = jax.device_get(values)
    for t, (members, seconds, waiting) in enumerate(simulated):
        here = c.weight[t] > 0
        assert list(zip(c.ids[t][here].tolist(), c.age[t][here].tolist(), strict=True)) == members, t
        assert len(set(c.ids[t].tolist())) == len(c.ids[t])
        assert took[t] == seconds
        assert waiting is None or c.waiting[t] == waiting
    assert c.ids.min() >= 0
    assert c.ids.max() < n
    assert took.min() >= 0
    return c


@pytest.mark.parametrize(("n", "C", "most"), [(9, 9, 9), (14, 6, 6), (12, 12, 3)])
def test_ticks_are_those_of_a_heap(n, C, most):
    count = 700
    process = delivery.ticks(n, 0.75, DYADIC, concurrency=C, capacity=most)
    simulated = heap_simulation(n, C, most, lengths(DYADIC, count, n), count, every=0.75)
    c = agrees(rounds(process, count), simulated, n)
    assert (c.weight == 0).all(1).any() == (most == 9 or C == 6)  # sometimes nobody, unless some always wait
    assert (c.waiting.max() > 0) == (most == 3)


@pytest.mark.parametrize(
    ("n", "C", "goal", "timeout"), [(9, 9, 1, math.inf), (9, 9, 4, 1.25), (14, 6, 2, math.inf), (6, 6, 6, 2.0)]
)
def test_a_quorum_is_that_of_a_heap(n, C, goal, timeout):
    count = 700
    process = delivery.quorum(n, goal, DYADIC, timeout=timeout, concurrency=C)
    simulated = heap_simulation(n, C, goal, lengths(DYADIC, count, n), count, goal=goal, timeout=timeout)
    c = agrees(rounds(process, count), simulated, n)
    assert ((c.weight > 0).sum(1) < goal).any() == (timeout < math.inf)


@pytest.mark.parametrize(("goal", "timeout"), [(1, math.inf), (2, 1.0)])
def test_groups_report_together(goal, timeout):
    label, count = np.array([0, 2, 1, 1, 0, 2, 2, 3, 1, 2]), 500

    def slowest(key, arrays, g):
        keys = jax.vmap(lambda i: jax.random.fold_in(stream(key, "job seconds"), i))(jnp.arange(10))
        return jnp.where(label == g, jax.vmap(lambda k: DYADIC.draw(k, (), 0))(keys), 0).max()

    simulated = heap_simulation(4, 4, goal, lengths(Seconds(slowest), count, 4), count, goal=goal, timeout=timeout)
    expected = []
    for came, seconds, waiting in simulated:
        ages = dict(came)
        members = [(i, ages[g]) for i, g in enumerate(label.tolist()) if g in ages]
        expected.append((members, seconds, waiting))
    agrees(rounds(delivery.groups(label, DYADIC, goal=goal, timeout=timeout), count), expected, 10)


def test_a_tick_is_made_by_whoever_has_the_time():
    """The `ceil(s / every)`-th tick, for decimal numbers too: no rounding adds up."""
    length = np.array([0.2, 0.3, 0.6, 0.7, 1.0, 1.4, 2.1, 2.8, 0.1, 0.0])
    for every, needs in ((0.1, [2, 3, 6, 7, 10, 14, 21, 28, 1, 1]), (0.7, [1, 1, 1, 1, 2, 2, 3, 4, 1, 1])):
        c, _ = jax.device_get(rounds(delivery.ticks(10, every, fixed(length)), 170))
        for i, need in enumerate(needs):
            when = np.flatnonzero(((c.ids == i) & (c.weight > 0)).any(1))
            np.testing.assert_array_equal(when, np.arange(need - 1, 170, need))


LAWS = {
    "seconds": Seconds(lambda key, arrays, i: jax.random.randint(key, (), 0, 13) / 4),
    "up": Seconds(lambda key, arrays, i: jax.random.randint(key, (), 1, 17) / 4),
    "down": Seconds(lambda key, arrays, i: jax.random.randint(key, (), 1, 9) / 4),
}


def sessions(n, most, seed=0):
    """Of each law the draws `[n, most]`, by node and number."""

    def of(name):
        key = stream(jax.random.key(seed), f"{name} of a node")
        each = lambda i, j: LAWS[name].draw(jax.random.fold_in(jax.random.fold_in(key, i), j), (), i)
        return jax.vmap(lambda i: jax.vmap(lambda j: each(i, j))(jnp.arange(most)))(jnp.arange(n))

    return {
        name: a.tolist() for name, a in jax.device_get(jax.jit(lambda: {name: of(name) for name in LAWS})()).items()
    }


def heap_with_churn(n, goal, timeout, resumed, count, most=900):
    """Rounds as in `heap_simulation`, and jobs sent, delivered and lost."""
    drawn, queue = sessions(n, most), []
    state = ["idle"] * n  # idle, running, stopped, delivered
    up, jobs, turns = [True] * n, [0] * n, [0] * n
    rest, read, ends = [0.0] * n, [0] * n, [None] * n
    now, got, tally = 0.0, [], {"delivered": 0, "lost": 0}

    def send(i, t):
        state[i], read[i] = "running", t
        ends[i] = now + drawn["seconds"][i][jobs[i]]
        jobs[i] += 1
        heapq.heappush(queue, (ends[i], 0, i))

    for i in range(n):
        heapq.heappush(queue, (drawn["up"][i][0], 1, i))
        send(i, 0)
    for t in range(count):
        start, came = now, []
        while len(came) < goal:
            when, kind, i = queue[0]
            if when - start > timeout:
                now = start + timeout
                break
            heapq.heappop(queue)
            if kind == 0 and (state[i] != "running" or ends[i] != when):
                continue  # of a job that was stopped or lost
            now = when
            if kind == 0:
                state[i] = "delivered"
                came.append((i, t - read[i]))
            elif up[i]:
                up[i] = False
                if state[i] == "running" and resumed:
                    state[i], rest[i] = "stopped", ends[i] - now
                elif state[i] == "running":
                    state[i], tally["lost"] = "idle", tally["lost"] + 1
                heapq.heappush(queue, (now + drawn["down"][i][turns[i]], 1, i))
                turns[i] += 1
            else:
                up[i] = True
                heapq.heappush(queue, (now + drawn["up"][i][turns[i]], 1, i))
                if state[i] == "stopped":
                    state[i], ends[i] = "running", now + rest[i]
                    heapq.heappush(queue, (ends[i], 0, i))
                elif state[i] == "idle":
                    send(i, t)
        got.append((came, now - start, None))
        tally["delivered"] += len(came)
        for i in range(n):
            state[i] = "idle" if state[i] == "delivered" else state[i]
            if up[i] and state[i] == "idle":
                send(i, t + 1)
    running = sum(s in ("running", "stopped") for s in state)
    return got, tally | {"jobs": sum(jobs), "running": running}


@pytest.mark.parametrize(("goal", "timeout", "resumed"), [(4, 1.75, False), (3, 50.0, True)])
def test_who_goes_down_loses_its_job_or_takes_it_up_again(goal, timeout, resumed):
    n, count = 10, 600
    process = interrupted(n, goal, **LAWS, timeout=timeout, resumed=resumed)
    simulated, tally = heap_with_churn(n, goal, timeout, resumed, count)

    def last(key, arrays):
        step = lambda s, t: process.step(key, arrays, s, t)
        return jax.lax.scan(step, process.init(key, arrays), jnp.arange(count))

    s, values = jax.jit(last)(jax.random.key(0), process.arrays)
    agrees(values, simulated, n)
    s = jax.device_get(s._replace(key=0))
    busy = (s.done < np.inf) | (s.left < np.inf)
    np.testing.assert_array_equal(s.jobs, s.delivered + s.lost + busy)  # no job is lost unseen or counted twice
    found = {name: int(getattr(s, name).sum()) for name in ("jobs", "delivered", "lost")}
    assert found | {"running": int(busy.sum())} == tally
    assert (tally["lost"] == 0) == resumed


def test_equal_speeds_are_the_synchronous_run_bit_for_bit():
    _, problem, data = quadratics(n=6, d=3)
    kw = {"lr": 0.05, "steps": 3, "batch": 1}
    plain = run(fedavg(problem, **kw), scenario(data, cohort=cohort.uniform(6, 6)), jnp.ones(3), 5)
    late = run(
        fedbuff(problem, longest=2, **kw), scenario(data, cohort=delivery.ticks(6, 1.0, fixed(1.0))), jnp.ones(3), 5
    )
    np.testing.assert_array_equal(late.state.shared["x"], plain.state.shared["x"])
    np.testing.assert_array_equal(late.history["time"], np.arange(6.0))
    never = fixed(1e9)
    for clock in (  # everybody, fresh, every second
        delivery.quorum(6, 6, fixed(1.0)),
        delivery.groups(np.zeros(6, int), fixed(1.0)),
        interrupted(6, 6, fixed(1.0), never, never, timeout=5.0),
    ):
        c, took = rounds(clock, 5)
        np.testing.assert_array_equal(c.ids, np.tile(np.arange(6), (5, 1)))
        assert not c.age.any()
        assert c.weight.all()
        np.testing.assert_array_equal(took, np.ones(5))


@pytest.mark.parametrize("count", [1, 3])
def test_the_soonest_jobs_are_those_of_a_sort_and_ties_go_to_the_lowest_node(count):
    rng = np.random.default_rng(0)
    find = jax.jit(lambda left, ids: delivery._soonest(left, ids, count))
    for _ in range(50):
        left, ids = rng.integers(0, 4, 9) / 2, rng.permutation(20)[:9]
        left[rng.random(9) < 0.2] = np.inf
        np.testing.assert_array_equal(find(jnp.float32(left), jnp.int32(ids)), np.lexsort((ids, left))[:count])


def test_who_waits_is_in_the_log_and_other_numbers_compile_nothing():
    _, problem, data = quadratics(n=8, d=3)
    clock = delivery.ticks(8, 1.0, fixed(0.5), capacity=3)
    world = scenario(data, cohort=clock)
    for make in (fedbuff, cdfl):  # who collects, or hears contact by contact
        history = run(make(problem, lr=0.05, steps=1, batch=1), world, jnp.ones(3), 4).history
        np.testing.assert_array_equal(history["waiting"][1:], [5, 5, 5, 5])
    a, b = delivery.ticks(8, 1.0, lognormal(1.0)), delivery.ticks(8, 2.0, lognormal(3.0))
    assert (a.init, a.step) == (b.init, b.step)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: delivery.ticks(5, 0.0, fixed()), "every is 0.0, but must be above 0"),
        (lambda: delivery.ticks(5, 1.0, fixed(), concurrency=6), "concurrency is 6, but must be at least 1"),
        (lambda: delivery.ticks(5, 1.0, fixed(), capacity=0), "capacity is 0"),
        (lambda: delivery.ticks(5, 1.0, fixed([1.0, 2.0])), r"one a node \[5\]"),
        (lambda: delivery.quorum(5, 6, fixed()), "goal is 6"),
        (lambda: delivery.quorum(5, 3, fixed(), timeout=0), "timeout is 0"),
        (lambda: delivery.groups([0, 2], fixed()), "no node of group 1"),
        (lambda: delivery.groups([0.5], fixed()), "labels = "),
        (lambda: delivery.groups([0, 1], fixed(), goal=3), "goal is 3"),
        (lambda: interrupted(5, 2, fixed(), fixed(), fixed(), timeout=math.inf), "timeout is inf"),
        (lambda: interrupted(5, 6, fixed(), fixed(), fixed(), timeout=1), "goal is 6"),
    ],
)  # fmt: skip
def test_bad_clocks_are_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()
