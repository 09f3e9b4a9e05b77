"""What a target is: labels, real numbers, several labels a sample, tokens; arrays of numbers, checked."""

from typing import Any

import numpy as np

from jaxfl.errors import InputError, nearest

TASKS = ("classification", "regression", "multilabel", "language_model")  # each a function of `learn.task`
MANY = 100  # labels that need no proof of being labels
INT32_MAX = np.iinfo(np.int32).max


def array(name: str, value: Any) -> np.ndarray:
    """The value as an array of numbers with at least one axis, else InputError."""
    try:
        a = np.asarray(value)
    except ValueError as error:
        raise InputError(f"{name} must be one array, its rows differ in shape ({error}).") from error
    if a.dtype.kind not in "biuf":
        raise InputError(f"{name} has dtype {a.dtype}, it must hold numbers.")
    if a.ndim == 0:
        raise InputError(f"{name} is a single number, it must have a leading axis of samples.")
    return a


def floats(name: str, a: np.ndarray) -> np.ndarray:
    """As float32, else InputError for what is not finite there."""
    with np.errstate(over="ignore"):
        a = a.astype(np.float32, copy=False)
    bad = a.size - np.count_nonzero(np.isfinite(a))
    if bad:
        raise InputError(f"{name} holds {bad} NaN or infinite values as float32, all must be finite.")
    return a


def integers(name: str, a: np.ndarray, bound: int, what: str) -> np.ndarray:
    """As int32, else InputError for one outside 0 .. bound - 1."""
    if a.size and (a.min() < 0 or a.max() >= bound):
        raise InputError(f"{name} holds {what} from {a.min()} to {a.max()}, allowed are 0 to {bound - 1}.")
    return a.astype(np.int32, copy=False)


def asked(task: str | None, y: np.ndarray) -> np.ndarray:
    """Targets in the type of the `task` that is asked for: integers may be numbers, whole floats may be labels."""
    if task == "regression":
        return y.astype(float)
    return y.astype(np.int64) if task == "classification" and y.dtype.kind == "f" and _whole(y).all() else y


def checked(
    task: str | None, y: np.ndarray, test_y: np.ndarray, classes: int | None, tokens: np.ndarray | None
) -> tuple[str, np.ndarray, np.ndarray, int | None]:
    """The task, train and test targets in the type it needs, and the number of classes (None for a regression).

    Args:
        task: one of `TASKS`, or None for what the targets look like (`sets.from_arrays`).
        y: `[N, ...]`.
        test_y: `[M, ...]`.
        classes: as it was given.
        tokens: the inputs, if they are tokens.

    Raises:
        InputError: what does not fit together.
    """
    parts = {"y": y, "test_y": test_y}
    task = _task_of(task, y, test_y, classes, tokens)
    if task == "regression":
        if classes is not None:
            raise InputError(f"classes={classes}, but a regression has none.")
        return task, floats("y", y), floats("test_y", test_y), None
    for name, a in parts.items():
        if not (whole := _whole(a)).all():
            raise InputError(f"{name} holds {a[~whole][0]}, but labels must be integers.")
    if task == "multilabel":
        if y.ndim != 2 or not _binary(y, test_y):
            raise InputError(f"y has shape {y.shape}, a multilabel target is a table [N, labels] of 0 and 1.")
        if classes not in (None, y.shape[1]):
            raise InputError(f"classes={classes}, but y has {y.shape[1]} labels a sample.")
        return task, y.astype(np.int32), test_y.astype(np.int32), y.shape[1]
    if classes is not None and classes < 1:
        raise InputError(f"classes={classes} must be at least 1.")
    low, most = min(int(a.min()) for a in parts.values() if a.size), max(int(a.max()) for a in parts.values() if a.size)
    bound = max(MANY, len(y) + len(test_y))
    if classes is None and y.ndim == 1 and (low < 0 or most >= bound):
        raise InputError(
            f"y holds labels from {low} to {most}, allowed are 0 to {bound - 1} with so few samples: numbers need "
            "task='regression', more labels classes=."
        )
    y, test_y = (integers(k, a, classes or INT32_MAX, "labels") for k, a in parts.items())
    return task, y, test_y, classes or 1 + most


def _task_of(
    task: str | None, y: np.ndarray, test_y: np.ndarray, classes: int | None, tokens: np.ndarray | None
) -> str:
    if task is not None and task not in TASKS:
        raise InputError(f"task is {task!r}: {nearest(str(task), TASKS)}")
    follows = tokens is not None and y.ndim == 2 and y.shape == tokens.shape
    if task == "language_model" and not follows:
        raise InputError(f"y has shape {y.shape}, a language model needs tokens=True and y of the shape of x.")
    if task is not None:
        return task
    if "f" in (y.dtype.kind, test_y.dtype.kind):
        if classes is not None:
            raise InputError(f"y has dtype {y.dtype} with classes={classes}, labels must be integers.")
        return "regression"
    if follows:
        return "language_model"
    table = y.ndim == 2 and y.shape[1] > 1 and classes is None and tokens is None
    return "multilabel" if table and _binary(y, test_y) else "classification"


def _whole(a: np.ndarray) -> np.ndarray:
    return a == np.floor(a) if a.dtype.kind == "f" else np.ones(a.shape, bool)


def _binary(*parts: np.ndarray) -> bool:
    return all(np.isin(a, (0, 1)).all() for a in parts)
