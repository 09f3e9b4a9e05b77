"""What clients remember, `[n, ...]` by name: only members who are there write, in place, at the cost of their rows."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.algorithms.server.scaffold import scaffold
from jaxfl.core import Cohort, Env
from jaxfl.data import partition, synthetic
from jaxfl.engine import plan as planner
from jaxfl.engine.hlo import works
from jaxfl.engine.plan import plan
from jaxfl.engine.sharding import node_mesh
from jaxfl.exchange.network import Network
from jaxfl.learn.task import linear_regression
from jaxfl.mapping.blocks import block_of
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario

N, D = 9, 4


@pytest.mark.parametrize("block", [None, 1, 2])
def test_who_is_absent_keeps_every_bit(block):
    """In a cohort of four of nine one is absent and one runs no step; even what is no number stays with the others."""
    before = np.arange(N * D, dtype=np.float32).reshape(N, D)
    before[[1, 6]] = [[np.nan, -0.0, np.inf, 1e-45]]
    names = {"row": jnp.asarray(before), "count": jnp.arange(N)}
    ids, weight, steps = jnp.array([5, 1, 8, 3]), jnp.array([1.0, 0, 2, 3]), jnp.array([2, 2, 0, 2])
    members = Cohort(ids, weight, steps=steps)
    env = Env(jnp.int32(0), jnp.float32(0), (), None, members, jnp.zeros(N, bool))
    net, key, x = Network(), jax.random.key(0), jnp.ones(D)

    def learn(key, data, i, x, *, row, count, steps):
        return x, {"steps": steps, "row": row + 1, "count": count + 10}

    with block_of(block):
        after = jax.jit(lambda names: net.collect(key, env, net.init(env, x), learn, x, memory=names).memory)(names)
    wrote = np.isin(np.arange(N), [5, 3])
    np.testing.assert_array_equal(after["count"], np.arange(N) + 10 * wrote)
    row = np.asarray(after["row"])
    assert row[~wrote].tobytes() == before[~wrote].tobytes()
    np.testing.assert_array_equal(row[wrote], before[wrote] + 1)


def planned(n, monkeypatch):
    """The plan of SCAFFOLD, 8 of `n` clients a round, and the text of its rounds."""
    texts, of = [], planner.counts
    monkeypatch.setattr(planner, "counts", lambda text: texts.append(text) or of(text))
    data = partition.by_client(synthetic.linear_regression_clients(8, samples=8, d=64, seed=0))
    same = jnp.arange(n) % 8
    data = dataclasses.replace(data, start=data.start[same], size=data.size[same])
    task, world = linear_regression(64), scenario(data, cohort=cohort.uniform(n, 8, weight=np.ones(n)))
    found = plan(scaffold(task, lr=0.1, steps=2, batch=4), world, task.init, every=4, mesh=node_mesh(1))
    monkeypatch.undo()
    return found, texts[0]


def test_a_round_costs_the_rows_of_its_members(monkeypatch):
    """Memory is in the plan, is not copied in a round, and a mean over all of it is no pass over it."""
    (small, _), (large, text) = planned(400, monkeypatch), planned(1600, monkeypatch)
    rows = 4 * 64 * 1200
    assert large.state_bytes - small.state_bytes == rows
    assert abs(large.temporary_bytes - small.temporary_bytes) < 0.1 * rows
    assert abs(large.bytes - small.bytes) < 0.1 * rows
    assert not [w for w in works(text) if w.times >= 4 and w.bytes >= 4 * 64 * 1600]
    assert not re.search(r"= f32\[1600,64\]\S* copy\(", text)
