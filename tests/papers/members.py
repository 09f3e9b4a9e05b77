"""The world in which a paper's equations are checked: four of six members, unlike weights, one of the four absent."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from common import quadratics

from jaxfl.engine.keys import init_key, round_key, run_key
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario

N, WEIGHT = 6, np.array([1.0, 2, 4, 8, 3, 5])
SHARE = WEIGHT / WEIGHT.sum()


def absent(c, t):
    """The third member never answers."""
    return c._replace(weight=c.weight.at[2].set(0.0))


def idle(c, t):
    """Moreover the first runs no step, the second only one."""
    return absent(c, t)._replace(steps=jnp.array([0, 1, 2, 2]))


@functools.cache
def _changed(step, change):
    def changed(key, arrays, s, t):
        s, c = step(key, arrays, s, t)
        return s, change(c, t)

    return changed


def changed(members, change):
    """The process `members` whose cohorts are `change(cohort, round)`; the same function for the same two."""
    return members._replace(step=_changed(members.step, change))


def world(change=absent, n=N, c=4, weight=WEIGHT):
    """Quadratics, their task, the scenario."""
    q, task, data = quadratics(n=n, d=3)
    return q, task, scenario(data, cohort=changed(cohort.uniform(n, c, weight=weight), change))


@functools.cache
def _drawn(init, step, rounds):
    def body(arrays, s, t):
        s, now = step(round_key(run_key(0), t, "world"), arrays, s, t)
        return s, now.cohort

    def whole(arrays):
        s = init(init_key(run_key(0), "world"), arrays)
        return jax.lax.scan(lambda s, t: body(arrays, s, t), s, jnp.arange(rounds))[1]

    return jax.jit(whole)


def drawn(w, rounds):
    """The cohorts of the first rounds of seed 0, stacked."""
    return jax.device_get(_drawn(w.init, w.step, rounds)(w.arrays))


def cohorts(w, rounds, steps=2):
    """The same as lists of `(node, weight, steps)`, without the absent."""
    c = drawn(w, rounds)
    for t in range(rounds):
        own = [steps] * len(c.ids[t]) if c.steps is None else np.minimum(c.steps[t], steps).tolist()
        yield [(int(i), float(p), k) for i, p, k in zip(c.ids[t], c.weight[t], own, strict=True) if p > 0]


def slope(q, i, y):
    """The gradient of node `i` in float64."""
    return q.A[i].astype(float) @ (y - q.b[i])
