"""Motion of people: smartwatch recordings by subject, read from a pickled NumPy file without unpickling it.

Unpickling runs whatever the file names. Here the file's instructions are listed by `pickletools.genops`, which runs
nothing, and followed by a machine that makes lists, dicts, tuples, numbers, strings and arrays of numbers, and no more.
"""

import io
import pickletools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxfl.data.files import byte_files, installed
from jaxfl.data.sets import Dataset, from_arrays
from jaxfl.errors import InputError

SIGNALS = ("ax", "ay", "az", "wx", "wy", "wz")  # acceleration and turning rate
FILE = "watch_dataset.npy"
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_VALUES = ("BININT", "BININT1", "BININT2", "BINUNICODE", "BINFLOAT")
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


class _Name(NamedTuple):
    """A function or class that the file names; it is never looked up."""

    name: str


class _Called:
    """What the file would make by a call: the name, the arguments and the state it is given."""

    def __init__(self, name: str, args: tuple):
        self.name, self.args = name, args
        self.state: Any = None


def read_numpy_pickle(raw: bytes) -> Any:
    """The value in a `.npy` file of one pickled object (protocol 2), without running anything of it.

    Made of lists, dicts, tuples, numbers, strings, and arrays of numbers or of one object.

    Raises:
        InputError: not such a file, or it asks for anything else, such as a call.
    """
    file = io.BytesIO(raw)
    try:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        value = _follow(raw[file.tell() :])
        return value.item() if isinstance(value, np.ndarray) and value.dtype == object else value
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"the .npy file holds no plain data of NumPy ({error}).") from error


def _follow(raw: bytes) -> Any:
    """The value that the instructions of a pickle of protocol 2 build from plain data."""
    stack: list[Any] = []
    memory: dict[Any, Any] = {}

    def since_mark() -> list:
        at = max(i for i, value in enumerate(stack) if value is _MARK)
        values = stack[at + 1 :]
        del stack[at:]
        return values

    for op, arg, _ in pickletools.genops(raw):
        name = op.name
        if name in _VALUES:
            stack.append(arg)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            values = tuple(stack[-_TUPLES[name] :])
            stack[-_TUPLES[name] :] = [values]
        elif name in ("BINPUT", "LONG_BINPUT"):
            memory[arg] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memory[arg])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in ("EMPTY_LIST", "EMPTY_DICT"):
            stack.append([] if name == "EMPTY_LIST" else {})
        elif name in ("APPEND", "APPENDS"):
            values = since_mark() if name == "APPENDS" else [stack.pop()]
            stack[-1].extend(values)
        elif name == "SETITEMS":
            values = since_mark()
            stack[-1].update(zip(values[::2], values[1::2], strict=True))
        elif name == "GLOBAL":
            stack.append(_Name(str(arg)))
        elif name == "REDUCE":
            args = stack.pop()
            stack[-1] = _made(stack[-1].name, args)
        elif name == "BUILD":
            state = stack.pop()
            stack[-1].state = state
        elif name not in ("PROTO", "STOP"):
            raise ValueError(f"it has the instruction {name}")
    return _plain(stack[-1])


def _made(name: str, args: tuple) -> Any:
    """What a call of `name` stands for: bytes, or a type or an array that gets its state later."""
    if name == "_codecs encode" and args[1] == "latin1":
        return args[0].encode("latin1")
    if name == "__builtin__ bytes" and not args:
        return b""
    known = ("numpy dtype", "numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
    if name not in known:
        raise ValueError(f"it calls {name}")
    return _Called(name, args)


def _plain(value: Any) -> Any:
    """`value` with arrays in place of the calls that make them."""
    if isinstance(value, dict):
        return {_plain(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple) and not isinstance(value, _Name):
        return type(value)(_plain(v) for v in value)
    if not isinstance(value, _Called):
        return value
    if value.state is None:
        raise ValueError("an array has no content")
    _, shape, kind, by_column, content = value.state
    code, order = kind.args[0], kind.state[1]
    if code == "O8":
        array = np.empty(shape, object)
        array.ravel()[:] = [_plain(v) for v in content]
        return array
    if code[0] not in "fiub":
        raise ValueError(f"an array has the type {code}")
    dtype = np.dtype(code).newbyteorder(order)
    return np.frombuffer(content, dtype).reshape(shape, order="F" if by_column else "C")


def smartwatch(
    source: str | Path | None = None, length: int = 100, stride: int | None = None, test_fraction: float = 0.2
) -> Dataset:
    """Which of seven shoulder exercises a smartwatch feels, the natural key is the subject (Burns et al., 2018).

    140 recordings of 10 people (arXiv 1802.01489), 20 repetitions each, acceleration and turning rate at 50 Hz. Inputs
    `[N, length, 6]` float32 are windows of one recording, not scaled; labels are exercises. The file is that of the
    PyPI package seglearn.

    Args:
        source: a wheel of seglearn, or a folder or zip with `watch_dataset.npy`, or that file; None finds an installed
            seglearn. The file is read as data: nothing is imported, unpickled or run.
        length: samples of a window, fiftieths of a second.
        stride: samples between the starts of two windows (default `length`).
        test_fraction: share at the end of each recording that is held out; no window crosses the cut.

    Raises:
        InputError: no such file, it holds anything but arrays, or an argument is out of range.
    """
    if length < 1 or (stride is not None and stride < 1):
        raise InputError(f"length={length} and stride={stride} must be at least 1.")
    if not 0 <= test_fraction < 1:
        raise InputError(f"test_fraction={test_fraction} must be in [0, 1).")
    source = installed("seglearn") if source is None else source
    files = byte_files(source, FILE)
    if not files:
        raise InputError(f"source={str(source)!r} holds no {FILE} of seglearn.")
    found = read_numpy_pickle(files[0][1])
    needed = ("X", "y", "subject")
    if not isinstance(found, dict) or not set(needed) <= set(found):
        raise InputError(f"{files[0][0]} must hold a dict with {', '.join(needed)}.")
    series, labels, subjects = (found[name] for name in needed)
    if not len(series) == len(labels) == len(subjects) or any(np.shape(s)[1:] != (len(SIGNALS),) for s in series):
        raise InputError(f"{files[0][0]} must hold a label and a subject for each series, [t, {len(SIGNALS)}].")
    cuts = [len(s) - int(len(s) * test_fraction) for s in series]
    train = [_windows(s[:cut], length, stride or length) for s, cut in zip(series, cuts, strict=True)]
    test = [_windows(s[cut:], length, stride or length) for s, cut in zip(series, cuts, strict=True)]
    counts, test_counts = ([len(w) for w in part] for part in (train, test))
    if not sum(counts) or not sum(test_counts):
        raise InputError(f"length={length} is longer than what every recording has for training or for the test.")
    return from_arrays(
        np.concatenate(train),
        np.repeat(labels, counts).astype(int),
        np.concatenate(test),
        np.repeat(labels, test_counts).astype(int),
        clients=np.repeat(subjects, counts).astype(int),
        test_clients=np.repeat(subjects, test_counts).astype(int),
        name="smartwatch",
    )


def _windows(series: np.ndarray, length: int, stride: int) -> np.ndarray:
    """`[w, length, signals]`: those that fit, one every `stride`."""
    starts = stride * np.arange(max(0, (len(series) - length) // stride + 1))
    return series[starts[:, None] + np.arange(length)]
