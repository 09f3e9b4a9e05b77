"""Draws whose small values are exact, every pair of words against float64, and the cohorts that use them."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxfl.world import cohort as C
from jaxfl.world import exponential as E


def words(monkeypatch):
    """All scales of two random words, in place of those of a key; their fraction of 2^64 in float64, exact enough."""
    r = np.random.default_rng(0)
    every = (r.integers(0, 2**64, (65, 200), np.uint64) >> np.arange(65, dtype=np.uint64).clip(0, 63)[:, None]).ravel()
    every = np.concatenate([every, np.array([0, 1, 2**32, 2**64 - 2, 2**64 - 1], np.uint64)])
    both = jnp.asarray(np.stack([every >> np.uint64(32), every & np.uint64(2**32 - 1)]).astype(np.uint32))
    monkeypatch.setattr(jax.random, "bits", lambda key, shape, dtype: both)
    return every


def test_small_values_have_full_precision(monkeypatch):
    every = words(monkeypatch)
    u = (every.astype(np.float64) + 0.5) / 2.0**64
    np.testing.assert_allclose(E.uniform(None, every.shape), u, rtol=2e-7)
    assert float(E.uniform(None, every.shape).min()) > 0
    side, rest = every >> np.uint64(32) & np.uint64(1) == 1, np.uint64(2**32 - 1)
    u = (((every >> np.uint64(33)) << np.uint64(32) | every & rest).astype(np.float64) + 0.5) / 2.0**64
    got = np.asarray(E.exponential(None, every.shape), np.float64)
    np.testing.assert_allclose(got, np.where(side, -np.log(u), -np.log1p(-u)), rtol=4e-7)
    assert 0 < got.min() < 1e-18
    assert 40 < got.max() < 50


def test_the_law_is_exponential():
    for draw, law in ((E.exponential, stats.expon), (E.uniform, stats.uniform)):
        got = np.asarray(draw(jax.random.key(0), (50_000,)), np.float64)
        assert stats.kstest(got, law.cdf).pvalue > 1e-3
    late, u = E.tail(jax.random.key(2), (50_000,))
    assert stats.kstest(np.where(late, 1 - np.float64(u), np.float64(u)), stats.uniform.cdf).pvalue > 1e-3
    assert E.exponential(jax.random.key(0)).shape == ()


def test_rare_events_of_availability_and_of_sizes_come_as_often_as_they_should(monkeypatch):
    """Float32 holds neither 1 - 1e-9 nor, in its usual uniform draws, anything between 0 and 1e-7."""
    process = C.availability(4, 1 - 1e-9, 1 - 2e-9)
    monkeypatch.setattr(C, "fraction", lambda key, shape: jnp.array([0.9e-9, 1.1e-9, 1.9e-9, 2.1e-9]))
    up = lambda s: np.asarray(process.step(jax.random.key(0), process.arrays, jnp.full(4, s), 0)[1])
    np.testing.assert_array_equal(up(True), [False, True, True, True])
    np.testing.assert_array_equal(up(False), [True, True, True, False])
    np.testing.assert_allclose(process.arrays["arrive"] / (process.arrays["leave"] + process.arrays["arrive"]), 2 / 3)
    # sizes of Poisson cohorts, at the borders of the distribution function and its complement
    n, p = 60, 0.3
    law, who = stats.binom(n, p), C.poisson(n, p)
    sizes = np.array([0, 1, 2, 17, 19, 30, 35])
    for many, u in ((False, law.cdf(sizes)), (True, law.sf(sizes))):
        for near, more in ((0.999, many), (1.001, not many)):
            for size, v in zip(sizes, u * near, strict=True):
                if v <= 0.5:
                    monkeypatch.setattr(C, "tail", lambda key, many=many, v=v: (jnp.array(many), jnp.float32(v)))
                    got = who.step(jax.random.key(0), who.arrays, (), 0)[1]
                    assert int((got.weight > 0).sum()) == size + more
