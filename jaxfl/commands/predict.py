"""`jaxfl predict`: what the model of a run says of new samples, or of the run's own test set."""

import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from jaxfl import plugins
from jaxfl.commands import results
from jaxfl.data.frames import more_rows
from jaxfl.data.readers import TABLES, read_table
from jaxfl.data.sets import Dataset
from jaxfl.engine.saved import Model, load_model
from jaxfl.errors import InputError, nearest
from jaxfl.learn.layers import layers
from jaxfl.learn.task import Task
from jaxfl.options import kept
from jaxfl.options.build import prepare
from jaxfl.options.commands import Predict
from jaxfl.options.systems import label_of

AT_ONCE = 256  # samples
TARGET = "y"  # what the targets are called in a file


def main(command: Predict) -> int:
    """Write the predictions as CSV; where the targets are known, print how good they are.

    Raises:
        InputError: no run, no model of it, samples that are not those of its data.
    """
    folder = Path(command.run)
    systems, setup = kept.load(folder / "config.toml")
    label = _chosen(command, [label_of(name) for name in systems], folder)
    seed = setup.seed if command.seed is None else command.seed
    model = _model(folder / results.file_name(label) / "models", seed, command.node)
    world = prepare(setup, [plugins.split(label)[0]])
    task, dataset = world.task, world.dataset
    if task is None or dataset is None or model.layers != layers(task):
        raise InputError(f"run: the model of {label} in {folder} is not of the task that its config describes.")
    if not np.isfinite(model.row).all():
        raise InputError(
            f"run: the model of {label} in {folder} is not finite, as training diverged: it predicts nothing."
        )
    x, y = samples(command.data, dataset)
    source = "test" if command.data is None else Path(command.data).stem
    who = "" if command.node is None else f"-node-{command.node}"
    named = f"predictions-{results.file_name(label)}-seed-{seed}{who}-{source}.csv"
    out = folder / named if command.out is None else Path(command.out)
    if out.exists():
        raise InputError(f"out: {out} exists already; name another file.")
    if not out.parent.is_dir():
        raise InputError(f"out: there is no folder {out.parent}.")
    said = _said(task, model.row, x)
    results.write(out, table(said, y, dataset).to_csv(index_label="sample"))
    if (at := model.about.get("round")) is not None and at < world.setup.rounds:
        print(f"jaxfl: the model is of round {at}, the run was to have {world.setup.rounds}.", file=sys.stderr)
    print(f"{len(x):,} predictions{_score(task, said, y)} in {out}")
    return 0


def _chosen(command: Predict, labels: list[str], folder: Path) -> str:
    """The system whose model predicts."""
    if command.system is None:
        if len(labels) != 1:
            raise InputError(f"system is missing: {folder} has {', '.join(labels)}; name one by --system.")
        return labels[0]
    label = label_of(command.system)
    if label not in labels:
        raise InputError(f"system {label!r} is none of {folder}: {nearest(label, labels)}")
    return label


def _model(folder: Path, seed: int, node: int | None) -> Model:
    """The model of a seed, or of a node of it, `row [d]`."""
    path = folder / f"seed-{seed}{'' if node is None else '-nodes'}.npz"
    if not path.exists():
        kept = sorted(p.stem for p in folder.glob("seed-*.npz"))
        raise InputError(f"run: there is no model {path}; {folder} keeps {', '.join(kept) or 'none'}.")
    model = load_model(path)
    if node is None:
        return model
    if not 0 <= node < len(model.row):
        raise InputError(f"node is {node}, but the run has nodes 0 to {len(model.row) - 1}.")
    return model._replace(row=model.row[node])


def samples(path: str | None, dataset: Dataset) -> tuple[np.ndarray, np.ndarray | None]:
    """Inputs as the data set has them, `[N, ...]`, and their targets `[N, ...]` or None.

    Args:
        path: of a run on a table, a table with its columns; else an npz with `x` and perhaps `y`, of which 8-bit inputs
            are divided by 255, or a CSV of numbers, a column a feature in the data set's order, one called `y` perhaps
            beside them, with or without a line of names; None: the test set.
        dataset: what the run learned from.

    Raises:
        InputError: no such file, another one, or samples of another shape, type or range.
    """
    if path is None:
        return dataset.test_x, dataset.test_y
    if dataset.table is not None:
        if Path(path).suffix.lower() not in TABLES:
            raise InputError(f"data is {path!r}, but the run learned from a table: {' or '.join(TABLES)} files are.")
        if not Path(path).is_file():
            raise InputError(f"data is {path}, but there is no such file.")
        return more_rows(dataset, read_table(Path(path)), Path(path).name)
    readers = {".npz": _npz, ".csv": _csv}
    read = readers.get(Path(path).suffix)
    if read is None:
        raise InputError(f"data is {path!r}, but must be a file {' or '.join(readers)}.")
    try:
        x, y = read(path)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"data: {path} cannot be read ({error.strerror or error}).") from error
    except Exception as error:  # of a file of any bytes
        says = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(f"data: {path} is no {Path(path).suffix} file of numbers ({says}).") from error
    like = dataset.x
    if x.dtype == np.uint8 and like.dtype.kind == "f":
        x = x / np.float32(255)
    if x.dtype.kind not in "biuf" or x.ndim == 0 or not len(x):
        raise InputError(f"data: {path} has x of {x.dtype}{list(x.shape)}, but must have numbers, a row a sample.")
    if x.shape[1:] != like.shape[1:] and math.prod(x.shape[1:]) != math.prod(like.shape[1:]):
        raise InputError(
            f"data: samples of {path} are {list(x.shape[1:])}, but those of the run {list(like.shape[1:])}."
        )
    if not np.isfinite(x).all():
        raise InputError(f"data: sample {int(np.argwhere(~np.isfinite(x))[0][0])} of {path} is not finite.")
    if y is not None and (y.shape != (len(x), *dataset.y.shape[1:]) or y.dtype.kind not in "biuf"):
        shape = [len(x), *dataset.y.shape[1:]]
        raise InputError(f"data: y of {path} is {y.dtype}{list(y.shape)}, but must be numbers {shape}.")
    for name, a, integers in (("x", x, like.dtype.kind in "iu"), ("y", y, dataset.y.dtype.kind in "iu")):
        most = math.inf if dataset.classes is None else dataset.classes - 1
        if integers and a is not None and ((a != np.round(a)).any() or a.min() < 0 or a.max() > most):
            raise InputError(f"data: {name} of {path} is {a.min()} to {a.max()}, but must be whole, 0 to {most}.")
    return x.reshape(-1, *like.shape[1:]).astype(like.dtype), None if y is None else y.astype(dataset.y.dtype)


def _npz(path: str) -> tuple[np.ndarray, np.ndarray | None]:
    with np.load(path, allow_pickle=False) as file:
        if "x" not in file.files:
            raise InputError(f"data: {path} has {', '.join(file.files)}, but must have x, and y where it is known.")
        return file["x"], file[TARGET] if TARGET in file.files else None


def _csv(path: str) -> tuple[np.ndarray, np.ndarray | None]:
    first = pd.read_csv(path, header=None, nrows=1)
    numbers = all(first[c].dtype.kind in "biuf" for c in first)
    counted = len(first.columns) > 1 and numbers and first.iloc[0].tolist() == list(range(len(first.columns)))
    frame = pd.read_csv(path, header=None if numbers and not counted else 0)
    odd = [str(c) for c in frame if frame[c].dtype.kind not in "biuf"]
    if odd:
        raise InputError(f"data: column {odd[0]} of {path} holds other things than numbers.")
    y = frame.pop(TARGET).to_numpy() if TARGET in frame else None
    return frame.to_numpy(), y


def _said(task: Task, row: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Predictions of one model `[d]`, `[N, ...]`; the last samples are filled up, so that one program serves all."""
    one = task.predict
    if one is None:
        raise InputError("run: the task of this run has a loss but predicts nothing.")
    predict = jax.jit(lambda row, x: one(task.unravel(row), x))
    parts = []
    for start in range(0, len(x), AT_ONCE):
        part = x[start : start + AT_ONCE]
        full = np.concatenate([part, np.repeat(part[:1], min(AT_ONCE, len(x)) - len(part), 0)])
        parts.append(np.asarray(predict(row, full))[: len(part)])
    return np.concatenate(parts)


def table(said: np.ndarray, y: np.ndarray | None, dataset: Dataset) -> pd.DataFrame:
    """A row a sample: `target` where it is known, `prediction`, and of labels its `probability`.

    Labels are called as the data set calls them; several a sample are a column each, 0 or 1.
    """
    names, columns = dataset.class_names, {}
    if dataset.task == "multilabel":
        parts = {"target": y, "prediction": (said > 0).astype(int), "probability": 1 / (1 + np.exp(-said))}
    elif dataset.classes is None:
        parts, names = {"target": y, "prediction": said}, None
    else:
        sure = 1 / np.exp(said - said.max(-1, keepdims=True)).sum(-1)
        parts = {"target": y, "prediction": said.argmax(-1), "probability": sure}
        if names is not None:
            called = np.array(names, object)
            parts |= {part: called[a] for part, a in parts.items() if a is not None and part != "probability"}
            names = None
    for part, a in parts.items():
        if a is not None:
            rows = a.reshape(len(a), -1)
            end = [""] if rows.shape[1] == 1 else [f"_{names[i] if names else i}" for i in range(rows.shape[1])]
            columns |= {f"{part}{e}": rows[:, i] for i, e in enumerate(end)}
    return pd.DataFrame(columns)


def _score(task: Task, said: np.ndarray, y: np.ndarray | None) -> str:
    """How good predictions are, in words: their accuracy where the task has one."""
    if y is None or task.correct is None:
        return ""
    return f", accuracy {float(np.mean(task.correct(jnp.asarray(said), jnp.asarray(y)))):.4f},"
