"""How pictures look and how they are kept: colours, fonts, figures that touch nothing global, legends, PNG files."""

import io
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np

from jaxfl.engine.disk import write_whole, writing
from jaxfl.errors import InputError

# Okabe and Ito's colours, which colour-blind readers tell apart, without the yellow that white paper swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")  # 7 and 4 share no factor: 28 systems look different
STYLE = {
    "font.size": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 2.6,  # long enough to tell the dashes apart
    "lines.linewidth": 1.5,
}
WIDE = (5.5, 3.2)  # inches, without the legend
DPI = 150
BESIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.0), "borderaxespad": 0.0}


def styled(draw: Callable) -> Callable:
    """`draw` under STYLE, which leaves no trace in the global settings."""

    @wraps(draw)
    def styled(*args, **arguments):
        import matplotlib as mpl

        with mpl.rc_context(STYLE):  # type: ignore[arg-type]
            return draw(*args, **arguments)

    return styled


def png(fig: Any) -> bytes:
    """The figure as PNG, always the same bytes."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


def new_figure(size: tuple[float, float]) -> Any:
    """A figure of `size` inches that belongs to no window."""
    from matplotlib.figure import Figure

    fig: Any = Figure(figsize=size, layout="constrained")
    fig._repr_png_ = lambda: png(fig)  # without it a notebook shows plain figures only after pyplot was used
    return fig


def axes_or_new(ax: Any, size: tuple[float, float] = WIDE) -> Any:
    """`ax`, or the axes of a new figure."""
    return new_figure(size).subplots() if ax is None else ax


def banded(ax: Any, i: int, label: str, curve: tuple, dashes: str | None = None) -> None:
    """The `i`-th system's line and band; a lone point, which no line would show, gets a marker."""
    at, mean, low, high = curve
    colour = COLOURS[i % len(COLOURS)]
    style = DASHES[i % len(DASHES)] if dashes is None else dashes
    marker = "o" if np.isfinite(mean).sum() == 1 else None
    ax.plot(at, mean, style, color=colour, label=label, marker=marker, markersize=4)
    if np.any(high > low):
        ax.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)


def dress(ax: Any, xlabel: str, ylabel: str, log: bool = False) -> None:
    """Labels, grid and spines of an axis."""
    # Ticks are made when the figure is drawn, outside STYLE: their looks must be set on the axes.
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.tick_params(which="both", labelsize=8)
    ax.grid(True, color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.margins(x=0.02)
    if log:
        ax.set_yscale("log", nonpositive="mask")


def legend_of(ax: Any, own: bool, handles: list) -> None:
    """Where it covers no line: over the axes of a figure of our `own`, beside the axes of another."""
    legend_above(ax.figure, handles) if own else ax.legend(handles=handles, **BESIDE)


def legend_above(fig: Any, handles: list) -> None:
    """Over all axes, in as many columns as fit; the figure grows by the legend's height."""
    width = 0.6 + 0.065 * max(len(h.get_label()) for h in handles)  # inches, handle and text
    columns = int(np.clip(0.95 * fig.get_figwidth() / width, 1, len(handles)))
    fig.set_figheight(fig.get_figheight() + 0.18 * -(-len(handles) // columns))
    fig.legend(handles=handles, loc="outside upper center", ncols=columns)


def save(fig: Any, path: str | Path) -> None:
    """Write the figure as PNG with 150 dots an inch; folders are made. The same figure gives the same bytes.

    Raises:
        InputError: `path` does not end in .png, or the disk is full; an older picture is kept then.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"path = {path.name!r}: a name that ends in .png is needed.")
    picture = png(fig)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, picture)


def numbers_of(what: str, given: Any) -> np.ndarray:
    """As an array of numbers, else InputError."""
    try:
        return np.asarray(given, float)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} is a {type(given).__name__}, but must be an array of numbers.") from error
