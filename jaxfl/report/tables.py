"""What a run says in the end: one row a system for terminals, result files and papers."""

import datetime
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxfl.errors import InputError

HIGHER = ("accuracy", "node_accuracy", "worst_decile")  # columns in which more is better
HIGHER += ("local_accuracy", "local_accuracy_worst_decile", "local_accuracy_weighted", "local_accuracy_jain")
SCORES = ("accuracy", "worst_decile", "consensus", "test_loss")
FAIRNESS = ("", "_worst_decile", "_spread", "_jain", "_weighted")  # what metrics.local_test says of a measurement
SHOWN = 8  # systems that are named as diverged
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "jaxfl")


def summary(histories: Mapping[str, Any], nodes: int) -> Any:
    """One row a system, at the last evaluation of each seed.

    Columns, as far as a history has them: `accuracy`, `worst_decile`, `consensus`, `test_loss`, those of
    `metrics.local_test` (mean, worst decile, spread, Jain's index; of further parts of an answer the mean), `diverged`
    (nodes whose model is not finite), `megabytes` (sent and received up to then by the mean node, 10^6 bytes),
    `gradients` (evaluated up to then by all nodes), `simulated_s` (simulated seconds up to then, where rounds differ in
    them), each a mean over seeds and beside it `<column>_std`, the sample standard deviation over seeds (NaN with one
    seed); `rounds` and `seeds`. A seed that is not finite makes its mean not finite.

    Args:
        histories: `Result.history` of each system, by name.
        nodes: nodes of the world, which share the bits of `total_up_bits` and `total_down_bits`.

    Raises:
        InputError: no histories, an empty one or another thing, or `nodes` below 1.
    """
    import pandas as pd

    require_histories(histories)
    if nodes < 1:
        raise InputError(f"nodes = {nodes}: at least 1 is needed.")
    clocked = any(takes_time(h) for h in histories.values())
    scores = [*SCORES, *_local(histories), "diverged"]
    frame = pd.DataFrame([_row(name, h, nodes, clocked, scores) for name, h in histories.items()], list(histories))
    first = [c for score in scores for c in (score, f"{score}_std") if c in frame]
    return frame[[*first, *(c for c in frame if c not in first)]]


def _local(histories: Mapping[str, Any]) -> list[str]:
    """The columns of `metrics.local_test`: how the main part is spread, of every further part the mean."""
    main = [f"local_{what}{part}" for what in ("accuracy", "loss") for part in FAIRNESS]
    known = dict.fromkeys(
        c for h in histories.values() for c in h if str(c).startswith(("local_accuracy", "local_loss"))
    )
    return [c for c in main if c in known and not c.endswith(FAIRNESS[-1])] + [
        c for c in known if c not in main and not c.endswith(FAIRNESS[1:])
    ]


def require_histories(histories: Any) -> None:
    """Raise InputError unless it is a dict of one or more frames by name."""
    import pandas as pd

    if not isinstance(histories, Mapping):
        raise InputError(
            f"histories is a {type(histories).__name__}, but must be a dict of `Result.history` by the system's name."
        )
    if not histories:
        raise InputError("histories is empty, but at least one system is needed.")
    for name, history in histories.items():
        if not isinstance(history, pd.DataFrame):
            raise InputError(
                f"histories[{name!r}] is a {type(history).__name__}, but must be a frame: give `Result.history`."
            )


BOTH_WAYS = ("total_up_bits", "total_down_bits")


def megabytes(history: Any, nodes: int, columns: Sequence[str] = BOTH_WAYS) -> Any:
    """What the mean node has sent and received, in 10^6 bytes, row by row; None where bits were not counted.

    A message between two nodes is sent by one and received by the other. A server is no node.
    """
    both = [history[c] for c in columns if c in history]
    return sum(both) / 8e6 / nodes if both else None


def takes_time(history: Any) -> bool:
    """Whether simulated seconds tell more than rounds do: some round lasts neither 0 nor 1 s."""
    return "seconds" in history and not history["seconds"].dropna().isin((0.0, 1.0)).all()


def _last(history: Any, scores: list[str]) -> Any:
    """The row of the last evaluation of each seed."""
    done = history[history[scores].notna().any(axis=1)] if scores else history
    return done.sort_values("round", kind="stable").groupby("seed").tail(1)


def divergence(histories: Mapping[str, Any]) -> str:
    """Which systems ended with models or scores that are not finite, in one line; "" where none did.

    Args:
        histories: `Result.history` of each system, by name.
    """
    said = []
    for name, history in histories.items():
        scores = [c for c in ("accuracy", "test_loss", "error") if c in history]
        last = _last(history, [c for c in (*scores, "diverged") if c in history])
        nodes = last["diverged"] if "diverged" in last else 0 * last["round"]
        bad = (nodes > 0) | ~np.isfinite(last[scores]).all(axis=1)
        if bad.any():
            models = f", {nodes.max():,.0f} models" if nodes.max() > 0 else ""
            said.append(f"{name} ({bad.sum()} of {len(last)} seeds{models})")
    more = f" and {len(said) - SHOWN} more" * (len(said) > SHOWN)
    return f"diverged: {', '.join(said[:SHOWN])}{more}; what is not finite has no score." if said else ""


def _row(name: str, history: Any, nodes: int, clocked: bool, scores: list[str]) -> dict[str, Any]:
    if not len(history):
        raise InputError(f"histories[{name!r}] has no rows, but at least one round is needed.")
    scores = [c for c in scores if c in history]
    last = _last(history, scores)
    values = {c: last[c] for c in scores}
    traffic = megabytes(last, nodes)
    if traffic is not None:
        values["megabytes"] = traffic
    if "total_gradients" in last:
        values["gradients"] = last["total_gradients"]
    if clocked and "time" in last:
        values["simulated_s"] = last["time"]
    row = {}
    for column, each in values.items():
        row[column] = float(each.mean(skipna=False))
        row[f"{column}_std"] = float(each.std(skipna=False))
    return row | {"rounds": int(last["round"].max()), "seeds": len(last)}


def table(frame: Any, title: str = "", console: Any = None) -> None:
    """Print a summary to the terminal, a row a system, each quantity with its deviation as `0.912 ± 0.004`.

    Columns for which a terminal is too narrow are in further tables below; no digit is left out.

    Args:
        frame: as `summary` returns it; a column `<column>_std` is shown beside `<column>`.
        title: line above the table.
        console: a `rich.console.Console` (None: the terminal, as wide as the table where the output is no terminal).
    """
    from rich.console import Console
    from rich.text import Text

    columns = [c for c in frame.columns if not (c.endswith("_std") and c[:-4] in frame)]
    if console is None:
        console = Console()
        if not console.is_terminal:
            whole = _drawn(frame, columns, 1000)
            console = Console(width=max(80, console.measure(whole, options=console.options.update(width=1000)).maximum))
    wide = lambda some: console.measure(_drawn(frame, some, console.width), options=console.options.update(width=1000))
    parts: list[list[str]] = [[]]
    for c in columns:
        if parts[-1] and wide([*parts[-1], c]).maximum > console.width:
            parts.append([])
        parts[-1].append(c)
    if title:
        console.print(Text(title, style="bold"))
    for part in parts:
        console.print(_drawn(frame, part, console.width))


def _drawn(frame: Any, columns: list[str], width: int) -> Any:
    """A table of some columns; names of systems that take more than half of the width are folded."""
    from rich.table import Table
    from rich.text import Text

    # Text, not str: a name with square brackets is no markup.
    out = Table()
    out.add_column(Text("system"), overflow="fold", min_width=6, max_width=max(8, width // 2))
    for c in columns:
        out.add_column(Text(c.replace("_", " ")), justify="right", no_wrap=True)
    for name, row in frame.iterrows():
        out.add_row(Text(str(name)), *(Text(_shown(row[c], row.get(f"{c}_std"))) for c in columns))
    return out


def _shown(value: Any, deviation: Any) -> str:
    """A number to about three digits, with its deviation in the same decimals."""
    if not isinstance(value, (int, float, np.number)):
        return str(value)
    value = float(value)
    if not math.isfinite(value):
        return "–" if math.isnan(value) else str(value)
    spread = None if deviation is None or not math.isfinite(deviation) else float(deviation)
    size = max(abs(value), spread or 0.0)
    if not spread and value.is_integer() and size < 1e7:
        return f"{value:,.0f}"
    if 1e-3 <= size < 1e7:
        places = max(0, 2 - math.floor(math.log10(size)))
        return f"{value:,.{places}f}" + (f" ± {spread:,.{places}f}" if spread else "")
    return f"{value:.2e}" + (f" ± {spread:.0e}" if spread else "")


def json_line(name: str, row: Mapping[str, Any]) -> str:
    """One line of a result file: a JSON object of `name` and the entries of `row`, NaN and infinities as null.

    Args:
        name: of the system or the measurement.
        row: numbers, strings, None, and lists, arrays and dicts of them; a row of `summary` or `machine()`.

    Raises:
        InputError: `row` has an entry `name`, or one that JSON has no word for.
    """
    if "name" in row:
        raise InputError(f"row has an entry name = {row['name']!r}, but that place is taken by the argument.")
    return json.dumps({"name": name} | {str(k): _plain(k, v) for k, v in row.items()}, allow_nan=False)


def _plain(key: Any, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(k, v) for k, v in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()  # NumPy, pandas and JAX, scalars too
    if isinstance(value, (list, tuple)):
        return [_plain(key, v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise InputError(
        f"row[{key!r}] is of type {type(value).__name__}: numbers, strings, lists and dicts can be written."
    )


def rounds_to(history: Any, column: str, target: float, lower: bool = False) -> Any:
    """Rounds until `column` reaches `target`, a pandas Series of float by seed, NaN where it never does.

    The curve is made monotone by the best value so far and interpolated linearly between evaluated rounds: McMahan et
    al., AISTATS 2017, https://arxiv.org/abs/1602.05629, section 3. Values that are not finite are passed over.

    Args:
        history: `Result.history`.
        column: an evaluated column, `accuracy` say.
        target: value to reach.
        lower: smaller is better (a loss).

    Raises:
        InputError: there is no such column, or `target` is not finite.
    """
    import pandas as pd

    if column not in history:
        raise InputError(f"column = {column!r}: the history has {', '.join(map(str, history.columns))}.")
    if not math.isfinite(target):
        raise InputError(f"target = {target}: a finite number is needed.")
    sign = -1.0 if lower else 1.0
    found = {}
    for seed, rows in history.groupby("seed"):
        rows = rows[np.isfinite(rows[column])].sort_values("round", kind="stable")
        found[seed] = _crossing(rows["round"].to_numpy(float), sign * rows[column].to_numpy(float), sign * target)
    return pd.Series(found, dtype=float, name=f"rounds to {column} {target:g}").rename_axis("seed")


def _crossing(rounds: np.ndarray, values: np.ndarray, target: float) -> float:
    reached = np.flatnonzero(values >= target)
    if not reached.size:
        return math.nan
    at = reached[0]
    if at == 0:
        return float(rounds[0])
    before = values[:at].max()
    return float(rounds[at - 1] + (rounds[at] - rounds[at - 1]) * (target - before) / (values[at] - before))


def machine() -> dict[str, Any]:
    """On what and when a result was made: kind of machine, versions and day; no host name, no path.

    `system`, `processor` (instruction set), `cpus`, `backend`, `device` (kind), `devices` (count), `python`, the
    versions of jax, jaxlib, flax, optax, numpy and jaxfl, the settings of JAX that change numbers
    (`engine.identity.SETTINGS`), `xla_flags` (but those that name a path), and `date` (ISO, UTC).
    """
    import jax

    from jaxfl.engine import identity

    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        **identity.settings(),
        "xla_flags": [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "/" not in flag],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
