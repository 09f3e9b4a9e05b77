"""The folder of results: what describes the world, the history, the summary, the pictures."""

import contextlib
import datetime
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import pandas as pd

from jaxfl.core import Shards
from jaxfl.data import Dataset, partition
from jaxfl.engine import checkpoint
from jaxfl.engine.disk import LOCK, PART, held, write_whole, writing
from jaxfl.engine.history import LOG, NODES, unused
from jaxfl.engine.run import Result
from jaxfl.engine.saved import save_model
from jaxfl.engine.sharding import to_host
from jaxfl.errors import InputError
from jaxfl.exchange.personal import answer
from jaxfl.options.build import Arm, World
from jaxfl.options.topology import first_graph
from jaxfl.report import plots, tables

NODES_BYTES = 2**24  # of the models of all nodes and one seed
CONFIG, MACHINE = "config.toml", "machine.json"
PICTURES = [f"{name}.png" for name in ("topology", "labels", "labels-per-sample", "values")]
BEFORE = {LOCK, CONFIG, MACHINE, *PICTURES}  # what is written before anything is computed


@contextlib.contextmanager
def new_folder(out: str | None, label: str) -> Iterator[Path]:
    """A folder for results that this command has alone: `out`, or one named after the run.

    It is new or empty, or one in which nothing was computed. After bad input it is as it was before.

    Raises:
        InputError: it holds something, cannot be made, or another command writes to it.
    """
    if out is not None and "://" in out:
        raise InputError(f"out is {out}, but results go to a folder of this machine.")
    folder = Path(out) if out is not None else _named(label)
    was_there = out is not None and folder.is_dir()
    _check_free(folder)
    with held(folder):
        _check_free(folder)  # who had it before may just have ended
        _clear(folder)
        try:
            yield folder
        except InputError:
            with contextlib.suppress(OSError, InputError):  # what is said is what went wrong first
                if _free(folder):
                    _clear(folder)
                    if not was_there:
                        shutil.rmtree(folder, ignore_errors=True)
            raise


@contextlib.contextmanager
def old_folder(path: str) -> Iterator[Path]:
    """The folder of a run that goes on, which this command has alone. Raises InputError as `held`."""
    with held(Path(path)):
        yield Path(path)


def _named(label: str) -> Path:
    """A new folder below `runs`, whose name no other run takes in this second."""
    name = f"{label}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    for end in ("", *(f"-{i}" for i in range(2, 1000))):
        folder = Path("runs") / f"{name}{end}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(f"out: {folder} cannot be made ({error.strerror}).") from error
        return folder
    raise InputError(f"out: there are a thousand runs/{name} already; name a folder.")


def _check_free(folder: Path) -> None:
    try:
        if folder.exists() and not (folder.is_dir() and _free(folder)):
            raise InputError(f"out: {folder} exists already; name a folder that is new or empty.")
    except OSError as error:
        raise InputError(f"out: {folder} cannot be made ({error.strerror}).") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"out: {str(folder)!r} cannot be made ({error}).") from error


def _free(folder: Path) -> bool:
    """Whether a folder is empty, or of a run of which no round was finished."""
    files = list(folder.iterdir())
    if not any(file.name not in (LOCK, MACHINE + PART) for file in files):
        return True
    ours = all(_unused(file) if file.is_dir() else file.name.removesuffix(PART) in BEFORE for file in files)
    return ours and (folder / MACHINE).exists()  # which is written first; a config alone may be a user's


def _unused(own: Path) -> bool:
    """Whether a folder is that of a system of which no round was finished."""
    names = {LOG, LOCK, NODES, checkpoint.folder_of(own).name}
    return all(file.name in names for file in own.iterdir()) and unused(own / LOG) and not checkpoint.rounds_of(own)


def _clear(folder: Path) -> None:
    with writing(folder):
        for file in folder.iterdir():
            if file.is_dir():
                shutil.rmtree(file)
            elif file.name != LOCK:
                file.unlink()


def file_name(label: str) -> str:
    """The folder of a system's own files: its label, in characters that every file system takes."""
    return re.sub(r"[^\w.=,+-]+", "-", label)


def write(path: Path, text: str) -> None:
    """Write a file, which is whole or as it was before. Raises `InputError` for a full disk."""
    write_whole(path, text.encode())


def write_history(folder: Path, histories: Mapping[str, Any], columns: Mapping[str, Sequence] = {}) -> None:
    """All histories as one tidy `history.csv`: system, what else tells them apart (one value each), seed, round."""
    parts = [
        h.assign(system=name, **{key: values[i] for key, values in columns.items()})
        for i, (name, h) in enumerate(histories.items())
    ]
    tidy, first = pd.concat(parts), ["system", *columns]
    write(folder / "history.csv", tidy[[*first, *(c for c in tidy if c not in first)]].to_csv(index=False))


def keep_models(folder: Path, label: str, arm: Arm, result: Result, world: World) -> None:
    """`models/seed-0.npz` and so on: the final model of each seed, of models by node the mean of those that do not lie.

    Where nodes keep parts to themselves (`Network.personal`) a server's model is one by node too, each with its own.
    All rows are in `models/seed-0-nodes.npz` too where they take at most `NODES_BYTES`. Of an answer in parts, one
    model and models by node, the one is the final model. Nothing is kept of a system whose answer is no model of the
    task: a protocol, unlike architectures.
    """
    task = world.task
    if task is None:
        return
    read = partial(answer, arm.algorithm)  # type: ignore[arg-type]
    said = jax.jit(jax.vmap(read))(result.state)  # compiled: what is not read is not touched
    parts = said if isinstance(said, dict) else {"": said}
    if any(not isinstance(a, jax.Array) or a.ndim not in (2, 3) or a.shape[-1] != task.dim for a in parts.values()):
        return
    honest = ~np.asarray(arm.scenario.byz)
    host = to_host(parts)
    one, each = (next((a for a in host.values() if a.ndim == ndim), None) for ndim in (2, 3))
    for i in range(world.setup.seeds):
        seed = world.setup.seed + i
        about, path = {"system": label, "round": result.carry.t, "seed": seed}, folder / "models" / f"seed-{seed}.npz"
        with writing(path):
            path.parent.mkdir(exist_ok=True)
        if each is not None and each[i].nbytes <= NODES_BYTES:
            save_model(path.with_stem(f"{path.stem}-nodes"), task, each[i], **about)
        if one is not None:
            save_model(path, task, one[i], **about)
        elif each is not None:
            mean = each[i][honest].mean(0, dtype=np.float64).astype(each.dtype)
            save_model(path, task, mean, **about, mean_of=int(honest.sum()))


def describe(world: World, arms: Mapping[str, Arm], folder: Path) -> None:
    """The files about the world itself, as far as they are not there yet: machine, labels of the nodes, topology."""
    _describe_machine(folder / MACHINE)
    missing = [picture for picture in PICTURES if not (folder / picture).exists()]
    heard = [arm.topology for arm in arms.values() if arm.topology is not None]
    if heard and "topology.png" in missing:
        plots.save(plots.topology(first_graph(heard[0])), folder / "topology.png")
    if world.dataset is not None and len(missing) > 0:
        for name, figure in _holdings(world.dataset, cast(Shards, world.data), world.setup.target).items():
            if f"{name}.png" in missing:
                plots.save(figure, folder / f"{name}.png")


def _describe_machine(path: Path) -> None:
    """Where a run began, and under `resumed` where it went on, if that was another machine or had other settings."""
    now = tables.machine()
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        sessions = [kept, *kept.get("resumed", [])]
        last = {**sessions[-1], "date": "", "resumed": []}
    except (OSError, ValueError, AttributeError, TypeError):
        kept, last = now, {**now, "date": "", "resumed": []}
    if {**now, "date": "", "resumed": []} != last:
        kept["resumed"] = [*kept.get("resumed", []), now]
    write(path, json.dumps(kept, indent=2) + "\n")


def _holdings(dataset: Dataset, shards: Shards, target: str | None) -> dict[str, Any]:
    """Pictures of what nodes hold, by name: labels, how many of them, or values of the first target."""
    if dataset.task == "regression":
        return {
            "values": plots.value_histogram(
                *partition.value_histogram(shards), label=(target or "target").split(",")[0]
            )
        }
    if dataset.task == "multilabel":
        counts = partition.label_histogram(shards, dataset.classes or 0)
        return {
            "labels": plots.label_histogram(counts, of="labels"),
            "labels-per-sample": plots.labels_per_sample(partition.labels_per_sample(shards)),
        }
    if dataset.y.ndim == 1 and dataset.classes:
        return {"labels": plots.label_histogram(partition.label_histogram(shards, dataset.classes))}
    return {}


def conclude(
    world: World,
    histories: Mapping[str, Any],
    seconds: Mapping[str, float],
    folder: Path,
    *,
    nodes: Mapping[str, Mapping[str, Any]] = {},
    columns: Mapping[str, Sequence] = {},
    says: str = "",
    as_json: bool = False,
) -> None:
    """The table and then the pictures of all systems that are finished; `nodes` is what is by node, `Result.nodes`.

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
    else:
        share = f"({setup.alpha:g})" if setup.partition == "dirichlet" else ""
        title += f", {Path(setup.data).name} {setup.partition}{share}, {setup.model} of {world.task.dim:,} parameters"
    frame["seconds"] = [seconds[name] for name in histories]
    whole = frame.assign(**columns)[[*columns, *frame.columns]]
    tables.table(frame, title)
    if diverged := tables.divergence(histories):
        print(diverged if world.task is None else f"{diverged} A smaller lr may help.")
    if says:
        print(says)
    print(f"results in {folder}", flush=True)
    if as_json:
        for name, row in whole.to_dict("index").items():
            print(tables.json_line(str(name), row), flush=True)
    write(folder / "summary.csv", whole.to_csv(index_label="system"))
    if world.task is None:
        plots.save(plots.learning_curves(histories, "error", log=True), folder / "comparison.png")
    else:
        plots.comparison(histories, setup.nodes, path=folder / "comparison.png")
    measured = {name: kept for name, kept in nodes.items() if any(c.startswith("local_") for c in kept)}
    if world.held_out is not None and measured:
        plots.own_samples(measured, world.held_out.size, folder / "nodes.png")
