"""How much members count: by rules of their shares, among those who are present and up."""

import jax.numpy as jnp
import numpy as np
import pytest
from common import quadratics, rounds

from jaxfl.errors import InputError
from jaxfl.world import churn, clock, cohort, durations, weights
from jaxfl.world.scenario import scenario

N, WEIGHT = 6, np.array([1.0, 2, 4, 8, 3, 5])
D = np.array([3.0, 0.5, 1, 2, 0, 4])


FOUR = cohort.uniform(N, 4, weight=WEIGHT)


def absent(key, arrays, s, t):
    """The third member never answers."""
    s, c = FOUR.step(key, arrays, s, t)
    return s, c._replace(weight=c.weight.at[2].set(0.0))


def drawn(w, count):
    """The cohorts of the first rounds, stacked."""
    return rounds(w, count).cohort


def world(rule, members=None, **kw):
    members = FOUR._replace(step=absent) if members is None else members
    return scenario(quadratics(n=N, d=3)[2], cohort=members, weights=rule, **kw)


def by_hand(ids, weight, a, b):
    n = weight / weight.sum()
    d = np.where(weight > 0, D[ids], 0)
    p = np.where(weight > 0, np.maximum(0, n - a * d / d.sum() + b), 0)
    return p / p.sum()


@pytest.mark.parametrize(("a", "b"), [(0.0, 0.0), (0.5, 0.1), (2.0, 0.05)])
def test_disco_counts_those_present_by_share_and_discrepancy(a, b):
    """Both are renormalised over the members present, every round; what becomes negative is absent."""
    got, plain = drawn(world(weights.disco(D, a, b)), 8), drawn(world(None), 8)
    np.testing.assert_array_equal(got.ids, plain.ids)
    assert (plain.weight[:, 2] == 0).all()
    for ids, new, old in zip(got.ids, got.weight, plain.weight, strict=True):
        np.testing.assert_allclose(new / new.sum(), by_hand(ids, old.astype(float), a, b), atol=1e-6)
    if a == 2:
        assert (got.weight == 0).sum() > 8


def test_the_papers_example():
    """Six equal clients, five with two of ten labels each, one with all: 0.1515 and 0.2424."""
    d = np.append(np.full(5, np.log(5)), 0)
    w = drawn(world(weights.disco(d), cohort.everyone(N, np.ones(N))), 1).weight[0]
    np.testing.assert_allclose(w / w.sum(), [*[0.15151515] * 5, 0.24242424], rtol=1e-5)


def test_all_alike_and_the_objective_stays():
    w = world(weights.uniform())
    got = drawn(w, 3).weight
    assert (got[:, [0, 1, 3]] == 1).all()
    assert not got[:, 2].any()
    np.testing.assert_allclose(w.arrays["share"], WEIGHT / WEIGHT.sum(), rtol=1e-6)


def test_where_nobody_is_left_members_count_by_size():
    w = drawn(world(weights.disco(np.ones(N), 9.0, 0.0), cohort.everyone(N, np.ones(N))), 1).weight[0]
    np.testing.assert_allclose(w / w.sum(), 1 / N, rtol=1e-6)


def test_who_is_down_is_not_counted_among_the_members():
    down = churn.events(N, leaves=[(0, [4])])
    w = drawn(world(weights.disco(D), cohort.everyone(N, WEIGHT), churn=down), 2)
    assert not w.weight[1, 4]
    there = np.where(np.arange(N) == 4, 0, WEIGHT)
    np.testing.assert_allclose(w.weight[1] / w.weight[1].sum(), by_hand(np.arange(N), there, 0.5, 0.1), atol=1e-6)


def test_numbers_are_traced():
    w = world(weights.disco(D))
    other = w.arrays | {"weights": w.arrays["weights"] | {"a": jnp.float32(0), "b": jnp.float32(0)}}
    got, plain = drawn(w._replace(arrays=other), 3).weight, drawn(world(None), 3).weight
    np.testing.assert_allclose(got, plain / plain.sum(1, keepdims=True), rtol=1e-6)
    assert world(weights.disco(D, 0.2)).step is w.step


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: weights.disco([1.0, -1.0]), "discrepancy has shape"),
        (lambda: weights.disco([np.nan]), "discrepancy has shape"),
        (lambda: weights.disco(D, a=-1), "a"),
        (lambda: weights.disco(D, b=np.inf), "b"),
        (lambda: world(weights.disco(D[:5])), "weights are not of 6 nodes"),
        (lambda: world(lambda share: share), "weights is a"),
        (lambda: world(weights.uniform(), cohort.importance(N, 3, np.ones(N))), "importance"),
    ],
)
def test_what_cannot_be_is_refused(make, says):
    with pytest.raises(InputError, match=says):
        make()


def test_clocks_count_by_the_rule_too():
    members = clock.buffered(N, 4, 2, durations.lognormal(), weight=WEIGHT)
    assert (drawn(world(weights.uniform(), members), 4).weight == 1).all()
