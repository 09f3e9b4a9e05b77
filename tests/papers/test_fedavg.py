"""FedAvg and FedSGD against their equations in float64, and the claim's two splits and averages."""

import jax.numpy as jnp
import numpy as np
import pytest
from members import cohorts, drawn, idle, slope, world

from jaxfl.algorithms.server.fedavg import fedavg, fedsgd
from jaxfl.claims import fedavg as claim
from jaxfl.data.partition import label_histogram
from jaxfl.engine.run import run


@pytest.mark.parametrize("momentum", [None, 0.5])
def test_three_rounds_from_the_papers_equations_in_float64(momentum):
    """Unequal weights, a partial cohort, members of 0, 1, 2 steps and one absent; FedAvgM's velocity too."""
    q, task, w = world(idle)
    algorithm = fedavg(task, lr=0.03, server_momentum=momentum, steps=2, batch=None)
    result = run(algorithm, w, jnp.ones(3), 3, every=1)
    x, v, sent = np.ones(3), np.zeros(3), []
    for members in cohorts(w, 3):
        total = np.zeros(3)
        for i, p, steps in members:
            y = x.copy()
            for _ in range(steps):
                y -= 0.03 * slope(q, i, y)
            total += p * (y - x)
        v = (momentum or 0.0) * v + total / sum(p for _, p, _ in members)
        x = x + v
        sent.append(32 * 3 * len(members))
    np.testing.assert_allclose(result.state.shared["x"], x, atol=1e-5)
    if momentum:
        np.testing.assert_allclose(-result.state.shared["server"][0].trace, v, atol=1e-5)
    np.testing.assert_array_equal(result.history["up_bits"].iloc[1:], sent)


def test_fedsgd_is_one_full_gradient_step():
    q, task, w = world()
    got = run(fedsgd(task, lr=0.1), w, jnp.ones(3), 2, every=1).state.shared["x"]
    x = np.ones(3)
    for members in cohorts(w, 2):
        x = x - 0.1 * sum(p * slope(q, i, x) for i, p, _ in members) / sum(p for _, p, _ in members)
    np.testing.assert_allclose(got, x, atol=1e-5)


def test_the_claim_compares_on_the_same_cohorts_of_two_splits():
    _, data, worlds = claim.setting(nodes=20, members=5)
    iid, skewed = worlds["IID"], worlds["pathological"]
    assert iid.step is skewed.step
    assert iid.data.longest == skewed.data.longest >= int(skewed.data.size.max())
    a, b = drawn(iid, 5), drawn(skewed, 5)
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(b.weight, np.asarray(skewed.data.size)[b.ids])
    labels = (label_histogram(skewed.data, 10) > 0).sum(1)
    assert labels.max() <= 4  # two slices, each over one border at most
    assert (label_histogram(iid.data, 10) > 0).sum(1).min() > 4
    assert iid.data.size.sum() == skewed.data.size.sum() == len(data.y)


def test_the_claim_s_interpolation_ends_at_the_two_models():
    task, data, _ = claim.setting()
    mixed = claim.interpolate(task, data, 2, np.array([0.0, 0.5, 1.0]))
    assert mixed["loss"].shape == mixed["accuracy"].shape == (2, 2, 3)
    assert (mixed["accuracy"][:, :, [0, 2]] > 0.8).all()
    assert (mixed["loss"][0, :, 1] > mixed["loss"][1, :, 1]).all()
    np.testing.assert_allclose(mixed["loss"][0, :, 2], mixed["loss"][1, :, 2], rtol=1e-5)  # theta = 1 is w in both
    assert (mixed["loss"][0, :, 0] != mixed["loss"][1, :, 0]).all()  # theta = 0 is another w'


@pytest.mark.long
def test_a_tiny_reproduction_gives_a_whole_table_every_check_and_a_picture():
    found = claim.reproduce(1, rates=(0.3,), rounds=4)
    assert len(found.table) == 8
    assert not found.table["rate"].isna().any()
    assert len(found.checks) == len({c.what for c in found.checks}) == 9
    assert len(found.figure.axes) == 3
