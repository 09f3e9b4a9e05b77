"""Availability as an option says it, against the laws themselves."""

import pytest
from common import same

from jaxfl.errors import InputError
from jaxfl.options.availability import availability
from jaxfl.world import churn
from jaxfl.world.availability import diurnal, markov


def test_names_are_the_laws():
    a = availability("markov:up=0.3, memory=0.5,corr=0.5,groups=2", 8)
    assert same(a.arrays, markov(8, 0.3, 0.5, 0.5, 2).arrays)
    assert same(availability("sessions:up=4", 8).arrays, churn.sessions(8, 4, 5).arrays)
    assert same(availability("diurnal", 8).arrays, diurnal(8).arrays)
    assert same(availability("markov", 8).arrays, markov(8).arrays)
    assert same(availability("markov:up=0.5,memory=-0.5", 8).arrays, markov(8, 0.5, -0.5).arrays)  # in turns
    assert same(availability("diurnal:swing=-0.2", 8).arrays, diurnal(8, swing=-0.2).arrays)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gone.csv", "there is no such file"),
        ("diurnal:period=99999999999", "period must be a whole number of at least 1 and below"),
        ("markow", "the law 'markow' is unknown: did you mean markov"),
        ("markov:upp=1", "markov has up, memory, corr, groups, each once"),
        ("markov:up=0.5,up=0.5", "each once"),
        ("markov:", "each once"),
        ("markov:up=lots", "up must be a finite number"),
        ("markov:groups=1.5", "groups must be a whole number"),
        ("markov:up=2", "availability is 'markov:up=2': up = 2.0"),
        ("sessions:down=0", "down = 0.0"),
    ],
)
def test_a_bad_name_gets_a_sentence(text, says):
    with pytest.raises(InputError, match=says):
        availability(text, 3)
