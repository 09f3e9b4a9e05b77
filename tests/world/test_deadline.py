"""Rounds that end by the clock, against a loop over members in Python."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import one_sample_each, rounds

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.core import node_keys, stream
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.learn import task
from jaxfl.world import cohort
from jaxfl.world.deadline import deadline
from jaxfl.world.durations import Seconds, fixed, lognormal
from jaxfl.world.scenario import scenario
from jaxfl.world.work import straggling

N, C, ROUNDS = 20, 7, 60
WEIGHT = np.arange(1.0, N + 1)
DYADIC = Seconds(lambda key, arrays, i: jax.random.randint(key, (), 0, 9) / 4, ())  # ties, and jobs of no time


def taken(law, ids, t):
    """Seconds of the jobs of round `t`."""
    key = stream(jax.random.fold_in(jax.random.key(0), t), "job seconds")
    return np.asarray(jax.vmap(lambda k, i: law.draw(k, law.arrays, i))(node_keys(key, ids), ids), np.float64)


def by_hand(asked, law, limit, keep, least, partial):
    """`(counts, steps, seconds)` of each round, member by member."""
    for t in range(ROUNDS):
        spent, present = taken(law, asked.ids[t], t), np.asarray(asked.weight[t]) > 0
        arrivals = sorted((s, j) for j, s in enumerate(spent) if present[j])[: keep or C]
        end = min([limit, *[s for s, _ in arrivals[-1:]]]) if arrivals else 0.0
        counts, steps = np.zeros(C, bool), np.zeros(C, int)
        for j in range(C):
            if partial:
                steps[j] = partial if spent[j] <= end else min(math.floor(partial * end / spent[j]), partial - 1)
                counts[j] = present[j] and steps[j] > 0
            else:
                counts[j] = (spent[j], j) in arrivals and spent[j] <= end
        if counts.sum() < least:
            counts[:], end = False, limit if math.isfinite(limit) and present.any() else end
        yield counts, steps, end


@pytest.mark.parametrize(
    ("law", "limit", "keep", "least", "partial"),
    [
        (lognormal(), math.inf, None, 1, None),  # all
        (lognormal(), math.inf, 3, 1, None),  # first m of c
        (DYADIC, 1.25, None, 1, None),
        (DYADIC, 1.25, 4, 3, None),  # a quorum, or void
        (lognormal(), 1.3, None, 1, 8),
        (DYADIC, 0.75, 5, 4, 3),
    ],
)
def test_who_counts_for_how_much_and_how_long_it_takes(law, limit, keep, least, partial):
    members = cohort.markov(N, C, 0.8, 0.8, WEIGHT)
    asked = rounds(members, ROUNDS)
    c, over = rounds(deadline(members, law, limit, keep=keep, least=least, partial=partial), ROUNDS)
    for t, (counts, steps, end) in enumerate(by_hand(asked, law, limit, keep, least, partial)):
        np.testing.assert_array_equal(np.asarray(c.weight[t]), np.where(counts, asked.weight[t], 0))
        assert over[t] == pytest.approx(end, rel=1e-6)
        if partial:
            np.testing.assert_array_equal(c.steps[t], steps)
    np.testing.assert_array_equal(c.ids, asked.ids)
    np.testing.assert_array_equal(c.selected, np.asarray(asked.weight) > 0)


def test_over_selection_of_the_present_and_its_ties():
    """Poisson cohorts have empty places: nobody waits for them. Equal times: the first places count."""
    members = cohort.poisson(10, 0.3)
    c, took = rounds(deadline(members, fixed(2.0), keep=3), 300)
    present = np.asarray(rounds(members, 300).weight) > 0
    np.testing.assert_array_equal(c.selected, present)
    np.testing.assert_array_equal(np.asarray(c.weight) > 0, present & (np.cumsum(present, 1) <= 3))
    np.testing.assert_array_equal(took, np.where(present.any(1), 2.0, 0.0))
    assert not present.any(1).all()


def test_a_late_member_runs_a_part_of_its_steps_and_equal_speeds_are_plain_fedavg():
    data = one_sample_each(np.tile(np.eye(2, dtype=np.float32), (4, 1, 1)), np.arange(8).reshape(4, 2))
    system = fedavg(task.quadratic(2), lr=0.1, steps=6, batch=1)
    plain = scenario(data, cohort=cohort.everyone(4))
    timed = scenario(data, cohort=deadline(cohort.everyone(4), fixed(2.0), 5.0, partial=6))
    one, two = (run(system, world, jnp.zeros(2), 3) for world in (plain, timed))
    np.testing.assert_array_equal(one.state.shared["x"], two.state.shared["x"])
    assert list(two.history["time"])[-1] == 6.0

    slow = scenario(data, cohort=deadline(cohort.everyone(4), fixed([1.0, 1.0, 3.0, 99.0]), 1.0, partial=6))
    got = run(system, slow, jnp.zeros(2), 1)
    move = lambda b, k: (1 - 0.9**k) * np.asarray(b)  # k gradient steps on 1/2 |x - b|^2
    exact = np.mean([move([0, 1], 6), move([2, 3], 6), move([4, 5], 2)], 0)
    np.testing.assert_allclose(got.state.shared["x"], exact, rtol=1e-5)


def test_members_with_steps_of_their_own_run_no_more_than_those():
    members = straggling(cohort.uniform(N, C), 0.5, 4, 2)
    c, _ = rounds(deadline(members, fixed(4.0), 3.0, partial=8), 40)
    own = np.asarray(rounds(members, 40).steps)
    np.testing.assert_array_equal(c.steps, np.minimum(np.floor(0.75 * own), own - 1))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda m: deadline(m, fixed(), 0), "limit is 0"),
        (lambda m: deadline(m, fixed(), keep=8), "keep is 8, but must be at least 1 and at most 7"),
        (lambda m: deadline(m, fixed(), 1.0, keep=2, least=3), "least is 3"),
        (lambda m: deadline(m, fixed(), least=2), "least is 2, but limit is infinite"),
        (lambda m: deadline(m, fixed(), partial=0), "partial is 0"),
        (lambda m: deadline(m, fixed(), partial=np.ones(3, int)), r"partial has shape \[3\]"),
        (lambda m: deadline(m, fixed(np.ones(9))), r"one a node \[20\]"),
        (lambda m: deadline(deadline(m, fixed(), keep=3), fixed()), "a clock already"),
    ],
)
def test_bad_deadlines_are_refused(make, said):
    with pytest.raises(InputError, match=said):
        make(cohort.uniform(N, C))
