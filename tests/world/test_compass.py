"""COMPASS against an event simulation on a heap, written here in Python with absolute times in float64."""

import heapq
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import one_sample_each, quadratics, rounds

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.core import stream
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.learn import task
from jaxfl.world.compass import compass
from jaxfl.world.durations import Seconds, fixed, lognormal
from jaxfl.world.scenario import scenario

WHOLE = Seconds(lambda key, arrays, i: jax.random.randint(key, (), 1, 5) * arrays[i], jnp.arange(1.0, 8) // 2 + 1)
EVENTS = 60  # the most of one round


def draws(n, law, count):
    """Seconds a step of jobs: at first [n], when a round ends [count, n], of the late [count, EVENTS, n]."""
    nodes = jnp.arange(n)
    each = lambda key: jax.vmap(lambda i: law.draw(jax.random.fold_in(key, i), law.arrays, i))(nodes)

    def late(key):
        of = lambda number: jax.vmap(lambda i: law.draw(jax.random.fold_in(key, number), law.arrays, i))(nodes)
        return jax.vmap(of)(jnp.arange(EVENTS))

    def everything(base):
        keys = jax.vmap(lambda t: jax.random.fold_in(base, t))(jnp.arange(count))
        first = each(stream(base, "step seconds"))
        again = jax.vmap(lambda k: each(stream(k, "step seconds")))(keys)
        return first, again, jax.vmap(lambda k: late(stream(k, "step seconds of the late")))(keys)

    return jax.device_get(jax.jit(everything)(jax.random.key(0)))


class Server:
    """The algorithm by its words: groups are objects, times absolute."""

    def __init__(self, n, least, most, patience, beta, first):
        self.least, self.most, self.patience, self.beta = least, most, patience, beta
        self.version, self.made, self.groups, self.buffer, self.queue = 0, 0, {}, {}, []
        self.job, self.speed, self.of, self.seen = {}, {}, dict.fromkeys(range(n)), set()
        for i in range(n):
            self.work(i, 0.0, most, first[i])

    def work(self, i, now, steps, pace):
        self.job[i] = {"steps": steps, "version": self.version, "pace": float(pace)}
        heapq.heappush(self.queue, (now + steps * float(pace), 0, i))

    def assign(self, i, now, pace):
        speed, found = self.speed[i], None
        for name, g in self.groups.items():  # the oldest first
            q = math.floor((g["T"] - now) / speed + 1e-3)
            if self.least <= q <= self.most and (found is None or q >= found[1]):
                found = name, q
        if found is None:
            later = [
                math.floor((g["L"] + min(self.speed[j] for j in g["out"] | g["in"]) * self.most - now) / speed + 1e-3)
                for g in self.groups.values()
                if now < g["L"]
            ]
            later = [q for q in later if q <= self.most]
            q = max(max(later), self.least) if later else self.most
            end = now + self.patience * q * speed
            self.groups[self.made] = {"T": now + q * speed, "L": end, "out": set(), "in": set()}
            heapq.heappush(self.queue, (end, 1, self.made))
            found, self.made = (self.made, q), self.made + 1
        self.of[i] = found[0]
        self.groups[found[0]]["out"].add(i)
        self.work(i, now, found[1], pace)

    def close(self, name, now, paces):
        g = self.groups.pop(name)
        for i in g["out"]:
            self.of[i] = "closed"
        members = self.buffer | {i: self.job[i] for i in g["in"]}
        self.buffer = {}
        return self.version_of(members, sorted(g["in"], key=lambda i: (self.speed[i], i)), now, paces)

    def version_of(self, members, back, now, paces):
        found = {i: (self.version - job["version"], job["steps"]) for i, job in members.items()}
        self.version += 1
        for i in back:
            self.assign(i, now, paces[i])
        return found, now

    def round(self, paces, late):
        """The members `{node: (age, steps)}` of the next version, and when it was made."""
        number = 0
        while True:
            now, kind, i = heapq.heappop(self.queue)
            if kind == 1:
                if i in self.groups and self.groups[i]["in"]:
                    self.seen.add("closed early")
                    return self.close(i, now, paces)
                continue  # nobody is there: nothing happens
            job, name = self.job[i], self.of[i]
            if name is None:
                self.speed[i] = job["pace"]
                return self.version_of({i: job}, [i], now, paces)
            self.speed[i] += self.beta * (job["pace"] - self.speed[i])
            if name == "closed" or now > self.groups[name]["L"]:
                self.seen |= {"late"} | ({"replaced"} if i in self.buffer else set())
                if name != "closed":
                    self.groups[name]["out"].remove(i)
                    if not self.groups[name]["out"]:
                        del self.groups[name]
                self.buffer[i] = job
                self.assign(i, now, late[number, i])
            else:
                self.groups[name]["out"].remove(i)
                self.groups[name]["in"].add(i)
                self.seen |= {"replaced"} if i in self.buffer else set()
                if not self.groups[name]["out"]:
                    return self.close(name, now, paces)
            number += 1


@pytest.mark.parametrize(
    ("law", "beta", "patience"),
    [(WHOLE, 1.0, 1.5), (lognormal(np.linspace(0.5, 3, 7), 0.3), 0.75, 1.1), (lognormal(1.0, 0.8), 0.9, 2.0)],
    ids=["whole numbers", "unlike clients", "unsteady clients"],
)
def test_the_schedule_is_that_of_a_heap(law, beta, patience):
    n, count = 7, 500
    members, took = jax.device_get(rounds(compass(n, law, least=3, most=16, patience=patience, beta=beta), count))
    first, again, late = draws(n, law, count)
    server, before = Server(n, 3, 16, patience, beta, first), 0.0
    for t in range(count):
        found, now = server.round(again[t], late[t])
        got = {i: (int(members.age[t, i]), int(members.steps[t, i])) for i in range(n) if members.weight[t, i] > 0}
        assert got == found, t
        if law is WHOLE:
            assert float(took[t]) == now - before
        else:
            assert math.isclose(float(took[t]), now - before, rel_tol=1e-4, abs_tol=1e-3)
        before = now
    assert server.seen == {"closed early", "late", "replaced"}
    assert took.min() >= 0
    sizes, steps = (members.weight > 0).sum(1), members.steps[members.weight > 0]
    assert sizes.max() > 2
    assert {3, 16} <= set(steps.tolist()) <= set(range(3, 17))
    assert members.age.max() > 1


def test_clients_of_one_speed_answer_together_and_fresh():
    """After the first answers, and the group they form, a round is one of all clients, of full length."""
    n, weight = 5, np.arange(1.0, 6)
    members, took = rounds(compass(n, fixed(0.1), least=2, most=7, weight=weight), 12)
    np.testing.assert_array_equal(members.age[5], np.arange(4, -1, -1))
    np.testing.assert_array_equal(members.weight[5:], np.tile(weight, (7, 1)))
    assert not members.age[6:].any()
    assert (members.steps[5:] == 7).all()
    np.testing.assert_allclose(took[5:], 0.7, rtol=1e-5)
    np.testing.assert_array_equal(members.total, 15)
    np.testing.assert_array_equal(members.weight[:5], np.diag(weight))


def test_a_slow_client_runs_fewer_steps_so_that_all_come_at_once():
    members, took = rounds(compass(2, fixed([1.0, 3.0]), least=2, most=9), 40)
    late = jax.tree.map(lambda a: np.asarray(a)[10:], members)
    np.testing.assert_array_equal(late.steps, np.tile([9, 3], (30, 1)))
    assert not late.age.any()
    np.testing.assert_array_equal(took[10:], 9.0)


def small():
    """For the matrix: unlike and unsteady clients."""
    _, problem, data = quadratics(n=8, d=3)
    world = scenario(data, cohort=compass(8, lognormal(np.linspace(0.5, 3, 8), 0.5), least=1, most=5))
    return {"compass": (fedavg(problem, lr=0.05, steps=5, batch=1), world, jnp.ones(3), 12)}


def test_time_reaches_a_system_and_other_numbers_compile_nothing():
    data = one_sample_each(np.tile(np.eye(2, dtype=np.float32), (4, 1, 1)), np.ones((4, 2), np.float32))
    make = lambda **kw: compass(4, fixed([1.0, 1.0, 2.0, 2.5]), **{"least": 2, "most": 8} | kw)
    history = run(
        fedavg(task.quadratic(2), lr=0.1, steps=8, batch=1), scenario(data, cohort=make()), jnp.zeros(2), 6
    ).history
    assert (history["time"].diff().dropna() >= 0).all()
    assert history["gradients"].iloc[1] == 8
    one, two = make(), make(most=16, least=3, patience=1.5, beta=0.5)
    assert (one.init, one.step) == (two.init, two.step)
    a, b = (rounds(p, 30) for p in (one, two))
    assert not np.array_equal(a[0].steps, b[0].steps)


@pytest.mark.parametrize(
    ("kw", "said"),
    [
        ({"least": 0}, "least"),
        ({"least": 9}, "least"),
        ({"most": 2.5}, "most"),
        ({"patience": 1.0}, "patience"),
        ({"beta": 0.0}, "beta"),
        ({"seconds": fixed(np.ones(3))}, r"one a node \[4\]"),
    ],
)
def test_bad_numbers_are_refused(kw, said):
    with pytest.raises(InputError, match=said):
        compass(4, **{"seconds": fixed(), "least": 2, "most": 8} | kw)
