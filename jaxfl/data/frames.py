"""Tables of mixed columns as data sets: pandas frames, and how each kind of column becomes numbers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxfl.data.sets import Dataset, from_arrays, split
from jaxfl.data.targets import TASKS
from jaxfl.errors import InputError, nearest

LABELS = 20  # distinct integers of a target up to which they are labels
WORDS = 100  # distinct strings of a column up to which they are categories


class Column(NamedTuple):
    """How one column becomes numbers, learned from the train rows."""

    name: Any
    kind: str  # "number", "bool", "date", "duration" or "category"
    mean: float = 0.0
    scale: float = 1.0
    words: tuple = ()  # of a category, sorted


class Table(NamedTuple):
    """How a table became a data set."""

    columns: tuple[Column, ...]
    target: tuple
    several: bool  # targets a sample


def from_pandas(
    frame: Any,
    target: Any,
    clients: Any = None,
    features: Sequence | None = None,
    *,
    test: Any = None,
    task: str | None = None,
    scale: bool = True,
    test_fraction: float = 0.2,
    seed: int = 0,
    name: str = "table",
) -> Dataset:
    """A data set from a pandas frame, one row a sample; `x` is `[N, columns]`.

    >>> import pandas as pd, jaxfl as fl
    >>> frame = pd.DataFrame({"age": [31, 45, 27, 60], "job": list("abac"), "ill": [True, False, False, True]})
    >>> d = fl.data.from_pandas(frame, target="ill", features=["age", "job"])
    >>> d.x.shape, d.classes, d.class_names
    ((3, 4), 2, [False, True])

    Numbers, and dates and durations in days, are brought to mean 0 and deviation 1 of the train rows; booleans are 0
    and 1; categories, and strings of which at most 100 differ, are a column of 0 and 1 for each value, in sorted order
    (`pandas.get_dummies`). Strings that are all ISO dates are dates.

    A target of strings, categories, booleans or at most 20 different integers is a label, and `class_names` its values,
    sorted; other numbers are a regression, and stay as they are. Several columns are a multilabel target where all
    are 0 and 1, else a regression of several values.

    Args:
        frame: the table.
        target: its column of the target, or a list of them.
        clients: its column of the natural key (user, hospital), of the test rows too if they have it; it is no feature
            unless `features` has it.
        features: columns of the inputs; by default all that are neither target nor key.
        test: a frame of the test rows; without it a part is split off.
        task: "classification", "regression" or "multilabel", where the target looks like another.
        scale: whether numbers are brought to mean 0 and deviation 1.
        test_fraction: as in `from_arrays`.
        seed: of the split.
        name: of the data set.

    Raises:
        InputError: an unknown or repeated column; a missing or infinite value; a value of another kind than its column,
            or that only the test rows have; strings too many for categories; a target that `task` does not fit.
    """
    several = isinstance(target, list | tuple)
    chosen = list(target) if several else [target]
    _check_columns(name, frame, [*chosen, *([] if clients is None else [clients]), *(features or [])])
    if features is None:
        features = [c for c in frame.columns if c not in (*chosen, clients)]
    features = list(features)
    if not features or len(set(features)) < len(features):
        raise InputError(f"{name}: features is {features}, but must be one or more columns, each once.")
    if both := [c for c in features if c in chosen]:
        raise InputError(f"{name}: column {both[0]!r} is a target, it cannot be a feature as well.")
    if task is not None and task not in TASKS[:3]:
        raise InputError(f"task is {task!r}: {nearest(str(task), TASKS[:3])}")
    if not len(frame):
        raise InputError(f"{name} has no rows.")
    if test is not None:
        title = f"test rows of {name}"
        _check_columns(title, test, [*chosen, *features])
    else:
        title = name
    y, kind, names = _target(name, frame[chosen], task, several)
    parts: Any = (frame, test)
    if test is None:
        train, rest = split(y, test_fraction, seed)
        parts, ys = (frame.iloc[train], frame.iloc[rest]), (y[train], y[rest])
    else:
        ys = (y, _target_as(title, test[chosen], kind, names, several))
    plan = [_column(name, frame[c], scale and parts[0][c]) for c in features]
    x, test_x = (
        np.concatenate([_encoded(t, part[c.name], c) for c in plan], 1)
        for t, part in zip((name, title), parts, strict=True)
    )
    known = {"classes": None if kind == "regression" else len(names or ()), "class_names": names}
    if clients is not None:
        _check_missing(name, frame[clients])
        known["clients"] = _keys(name, parts[0][clients])
        known |= {"test_clients": _keys(title, parts[1][clients])} if clients in parts[1].columns else {}
    made = from_arrays(x, ys[0], test_x, ys[1], task=kind, name=name, **known)
    return made._replace(table=Table(tuple(plan), tuple(chosen), several))


def more_rows(data: Dataset, frame: Any, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Inputs of further rows, as `from_pandas` made those of `data`, and their targets if all target columns are there.

    Raises:
        InputError: a missing column or value, one of another kind than its column, or that the train rows do not have.
    """
    columns, target, several = data.table
    _check_columns(name, frame, [c.name for c in columns])
    if not len(frame):
        raise InputError(f"{name} has no rows.")
    x = np.concatenate([_encoded(name, frame[c.name], c) for c in columns], 1)
    if not all(c in frame.columns for c in target):
        return x, None
    y = _target_as(name, frame[list(target)], data.task, data.class_names, several)
    return x, y.astype(data.y.dtype)


def _pandas() -> Any:
    import pandas

    return pandas


def _check_columns(title: str, frame: Any, asked: list) -> None:
    if not hasattr(frame, "columns") or not hasattr(frame, "iloc"):
        raise InputError(f"{title} is a {type(frame).__name__}, but must be a pandas frame.")
    if (twice := frame.columns[frame.columns.duplicated()]).size:
        raise InputError(f"{title} has two columns {twice[0]!r}, names must differ.")
    for c in asked:
        if c not in frame.columns:
            raise InputError(f"{title} has no column {c!r}: {nearest(str(c), map(str, frame.columns))}")


def _at(column: Any, where: np.ndarray) -> str:
    """Where the first of some rows is, in the words of the frame's index."""
    i = int(np.flatnonzero(where)[0])
    return f"{column.index.name if column.index.name == 'line' else 'row'} {column.index[i]}"


def _check_missing(title: str, column: Any) -> None:
    missing = column.isna().to_numpy()
    if missing.any():
        raise InputError(
            f"{title}: column {column.name!r} has no value in {missing.sum()} of {len(missing)} rows, first in "
            f"{_at(column, missing)}: fill it, or leave out rows or column."
        )


def _kind(title: str, column: Any) -> str:
    """What a column without missing values holds."""
    pd = _pandas()
    types = pd.api.types
    if isinstance(column.dtype, pd.CategoricalDtype):
        return "category"
    if types.is_bool_dtype(column):
        return "bool"
    if types.is_numeric_dtype(column) and not types.is_complex_dtype(column):
        return "number"
    if types.is_datetime64_any_dtype(column):
        return "date"
    if types.is_timedelta64_dtype(column):
        return "duration"
    kinds = [_type_of(v) for v in column]
    if len(set(kinds)) > 1:
        common = max(sorted(set(kinds)), key=kinds.count)
        odd = np.array([k != common for k in kinds])
        raise InputError(
            f"{title}: column {column.name!r} mixes {' and '.join(sorted(set(kinds)))}, first in {_at(column, odd)}: "
            f"{column[odd].tolist()[0]!r}."
        )
    if kinds[0] in ("number", "bool", "date"):
        return kinds[0]
    if kinds[0] != "string":
        raise InputError(f"{title}: column {column.name!r} holds values of type {kinds[0]}, which are no feature.")
    numbers = pd.to_numeric(column, errors="coerce").notna().to_numpy()
    if numbers.mean() > 0.5:
        odd = ~numbers if not numbers.all() else numbers
        raise InputError(
            f"{title}: column {column.name!r} holds {column[odd].tolist()[0]!r} in {_at(column, odd)}, "
            + (
                "among numbers."
                if not numbers.all()
                else "numbers as strings: convert it to numbers, or to a category."
            )
        )
    iso = column.astype(str).str.match(r"\d{4}-\d\d-\d\d([T ].*)?$").all()
    if iso and pd.to_datetime(column, errors="coerce", format="ISO8601", utc=True).notna().all():
        return "date"
    return "category"


def _type_of(value: Any) -> str:
    import datetime
    import decimal
    import numbers

    if isinstance(value, bool | np.bool_):
        return "bool"
    if isinstance(value, numbers.Real | decimal.Decimal):
        return "number"
    if isinstance(value, datetime.date):
        return "date"
    return "string" if isinstance(value, str) else type(value).__name__


def _numbers(title: str, column: Any, kind: str) -> np.ndarray:
    """Numbers, booleans, dates and durations (both in days) as float64 `[N]`."""
    pd = _pandas()
    if kind == "date":
        stamps = pd.to_datetime(column, utc=True, errors="coerce", format="ISO8601" if column.dtype != object else None)
        a = ((stamps - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(days=1)).to_numpy(float)
    elif kind == "duration":
        a = (column / pd.Timedelta(days=1)).to_numpy(float)
    else:
        a = column.astype(float).to_numpy(float)
    bad = ~(np.abs(a) <= np.finfo(np.float32).max)
    if bad.any():
        raise InputError(
            f"{title}: column {column.name!r} holds {column[bad].tolist()[0]} in {_at(column, bad)}, it must be finite."
        )
    return a


def _column(title: str, whole: Any, train: Any) -> Column:
    """What is learned of a column: its kind and values from all rows, mean and deviation from the `train` rows."""
    _check_missing(title, whole)
    kind = _kind(title, whole)
    if kind == "category":
        return Column(whole.name, kind, words=_words(title, whole))
    if kind == "bool" or train is False:
        return Column(whole.name, kind)
    values = _numbers(title, train, kind)
    deviation = float(values.std())
    return Column(whole.name, kind, float(values.mean()), deviation if deviation > 0 else 1.0)


def _words(title: str, column: Any) -> tuple:
    declared = hasattr(column, "cat")
    found = column.cat.categories.tolist() if declared else sorted(column.unique())
    if not declared and len(found) > WORDS:
        raise InputError(
            f"{title}: column {column.name!r} holds {len(found)} different strings, categories are at most {WORDS}: "
            "leave it out of features, or make it a pandas category."
        )
    return tuple(found)


def _encoded(title: str, column: Any, how: Column) -> np.ndarray:
    """The column as float32 `[N, 1]`, or `[N, words]`."""
    _check_missing(title, column)
    if how.kind == "category":
        codes = _codes(title, column, how.words)
        return (codes[:, None] == np.arange(len(how.words))).astype(np.float32)
    if len(column) and (kind := _kind(title, column)) != how.kind:
        raise InputError(f"{title}: column {column.name!r} is a {kind}, but in the train rows a {how.kind}.")
    values = (_numbers(title, column, how.kind) - how.mean) / how.scale
    return values.astype(np.float32)[:, None]


def _codes(title: str, column: Any, words: Sequence) -> np.ndarray:
    place = {word: i for i, word in enumerate(words)}
    codes = np.array([place.get(v, -1) for v in column], np.int64)
    if (unknown := codes < 0).any():
        raise InputError(
            f"{title}: column {column.name!r} holds {column[unknown].tolist()[0]!r} in {_at(column, unknown)}, which "
            "the train rows do not have."
        )
    return codes


def _target(title: str, frame: Any, task: str | None, several: bool) -> tuple[np.ndarray, str, list | None]:
    """Targets `[N]` or `[N, several]`, the task, and what labels stand for."""
    kinds = []
    for c in frame.columns:
        _check_missing(title, frame[c])
        kinds.append(_kind(title, frame[c]))
    if task is None:
        first = frame.iloc[:, 0]
        whole = kinds[0] == "number" and first.dtype.kind in "iu"
        label = kinds[0] in ("category", "bool") or (whole and first.nunique() <= LABELS)
        binary = all(
            k in ("bool", "number") and frame[c].isin([0, 1]).all() for k, c in zip(kinds, frame.columns, strict=True)
        )
        task = ("multilabel" if binary else "regression") if several else "classification" if label else "regression"
    names: list | None = None
    if task == "multilabel":
        names = list(frame.columns)
    elif task == "classification":
        if several:
            raise InputError(f"{title}: target is {list(frame.columns)}, but a classification has one column.")
        column = frame.iloc[:, 0]
        used = set(column)
        names = [w for w in _words(title, column) if w in used] if kinds[0] == "category" else sorted(used)
        if len(names) < 2:
            raise InputError(f"{title}: column {column.name!r} holds {names[0]!r} alone, labels must differ.")
        names = [getattr(v, "item", lambda v=v: v)() for v in names]
    return _target_as(title, frame, task, names, several), task, names


def _target_as(title: str, frame: Any, task: str, names: list | None, several: bool) -> np.ndarray:
    """Targets of a task that is known."""
    columns = [frame[c] for c in frame.columns]
    for column in columns:
        _check_missing(title, column)
    if task == "classification":
        return _codes(title, columns[0], names or [])
    parts = []
    for column in columns:
        kind = _kind(title, column)
        if kind not in ("number", "bool"):
            raise InputError(f"{title}: column {column.name!r} is a {kind}, but a {task} needs numbers.")
        parts.append(_numbers(title, column, kind))
        if task == "multilabel" and (odd := ~np.isin(parts[-1], (0, 1))).any():
            raise InputError(
                f"{title}: column {column.name!r} holds {column[odd].tolist()[0]} in {_at(column, odd)}, but labels "
                "of a multilabel target are 0 or 1."
            )
    if task == "multilabel":
        return np.stack(parts, 1).astype(np.int64)
    return np.stack(parts, 1) if several else parts[0]


def _keys(title: str, column: Any) -> np.ndarray:
    _check_missing(title, column)
    keys = column.tolist()
    try:
        sorted(set(keys))
    except TypeError as error:
        kinds = ", ".join(sorted({type(key).__name__ for key in keys}))
        raise InputError(f"{title}: column {column.name!r} holds keys of the types {kinds}, they must sort.") from error
    return np.array(keys, object)
