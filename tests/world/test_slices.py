"""Time slices against a loop over nodes and moments in Python."""

import jax.numpy as jnp
import numpy as np
import pytest
from common import rounds
from scipy import stats

from jaxfl.errors import InputError
from jaxfl.world import cohort
from jaxfl.world.deadline import deadline
from jaxfl.world.durations import fixed
from jaxfl.world.slices import slices
from jaxfl.world.work import straggling

N, C, SLOTS, CAP, ROUNDS = 9, 3, 4, 6, 400
RATE = np.linspace(0.1, 1, N)


def contacts(c):
    """`(node, rounds since its last contact, steps, age)` of every contact, in order."""
    since = np.zeros(N, int)
    for ids, weight, steps, age in zip(*map(np.asarray, (c.ids, c.weight, c.steps, c.age)), strict=True):
        since += 1
        for i, w, k, a in zip(ids, weight, steps, age, strict=True):
            if w > 0:
                yield i, since[i], k, a
                since[i] = 0


def test_steps_are_binomial_since_the_last_contact_and_nobody_else_is_disturbed():
    c, took = rounds(slices(cohort.markov(N, C, 0.7, 0.7), RATE, SLOTS, cap=CAP, seconds=2.5), 8 * ROUNDS)
    np.testing.assert_array_equal(took, 2.5)
    assert (np.asarray(c.weight) == 0).any()  # some are asked for nothing, and go on
    seen = np.array(list(contacts(c)))
    np.testing.assert_array_equal(seen[:, 3], seen[:, 1] - 1)  # versions made since, this round's not among them
    assert seen[:, 2].max() == CAP
    for i in (0, 4):
        mine = seen[seen[:, 0] == i]
        for waited in (1, 2):
            of = mine[mine[:, 1] == waited, 2]
            law = stats.binom(waited * SLOTS, RATE[i])
            exact = np.append(law.pmf(np.arange(CAP)), law.sf(CAP - 1))
            count = np.bincount(of, minlength=CAP + 1)
            likely = exact * len(of) > 5
            assert (
                stats.chisquare(
                    np.append(count[likely], count[~likely].sum() + 1e-9),
                    np.append(exact[likely] * len(of), exact[~likely].sum() * len(of) + 1e-9),
                ).pvalue
                > 1e-3
            )


def test_who_never_rests_has_all_steps_and_who_is_stuck_none():
    rate = np.array([1.0, 0.0] + [0.5] * 7)
    c, _ = rounds(slices(cohort.uniform(N, C), rate, SLOTS), ROUNDS)
    for i, waited, k, _ in contacts(c):
        assert k == {0: waited * SLOTS, 1: 0}.get(i, k)


def test_contacts_are_those_of_the_members_whatever_the_speeds():
    members = cohort.uniform(N, C, np.arange(1.0, N + 1))
    c, _ = rounds(slices(members, 0.3, SLOTS), 30)
    plain = rounds(members, 30)
    np.testing.assert_array_equal(c.ids, plain.ids)
    np.testing.assert_array_equal(c.weight, plain.weight)
    one, two = slices(members, 0.3, SLOTS), slices(members, RATE / 2, SLOTS, cap=9)
    assert one.step is two.step


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda m: slices(m, 1.5, 4), "rate = 1.5"),
        (lambda m: slices(m, jnp.ones(3), 4), r"one a node \[9\]"),
        (lambda m: slices(m, 0.5, 0), "slots is 0"),
        (lambda m: slices(m, 0.5, 4, cap=0), "cap is 0"),
        (lambda m: slices(m, 0.5, 4, seconds=-1), "seconds is -1"),
        (lambda m: slices(deadline(m, fixed(), keep=2), 0.5, 4), "neither a clock"),
        (lambda m: slices(straggling(m, 0.5, 3), 0.5, 4), "sets steps"),
    ],
)
def test_bad_slices_are_refused(make, said):
    with pytest.raises(InputError, match=said):
        make(cohort.uniform(N, C))
