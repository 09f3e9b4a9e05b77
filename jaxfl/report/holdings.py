"""Pictures of what nodes hold: labels, labels a sample, values of a regression. `report.plots` offers them."""

from typing import Any

import numpy as np

from jaxfl.errors import InputError
from jaxfl.report.style import BESIDE, COLOURS, axes_or_new, numbers_of, styled

BARS = 40  # nodes up to which label counts are bars
KEYS = 12  # labels up to which they have a legend


@styled
def label_histogram(counts: Any, ax: Any = None, what: str = "label", of: str = "samples") -> Any:
    """How many samples of each label each node has: stacked bars up to 40 nodes, above that a heat map.

    The map shows shares, with nodes ordered by their commonest label, so that heterogeneity is a staircase and equal
    shares are an even field.

    Args:
        counts: `[n, classes]`, as `partition.label_histogram` returns it.
        ax: axes to draw on (None: a new figure).
        what: how a column of `counts` is called.
        of: what is counted; of a multilabel target a node's "labels", as a sample counts for each of its own.

    Raises:
        InputError: `counts` is not a table of numbers of at least 0.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm

    counts = numbers_of("counts", counts)
    if counts.ndim != 2 or not counts.size or not (counts >= 0).all():
        raise InputError(f"counts has shape {list(counts.shape)}: a table [n, classes] of counts is needed.")
    n, classes = counts.shape
    ax = axes_or_new(ax)
    ax.set_xlabel("node")
    ax.tick_params(labelsize=8)
    if n > BARS:
        share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        order = np.lexsort((-share.max(1), share.argmax(1)))
        image = ax.imshow(share[order].T, aspect="auto", cmap="cividis", origin="lower", vmin=0, vmax=1)
        ax.set(xlabel=f"node, by commonest {what}", ylabel=what)
        ax.locator_params(integer=True)
        _colour_bar(ax, image, f"share of the node's {of}")
        return ax.figure
    shades: Any = ScalarMappable(BoundaryNorm(np.arange(classes + 1) - 0.5, max(256, classes)), "viridis")
    few = [*COLOURS[:-1], "#F0E442", COLOURS[-1]]
    base = np.zeros(n)
    for label in range(classes):
        colour = few[label] if classes <= len(few) else shades.to_rgba(label)
        ax.bar(np.arange(n), counts[:, label], 0.85, base, color=colour, label=label, edgecolor="white", linewidth=0.4)
        base = base + counts[:, label]
    ax.set_ylabel(of)
    ax.set_xlim(-0.6, n - 0.4)
    ax.locator_params(axis="x", integer=True)
    ax.spines[["top", "right"]].set_visible(False)
    if classes <= KEYS:
        ax.legend(title=what, reverse=True, handlelength=1.0, **BESIDE)
    else:
        _colour_bar(ax, shades, what, np.arange(0, classes, 1 + (classes - 1) // 10))
    return ax.figure


def _colour_bar(ax: Any, image: Any, label: str, ticks: Any = None) -> None:
    ax.figure.colorbar(image, ax=ax, label=label, ticks=ticks).ax.tick_params(which="both", labelsize=8)


def labels_per_sample(counts: Any, ax: Any = None) -> Any:
    """How many labels the samples of each node have, from `partition.labels_per_sample`: as `label_histogram`."""
    counts = numbers_of("counts", counts)
    most = int(np.flatnonzero(counts.sum(0))[-1]) if counts.ndim == 2 and counts.any() else 0
    return label_histogram(counts[:, : most + 1] if counts.ndim == 2 else counts, ax, what="number of labels")


@styled
def value_histogram(counts: Any, edges: Any, ax: Any = None, *, label: str = "target") -> Any:
    """A histogram of values for each node, a column of shades; a dot is the node's mean.

    Above 40 nodes they are ordered by that mean, so that heterogeneity is a slope and equal shares are even stripes.

    Args:
        counts: `[n, bins]`, and
        edges: `[bins + 1]`, as `partition.value_histogram` returns them.
        ax: axes to draw on (None: a new figure).
        label: what the values are.

    Raises:
        InputError: `counts` is not a table of numbers of at least 0 with an edge more than columns.
    """
    counts, edges = numbers_of("counts", counts), numbers_of("edges", edges)
    if counts.ndim != 2 or edges.shape != (counts.shape[1] + 1,) or not (counts >= 0).all() or not counts.size:
        raise InputError(
            f"counts has shape {list(counts.shape)} and edges {list(edges.shape)}: a table [n, bins] of counts and "
            "bins + 1 edges are needed."
        )
    n = len(counts)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    mean = share @ ((edges[1:] + edges[:-1]) / 2)
    order = np.argsort(mean, kind="stable") if n > BARS else np.arange(n)
    ax = axes_or_new(ax)
    image = ax.pcolormesh(np.arange(n + 1) - 0.5, edges, share[order].T, cmap="Blues", vmin=0)
    ax.plot(np.arange(n), mean[order], ".", color=COLOURS[1], markersize=4 if n <= BARS else 2, label="mean")
    ax.set(xlabel=f"node, by mean {label}" if n > BARS else "node", ylabel=label)
    ax.tick_params(labelsize=8)
    ax.locator_params(axis="x", integer=True)
    _colour_bar(ax, image, "share of the node's samples")
    return ax.figure
