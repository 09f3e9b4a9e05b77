"""FedProx against its equations in float64, and its claim at tiny size."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from members import cohorts, drawn, idle, slope, world

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.fedprox import fedprox
from jaxfl.claims import fedprox as claim
from jaxfl.engine.run import run

KW = {"steps": 2, "batch": None}


def test_three_rounds_from_the_papers_equations_in_float64():
    """Unequal weights, a partial cohort, members of 0, 1, 2 steps and one absent; with mu = 0 it is FedAvg."""
    q, task, w = world(idle)
    go = lambda mu: run(partial(fedprox, task, **KW), w, jnp.ones(3), 3, every=1, hyper={"lr": 0.03, "mu": mu})
    x = np.ones(3)
    for members in cohorts(w, 3):
        total = np.zeros(3)
        for i, p, steps in members:
            y = x.copy()
            for _ in range(steps):
                y -= 0.03 * (slope(q, i, y) + 4.0 * (y - x))
            total += p * (y - x)
        x = x + total / sum(p for _, p, _ in members)
    np.testing.assert_allclose(go(4.0).state.shared["x"], x, atol=1e-5)
    plain = run(fedavg(task, lr=0.03, **KW), w, jnp.ones(3), 3, every=1).state.shared["x"]
    np.testing.assert_allclose(go(0.0).state.shared["x"], plain, atol=1e-6)
    assert np.abs(x - plain).max() > 0.01


def test_the_claim_s_systems_meet_the_same_devices_and_stragglers():
    task, world = claim.setting(devices=8, members=5, epochs=4, seed=1)
    kept = drawn(claim.with_stragglers(world, 0.6, drop=False), 5)
    dropped = drawn(claim.with_stragglers(world, 0.6, drop=True), 5)
    whole = drawn(claim.with_stragglers(world, 0.0, drop=True), 5)
    full = 4 * -(-world.data.longest // claim.BATCH)
    np.testing.assert_array_equal(kept.ids, dropped.ids)
    np.testing.assert_array_equal(kept.steps, dropped.steps)
    assert (dropped.weight > 0).sum(1).tolist() == (kept.steps == full).sum(1).tolist() == [2] * 5
    np.testing.assert_array_equal(kept.weight, whole.weight)
    assert (whole.steps == full).all()
    metric = claim.on_training_data(task, world)
    got = metric.measure(metric.arrays, jnp.zeros(task.dim))
    assert got["train_loss"] == pytest.approx(np.log(10), rel=1e-5)
    assert metric.arrays[1].shape == world.data.order.shape


def test_a_tiny_reproduction_gives_a_whole_table_every_check_and_a_picture():
    found = claim.reproduce(1, rates=(0.01,), rounds=4, epochs=2, data_seed=1)
    assert len(found.table) == 8
    assert not found.table[["rate", "loss", "accuracy"]].isna().any(axis=None)
    assert len(found.checks) == len({c.what for c in found.checks}) == 11
    assert len(found.figure.axes) == 3
