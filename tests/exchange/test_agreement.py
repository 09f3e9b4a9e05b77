"""Selective averaging against loops over members and numbers in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.errors import InputError
from jaxfl.exchange import agreement

RNG = np.random.default_rng(0)
K, D = 6, 7
MOVE = RNG.normal(size=(K, D)).astype(np.float32)
FEW = np.array([0, 1, 1, 0, 1, 0])
WEIGHT = np.array([0.3, 0.1, 0.0, 0.2, 0.25, 0.15], np.float32)


def combined(choose, weight=WEIGHT, **kw):
    heard = np.concatenate([MOVE, MOVE, FEW[:, None]], 1).astype(np.float32)
    out = np.asarray(agreement.selective(choose, **kw)(jnp.zeros(2 * D + 1), jnp.asarray(heard), jnp.asarray(weight)))
    assert out[-1] == 0
    return out[:D], out[D:-1]


def by_hand(keep, weight=WEIGHT):
    """`keep(k, j, trusted)` says whether number j of doubtful member k is taken."""
    move, weight = MOVE.astype(float), weight.astype(float)
    trusted = sum(w * m for w, m, f in zip(weight, move, FEW, strict=True) if not f) / weight[FEW == 0].sum()
    out = np.zeros(D)
    for j in range(D):
        taken = [k for k in range(K) if not FEW[k] or keep(k, j, trusted)]
        out[j] = sum(weight[k] * move[k, j] for k in taken) / sum(weight[k] for k in taken)
    return out


def test_what_agrees_enters_the_mean_of_the_trusted():
    high, everyone = combined(agreement.same_sign)
    np.testing.assert_allclose(high, by_hand(lambda k, j, h: MOVE[k, j] * h[j] > 0), rtol=1e-5)
    np.testing.assert_allclose(everyone, WEIGHT @ MOVE, rtol=1e-5)
    high, low = combined(agreement.nothing, grouped=True)
    np.testing.assert_allclose(high, by_hand(lambda k, j, h: False), rtol=1e-5)
    few = WEIGHT * FEW
    np.testing.assert_allclose(low, few @ MOVE / few.sum(), rtol=1e-5)
    high, everyone = combined(agreement.everything)
    np.testing.assert_allclose(high, everyone, rtol=1e-5)


def test_without_the_trusted_or_the_doubtful():
    none = np.where(FEW == 1, WEIGHT, 0)
    assert (combined(agreement.same_sign, none)[0] == 0).all()
    high, low = combined(agreement.same_sign, np.where(FEW == 0, WEIGHT, 0), grouped=True)
    np.testing.assert_allclose(high, np.where(FEW == 0, WEIGHT, 0) @ MOVE / WEIGHT[FEW == 0].sum(), rtol=1e-5)
    assert (low == 0).all()


@pytest.mark.parametrize("least", [-1.0, 0.2, 0.6, 0.9])
def test_as_many_numbers_as_leave_a_cosine(least):
    trusted = RNG.normal(size=D).astype(np.float32)
    got = np.asarray(agreement.until_cosine(least)(jnp.asarray(MOVE), jnp.asarray(trusted)))
    for move, mask in zip(MOVE.astype(float), got, strict=True):
        order = np.argsort(-move * trusted)
        counts = [
            count for count in range(1, D + 1)
            if move[order[:count]] @ trusted[order[:count]]
            >= least * np.linalg.norm(move[order[:count]]) * np.linalg.norm(trusted)
        ]  # fmt: skip
        want = np.zeros(D, bool)
        want[order[: max(counts, default=0)]] = True
        np.testing.assert_array_equal(mask, want)
    with pytest.raises(InputError, match=r"least is 1\.5"):
        agreement.until_cosine(1.5)


def test_the_control_takes_as_many_numbers_elsewhere():
    order = RNG.permutation(D)
    trusted = jnp.asarray(RNG.normal(size=D), jnp.float32)
    taken, other = (np.asarray(f(jnp.asarray(MOVE), trusted)) for f in
                    (agreement.same_sign, agreement.shuffled(agreement.same_sign, jnp.asarray(order))))  # fmt: skip
    np.testing.assert_array_equal(other, taken[:, order])
    np.testing.assert_array_equal(other.sum(1), taken.sum(1))
