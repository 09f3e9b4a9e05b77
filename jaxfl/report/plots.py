"""Pictures for papers and notebooks. Each function draws on `ax`, or on a new figure, and returns the figure.

New figures are plain `matplotlib.figure.Figure` objects: nothing global changes, no window opens, no display is
needed, and a notebook shows the figure that ends a cell. `save` writes PNG, `fig.savefig("a.pdf")` what a paper wants.

Lines are means over seeds; the band around one runs from the lowest seed to the highest. Where a seed is not finite
any more the line breaks, so divergence is never averaged away. A seed that has no value in a round but has one later
(the training loss of a round in which nobody answered) is left out of that round's mean.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxfl.core import Graph
from jaxfl.errors import InputError
from jaxfl.report.holdings import label_histogram as label_histogram
from jaxfl.report.holdings import labels_per_sample as labels_per_sample
from jaxfl.report.holdings import value_histogram as value_histogram
from jaxfl.report.nodes import gains as gains
from jaxfl.report.nodes import own_samples as own_samples
from jaxfl.report.nodes import per_node as per_node
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
from jaxfl.report.tables import megabytes, require_histories, takes_time
from jaxfl.report.timeline import availability as availability
from jaxfl.report.timeline import timeline as timeline
from jaxfl.world.graph import edges, to_networkx
from jaxfl.world.tiers import Tiers, tiers_of

NAMES = {
    "accuracy": "test accuracy",
    "test_loss": "test loss",
    "loss": "training loss",
    "worst_decile": "worst-decile accuracy",
    "consensus": "consensus distance",
    "local_accuracy": "accuracy on own samples",
    "local_accuracy_worst_decile": "worst-decile accuracy on own samples",
}
AXES = {
    "round": ("round", "round"),
    "megabytes": ("total_up_bits", "sent and received per node (MB)"),
    "megabytes_up": ("total_up_bits", "sent per node (MB)"),
    "megabytes_down": ("total_down_bits", "received per node (MB)"),
    "time": ("time", "simulated time (s)"),
    "gradients": ("total_gradients", "gradient evaluations, all nodes"),
}
BYTES = {"megabytes": ("total_up_bits", "total_down_bits"), "megabytes_up": ("total_up_bits",)}
BYTES["megabytes_down"] = ("total_down_bits",)
APART = (*BYTES, "time")  # in which systems may differ by orders of magnitude
CELLS = 256  # pixels a side, at most, of an adjacency picture


def _systems(histories: Mapping[str, Any], x: str, nodes: int | None) -> Mapping[str, Any]:
    require_histories(histories)
    if x not in AXES:
        raise InputError(f"x = {x!r}: one of {', '.join(AXES)} is needed.")
    if x in BYTES and (nodes is None or nodes < 1):
        raise InputError(f"nodes = {nodes}: {x} per node need the number of nodes, at least 1.")
    return histories


def _curve(name: str, history: Any, x: str, y: str, nodes: int | None) -> tuple[np.ndarray, ...]:
    """What to draw, each `[evaluated rounds]`: x, mean, lowest and highest over seeds."""
    column = AXES[x][0]
    for c in (column, y):
        if c not in history:
            raise InputError(f"histories[{name!r}] has no column {c!r}, only {', '.join(map(str, history.columns))}.")
    history = history.reset_index(drop=True)  # joined histories count their rows anew
    where = megabytes(history, nodes, BYTES[x]) if x in BYTES and nodes else history[column]
    # before the first round no time has passed and nothing was sent
    at = where.fillna(0.0).groupby(history["round"]).mean()
    each, later = history[y], history.sort_values("round", kind="stable").groupby("seed")[y].bfill()
    lost = (each.isna() & later.isna()).groupby(history["round"]).sum()
    values = each.groupby(history["round"])
    seen = (values.count() > 0).to_numpy()
    parts = at, values.mean(), values.min(), values.max()
    at, mean, low, high = (part.to_numpy(float)[seen] for part in parts)
    whole = (lost == 0).to_numpy()[seen] & np.isfinite(mean)
    return at, *(np.where(whole, v, np.nan) for v in (mean, low, high))


@styled
def learning_curves(
    histories: Mapping[str, Any],
    y: str = "accuracy",
    x: str = "round",
    ax: Any = None,
    *,
    nodes: int | None = None,
    log: bool = False,
    styles: Sequence[str] = (),
) -> Any:
    """One line a system: `y` against `x`, at the evaluated rounds.

    Args:
        histories: `Result.history` of each system, by name.
        y: column to draw.
        x: "round", "megabytes" (sent and received up to then by the mean node, 10^6 bytes), "megabytes_up" or
            "megabytes_down" (one direction alone), "time" (simulated seconds; these on a logarithmic axis where systems
            differ more than tenfold) or "gradients" (evaluated up to then by all nodes); where seeds differ in it,
            their mean.
        ax: axes to draw on (None: a new figure).
        nodes: nodes of the world, needed for megabytes.
        log: logarithmic y axis; values of 0 are left out.
        styles: names in the order in which they take colours and dashes, so that a system looks the same in all
            pictures of a figure (empty: the order of `histories`).

    Raises:
        InputError: no histories, a column that a history lacks, a system that `styles` lacks, or a bad `x` or `nodes`.
    """
    systems, own = _systems(histories, x, nodes), ax is None
    order = list(styles or systems)
    if missing := [name for name in systems if name not in order]:
        raise InputError(f"styles has no {missing[0]!r}, only {', '.join(order)}.")
    ax = axes_or_new(ax)
    for name, history in systems.items():
        banded(ax, order.index(name), name, _curve(name, history, x, y, nodes))
    dress(ax, AXES[x][1], NAMES.get(y, y.replace("_", " ")), log)
    if x in APART:
        _spread_out(ax)
    legend_of(ax, own, ax.get_lines())
    return ax.figure


def consensus(histories: Mapping[str, Any], ax: Any = None) -> Any:
    """Consensus distance against rounds, logarithmic: `learning_curves` of the column `consensus`."""
    return learning_curves(histories, "consensus", ax=ax, log=True)


def _has(history: Any, y: str) -> bool:
    """Whether there is something to draw; a server's consensus distance is 0 throughout."""
    return y in history and bool((history[y].abs() > 0).any() if y == "consensus" else history[y].notna().any())


def _spread_out(ax: Any) -> None:
    """A logarithmic x axis where the ends of the lines lie more than a factor of ten apart."""
    ends = [float(np.max(line.get_xdata())) for line in ax.get_lines()]
    if min(ends) > 0 and max(ends) > 10 * min(ends):
        ax.set_xscale("log", nonpositive="mask")


@styled
def comparison(histories: Mapping[str, Any], nodes: int, path: str | Path | None = None) -> Any:
    """Systems side by side in four panels, or five where rounds differ in simulated seconds.

    Test accuracy (test loss where no system has accuracy) against rounds and against megabytes sent and received
    per node (on a logarithmic axis where systems differ more than tenfold), worst-decile accuracy and consensus
    distance against rounds. A system that lacks a quantity, or whose consensus distance is 0 throughout, is left out of
    that panel; an empty panel is left out.

    Args:
        histories: `Result.history` of each system, by name.
        nodes: nodes of the world.
        path: PNG to write (None: none).

    Raises:
        InputError: no histories, nothing evaluated in any, `nodes` below 1, or a full disk.
    """
    systems = _systems(histories, "megabytes", nodes)
    top = "accuracy" if any(_has(h, "accuracy") for h in systems.values()) else "test_loss"
    panels = [(top, "round"), (top, "megabytes"), ("worst_decile", "round"), ("consensus", "round")]
    panels += [(top, "time")] if any(takes_time(h) for h in systems.values()) else []
    panels = [(y, x) for y, x in panels if any(_has(h, y) and AXES[x][0] in h for h in systems.values())]
    if not panels:
        raise InputError("histories hold neither accuracy nor test_loss: run with evaluate=metrics.shared_test(...).")
    fig = new_figure((7.0, 2.4 * ((len(panels) + 1) // 2)))
    grid = fig.subplots((len(panels) + 1) // 2, 2, squeeze=False).reshape(-1)
    handles = {}
    for ax, (y, x) in zip(grid, panels, strict=False):
        for i, (name, history) in enumerate(systems.items()):
            if _has(history, y) and AXES[x][0] in history:
                banded(ax, i, name, _curve(name, history, x, y, nodes))
        dress(ax, AXES[x][1], NAMES[y], y == "consensus")
        if x in APART:
            _spread_out(ax)
        handles |= {line.get_label(): line for line in ax.get_lines()}
    for ax in grid[len(panels) :]:
        ax.remove()
    legend_above(fig, [handles[name] for name in systems if name in handles])
    if path is not None:
        save(fig, path)
    return fig


def _numbers(what: str, given: Any) -> dict[str, np.ndarray]:
    if not isinstance(given, Mapping):
        raise InputError(f"{what} is a {type(given).__name__}, but must be a dict of curves by label.")
    return {name: numbers_of(f"{what}[{name!r}]", v) for name, v in given.items()}


@styled
def rate(
    measured: Mapping[str, Any],
    predicted: Mapping[str, Any],
    x: Any = None,
    ax: Any = None,
    *,
    xlabel: str = "round",
    ylabel: str = "error",
) -> Any:
    """A theorist's picture, logarithmic: what was measured, solid with a band over seeds, on what was predicted.

    Args:
        measured: `[seeds, rounds]` or `[rounds]` by label.
        predicted: `[rounds]` by label, dashed in the colour of the measured line of that label; a label that was not
            measured is a dotted grey reference line.
        x: `[rounds]` (None: 0, 1, ...).
        ax: axes to draw on (None: a new figure).
        xlabel: with unit.
        ylabel: with unit.

    Raises:
        InputError: nothing to draw, lengths that differ, or what is no dict of numbers.
    """
    from matplotlib.lines import Line2D

    curves = {name: np.atleast_2d(v) for name, v in _numbers("measured", measured).items()}
    lines = {name: np.atleast_1d(v) for name, v in _numbers("predicted", predicted).items()}
    if not curves and not lines:
        raise InputError("measured and predicted are empty, but at least one curve is needed.")
    at = np.arange([*curves.values(), *lines.values()][0].shape[-1]) if x is None else np.asarray(x, float)
    for what, given, rank in (("measured", curves, 2), ("predicted", lines, 1)):
        for name, v in given.items():
            if v.ndim != rank or v.shape[-1:] != at.shape:
                raise InputError(f"{what}[{name!r}] has shape {list(v.shape)}, but {at.size} rounds are needed.")
    own, ax = ax is None, axes_or_new(ax)
    order = {name: i for i, name in enumerate(curves)}
    for name, v in curves.items():
        banded(ax, order[name], name, (at, v.mean(0), v.min(0), v.max(0)), "-")
    for name, v in lines.items():
        known = name in order
        colour = COLOURS[order[name] % len(COLOURS)] if known else "#555555"
        ax.plot(at, v, "--" if known else ":", color=colour, linewidth=1.1, label="_predicted" if known else name)
    dress(ax, xlabel, ylabel, log=True)
    handles = [line for line in ax.get_lines() if line.get_label() != "_predicted"]
    if order.keys() & lines.keys():
        handles.append(Line2D([], [], linestyle="--", color="#000000", linewidth=1.1, label="predicted"))
    legend_of(ax, own, handles)
    return ax.figure


@styled
def topology(graph: Graph, ax: Any = None, max_nodes: int = 300) -> Any:
    """A drawing of a graph: on a circle where it is circulant, else by springs from a fixed start.

    Above `max_nodes` nodes, the picture of its adjacency matrix (row = listener), in at most 256 x 256 cells whose
    shade is the share of the cell's pairs that are edges. Arrows of directed graphs are drawn up to 60 nodes.

    Args:
        graph: its edges are the slots with a weight.
        ax: axes to draw on (None: a new figure).
        max_nodes: most nodes that are drawn as points.

    Raises:
        InputError: `graph` is no Graph.
    """
    if not isinstance(graph, Graph | Tiers):
        raise InputError(
            f"graph is a {type(graph).__name__}, but must be a jaxfl Graph, such as `graph.from_networkx(g)` or "
            "`mixing.from_matrix(w)` make one."
        )
    n = tiers_of(graph).n
    ax = axes_or_new(ax, (4.0, 4.0))
    import networkx as nx

    if n > max_nodes:
        return _adjacency(graph, ax)
    net = to_networkx(graph)
    position = nx.spring_layout(net, seed=0, weight=None) if graph.shifts is None else nx.circular_layout(net)
    size = float(np.clip(6500 / n, 10, 260))
    crowd = float(np.clip(1.4 - 0.25 * np.log10(max(net.number_of_edges(), 1)), 0.3, 1.0))
    line: dict[str, Any] = {"ax": ax, "edge_color": "#888888", "width": 0.9 * crowd, "alpha": crowd}
    if arrows := net.is_directed() and n <= 60:
        line |= {"arrowsize": 8, "node_size": size}
    nx.draw_networkx_edges(net, position, arrows=arrows, **line)
    nx.draw_networkx_nodes(net, position, ax=ax, node_size=size, node_color=COLOURS[0], linewidths=0)  # type: ignore
    if n <= 30:
        nx.draw_networkx_labels(net, position, ax=ax, font_size=7, font_color="white")
    ax.set_aspect("equal")
    ax.set_axis_off()
    return ax.figure


def _adjacency(graph: Graph, ax: Any) -> Any:
    n = tiers_of(graph).n
    listener, source, _ = edges(graph)
    cells = min(n, CELLS)
    bounds = np.linspace(0, n, cells + 1).round()
    counts, _, _ = np.histogram2d(listener, source, bins=(bounds, bounds))
    share = counts / np.outer(np.diff(bounds), np.diff(bounds))
    ax.imshow(share, cmap="Greys", vmin=0, vmax=share.max() or 1, extent=(0, n, n, 0), interpolation="nearest")
    ax.set_xlabel("source node")
    ax.set_ylabel("listening node")
    ax.locator_params(nbins=5, integer=True)
    ax.tick_params(labelsize=8)
    return ax.figure


def heat_map(
    values: np.ndarray, rows: Sequence[str], columns: Sequence[str], ax: Any, limits: tuple[float, float]
) -> None:
    """Errors `[rows, columns]` as numbers on a logarithmic colour between `limits`; what is not finite diverged."""
    from matplotlib.colors import LogNorm

    bad = ~np.isfinite(values) | (values > 1e6)
    shown = np.clip(np.where(bad, limits[1], values), *limits)
    ax.imshow(shown, norm=LogNorm(*limits), cmap="cividis", aspect="auto")
    middle = (limits[0] * limits[1]) ** 0.5
    for (i, j), value in np.ndenumerate(values):
        text = "diverges" if bad[i, j] else f"{value:.2g}" if value < 100 else f"{value:.0f}"
        ax.text(j, i, text, ha="center", va="center", fontsize=9, color="black" if shown[i, j] > middle else "white")
    ax.set_xticks(range(len(columns)), columns, fontsize=8)
    ax.set_yticks(range(len(rows)), rows, fontsize=8)
    ax.tick_params(length=0)
