"""Unequal participation: the members by definition, unbiased weights, intervals against a loop in Python."""

import itertools

import jax
import numpy as np
import pytest
from common import rounds as traced

from jaxfl.errors import InputError
from jaxfl.world import cohort
from jaxfl.world.uneven import by_intervals, independent, successive
from jaxfl.world.work import straggling

P = np.array([1.0, 2, 4, 8])


def rounds(process, count):
    """The first values of a process, on the host."""
    return jax.device_get(traced(process, count))


def test_members_drawn_one_after_the_other_in_proportion():
    """Every ordered pair of 4 has probability p_a p_b / (1 - p_a), in either order; weights are the base's."""
    c = rounds(successive(4, 2, 7 * P, weight=P), 20000)
    p = P / P.sum()
    pairs, often = np.unique(c.ids, axis=0, return_counts=True)
    assert [tuple(a) for a in pairs] == list(itertools.combinations(range(4), 2))
    wanted = [p[a] * p[b] / (1 - p[a]) + p[b] * p[a] / (1 - p[b]) for a, b in pairs]
    np.testing.assert_allclose(often / 20000, wanted, atol=0.015)
    np.testing.assert_array_equal(c.weight, P[c.ids])
    assert c.total is None


def test_who_is_there_by_itself_weighs_by_the_inverse_of_its_probability():
    p, base = np.array([1.0, 0.5, 0.2, 0.05]), np.array([1.0, 2, 3, 4])
    c = rounds(independent(4, p, weight=base), 20000)
    there = c.weight > 0
    np.testing.assert_allclose(there.mean(0), p, atol=0.015)
    np.testing.assert_allclose(np.corrcoef(there[:, 1:].T), np.eye(3), atol=0.03)
    np.testing.assert_allclose(c.weight, np.where(there, base / p, 0), rtol=1e-6)
    np.testing.assert_array_equal(c.total, 10)
    plain = rounds(independent(4, p, corrected=False, weight=base), 5)
    np.testing.assert_array_equal(plain.weight, np.where(there[:5], base, 0))
    assert plain.total is None


@pytest.mark.parametrize("cutoff", [None, 3])
def test_mean_intervals(cutoff):
    """Against a loop that counts rounds; in the end the weights estimate 1 / p."""
    p, base = np.array([1.0, 0.5, 0.2, 0.1]), np.array([1.0, 2, 3, 4])
    members = independent(4, p, corrected=False, weight=base)
    there = rounds(members, 4000).weight > 0
    c = rounds(by_intervals(members, cutoff), 4000)
    waited, ended = np.zeros(4, int), [[] for _ in range(4)]
    for t in range(4000):
        waited += 1
        for i in range(4):
            if there[t, i] or waited[i] == cutoff:
                ended[i].append(waited[i])
                waited[i] = 0
            if t < 60 and there[t, i]:
                assert abs(c.weight[t, i] / (base[i] * np.mean(ended[i])) - 1) < 1e-5
    np.testing.assert_array_equal(c.weight > 0, there)
    np.testing.assert_array_equal(c.total, 10)
    if cutoff is None:
        last = [c.weight[there[:, i], i][-1] for i in range(4)]
        np.testing.assert_allclose(last, base / p, rtol=0.12)


def test_intervals_of_a_cohort_that_is_wrapped():
    c = rounds(by_intervals(straggling(cohort.uniform(4, 2, weight=P), 0.5, epochs=3)), 300)
    np.testing.assert_allclose((c.weight / P[c.ids])[-50:].mean(), 2, rtol=0.15)
    assert c.steps is not None


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: successive(4, 5, P), "c is 5"),
        (lambda: successive(4, 2, [1, 2, 3]), "p has shape"),
        (lambda: successive(4, 2, [1, 2, 3, 0]), "p has shape"),
        (lambda: independent(4, [0.5, 1.2, 1, 1]), "p ="),
        (lambda: independent(4, 0.0), "p ="),
        (lambda: by_intervals(independent(4, 0.5, corrected=False), 0), "cutoff is 0"),
        (lambda: by_intervals(cohort.availability(4, 0.5, 0.5)), "members has no base weights"),
        (lambda: rounds(by_intervals(independent(4, 0.5)), 1), "members has corrected weights"),
    ],
)
def test_bad_numbers_are_refused(make, word):
    with pytest.raises(InputError, match=f"^{word}"):
        make()
