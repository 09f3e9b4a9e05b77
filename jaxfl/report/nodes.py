"""Pictures of what was measured by node: who is served well and who badly, who gains and who loses.

Values are those of `Result.nodes`, `[seeds, evaluations, n]`, of which the last evaluation is drawn, or `[seeds, n]`,
or `[n]`. NaN stands for a node without a value, which is left out.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxfl.errors import InputError
from jaxfl.report.style import (
    COLOURS,
    axes_or_new,
    banded,
    dress,
    legend_above,
    legend_of,
    new_figure,
    numbers_of,
    save,
    styled,
)

NAMES = {"local_accuracy": "accuracy on own samples", "local_loss": "loss on own samples"}
SMALL, LARGE = 8.0, 90.0  # square points, area of the marker of the smallest and the largest node
PANELS = 3  # scatters beside the curves, at most


def _last(what: str, values: Any) -> np.ndarray:
    """`[seeds, n]` of the last evaluation."""
    if hasattr(values, "columns"):
        raise InputError(f"{what} is a table, but values by node are needed: give `Result.nodes[name]`.")
    values = numbers_of(what, values)
    if values.ndim not in (1, 2, 3) or not values.size or np.isnan(values).all():
        raise InputError(
            f"{what} has shape {list(values.shape)}, but [n], [seeds, n] or [seeds, evaluations, n] with a value is "
            "needed: give `Result.nodes[name]`."
        )
    return np.atleast_2d(values[:, -1] if values.ndim == 3 else values)


@styled
def per_node(
    values: Mapping[str, Any], ax: Any = None, *, lower: bool = False, label: str = NAMES["local_accuracy"]
) -> Any:
    """How well each node is served: one curve a system over its nodes, ordered from the worst value to the best.

    Seeds are ordered one by one; the line is their mean, the band from the lowest to the highest. What is not finite
    breaks the line.

    Args:
        values: by name, as this file says.
        ax: axes to draw on (None: a new figure).
        lower: less is better (a loss).
        label: what the values are.

    Raises:
        InputError: no values, or of another shape.
    """
    if not isinstance(values, Mapping) or not values:
        raise InputError("values must be a dict of one or more arrays by name, such as {name: result.nodes[...]}.")
    own, ax = ax is None, axes_or_new(ax)
    for i, (name, given) in enumerate(values.items()):
        rows = [np.sort(row[~np.isnan(row)])[:: -1 if lower else 1] for row in _last(f"values[{name!r}]", given)]
        count = max(map(len, rows))
        each = np.array([row[_places(len(row), count)] for row in rows if len(row)])
        each = np.where(np.isfinite(each), each, np.nan)
        at = 100 * (np.arange(count) + 0.5) / count
        banded(ax, i, name, (at, each.mean(0), each.min(0), each.max(0)))
    dress(ax, "nodes, worst served first (%)", label)
    ax.set_xlim(0, 100)
    legend_of(ax, own, ax.get_lines())
    return ax.figure


def _places(have: int, want: int) -> np.ndarray:
    """Where `want` points lie among `have` sorted ones."""
    return np.minimum((np.arange(want) + 0.5) * have / want, have - 1).astype(int)


@styled
def gains(
    before: Any,
    after: Any,
    names: tuple[str, str] = ("before", "after"),
    ax: Any = None,
    *,
    sizes: Any = None,
    lower: bool = False,
    label: str = NAMES["local_accuracy"],
) -> Any:
    """Who gains and who loses: a point a node, its value under one system (or at one round) against that under another.

    Points above the diagonal gain, those below lose; the title says what share of the nodes does. Over seeds a node's
    value is its mean.

    Args:
        before: on the x axis, as this file says.
        after: on the y axis, of the same nodes.
        names: of the two.
        ax: axes to draw on (None: a new figure).
        sizes: samples of each node `[n]`, drawn as the area of its point (None: all alike).
        lower: less is better (a loss).
        label: what the values are.

    Raises:
        InputError: values or sizes of other shapes, or no node has a value in both.
    """
    from matplotlib.lines import Line2D

    with np.errstate(invalid="ignore"):
        x, y = (_last(what, v).mean(0) for what, v in (("before", before), ("after", after)))
    if x.shape != y.shape or (sizes is not None and np.shape(sizes) != x.shape):
        shapes = [list(x.shape), list(y.shape)] + ([] if sizes is None else [list(np.shape(sizes))])
        raise InputError(f"before, after and sizes are of {shapes} nodes, but must be of the same nodes.")
    there = np.isfinite(x) & np.isfinite(y)
    if not there.any():
        raise InputError("no node has a finite value both before and after.")
    x, y = x[there], y[there]
    weight = np.full(len(x), 0.25) if sizes is None else np.asarray(sizes, float)[there] / max(np.max(sizes), 1)
    area = SMALL + (LARGE - SMALL) * weight
    up = np.sign(x - y) if lower else np.sign(y - x)
    own, ax = ax is None, axes_or_new(ax, (4.0, 4.0))
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    rim = 0.05 * (high - low) or 0.05
    ends = (low - rim, high + rim)
    ax.plot(ends, ends, color="#555555", linewidth=1.0, zorder=1)
    handles = []
    for sign, word, colour in ((1, "gains", COLOURS[0]), (-1, "loses", COLOURS[1]), (0, "the same", "#999999")):
        which = up == sign
        if which.any():
            ax.scatter(x[which], y[which], area[which], color=colour, alpha=0.65, linewidths=0, zorder=2)
            handles.append(Line2D([], [], linestyle="", marker="o", color=colour, alpha=0.65, label=word))
    if sizes is not None:
        most = int(np.max(sizes))
        marker = {"linestyle": "", "marker": "o", "color": "#999999", "markersize": LARGE**0.5}
        handles.append(Line2D([], [], **marker, markerfacecolor="none", label=f"{most:,} samples"))
    dress(ax, f"{label}, {names[0]}", f"{label}, {names[1]}")
    ax.set(xlim=ends, ylim=ends, aspect="equal")
    ax.set_title(f"of {len(x):,} nodes {_percent(up > 0)} gain, {_percent(up < 0)} lose", fontsize=9)
    if own:
        legend_of(ax, own, handles)
    else:
        ax.legend(handles=handles, loc="best", handletextpad=0.2)
    return ax.figure


def _percent(which: np.ndarray) -> str:
    return f"{100 * which.mean():.0f} %"


@styled
def own_samples(nodes: Mapping[str, Mapping[str, Any]], sizes: Any = None, path: str | Path | None = None) -> Any:
    """What systems are to every node on its own samples: their curves (`per_node`), and who gains and loses (`gains`).

    Of several systems the first is set against each of the others, up to three; of one system its first evaluation
    after the start against its last.

    Args:
        nodes: `Result.nodes` of each system, by name, run with `metrics.local_test`.
        sizes: samples of each node `[n]`.
        path: PNG to write (None: none).

    Raises:
        InputError: no system has a local accuracy or loss, or the disk is full.
    """
    column = next((c for c in NAMES if any(c in kept for kept in nodes.values())), None)
    if column is None:
        raise InputError("nodes hold neither local_accuracy nor local_loss: run with metrics.local_test(...).")
    own = {name: kept for name, kept in nodes.items() if column in kept}
    curves = {
        f"{name}{c.removeprefix(column).replace('_', ', ')}": kept[c]
        for name, kept in own.items()
        for c in kept
        if c.startswith(column)
    }
    first, *others = own
    if others:
        pairs = [((first, own[first][column]), (name, own[name][column])) for name in others[:PANELS]]
    else:
        kept = own[first]
        rounds = kept["evaluated"][0]
        at = [i for i in (min(1, len(rounds) - 1), len(rounds) - 1) if len(rounds) > 2]
        pairs = [[(f"round {rounds[i]}", kept[column][:, i]) for i in at]] if at else []
    fig = new_figure((3.6 * (1 + len(pairs)), 3.4))
    axes = np.atleast_1d(fig.subplots(1, 1 + len(pairs)))
    lower = column == "local_loss"
    per_node(curves, axes[0], lower=lower, label=NAMES[column])
    handles = list(axes[0].get_lines())
    axes[0].get_legend().remove()
    for ax, ((a, x), (b, y)) in zip(axes[1:], pairs, strict=True):
        gains(x, y, (a, b), ax, sizes=sizes, lower=lower, label=NAMES[column])
    legend_above(fig, handles)
    if path is not None:
        save(fig, path)
    return fig
