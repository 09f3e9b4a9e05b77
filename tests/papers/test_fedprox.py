"""FedProx against its equations in float64, and the worlds of its claim."""

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


def test_the_claim_s_arms_meet_the_same_devices_and_stragglers():
    """Dropping takes away the weight of those who run less than all epochs, and nothing else."""
    settings, (_, found) = claim.settings(1), claim.studies()
    (slow, metric), even = settings[claim.SLOW], settings["no stragglers"].world
    kept, dropped = (drawn(found.arms[name].world(slow), 5) for name in ("FedProx, mu = 0", "FedAvg, drops"))
    full = claim.EPOCHS * -(-int(np.max(slow.data.size)) // claim.BATCH)
    np.testing.assert_array_equal(kept.ids, dropped.ids)
    np.testing.assert_array_equal(kept.steps, dropped.steps)
    assert (dropped.weight > 0).sum(1).tolist() == (kept.steps == full).sum(1).tolist() == [1] * 5
    assert (drawn(even, 5).steps == full).all()
    got = metric.measure(metric.arrays, jnp.zeros(claim.TASK.dim))
    assert got["train_loss"] == pytest.approx(np.log(10), rel=1e-5)


def test_the_claim_s_people_move_at_ten_hertz():
    data = claim.robots()
    (setting,) = claim.people(data).values()
    assert setting.world.data.x.shape == (70, 20, 6)
    np.testing.assert_array_equal(setting.world.data.x[3, 7], data.x[3, 35])
    kept = drawn(setting.world, 5)
    assert (np.sort(kept.ids, 1) == np.arange(10)).all()
    assert ((kept.steps == claim.EPOCHS).sum(1) == 1).all()
