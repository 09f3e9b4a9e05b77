"""The folder of results: what describes the world, the history, the summary, the pictures."""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd

from jaxfl.core import Shards
from jaxfl.data.partition import label_histogram
from jaxfl.engine.history import disk_error
from jaxfl.errors import InputError
from jaxfl.options.build import Arm, World
from jaxfl.options.topology import first_graph
from jaxfl.report import plots, tables


def new_folder(out: str | None, label: str) -> Path:
    """A new or empty folder for results: `out`, or one named after the run.

    Raises:
        InputError: it holds something, or cannot be made.
    """
    now = datetime.datetime.now()
    folder = Path(out) if out is not None else Path("runs") / f"{label}-{now:%Y%m%d-%H%M%S}"
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"out: {folder} exists already; name a folder that is new or empty.")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out: {folder} cannot be made ({error.strerror}).") from error
    return folder


def write(path: Path, text: str) -> None:
    """Write a file. Raises `InputError` for a full disk."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise disk_error(path, error) from error


def write_history(folder: Path, histories: Mapping[str, Any], columns: Mapping[str, Sequence] = {}) -> None:
    """All histories as one tidy `history.csv`: system, what else tells them apart (one value each), seed, round."""
    parts = [
        h.assign(system=name, **{key: values[i] for key, values in columns.items()})
        for i, (name, h) in enumerate(histories.items())
    ]
    tidy, first = pd.concat(parts), ["system", *columns]
    write(folder / "history.csv", tidy[[*first, *(c for c in tidy if c not in first)]].to_csv(index=False))


def describe(world: World, arms: Mapping[str, Arm], folder: Path) -> None:
    """The files about the world itself: machine, labels of the nodes, topology."""
    write(folder / "machine.json", json.dumps(tables.machine(), indent=2) + "\n")
    heard = [arm.topology for arm in arms.values() if arm.topology is not None]
    if heard:
        plots.save(plots.topology(first_graph(heard[0])), folder / "topology.png")
    if world.dataset is not None and world.dataset.y.ndim == 1 and world.dataset.classes:
        counts = label_histogram(cast(Shards, world.data), world.dataset.classes)
        plots.save(plots.label_histogram(counts), folder / "labels.png")


def conclude(
    world: World,
    histories: Mapping[str, Any],
    seconds: Mapping[str, float],
    folder: Path,
    *,
    columns: Mapping[str, Sequence] = {},
    says: str = "",
    as_json: bool = False,
) -> None:
    """The table and the picture of all systems that are finished.

    `columns`, one value a system, are in the files and the JSON, not in the table; `says` is a line below it.
    """
    setup = world.setup
    frame = tables.summary(histories, setup.nodes)
    counts = {"node": setup.nodes, "round": setup.rounds, "seed": setup.seeds}
    title = ", ".join(f"{count:,} {what}{'s' * (count != 1)}" for what, count in counts.items())
    if world.task is None:
        last = [h[h["round"] == h["round"].max()]["error"] for h in histories.values()]
        frame.insert(0, "error", [error.mean() for error in last])
        frame.insert(1, "error_std", [error.std() for error in last])
        plots.save(plots.learning_curves(histories, "error", log=True), folder / "comparison.png")
    else:
        share = f"({setup.alpha:g})" if setup.partition == "dirichlet" else ""
        title += f", {setup.data} {setup.partition}{share}, {setup.model} of {world.task.dim:,} parameters"
        plots.comparison(histories, setup.nodes, path=folder / "comparison.png")
    frame["seconds"] = [seconds[name] for name in histories]
    whole = frame.assign(**columns)[[*columns, *frame.columns]]
    write(folder / "summary.csv", whole.to_csv(index_label="system"))
    tables.table(frame, title)
    if says:
        print(says)
    print(f"results in {folder}")
    if as_json:
        for name, row in whole.to_dict("index").items():
            print(tables.json_line(str(name), row))
