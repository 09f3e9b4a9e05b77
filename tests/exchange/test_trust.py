"""Trust, medians of groups and elections, against Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.errors import InputError
from jaxfl.exchange.membership import public_hash
from jaxfl.exchange.trust import Terms, bad_by_loss, elected, groups_of, median_of, moved, require_terms


def test_trust_moves_within_its_bounds():
    trust, yes, no = jnp.array([1.0, 0.5, 0.1, 0.7]), jnp.array([True] * 4), jnp.array([False] * 4)
    terms = Terms(gain=0.02, loss=0.2, late=0.05)
    np.testing.assert_allclose(moved(trust, yes, no, no, terms), [1.0, 0.52, 0.12, 0.72], rtol=1e-6)
    np.testing.assert_allclose(moved(trust, no, yes, no, terms), [0.8, 0.3, 0.0, 0.5], rtol=1e-6)
    np.testing.assert_allclose(moved(trust, yes, no, yes, terms), [0.97, 0.47, 0.07, 0.67], rtol=1e-5)
    np.testing.assert_array_equal(moved(trust, no, no, no, terms), trust)


def test_medians_and_bad_losses_of_groups():
    """Odd, even and empty groups; what is not finite, or too far above the median of its group, is bad."""
    loss = np.array([1.0, 2.0, 9.0, np.nan, 3.0, 5.0, np.inf, 4.0], np.float32)
    group, here = np.array([0, 0, 0, 0, 1, 1, 1, 2]), np.array([1, 1, 1, 0, 1, 1, 0, 0], bool)
    inside = groups_of(jnp.asarray(group), 4) & here
    np.testing.assert_array_equal(inside, [(group == g) & here for g in range(4)])
    wanted = [float(np.median(loss[(group == g) & here])) if ((group == g) & here).any() else np.nan for g in range(4)]
    np.testing.assert_allclose(jax.jit(median_of)(loss, inside), wanted)
    bad = jax.jit(bad_by_loss)(loss, inside, 3.0)
    np.testing.assert_array_equal(bad, [False, False, True, False, False, False, False, False])
    everybody = groups_of(jnp.asarray(group), 3)
    bad = bad_by_loss(jnp.asarray(loss), everybody, 3.0)
    np.testing.assert_array_equal(bad, [False, False, False, True, False, False, True, False])


def test_the_most_trusted_who_rested_is_head():
    rng, n = np.random.default_rng(0), 12
    inside = groups_of(jnp.arange(n) % 3, 3)
    choose = jax.jit(elected, static_argnums=(5, 6))
    for t in range(6):
        trust, last = rng.integers(0, 3, n) / 2, rng.integers(t - 4, t, n)
        order = np.asarray(public_hash(jnp.uint32(7), jnp.int32(t), n))
        got = choose(jnp.uint32(7), jnp.int32(t), jnp.asarray(trust), jnp.asarray(last), inside, 2, 3)
        for q in range(3):
            rank = lambda i: (t - last[i] <= 2, -trust[i], order[i])  # noqa: B023
            assert list(got[q]) == sorted(range(q, n, 3), key=rank)[:3]


def test_terms_outside_their_range_are_refused():
    for name in Terms._fields:
        with pytest.raises(InputError, match=f"^{name} is 1.5"):
            require_terms(Terms()._replace(**{name: 1.5}))
    assert require_terms(Terms()) == Terms()
