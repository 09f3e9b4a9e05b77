"""Cohorts of those who are there: groups in turn, and who is up."""

import numpy as np
import pytest
from common import rounds, same
from scipy import stats

from jaxfl.world import cohort as C
from jaxfl.world.churn import trace


@pytest.mark.parametrize("reshuffle", [False, True])
def test_groups_take_turns(reshuffle):
    """Three groups of 3, 4 and 5: each once a cycle, fixed or in another order; members uniform within."""
    group = np.array([0, 1, 2, 2, 1, 0, 2, 1, 2, 0, 1, 2])
    ids = np.asarray(rounds(C.in_turn(12, 2, group, reshuffle=reshuffle), 3000).ids)
    assert (np.diff(ids, axis=1) > 0).all()
    turn = group[ids]
    assert (turn[:, 0] == turn[:, 1]).all()
    orders = turn[:, 0].reshape(-1, 3)
    np.testing.assert_array_equal(np.sort(orders, 1), np.tile(np.arange(3), (1000, 1)))
    if reshuffle:
        seen = np.unique(orders, axis=0, return_counts=True)[1]
        assert stats.chisquare(seen).pvalue > 1e-3
        assert seen.size == 6
    else:
        assert (orders == np.arange(3)).all()
    for g in range(3):
        mine = np.bincount(ids[turn[:, 0] == g].reshape(-1), minlength=12)[group == g]
        # without replacement counts vary less than a multinomial's
        assert stats.chisquare(mine).pvalue > 1e-4


def test_blocks_in_turn_are_cyclic():
    """Whole blocks of successive nodes in the order of their numbers are `cyclic`."""
    assert same(rounds(C.in_turn(12, 4, 3, weight=np.arange(1, 13)), 7), rounds(C.cyclic(12, 4, np.arange(1, 13)), 7))


def test_among_those_who_are_up():
    table = np.random.default_rng(0).random((5, 8)) < 0.5
    got = rounds(C.among(8, 3, trace(table)), 5)
    for t in range(5):
        here = table[t][got.ids[t]]
        np.testing.assert_array_equal(got.weight[t] > 0, here)
        assert here.sum() == min(3, table[t].sum())
