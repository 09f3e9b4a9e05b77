"""Data sets of other libraries, by what they look like: Hugging Face `datasets` and PyTorch map-style data sets.

Neither library is imported. Images of 8 bits become numbers in [0, 1].
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxfl.data.folders import pixels
from jaxfl.data.frames import from_pandas
from jaxfl.data.sets import Dataset, from_arrays
from jaxfl.errors import InputError, nearest

TEST_SPLITS = ("test", "validation", "valid", "val", "dev")  # the first one that is there is the test set
CHANNELS = (1, 3, 4)


def from_hugging_face(
    ds: Any,
    x: str | Sequence[str] = "image",
    y: str | Sequence[str] = "label",
    *,
    test: Any = None,
    clients: str | None = None,
    tokens: bool = False,
    task: str | None = None,
    size: int | tuple[int, int] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    name: str = "hugging face",
) -> Dataset:
    """A data set from columns of a Hugging Face `datasets.Dataset`, or of anything where `ds[column]` is a sequence.

    >>> import jaxfl as fl
    >>> rows = {"age": [31, 45, 27, 60], "job": list("abac"), "rent": [610.0, 720.5, 580.0, 900.0]}
    >>> fl.data.from_hugging_face({"train": rows, "test": rows}, x=["age", "job"], y="rent").test_x.shape
    (4, 4)

    A `DatasetDict` is its split `train` and, as the test set, `test` or else `validation`. A column of images holds
    arrays, pictures of Pillow, or their undecoded bytes. A list of columns as `x` is a table (`from_pandas`). Where
    `ds.features[y].num_classes` exists it sets the number of classes, and `names` beside it what they stand for.

    Args:
        ds: the data set, or its splits.
        x: column of the inputs, or a list of columns.
        y: column of the targets; in a table also a list of them.
        test: the test split, if `ds` has none; without one a part is split off.
        clients: column of the natural key (writer, user).
        tokens: as in `from_arrays`.
        task: as in `from_arrays`.
        size: (height, width), or one number for both, to which images are resized.
        test_fraction: as in `from_arrays`.
        seed: as in `from_arrays`.
        name: as in `from_arrays`.

    Raises:
        InputError: no such column or split, rows that differ in shape, and what `from_arrays` or `from_pandas` refuses.
    """
    columns = [x] if isinstance(x, str) else list(x)
    splits = isinstance(ds, Mapping) and not any(c in ds for c in columns)
    if splits and "train" in ds:
        found = [split for split in TEST_SPLITS if split in ds]
        test = ds[found[0]] if test is None and found else test
        ds = ds["train"]
    elif splits and ds and all(hasattr(part, "features") for part in ds.values()):
        raise InputError(f"ds has the splits {', '.join(map(str, ds))}, but no train.")
    known: dict[str, Any] = {"task": task, "test_fraction": test_fraction, "seed": seed, "name": name}
    if not isinstance(x, str):
        import pandas as pd

        several = [y] if isinstance(y, str) else list(y)
        asked = [*columns, *several]
        frame = pd.DataFrame({c: list(_values(ds, c)) for c in [*asked, *([clients] if clients else [])]})
        kept = [*asked, *([clients] if clients and test is not None and clients in _names(test) else [])]
        rest = None if test is None else pd.DataFrame({c: list(_values(test, c)) for c in kept})
        return from_pandas(frame, y if isinstance(y, str) else several, clients, columns, test=rest, **known)
    if not isinstance(y, str):
        raise InputError(f"y is {list(y)}, but several targets need a table: x=[{x!r}].")
    label = (getattr(ds, "features", None) or {}).get(y)
    classes, names = getattr(label, "num_classes", None), getattr(label, "names", None)
    return from_arrays(
        _stacked(x, _values(ds, x), tokens, size),
        _stacked(y, _values(ds, y), True),
        None if test is None else _stacked(x, _values(test, x), tokens, size),
        None if test is None else _stacked(y, _values(test, y), True),
        classes=classes,
        class_names=None if names is None else list(names),
        clients=None if clients is None else np.array(list(_values(ds, clients)), object),  # NumPy reads NaN as "nan"
        test_clients=None
        if clients is None or test is None or clients not in _names(test)
        else np.array(list(_values(test, clients)), object),
        tokens=tokens,
        **known,
    )


def from_torch(
    ds: Any,
    test: Any = None,
    *,
    clients: Any = None,
    tokens: bool = False,
    task: str | None = None,
    size: int | tuple[int, int] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    name: str = "torch",
) -> Dataset:
    """A data set from a map-style data set of PyTorch: `len(ds)`, and `ds[i]` is a pair (x, y).

    >>> import jaxfl as fl
    >>> pairs = [([0.0, 1.0], 0), ([1.0, 0.0], 1), ([1.0, 1.0], 1), ([0.0, 0.0], 0)]
    >>> fl.data.from_torch(pairs, test=pairs).x.shape
    (4, 2)

    Samples may be tensors, arrays, numbers or pictures of Pillow. Images with channels first, `[1, 3 or 4, h, w]`,
    become `[h, w, channels]`, which the networks here take.

    Args:
        ds: the train set.
        test: the test set; without one a part is split off.
        clients: natural key of each train sample, `[N]`.
        tokens: as in `from_arrays`.
        task: as in `from_arrays`.
        size: (height, width), or one number for both, to which pictures of Pillow are resized.
        test_fraction: as in `from_arrays`.
        seed: as in `from_arrays`.
        name: as in `from_arrays`.

    Raises:
        InputError: no length or no pairs, samples that differ in shape, and what `from_arrays` refuses.
    """

    def read(title: str, source: Any) -> tuple[np.ndarray, np.ndarray]:
        if not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
            raise InputError(f"{title} is a {type(source).__name__}, but must have a length and samples by number.")
        pairs = [source[i] for i in range(len(source))]
        if bad := [i for i, pair in enumerate(pairs) if not isinstance(pair, tuple | list) or len(pair) != 2]:
            raise InputError(f"{title}[{bad[0]}] is a {type(pairs[bad[0]]).__name__}, but must be a pair (x, y).")
        if not pairs:
            raise InputError(f"{title} has no samples.")
        x, y = (list(part) for part in zip(*pairs, strict=True))
        a = _stacked(f"x of {title}", x, tokens, size)
        first = a.ndim == 4 and a.shape[1] in CHANNELS and a.shape[3] not in CHANNELS and not tokens
        return np.moveaxis(a, 1, 3) if first else a, _stacked(f"y of {title}", y, True)

    rest = (None, None) if test is None else read("test", test)
    known: dict[str, Any] = {"task": task, "test_fraction": test_fraction, "seed": seed, "name": name}
    return from_arrays(*read("ds", ds), *rest, clients=clients, tokens=tokens, **known)


def _names(source: Any) -> list:
    """The columns of a data set, as far as it tells."""
    known = list(source) if isinstance(source, Mapping) else []
    return list(getattr(source, "column_names", getattr(source, "columns", known)))


def _values(source: Any, column: str) -> Any:
    try:
        return source[column]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"ds has no column {column!r}: {nearest(str(column), map(str, _names(source)))}") from error


def _stacked(title: str, values: Any, as_they_are: bool, size: int | tuple[int, int] | None = None) -> np.ndarray:
    """Samples as one array; those of 8 bits, unless they stay `as_they_are`, are divided by 255."""
    if isinstance(values, np.ndarray) and values.dtype != object:
        a = values
    else:
        rows = [_one(v, size) for v in values]
        if odd := [i for i, row in enumerate(rows) if row.shape != rows[0].shape]:
            i = odd[0]
            picture = "; size= resizes pictures" if rows[0].ndim in (2, 3) else ""
            raise InputError(
                f"column {title!r} must hold rows of one shape, but sample 0 has {list(rows[0].shape)} and sample "
                f"{i} has {list(rows[i].shape)}{picture}."
            )
        if bad := [i for i, row in enumerate(rows) if row.dtype.kind not in "biuf"]:
            raise InputError(f"column {title!r} holds {values[bad[0]]!r} in sample {bad[0]}, it must hold numbers.")
        a = np.stack(rows) if rows else np.zeros(0)
    return a / np.float32(255) if a.dtype == np.uint8 and not as_they_are else a


def _one(value: Any, size: int | tuple[int, int] | None) -> np.ndarray:
    """A tensor, an array, a picture, its bytes, a number or a list as an array."""
    picture: Any = _decoded(value["bytes"]) if isinstance(value, dict) and value.get("bytes") is not None else value
    if hasattr(picture, "convert") and hasattr(picture, "resize"):
        return pixels(picture, size)
    a = picture.detach().cpu() if hasattr(picture, "detach") else picture  # of a graph, maybe on a device
    try:
        return np.asarray(a.numpy() if hasattr(a, "numpy") else a)
    except ValueError as error:
        raise InputError(f"a sample is a {type(value).__name__} whose rows differ in shape ({error}).") from error


def _decoded(data: bytes) -> Any:
    from PIL import Image

    try:
        return Image.open(io.BytesIO(data))
    except OSError as error:
        raise InputError(f"a sample of {len(data)} bytes is no image ({str(error).rstrip('.')}).") from error
