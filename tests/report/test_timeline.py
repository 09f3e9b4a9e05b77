"""What a world decides, rolled without training, and its pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import one_sample_each

from jaxfl.core import Algorithm, State
from jaxfl.engine.rollout import rollout
from jaxfl.engine.schedule import Schedule, schedule
from jaxfl.errors import InputError
from jaxfl.report.style import png
from jaxfl.report.timeline import MEMBER, WASTED, availability, timeline
from jaxfl.world import churn, cohort
from jaxfl.world.clock import buffered
from jaxfl.world.deadline import deadline
from jaxfl.world.durations import lognormal
from jaxfl.world.scenario import scenario
from jaxfl.world.waves import waves

N, ROUNDS = 12, 15


def world(**parts):
    return scenario(one_sample_each(np.zeros((N, 1, 1)), np.zeros((N, 1))), **parts)


@pytest.fixture(scope="module")
def late():
    members = deadline(cohort.uniform(N, 5), lognormal(), 1.0)
    return world(cohort=members, churn=churn.sessions(N, 4, 2))


def test_the_schedule_is_that_of_a_run(late):
    seen = ("ids", "weight", "selected")
    watch = Algorithm(
        lambda key, env, x: State({"x": x}),
        lambda key, env, s: (s, {name: getattr(env.cohort, name) for name in seen} | {"up": env.alive}),
        lambda s: s.shared["x"],
    )
    _, logs = rollout(watch, late, jnp.zeros(1), ROUNDS, seed=3)
    got = schedule(late, ROUNDS, seed=3)
    for name in seen:
        np.testing.assert_array_equal(getattr(got.cohort, name), logs[name])
    np.testing.assert_array_equal(got.alive, logs["up"])
    np.testing.assert_allclose(got.seconds, logs["seconds"])
    assert got.nodes == N
    assert schedule(world(), 3).alive is None


def bars(ax):
    return [(round(p.get_y() + 0.35), p.get_x(), p.get_width(), p.get_facecolor()) for p in ax.patches]


def test_a_bar_runs_from_the_version_it_read_to_the_round_that_took_it():
    got = schedule(world(cohort=buffered(N, 5, 2, lognormal())), ROUNDS)
    fig = timeline(got)
    ends = np.concatenate([[0.0], np.cumsum(got.seconds, dtype=float)])
    rows = list(np.unique(got.cohort.ids))
    want = [
        (rows.index(i), ends[t - a], ends[t + 1] - ends[t - a])
        for t in range(ROUNDS)
        for i, a in zip(got.cohort.ids[t].tolist(), got.cohort.age[t].tolist(), strict=True)
    ]
    np.testing.assert_allclose([bar[:3] for bar in bars(fig.axes[0])], want, rtol=1e-9)
    assert fig.axes[1].get_ylabel() == "versions behind"
    assert png(fig) == png(timeline(got))
    few = timeline(got, nodes=[rows[2], rows[0]])
    assert [label.get_text() for label in few.axes[0].get_yticklabels()] == [str(rows[2]), str(rows[0])]


def test_bars_of_waves_begin_where_the_single_rounds_began():
    clock = buffered(N, 5, 1, lognormal())
    got, one = (schedule(world(cohort=waves(clock, most)), rounds) for most, rounds in ((4, 8), (1, 32)))
    wave = np.repeat(np.arange(8), got.cohort.updates.sum(1))  # of every version that is made
    ends = np.cumsum(got.seconds, dtype=float)
    rows = list(np.unique(got.cohort.ids[got.cohort.weight > 0]))
    want = []
    for version, w in enumerate(wave):
        read = version - int(one.cohort.age[version, 0])
        begin = ends[wave[read - 1]] if read else 0.0
        want.append((rows.index(one.cohort.ids[version, 0]), begin, ends[w] - begin))
    np.testing.assert_allclose([bar[:3] for bar in bars(timeline(got).axes[0])], want, atol=1e-6)


def test_work_in_vain_is_grey_and_who_is_down_is_white(late):
    from matplotlib.colors import to_rgba

    got = schedule(late, ROUNDS)
    fig = timeline(got)
    counts = np.asarray(got.cohort.weight) > 0
    grey = [bar for bar in bars(fig.axes[0]) if bar[3] == to_rgba(WASTED)]
    assert len(grey) == (got.cohort.selected & ~counts).sum() > 0
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["counts", "in vain"]
    fig = availability(got)
    cells = fig.axes[0].images[0].get_array()
    assert cells.shape == (N, ROUNDS)
    np.testing.assert_array_equal(cells > 0, got.alive.T)
    assert (cells == 2).sum() == counts.sum()
    assert fig.legends[0].get_patches()[0].get_facecolor() == to_rgba(MEMBER)


def test_everyone_is_up_where_nothing_says_otherwise_and_an_axis_is_drawn_on():
    from matplotlib.figure import Figure

    got = schedule(world(cohort=cohort.uniform(N, 3)), 2)
    ax = Figure().subplots()
    assert availability(got, ax) is ax.figure
    assert set(np.unique(ax.images[0].get_array())) == {1, 2}
    ax = Figure().subplots()
    assert timeline(got, ax) is ax.figure


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda s: schedule(s, 0), "rounds is 0"),
        (lambda s: schedule("world", 3), "scenario is a str"),
        (lambda s: timeline(s), "schedule is a Scenario"),
        (lambda s: availability([1]), "schedule is a list"),
        (lambda s: timeline(schedule(s, 2), nodes=[N]), f"nodes is {N}"),
        (lambda s: timeline(schedule(s, 2), most=0), "most is 0"),
        (lambda s: timeline(silent(schedule(s, 2))), "nobody to draw"),
    ],
)
def test_bad_pictures_are_refused(late, make, said):
    with pytest.raises(InputError, match=said):
        make(late)


def silent(s: Schedule) -> Schedule:
    nobody = s.cohort._replace(weight=0 * s.cohort.weight, selected=None)
    return jax.device_get(s._replace(cohort=nobody))
