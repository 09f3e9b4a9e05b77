"""Results of a sweep: the history cut by point, the best point, and a picture of a score over the values tried."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxfl.errors import InputError
from jaxfl.report.plots import NAMES
from jaxfl.report.style import COLOURS, DASHES, axes_or_new, legend_of, styled


def points(history: Any, names: Sequence[str]) -> dict[str, Any]:
    """The history of each point of a sweep over `names`, in the order of their values, by a label `lr=0.1 mu=0`.

    Raises:
        InputError: the history has no such column.
    """
    for name in names:
        if name not in history:
            raise InputError(f"names has {name!r}, but the history has no such column: was it swept?")
    parts = history.groupby(list(names), sort=True)
    return {
        " ".join(f"{name}={v:g}" for name, v in zip(names, at, strict=True)): part.drop(columns=list(names))
        for at, part in parts
    }


def last(history: Any, names: Sequence[str], score: str) -> Any:
    """The score at the last evaluation, one row a point: index `names`, columns `mean`, `std`, `low`, `high`.

    They are NaN where a seed diverged.
    """
    there = history[score].notna()
    if not there.any():
        raise InputError(f"score is {score!r}, but nothing was evaluated under that name.")
    if "diverged" in history:  # of whoever diverged no score is there, but something was evaluated
        there |= history["diverged"].notna()
    ends = history[history["round"] == history["round"][there].max()].groupby([*names, "seed"])[score].last()
    table = ends.groupby(level=list(names)).agg(mean="mean", std="std", low="min", high="max")
    return table.where(ends.isna().groupby(level=list(names)).sum() == 0)


@styled
def figure(history: Any, names: Sequence[str], score: str, ax: Any = None) -> Any:
    """The last score against the first name, one line for each combination of the others; bars are the seeds' range.

    The axis is logarithmic where the values spread over more than a factor of ten.
    """
    table, own = last(history, names, score).reset_index(), ax is None
    ax = axes_or_new(ax)
    first, rest = names[0], list(names[1:])
    lines = table.groupby(rest, sort=True) if rest else [((), table)]
    for i, (at, part) in enumerate(lines):
        label = " ".join(f"{name}={v:g}" for name, v in zip(rest, at, strict=True))
        x, mean = part[first].to_numpy(), part["mean"].to_numpy()
        below, above = mean - part["low"].to_numpy(), part["high"].to_numpy() - mean
        look = {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)], "marker": "o"}
        ax.errorbar(x, mean, yerr=np.abs([below, above]), label=label, markersize=4, capsize=2, **look)
    values = table[first].to_numpy()
    if values.min() > 0 and values.max() >= 10 * values.min():
        ax.set_xscale("log")
    ax.set_xticks(np.unique(values), [f"{v:g}" for v in np.unique(values)], minor=False)
    ax.set_xticks([], minor=True)
    ax.set(xlabel=first.replace("_", " "), ylabel=f"{NAMES.get(score, score.replace('_', ' '))}, last evaluation")
    ax.grid(alpha=0.3)
    if rest:
        legend_of(ax, own, *ax.get_legend_handles_labels()[:1])
    return ax.figure
