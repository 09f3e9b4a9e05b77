"""FedAvg of sub-models against its round in float64, for every policy; whole models are FedAvg."""

import numpy as np
import pytest
from members import drawn
from pieces import FIRST, KW, TASK, between, by_hand, key_of, random_share, world

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.masked_fedavg import POLICIES, masked_fedavg
from jaxfl.claims import masked_fedavg as claim
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange.network import Network

SHARE = (0.75, 0.5, 0.25)
LARGEST = [-(-3 * TASK.dim // 4), -(-TASK.dim // 2), -(-TASK.dim // 4)]
BY_HAND = {
    "magnitude": lambda t, i, x: np.abs(x) >= np.sort(np.abs(x))[-LARGEST[i % 3]],
    "random": lambda t, i, x: random_share(key_of(t, i), np.float32(SHARE[i % 3])),
    "width": lambda t, i, x: between(SHARE[i % 3]),
    "rolling": lambda t, i, x: between(SHARE[i % 3], t),
}


def end(make, **more):
    return run(make(TASK, **KW, **more), world(), FIRST, 3, every=1)


@pytest.mark.parametrize("masks", POLICIES)
def test_three_rounds_by_hand(masks):
    got = end(masked_fedavg, masks=masks, share=SHARE)
    x, _ = by_hand(BY_HAND[masks])
    np.testing.assert_allclose(got.state.shared["x"], x, atol=1e-5)
    assert 0.3 < got.history["up_bits"].sum() / (3 * 3 * 32 * TASK.dim) < 0.9


def test_whole_models_are_fedavg_to_the_last_bit():
    """Of width and rolling windows `test_heterofl.py` says it."""
    plain = end(fedavg).state.shared["x"]
    for masks in ("magnitude", "random"):
        np.testing.assert_array_equal(end(masked_fedavg, masks=masks, share=1.0).state.shared["x"], plain)


def test_other_masks_are_refused():
    with pytest.raises(InputError, match="masks is 'largest', but must be one of magnitude, random, width, rolling"):
        masked_fedavg(TASK, masks="largest")


def test_the_claim_s_masks_cover_as_they_say():
    """Every number by c clients; half by one and half by seven; the same quarter for all; that quarter rolls on."""
    studies = claim.studies()[1]
    held = {}
    for name, arm in studies.arms.items():
        policy = claim.masks(claim.D, claim.N, **arm.hyper)
        each = [[policy(None, i, t, None).held for i in range(claim.N)] for t in range(2)]
        held[name] = np.asarray(each).astype(int)
    for c in claim.COUNTS:
        assert (held[f"by {c}"].sum(1) == c).all()
    assert sorted(set(held[claim.SKEWED].sum(1).ravel())) == [1, 7]
    assert set(held[claim.SHARED].sum(1).ravel()) == {0, claim.N}
    np.testing.assert_array_equal(held[claim.SHARED][0], held[claim.SHARED][1])
    np.testing.assert_array_equal(held[claim.ROLLING][1], np.roll(held[claim.ROLLING][0], 1, -1))
    cost = {name: h.sum() for name, h in held.items()}
    assert len({cost[n] for n in ("by 4", claim.SKEWED, claim.SHARED, claim.ROLLING, claim.NAIVE)}) == 1


def test_the_claim_s_least_squares_are_one_sphere():
    """Every client has the optimum w and the Hessian I, so that `error` is the squared gradient."""
    (setting,) = claim.least_squares(1).values()
    x, y, w = (np.asarray(a, np.float64) for a in (setting.world.data.x, setting.world.data.y, setting.evaluate.arrays))
    x, y = x.reshape(claim.N, claim.SAMPLES, -1), y.reshape(claim.N, -1)
    np.testing.assert_allclose(np.einsum("ism,isn->imn", x, x) / claim.SAMPLES, [np.eye(claim.D)] * claim.N, atol=1e-5)
    np.testing.assert_allclose(np.einsum("ism,is->im", x, y) / claim.SAMPLES, [w] * claim.N, atol=1e-5)
    np.testing.assert_allclose(((y - x @ w) ** 2).mean(1), 0.25, rtol=1e-4)


def test_zeros_of_the_naive_mean_pull_numbers_down():
    """After hardly a step a number is its share of senders of what it was."""
    policy = claim.masks(TASK.dim, 6, 3.0, 3.0, 1.0, 0.0, 1.0)
    sub = policy(None, 2, 0, FIRST)
    assert sub.sent.all()
    x = run(fedavg(TASK, Network(submodel=policy), **KW | {"lr": 1e-6}), world(), FIRST, 1, every=1).state.shared["x"]
    members = [(i, p) for i, p in zip(*(a[0].tolist() for a in drawn(world(), 1)[:2]), strict=True) if p > 0]
    share = sum(p * np.asarray(policy(None, i, 0, FIRST).held) for i, p in members) / sum(p for _, p in members)
    np.testing.assert_allclose(x, share * FIRST, atol=1e-4)
