"""FedAvg and FedSGD against their equations in float64, and the claim's two splits and averages."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from members import cohorts, drawn, idle, slope, world

from jaxfl.algorithms.server.fedavg import fedavg, fedsgd
from jaxfl.claims import fedavg as claim
from jaxfl.data import text
from jaxfl.data.partition import label_histogram
from jaxfl.data.sets import digits
from jaxfl.engine.run import run
from jaxfl.learn.task import classification
from jaxfl.models.networks import MLP


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


def test_the_claim_s_arms_meet_the_same_cohorts_of_three_splits():
    """The splits differ in labels and sizes; one epoch is that of the longest shard; another seed deals anew."""
    _, found = claim.studies()
    worlds = {name: setting.world for name, setting in found.settings(1).items()}
    iid, skewed, unbalanced = (worlds[name] for name in (claim.IID, claim.SKEWED, claim.UNBALANCED))
    assert iid.step is skewed.step is unbalanced.step
    cohorts = {name: drawn(w, 5) for name, w in worlds.items()}
    for name, c in cohorts.items():
        np.testing.assert_array_equal(c.ids, cohorts[claim.IID].ids)
        np.testing.assert_array_equal(c.weight, np.asarray(worlds[name].data.size)[c.ids])
    labels = {name: (label_histogram(w.data, 10) > 0).sum(1) for name, w in worlds.items()}
    assert labels[claim.SKEWED].max() <= 4  # two slices, each over one border at most
    assert labels[claim.IID].min() > 4
    assert iid.data.size.max() <= iid.data.size.min() + 1
    assert unbalanced.data.size.max() > 5 * unbalanced.data.size.min()
    assert (np.asarray(found.settings(2)[claim.IID].world.data.order) != np.asarray(iid.data.order)).any()
    short = drawn(found.arms["FedAvg, E = 1"].world(unbalanced), 1).steps
    assert (short == -(-int(np.max(unbalanced.data.size)) // claim.BATCH)).all()
    rows = [(seed, t, a, 0.5) for seed, a in ((0, 0.25), (1, 0.1)) for t, a in ((0, 0.0), (2, a), (4, 3 * a))]
    history = pd.DataFrame(rows, columns=["seed", "round", "accuracy", "target"])
    np.testing.assert_allclose(claim.needed(history), [3.0, np.inf])  # interpolated, and never


def test_the_claim_s_interpolation_ends_at_the_two_models():
    data = digits()
    task = classification(partial(MLP, (64, 8, 10)), data.x)
    mixed = claim.interpolate(task, data, 1, np.array([0.0, 0.5, 1.0]), steps=60)
    assert mixed["loss"].shape == mixed["accuracy"].shape == (2, 1, 3)
    assert (mixed["loss"][:, :, [0, 2]] < 2.2).all()
    assert (mixed["loss"][0, :, 1] > mixed["loss"][1, :, 1]).all()
    np.testing.assert_allclose(mixed["loss"][0, :, 2], mixed["loss"][1, :, 2], rtol=1e-5)  # theta = 1 is w in both
    assert (mixed["loss"][0, :, 0] != mixed["loss"][1, :, 0]).all()  # theta = 0 is another w'


def test_the_claim_s_roles_have_their_first_lines():
    """Roles of unequal length, another draw each seed, each with the start of its text."""
    found, data = claim.studies()[0], text.pydoc_topics(length=claim.WINDOW, min_chars=200)
    one, two = (found.stand_in(seed)[claim.ROLES].world.data for seed in (0, 1))
    assert one.size.shape == two.size.shape == (claim.SPEAKERS,)
    assert 7 <= one.size.min() < claim.LINES / 2
    assert one.size.max() == claim.LINES
    assert (np.asarray(one.size) != np.asarray(two.size)).any()
    first = np.asarray(one.order)[np.asarray(one.start)]
    for i, (at, size) in enumerate(zip(first, np.asarray(one.size), strict=True)):
        mine = np.asarray(one.order)[int(one.start[i]) : int(one.start[i]) + int(size)]
        of = data.clients[at]
        np.testing.assert_array_equal(np.sort(mine), np.flatnonzero(data.clients == of)[: claim.LINES])
