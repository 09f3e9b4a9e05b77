"""Laws of availability against closed forms, and what estimators make of what was seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import rounds

from jaxfl.errors import InputError
from jaxfl.world import availability as A
from jaxfl.world import cohort


def lagged(up, lag):
    """Mean autocorrelation over nodes (all of one law) at a lag, of `[rounds, n]`."""
    x = up - up.mean()
    return (x[lag:] * x[:-lag]).mean() / (x * x).mean()


@pytest.mark.parametrize(
    ("up", "memory", "corr"), [(0.3, 0.6, 0.4), (0.5, -0.5, 0.6), (0.7, 0.0, 0.0), (0.2, 0.8, 1.0)]
)
def test_a_node_is_the_chain_it_says_and_groups_correlate(up, memory, corr):
    """Share, autocorrelation `memory^k`, correlation `corr` within a group and none across, from the first round on."""
    pairs, t = 2000, 60
    got = np.asarray(rounds(A.markov(2 * pairs, up, memory, corr, groups=pairs), t)).astype(float)
    error = 5 / np.sqrt(pairs)  # of independent groups, in each round
    assert got.mean() == pytest.approx(up, abs=0.02)
    assert got[0].mean() == pytest.approx(up, abs=error)
    for lag in (1, 2):
        assert lagged(got, lag) == pytest.approx(memory**lag, abs=0.02)
    x = (got - up) / np.sqrt(up * (1 - up))
    within = (x[:, 0::2] * x[:, 1::2]).mean(1)
    assert within.mean() == pytest.approx(corr, abs=0.03)
    assert within[0] == pytest.approx(corr, abs=error)
    assert (x[:, 1:-1:2] * x[:, 2::2]).mean() == pytest.approx(0, abs=0.02)
    if corr == 1:
        np.testing.assert_array_equal(got[:, 0::2], got[:, 1::2])


def test_nodes_may_be_unlike_in_one_group():
    """Each keeps its own law; who is up more is up whenever the other is, where both follow one draw for ever."""
    up, memory = np.array([0.2, 0.9, 1.0, 0.0]), np.array([0.5, 0.0, 0.0, 0.0])
    got = np.asarray(rounds(A.markov(4, up, memory, 1.0), 4000))
    np.testing.assert_allclose(got.mean(0), up, atol=0.03)
    rare = np.asarray(rounds(A.markov(20_000, 1e-4, 0.0, 0.5, groups=20_000), 50))
    assert rare.sum() == pytest.approx(100, abs=45)


def test_without_correlation_it_is_the_chain_of_cohort():
    a, b = A.markov(5, 0.4, 0.5), cohort.availability(5, 0.7, 0.8)
    np.testing.assert_array_equal(rounds(a, 30), rounds(b, 30))


def test_day_and_night_by_zone():
    """The mean over many nodes of a zone in each hour is the probability of the formula."""
    n, period = 4000, 6
    got = np.asarray(rounds(A.diurnal(n, 0.5, 0.4, period, zones=2), 12))
    hour = np.arange(12) / period
    for z in range(2):
        want = 0.5 + 0.4 * np.cos(2 * np.pi * (hour - z / 2))
        np.testing.assert_allclose(got[:, z * n // 2 : (z + 1) * n // 2].mean(1), want, atol=0.05)
    own = np.asarray(rounds(A.diurnal(2, 0.5, 0.5, 4, phase=[0.0, 0.5]), 9))
    assert own[0::4, 0].all()
    assert own[2::4, 1].all()
    assert not own[2::4, 0].any()


def test_estimates_count_what_was_seen():
    """Against counting by hand; before the first look both are the prior."""
    up = np.asarray(rounds(A.markov(40, 0.3, 0.5), 80))
    seen = A.nothing_seen(40)
    for estimate, want in zip(A.chain_seen(seen, 0.2, 0.4, 10.0), (0.2, 0.4), strict=True):
        np.testing.assert_allclose(estimate, want, atol=1e-6)
    seen = jax.lax.scan(lambda s, u: (A.look(s, u), None), seen, jnp.asarray(up))[0]
    share, memory = A.chain_seen(seen, 0.2, 0.4, 10.0)
    np.testing.assert_allclose(share, (up.sum(0) + 10 * 0.2) / 90, atol=1e-6)
    np.testing.assert_allclose(A.running_share(seen, 0.2, 10.0), share)
    rates = []
    for state, prior in ((True, 0.4 + 0.6 * 0.2), (False, 1 - 0.6 * 0.2)):
        was, stayed = up[:-1] == state, (up[1:] == state) & (up[:-1] == state)
        rates.append((stayed.sum(0) + 10 * prior) / (was.sum(0) + 10))
    np.testing.assert_allclose(memory, rates[0] + rates[1] - 1, atol=1e-6)


def test_estimates_find_the_chain():
    up, memory = np.array([0.5, 0.1, 0.9, 0.4]), np.array([0.9, 0.0, 0.0, -0.5])
    drawn = rounds(A.markov(4, up, memory), 6000)
    seen = jax.lax.scan(lambda s, u: (A.look(s, u), None), A.nothing_seen(4), drawn)[0]
    share, kept = A.chain_seen(seen)
    np.testing.assert_allclose(share, up, atol=0.08)
    np.testing.assert_allclose(kept, memory, atol=0.06)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: A.markov(3, 1.5), "up = 1.5"),
        (lambda: A.markov(3, 0.2, -0.5), "memory = -0.5 of a node that is up for a share 0.2"),
        (lambda: A.markov(3, 0.5, 1.0), "memory = 1 "),
        (lambda: A.markov(3, 0.5, np.nan), "memory = nan"),
        (lambda: A.markov(3, [0.5, 0.5]), r"up has shape \[2\]"),
        (lambda: A.markov(3, 0.5, corr=2.0), "corr is 2.0"),
        (lambda: A.markov(3, groups=4), "groups is 4"),
        (lambda: A.markov(3, groups=[0, 2, 0]), r"groups has the groups \[0, 2\]"),
        (lambda: A.markov(3, groups=[0, 1]), "groups has shape"),
        (lambda: A.markov(0), "n = 0"),
        (lambda: A.diurnal(3, 0.5, 0.6), "swing = 0.6"),
        (lambda: A.diurnal(3, period=1), "period is 1"),
        (lambda: A.diurnal(3, zones=0), "zones is 0"),
        (lambda: A.diurnal(3, phase=np.inf), "phase = inf"),
    ],
)
def test_bad_input_gets_a_sentence(call, says):
    with pytest.raises(InputError, match=says):
        call()
