"""Pictures of the rows: every library beside jaxfl, and gossip over the number of nodes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from results import ours, peers

from jaxfl.report.style import COLOURS, legend_above, new_figure, save, styled

OURS, GREY = COLOURS[0], "#888888"
BOUND = {"marker": "|", "color": "#000000", "markersize": 11, "markeredgewidth": 1.8, "linestyle": "none"}
FLOOR = BOUND | {"color": GREY}
MARKERS = "sD^vP*Xhp<>"


def _looks(rows: list[dict]) -> dict[str, dict]:
    """Colour and marker of every peer, the same in all panels."""
    names = sorted({r["peer"] for r in rows if "peer" in r})
    look = lambda i: {"marker": MARKERS[i % len(MARKERS)], "color": COLOURS[1 + i % (len(COLOURS) - 2)]}
    return {name: look(i) | {"markersize": 6, "linestyle": "none"} for i, name in enumerate(names)}


def _frame(ax: Any, grid: str) -> None:
    ax.tick_params(which="both", labelsize=8)
    ax.grid(True, axis=grid, color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _case(row: dict) -> str:
    if row["workload"].startswith("W4"):
        return f"{row['workload']}, {row['nodes']:,} messages"
    many = f"{row['cohort']:,} a round" if row.get("cohort") else f"{row['nodes']:,} nodes"
    return f"{row['workload']}, {many}"


def _handles(ax: Any) -> list[Any]:
    """One of each label, ours first."""
    found = {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}
    first = [name for name in ("jaxfl", "bound", "machine's floor") if name in found]
    return [found[name] for name in (*first, *sorted(found.keys() - set(first)))]


@styled
def libraries(rows: list[dict]) -> Any:
    """Seconds a round, a line a workload that has a bound or a peer; None where there is none."""
    own = [
        r for w in dict.fromkeys(r.get("workload", "") for r in rows if r["suite"] != "sweep") for r in ours(rows, w)
    ]
    where = lambda r: {"nodes": r["nodes"], "cohort": r.get("cohort")}
    lines = [r for r in own if "bound_seconds" in r or peers(rows, r["workload"], **where(r))]
    if not lines:
        return None
    looks = _looks(rows)
    fig = new_figure((7.5, 0.8 + 0.27 * len(lines)))
    ax = fig.subplots()
    for y, row in enumerate(lines):
        beside = peers(rows, row["workload"], **where(row))
        times = [row["seconds"], *(r["seconds"] for r in beside)]
        ax.plot([min(times), max(times)], [y, y], color="#cccccc", linewidth=1.0, zorder=1, label="_span")
        if "floor_seconds" in row:
            ax.plot(row["floor_seconds"], y, label="machine's floor", **FLOOR)
        for r in beside:
            ax.plot(r["seconds"], y, label=r["peer"], **looks[r["peer"]])
        ax.plot(row["seconds"], y, "o", color=OURS, markersize=7, label="jaxfl", zorder=4)
        if "bound_seconds" in row:
            ax.plot(row["bound_seconds"], y, label="bound", zorder=5, **BOUND)
    ax.set_xscale("log")
    ax.set_yticks(range(len(lines)), [_case(r) for r in lines])
    ax.set_ylim(len(lines) - 0.4, -0.6)
    ax.set_xlabel("seconds a round")
    _frame(ax, "x")
    legend_above(fig, _handles(ax))
    return fig


@styled
def scaling(rows: list[dict]) -> Any:
    """W3 over nodes, on logarithmic axes, with the line of proportional growth; None where W3 has not two sizes."""
    own = sorted(ours(rows, "W3"), key=lambda r: r["nodes"])
    if len(own) < 2:
        return None
    looks = _looks(rows)
    fig = new_figure((5.5, 3.4))
    ax = fig.subplots()
    nodes = np.array([r["nodes"] for r in own], float)
    start = next((r for r in own if r["nodes"] >= 64), own[0])
    line = start["seconds"] * nodes / start["nodes"]
    ax.plot(nodes, line, ":", color=GREY, linewidth=1.2, label=f"linear from {start['nodes']:,} nodes")
    for name, column, style in (("machine's floor", "floor_seconds", "-"), ("bound", "bound_seconds", "--")):
        at = [(r["nodes"], r[column]) for r in own if column in r]
        if at:
            ax.plot(*zip(*at, strict=True), style, color=GREY if style == "-" else "#000000", linewidth=1.0, label=name)
    for r in peers(rows, "W3"):
        ax.plot(r["nodes"], r["seconds"], label=r["peer"], **looks[r["peer"]])
    ax.plot(nodes, [r["seconds"] for r in own], "o-", color=OURS, markersize=5, label="jaxfl", zorder=4)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(nodes, [f"{int(n):,}" for n in nodes])
    ax.minorticks_off()
    ax.set_xlabel("nodes of the ring (W3)")
    ax.set_ylabel("seconds a round")
    _frame(ax, "both")
    legend_above(fig, _handles(ax))
    return fig


def draw(rows: list[dict], folder: Path) -> Sequence[tuple[str, str]]:
    """Write what the rows allow; returns captions and paths from the page."""
    drawn = []
    pictures = (
        ("seconds a round of jaxfl, the bound, the machine's floor and other libraries", "speed.png", libraries),
        ("seconds a round of gossip on a ring over the number of nodes", "scaling.png", scaling),
    )
    for caption, name, make in pictures:
        fig = make(rows)
        if fig is not None:
            save(fig, folder / name)
            drawn.append((caption, f"figures/{name}"))
    return drawn
