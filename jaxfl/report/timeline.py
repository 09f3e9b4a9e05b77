"""Pictures of a world in time: who trained when and how stale, who was up. They draw `engine.schedule`; nothing trains.

world = scenario(data, cohort=buffered(n, 20, 5, lognormal()))
timeline(schedule(world, 30))
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxfl.core import Cohort
from jaxfl.engine.schedule import Schedule
from jaxfl.errors import InputError, require
from jaxfl.report.style import axes_or_new, dress, legend_of, styled

WASTED = "#bbbbbb"
UP, DOWN, MEMBER = "#cfe3f2", "#ffffff", "#0072B2"
LINES = 60  # rounds, at most, whose ends are marked


def _require_schedule(what: Any) -> None:
    if not isinstance(what, Schedule):
        raise InputError(f"schedule is a {type(what).__name__}, but must be what `schedule(scenario, rounds)` gives.")


@styled
def timeline(schedule: Schedule, ax: Any = None, *, nodes: Sequence[int] | None = None, most: int = 40) -> Any:
    """Who trained when, one line a node over simulated seconds; the darker a bar, the staler the model it began with.

    A bar begins when the version was made that the member read, and ends with the round that took its answer; jobs
    that never arrive are not drawn. Grey is work in vain: members who were asked, and were late or dropped. Thin lines
    are ends of rounds, of up to 60.

    Args:
        schedule: of `schedule`.
        ax: axes to draw on (None: a new figure).
        nodes: whose lines, from the top on; None: the first `most` who appear at all, by number.
        most: how many, where `nodes` does not say it.

    Raises:
        InputError: no schedule, a node that the world does not have, or nobody to draw.
    """
    _require_schedule(schedule)
    require("most", most, least=1, whole=True)
    c = schedule.cohort
    counts = np.asarray(c.weight) > 0
    asked = counts if c.selected is None else np.asarray(c.selected) | counts
    if nodes is None:
        shown = np.unique(np.asarray(c.ids)[asked])[:most]
    else:
        require("nodes", np.asarray(nodes), least=0, below=schedule.nodes, whole=True)
        shown = np.asarray(nodes)
    if not shown.size:
        raise InputError("schedule has nobody to draw: no member in any round.")
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Patch

    own, ax = ax is None, axes_or_new(ax, (7.0, 0.8 + 0.16 * min(len(shown), 60)))
    ends = np.cumsum(np.asarray(schedule.seconds, np.float64))
    starts = np.concatenate([[0.0], ends])
    line = np.full(schedule.nodes, -1)
    line[shown] = np.arange(len(shown))
    t, slot = np.nonzero(asked & (line[np.asarray(c.ids)] >= 0))
    age = np.zeros(t.size, int) if c.age is None else np.asarray(c.age)[t, slot]
    made, turn = _versions(c)
    begin, end, y = starts[np.searchsorted(made, made[t] + turn[slot] - age)], ends[t], line[np.asarray(c.ids)[t, slot]]
    fine = counts[t, slot]
    shade = Normalize(0, max(1, int(age[fine].max(initial=0))))
    colours = _shades()
    ax.barh(y[~fine], (end - begin)[~fine], left=begin[~fine], height=0.7, color=WASTED, edgecolor="white", lw=0.3)
    ax.barh(
        y[fine], (end - begin)[fine], left=begin[fine], height=0.7, color=colours(shade(age[fine])), ec="white", lw=0.3
    )
    if len(ends) <= LINES:
        ax.vlines(ends, -0.5, len(shown) - 0.5, color="#888888", linewidth=0.4, zorder=0)
    dress(ax, "simulated time (s)", "node")
    ax.grid(visible=False)
    ax.set_ylim(len(shown) - 0.5, -0.5)
    every = -(-len(shown) // 40)
    ax.set_yticks(range(0, len(shown), every), [str(i) for i in shown[::every]], fontsize=7)
    if age[fine].any():
        bar = ax.figure.colorbar(ScalarMappable(shade, colours), ax=ax, fraction=0.04, pad=0.02)
        bar.set_label("versions behind")
        bar.ax.tick_params(labelsize=8)
        bar.locator = _whole_ticks()
        bar.update_ticks()
    if (~fine).any():
        legend_of(ax, own, [Patch(color=colours(0.0), label="counts"), Patch(color=WASTED, label="in vain")])
    return ax.figure


def _versions(c: Cohort) -> tuple[np.ndarray, np.ndarray]:
    """Versions of the server made before every round `[T]`, and before a member's turn in its round `[c]` (waves)."""
    rounds, size = np.shape(c.ids)
    if c.updates is None:
        return np.arange(rounds), np.zeros(size, int)
    each = np.asarray(c.updates).sum(1)
    most = np.shape(c.updates)[1]
    return np.cumsum(each) - each, np.arange(size) // (size // most)


@styled
def availability(schedule: Schedule, ax: Any = None) -> Any:
    """Who was up in which round, one line a node: white is down, light is up, dark is up and in the cohort.

    Above the line of the last node stands node 0. Where more nodes or rounds are there than points, points are merged.

    Args:
        schedule: of `schedule`.
        ax: axes to draw on (None: a new figure).

    Raises:
        InputError: no schedule.
    """
    _require_schedule(schedule)
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    c, n = schedule.cohort, schedule.nodes
    rounds = len(schedule.seconds)
    state = np.ones((rounds, n), int) if schedule.alive is None else np.asarray(schedule.alive).astype(int)
    t, slot = np.nonzero(np.asarray(c.weight) > 0)
    state[t, np.asarray(c.ids)[t, slot]] = 2
    own, ax = ax is None, axes_or_new(ax, (7.0, float(np.clip(0.8 + 0.08 * n, 1.8, 5.0))))
    shades = ListedColormap([DOWN, UP, MEMBER])
    box = (-0.5, rounds - 0.5, n - 0.5, -0.5)
    ax.imshow(state.T, cmap=shades, vmin=0, vmax=2, aspect="auto", interpolation="nearest", extent=box)
    dress(ax, "round", "node")
    ax.grid(visible=False)
    ax.margins(0)
    ax.locator_params(integer=True)
    words = ((MEMBER, "takes part"), (UP, "up"), (DOWN, "down"))
    legend_of(ax, own, [Patch(facecolor=colour, edgecolor="#888888", lw=0.5, label=word) for colour, word in words])
    return ax.figure


def _shades() -> Any:
    """From light to dark; nothing so light that white paper swallows it."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["YlGnBu"](np.linspace(0.3, 1, 256)))


def _whole_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True, nbins=5)
