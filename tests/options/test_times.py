"""The options that say how long jobs take, when rounds end and who is up: how they are spelt and what they make."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import rounds

from jaxfl.core import Shards
from jaxfl.errors import InputError
from jaxfl.options import config, kept, times
from jaxfl.options.build import build, prepare
from jaxfl.options.config import Setup
from jaxfl.options.jobs import law_of
from jaxfl.world import durations, traces
from jaxfl.world.durations import fixed, jittered, scaled, settled

TINY = Setup(nodes=8, data="digits", model="logistic", rounds=4, seeds=1)
SIZES = np.arange(1, 9)
DATA = Shards(jnp.zeros(1), jnp.zeros(1), jnp.zeros(1), jnp.zeros(8), jnp.asarray(SIZES), 8)


def drawn(text, **options):
    """Seconds `[8]` of a job of every node."""
    law = law_of(dataclasses.replace(TINY, durations=text, **options), None, DATA, lambda: 5)
    return each(law.seconds)


def each(law):
    keys = jax.random.split(jax.random.key(1), 8)
    return np.asarray(jax.vmap(lambda k, i: law.draw(k, law.arrays, i))(keys, jnp.arange(8)))


@pytest.mark.parametrize(
    ("text", "law"),
    [
        (None, durations.lognormal()),
        ("fixed:seconds=3", fixed(3)),
        ("uniform:low=1,high=2", durations.uniform(1, 2)),
        ("lognormal:sigma=0.5", durations.lognormal(1, 0.5)),
        ("exponential:mean=2", durations.exponential(2)),
        ("shifted_exponential:shift=2", durations.shifted_exponential(2)),
        ("gamma:shape=3", durations.gamma(1, 3)),
        ("pareto:shape=3", durations.pareto(1, 3)),
        ("half_normal", durations.half_normal()),
        (
            "tiers:shares=0.5/0.25/0.25,factors=1/2/9",
            scaled(fixed(1), durations.tiers(8, [0.5, 0.25, 0.25], [1, 2, 9])),
        ),
        ("fixed:per=step", fixed(5)),
        ("fixed:samples=1", fixed(SIZES / SIZES.mean())),
        ("fixed:timeout=0.5", fixed(0.5)),
        ("lognormal:jitter=0.2", jittered(settled(durations.lognormal(), 8), 0.2)),
    ],
)
def test_a_law_is_what_its_name_says(text, law):
    np.testing.assert_allclose(drawn(text), each(law), rtol=1e-6)


def test_every_law_has_its_numbers_with_their_defaults():
    for name, keys in times.LAWS.items():
        if name not in ("tiers", "trace"):
            make = getattr(durations, name)
            assert keys == dict(zip(make.__code__.co_varnames, make.__defaults__, strict=False)), name
            assert times.durations(name, None) == (name, keys)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"durations": "lognormale"}, "the law 'lognormale' is unknown: did you mean lognormal"),
        ({"durations": "fixed:mean=1"}, "but fixed has seconds, per,"),
        ({"durations": "fixed:seconds=1,seconds=2"}, "each once"),
        ({"durations": "fixed:seconds=-1"}, "but seconds must be a finite number of at least 0 and at most 1e38."),
        ({"durations": "fixed:seconds=1e39"}, "but seconds must be a finite number of at least 0 and at most 1e38"),
        ({"durations": "fixed:per=jobs"}, "but per is 'jobs': did you mean job"),
        ({"durations": "tiers:shares=0.5/x"}, "but shares must be a finite number"),
        ({"durations": "fixed:slower=3"}, "but slower is of bursts, which need begin"),
        ({"durations": "trace"}, "durations is 'trace', but trace is missing: --trace names a file."),
        ({"durations": "fixed", "trace": "a.csv"}, "but trace a.csv says how long jobs take."),
        ({"deadline": "soon"}, "deadline is 'soon', but must begin with seconds above 0"),
        ({"deadline": "0"}, "deadline is '0', but must begin with seconds above 0"),
        ({"deadline": "1e-50"}, "deadline is '1e-50', but must begin with seconds above 0"),
        ({"deadline": "nan"}, "deadline is 'nan', but must begin"),
        ({"deadline": "2:late=never"}, "but late is 'never'"),
        ({"deadline": "2:keep=0"}, "but keep must be a whole number of at least 1"),
        ({"deadline": "2:more=1"}, "but it has late, keep, least, each once."),
        ({"deadline": "inf:least=2"}, "a round with too few answers"),
    ],
)
def test_what_is_spelt_wrongly_is_refused_at_once(options, says):
    with pytest.raises(InputError, match=re.escape(says)):
        config.check(dataclasses.replace(TINY, **options))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"durations": "uniform:low=3,high=2"}, "durations is uniform:low=3,high=2: high = 2"),
        ({"durations": "tiers:shares=0.3/0.3"}, "whose sum is 1"),
        (
            {"deadline": "2:keep=5", "cohort": 3},
            "deadline is 2:keep=5: keep is 5, but must be at least 1 and at most 3",
        ),
        ({"trace": "nowhere.csv"}, "nowhere.csv: there is no such file"),
        ({"availability": "sometimes"}, "availability is 'sometimes'"),
        ({"links": "nowhere.csv"}, "nowhere.csv: there is no such file"),
        ({"availability": "nowhere.csv"}, "nowhere.csv: there is no such file"),
    ],
)
def test_what_no_world_can_have_is_refused_before_any_system_is_asked(options, says):
    with pytest.raises(InputError, match=re.escape(says)):
        prepare(dataclasses.replace(TINY, **options), ["fedavg"])


def test_deadlines_are_what_they_say():
    assert times.deadline("2.5") == (2.5, None, 1, "drop")
    assert times.deadline("2:late=partial,keep=9,least=3") == (2, 9, 3, "partial")
    assert times.deadline("inf:keep=9") == (float("inf"), 9, 1, "drop")


def test_a_trace_drives_rounds_and_is_kept_by_what_it_was(tmp_path):
    path = tmp_path / "jobs.csv"
    path.write_text("node,seconds\n" + "".join(f"{i},{i + 1}\n{i},{20 - i}\n" for i in range(8)))
    setup = dataclasses.replace(TINY, trace=str(path), durations="trace:play=order", cohort=8)
    world = prepare(setup, ["fedavg", "dsgd"])
    for name in ("fedavg", "dsgd"):
        arm = build(world, name, {})
        np.testing.assert_array_equal(rounds(arm.scenario, 4).seconds, [8, 20, 8, 20])
    random = law_of(dataclasses.replace(setup, durations=None), traces.load_trace(path), None, int)
    assert set(each(random.seconds)) <= {*range(1, 9), *range(13, 21)}
    (tmp_path / "c.toml").write_text(kept.saved("run", ["fedavg"], setup, setup))
    assert kept.load(tmp_path / "c.toml") == (["fedavg"], setup)
    path.write_text("node,seconds\n0,1\n")
    with pytest.raises(InputError, match="is not the file"):
        kept.load(tmp_path / "c.toml")


def test_bursts_and_a_deadline_reach_the_rounds_and_a_clock():
    setup = dataclasses.replace(TINY, durations="fixed:seconds=2,begin=0.4,end=0.4,slower=4", cohort=4, steps=6)
    world = prepare(dataclasses.replace(setup, deadline="5:late=partial"), ["fedavg", "fedbuff"])
    now = rounds(build(world, "fedavg", {}).scenario, 40)
    steps, slow = np.asarray(now.cohort.steps), np.asarray(now.seconds) == 5
    assert set(np.unique(steps)) == {3, 6}  # floor(6 * 5 / 8)
    np.testing.assert_array_equal((steps == 3).any(1), slow)
    assert set(np.unique(now.seconds)) == {2, 5}
    alone = prepare(dataclasses.replace(setup, concurrency=4, goal=4), ["fedbuff"])
    assert set(np.round(np.unique(rounds(build(alone, "fedbuff", {}).scenario, 40).seconds), 3)) <= {0, 2, 4, 6, 8}


def test_who_is_up_by_the_options():
    both = dataclasses.replace(TINY, availability="diurnal:up=0.5,swing=0.5,period=8", crash=0.5, rounds=8)
    alive = np.asarray(rounds(build(prepare(both, ["fedavg"]), "fedavg", {}).scenario, 8).alive)
    plain = dataclasses.replace(both, crash=0.0)
    only = np.asarray(rounds(build(prepare(plain, ["fedavg"]), "fedavg", {}).scenario, 8).alive)
    assert only.any()
    assert not only.all()
    assert (alive[4:].any(0)).sum() <= 4
