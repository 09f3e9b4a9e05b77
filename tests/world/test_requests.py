"""Requests of several tasks against an event simulation on a heap, in Python with absolute times."""

import heapq

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.world.requests import first, until_full

N, TASKS, PLACES, ROOM, EVENTS = 9, 3, 8, 3, 40
GOALS = {0: (2, 1, 3), 30: (1, 3, 1)}  # from which version on
TARGETS = {0: (3, 2, 3), 30: (1, 6, 1)}


def whole(key, m, i):
    return (jax.random.randint(key, (), 0, 4) * (1 + m) + i % 2).astype(jnp.float32)


def smooth(key, m, i):
    return jax.random.exponential(key) * (1.0 + m)


def at(table, t):
    """The row of a version, for JAX."""
    return jnp.where(t < 30, jnp.array(table[0]), jnp.array(table[30]))


def drawn(draw, key):
    """Order of preference among clients, and seconds by task and client, of one request."""
    who, lasts = jax.random.split(key)
    each = jax.vmap(lambda m: jax.vmap(lambda i: draw(lasts, m, i))(jnp.arange(N)))(jnp.arange(TASKS))
    return jax.random.uniform(who, (N,)), each


class Pool:
    """Clients with queues of their own."""

    def __init__(self, targets):
        self.targets, self.heap, self.busy, self.now = targets, [], [0.0] * N, 0.0
        self.free, self.buffer, self.version = list(range(PLACES)), [[] for _ in range(TASKS)], [0] * TASKS

    def out(self, m):
        return [client for _, _, task, client, _ in self.heap if task == m]

    def ask(self, m, draws):
        like, seconds = draws
        busy = {*self.out(m), *(client for client, _ in self.buffer[m])}
        client = max((i for i in range(N) if i not in busy), key=lambda i: like[i])
        self.busy[client] = max(self.now, self.busy[client]) + float(seconds[m, client])
        place = min(self.free)
        self.free.remove(place)
        heapq.heappush(self.heap, (self.busy[client], place, m, client, self.version[m]))

    def again(self, m, draws):
        for j in range(2):
            if len(self.out(m)) < self.targets[m] and self.free:
                self.ask(m, (draws[0][j], draws[1][j]))


@pytest.mark.parametrize("draw", [whole, smooth])
def test_versions_are_those_of_a_heap(draw):
    count, key = 400, jax.random.key(3)

    def play(s, t):
        s, full, over, answers = until_full(jax.random.fold_in(key, t), draw, s, at(TARGETS, t), at(GOALS, t))
        return s, (full, over, answers, s.left)

    def everything(key):
        s = first(key, draw, N, jnp.array(TARGETS[0]), PLACES, ROOM)
        return jax.lax.scan(play, s, jnp.arange(count))[1]

    (task, clients, ages, many), over, answers, left = jax.device_get(jax.jit(everything)(key))
    one = lambda k, e: jax.vmap(lambda j: drawn(draw, jax.random.fold_in(k, 2 * e + j)))(jnp.arange(2))
    of = lambda t: jax.lax.map(lambda e: one(jax.random.fold_in(key, t), e), jnp.arange(EVENTS))
    again = jax.device_get(jax.jit(lambda: jax.lax.map(of, jnp.arange(count)))())
    begin = jax.device_get(jax.vmap(lambda j: drawn(draw, jax.random.fold_in(key, j)))(jnp.arange(PLACES)))

    pool, place, before = Pool(TARGETS[0]), 0, 0.0
    for m, target in enumerate(TARGETS[0]):
        for _ in range(target):
            pool.ask(m, (begin[0][place], begin[1][place]))
            place += 1
    for t in range(count):
        pool.targets, goals, number = TARGETS[30 if t >= 30 else 0], GOALS[30 if t >= 30 else 0], 0
        while True:
            pool.now, freed, m, client, version = heapq.heappop(pool.heap)
            pool.free.append(freed)
            pool.buffer[m].append((client, pool.version[m] - version))
            draws, number = (again[0][t, number], again[1][t, number]), number + 1
            if len(pool.buffer[m]) >= goals[m]:
                break
            pool.again(m, draws)
        found, pool.buffer[m] = pool.buffer[m], []
        pool.version[m] += 1
        pool.again(m, (again[0][t, number], again[1][t, number]))
        assert (task[t], many[t], answers[t]) == (m, len(found), number), t
        assert list(zip(clients[t].tolist(), ages[t].tolist(), strict=True))[: many[t]] == found, t
        if draw is whole:
            assert over[t] == pool.now - before
        else:
            np.testing.assert_allclose(over[t], pool.now - before, rtol=1e-3, atol=1e-4)
        before = pool.now
    assert len(pool.heap) == np.isfinite(left[-1]).sum() <= PLACES
    assert [len(pool.out(m)) for m in range(TASKS)] == [1, 6, 1]  # requests have moved to the second task
    assert ages.max() > 1
    assert over.min() >= 0
