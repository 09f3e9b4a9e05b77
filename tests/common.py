"""Small worlds that several test files share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl import cli
from jaxfl.core import Shards
from jaxfl.data import partition, synthetic
from jaxfl.data.sets import digits
from jaxfl.learn import task
from jaxfl.world import cohort, graph, mixing
from jaxfl.world.scenario import scenario


def jaxfl(*args):
    """The exit code of a command line."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in args])
    return stop.value.code


def one_sample_each(x, y) -> Shards:
    """Node `i` owns sample `i`."""
    n = len(y)
    position = jnp.arange(n, dtype=jnp.int32)
    return Shards(jnp.asarray(x), jnp.asarray(y), position, position, jnp.ones(n, jnp.int32), 1)


def quadratics(n=8, d=3, seed=0, **kw):
    """Heterogeneous quadratics, their task and their shards."""
    q = synthetic.gaussian_quadratics(n, d, seed=seed, **kw)
    return q, task.quadratic(d), one_sample_each(q.A, q.b)


def ring(n):
    return mixing.metropolis(graph.ring(n))


def digits_world(n=12, c=None, topology=None, seed=0, **kw):
    """Digits cut by Dirichlet(0.5), a softmax regression and a world for it."""
    shards = partition.dirichlet(digits(), n, 0.5, seed=seed, min_size=4)
    who = None if c is None else cohort.uniform(n, c, weight=shards.size)
    return task.logistic_regression(64, 10), scenario(shards, topology=topology, cohort=who, **kw)


def same(a, b):
    """Whether two trees are equal bit for bit."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(u), np.asarray(v), equal_nan=True) for u, v in pairs)


@functools.cache
def compiled(init, step, count):
    """The first `count` values of a process, as one program."""

    def run(key, arrays):
        def body(s, t):
            return step(jax.random.fold_in(key, t), arrays, s, t)

        return jax.lax.scan(body, init(key, arrays), jnp.arange(count))[1]

    return jax.jit(run)


def rounds(process, count, seed=0):
    """The values of the first rounds, stacked."""
    return compiled(process.init, process.step, count)(jax.random.key(seed), process.arrays)
