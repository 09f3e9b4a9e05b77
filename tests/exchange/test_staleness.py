"""The memory of versions, discounts of age, and secure sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jaxfl.core import Cohort, Env
from jaxfl.errors import InputError
from jaxfl.exchange import secure
from jaxfl.exchange.network import Network
from jaxfl.exchange.staleness import FRESH, Staleness, constant, counted, hinge, polynomial, threshold
from jaxfl.exchange.versions import push, recall, versions

AGES = jnp.arange(9)
masked_sums = jax.jit(secure.masked_sums)
masks_of = jax.jit(jax.vmap(lambda seed: secure.mask(seed, 7)))


@given(st.sampled_from([1, 2, 5]), st.integers(0, 12))
def test_the_ring_remembers_the_last_versions(count, pushes):
    ring, memory = versions(jnp.full(2, -1.0), count), [np.full(2, -1.0)] * count
    for t in range(pushes):
        ring = push(ring, jnp.array([t, 10.0 * t]))
        memory = [np.array([t, 10.0 * t]), *memory[:-1]]
    ages = np.arange(count + 3)
    expected = [memory[min(a, count - 1)] for a in ages]  # what is forgotten reads the oldest
    np.testing.assert_array_equal(recall(ring, jnp.asarray(ages)), expected)


def test_discounts_against_their_formulas():
    age = np.arange(9.0)
    for s, exact in (
        (constant(), np.ones(9)),
        (polynomial(), 1 / np.sqrt(1 + age)),
        (polynomial(0.9), (1 + age) ** -0.9),
        (threshold(3, 0.2), np.where(age <= 3, 1, 0.2)),
        (hinge(2.0, 4), [1, 1, 1, 1, 1, 1 / 3, 1 / 5, 1 / 7, 1 / 9]),
        (hinge(), [1, 1, 1, 1, 1, 1 / 11, 1 / 21, 1 / 31, 1 / 41]),
    ):
        got = s(AGES)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, exact, rtol=1e-6)
        assert got[0] == 1  # exactly, so that nothing stale is nothing changed
    np.testing.assert_allclose(jax.jit(lambda a: polynomial(a)(AGES))(0.9), (1 + age) ** -0.9, rtol=1e-6)


def test_what_counts_of_a_cohort():
    c = Cohort(jnp.arange(5), jnp.array([2.0, 1, 3, 0, 1]), jnp.array([0, 3, 8, 1, 9]))
    heard, scale, log = counted(Staleness(8, polynomial(1.0)), c)
    assert (float(log["age"]), int(log["dropped"])) == ((0 + 3 + 8 + 9) / 4, 1)
    np.testing.assert_allclose(heard.weight, [2, 1 / 4, 3 / 9, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(heard.selected, [True, True, True, False, True])
    np.testing.assert_allclose(scale, (2 + 1 / 4 + 1 / 3) / 6, rtol=1e-6)
    again, scale, _ = counted(Staleness(8, polynomial(1.0), normalised=True), c)
    assert scale is None
    np.testing.assert_array_equal(again.weight, heard.weight)
    fresh, scale, log = counted(FRESH, c)
    assert (scale, log) == (None, {})
    np.testing.assert_array_equal(fresh.weight, [2, 0, 0, 0, 0])
    late = c._replace(selected=jnp.ones(5, bool))
    np.testing.assert_array_equal(counted(FRESH, late)[0].selected, np.ones(5, bool))
    nobody, scale, _ = counted(Staleness(2), c._replace(age=c.age + 3))
    assert not np.asarray(nobody.weight).any()
    assert scale == 0


def env(weight):
    c = len(weight)
    who = Cohort(jnp.arange(c), jnp.asarray(weight, jnp.float32))
    return Env(jnp.int32(0), jnp.float32(0), (), None, who, jnp.zeros(c, bool))


@given(st.integers(0, 2**32 - 1))
def test_the_unmasked_sum_is_the_integer_sum(seed):
    c, rng = 5, np.random.default_rng(seed)
    q, v = rng.integers(0, 2**32, (c, 7), dtype=np.uint32), rng.integers(0, 2**32, c, dtype=np.uint32)
    seeds = jax.random.split(jax.random.key(seed), c)
    server, released = jax.device_get(masked_sums(seeds, jnp.asarray(q), jnp.asarray(v)))
    exact = [sum(int(a) * int(b) for a, b in zip(v, column, strict=True)) % 2**32 for column in q.T]
    np.testing.assert_array_equal(server - released, np.array(exact, np.uint32))
    assert not np.array_equal(server, np.array(exact, np.uint32)) or not v.any()
    masks = np.asarray(masks_of(seeds))
    np.testing.assert_array_equal(released, (v[:, None] * masks).sum(0, dtype=np.uint32))


def test_fixed_point_is_exact_for_what_fits_and_clips_the_rest():
    x = jnp.array([0.0, -0.25, 3.5, -7.75, 1e9, -1e9, 0.26])
    np.testing.assert_array_equal(
        secure.from_fixed(secure.to_fixed(x, 0.25, 100), 0.25), [0, -0.25, 3.5, -7.75, 25, -25, 0.25]
    )
    # the largest integers that float32 holds below 2^31
    np.testing.assert_array_equal(secure.from_fixed(secure.to_fixed(x[4:6], 1e-3), 1.0), [2147483520, -2147483520])


def test_one_masked_message_alone_is_uniform_noise():
    q = secure.to_fixed(jnp.full(40_000, 0.5), 2.0**-16)
    one, _ = secure.masked_sums(jax.random.split(jax.random.key(7), 1), q[None], jnp.ones(1, jnp.uint32))
    counts = np.bincount(np.asarray(one) >> 28, minlength=16)
    assert stats.chisquare(counts).pvalue > 1e-3
    assert np.unique(q).size == 1


def test_the_enclave_gives_the_weighted_mean_to_its_resolution_and_costs_a_seed():
    rng = np.random.default_rng(0)
    messages = rng.normal(size=(6, 5)).astype(np.float32)
    messages[4] = np.nan  # absent
    weight = np.array([1, 2, 4, 3, 0, 2.0])
    net = Network(collective=secure.enclave(2.0**-20, levels=4))
    e = env(weight)
    out, _, cost = net.aggregate(jax.random.key(1), e, net.init(e, jnp.zeros(5)), jnp.asarray(messages))
    present = weight > 0
    exact = weight[present] @ messages[present].astype(np.float64) / weight.sum()
    np.testing.assert_allclose(out, exact, atol=2.0**-20)
    assert cost["up_bits"] == 5 * (32 * 5 + 128)
    # exact where the messages are multiples of the resolution: whatever the masks, bit for bit
    whole = jnp.asarray(rng.integers(-(2**15), 2**15, (8, 5)) / 2**10, jnp.float32)
    equal = env(np.ones(8))
    plain = np.asarray(whole, np.float64).sum(0) / 8
    for seed in range(3):
        net = Network(collective=secure.enclave(2.0**-10))
        out, *_ = net.aggregate(jax.random.key(seed), equal, net.init(equal, jnp.zeros(5)), whole)
        np.testing.assert_array_equal(out, plain.astype(np.float32))


def test_no_sum_overflows():
    """A huge message is clipped, so that even a cohort of them keeps its sign."""
    net, e = Network(collective=secure.enclave(1.0, levels=256)), env(np.ones(8))
    limit = (2**31 - 1) // (8 * 256)
    messages = jnp.tile(jnp.array([1e12, -1e12, 5.0]), (8, 1))
    out, *_ = net.aggregate(jax.random.key(0), e, net.init(e, jnp.zeros(3)), messages)
    np.testing.assert_allclose(out, [limit, -limit, 5], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: polynomial(-1.0), "a is -1.0"),
        (lambda: threshold(-1), "cut is -1"),
        (lambda: hinge(1.0, -2), "b is -2"),
        (lambda: secure.enclave(0.0), "resolution is 0.0"),
        (lambda: secure.enclave(levels=0), "levels is 0"),
        (lambda: secure.enclave(levels=1.5), "levels is 1.5"),
    ],
)
def test_bad_numbers_are_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()
