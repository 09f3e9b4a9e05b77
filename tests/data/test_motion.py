"""Recordings of a smartwatch: windows by subject, read from pickled arrays without unpickling."""

import io
import os
import pickle
import sys
import zipfile

import numpy as np
import pytest

from jaxfl import data
from jaxfl.data import motion
from jaxfl.errors import InputError
from jaxfl.options.config import Setup
from jaxfl.options.data import dataset_of, shards_of

LENGTHS, LABELS, SUBJECTS = (25, 40, 9), (0, 2, 1), (7, 3, 7)
SERIES = [np.random.default_rng(i).normal(size=(n, 6)) for i, n in enumerate(LENGTHS)]
CONTENT = {"X": SERIES, "y": np.array(LABELS), "subject": np.array(SUBJECTS), "names": ["a", "b"], "more": (1.5, None)}


def npy(value, protocol=2):
    """A `.npy` file of one pickled object, as NumPy 1 under Python 2 wrote it."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
    wrapped = np.empty((), object)
    wrapped[()] = value
    return file.getvalue() + pickle.dumps(wrapped, protocol)


def test_pickled_arrays_are_read_as_they_are():
    tables = [np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(4, dtype=">i2"), np.array([True, False])]
    tables += [np.zeros((0, 6)), np.array(3.5, np.float32), np.array([[1], [2]], np.uint8)]
    found = motion.read_numpy_pickle(npy(CONTENT | {"tables": tables}))
    assert (found["names"], found["more"]) == (["a", "b"], (1.5, None))
    for one, two in zip(found["X"] + found["tables"], SERIES + tables, strict=True):
        np.testing.assert_array_equal(one, two, strict=True)


class Caller:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def test_nothing_of_a_pickle_is_run(tmp_path):
    trap = tmp_path / "trap"
    for value in (
        Caller(os.system, f"touch {trap}"),
        {"X": [Caller(os.mkdir, str(trap))]},
        Caller(eval, "1 / 0"),
        np.array([Caller(os.mkdir, str(trap)), 1], object),
    ):
        with pytest.raises(InputError, match=r"no plain data of NumPy \(it calls"):
            motion.read_numpy_pickle(npy(value))
    assert not trap.exists()
    for raw in (npy(CONTENT)[:-400], npy(CONTENT, 4), b"no file", npy(np.array(["text"])), npy({1, 2}), npy(1)[:-9]):
        with pytest.raises(InputError, match="no plain data of NumPy"):
            motion.read_numpy_pickle(raw)


def test_smartwatch_is_cut_into_windows_by_subject(tmp_path, monkeypatch):
    package = tmp_path / "site" / "seglearn"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "data" / motion.FILE).write_bytes(npy(CONTENT))
    wheel = tmp_path / "seglearn.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(package / "data" / motion.FILE, f"seglearn/data/{motion.FILE}")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for source in (None, wheel, package, package / "data" / motion.FILE):
        d = data.smartwatch(source, length=5, test_fraction=0.3)
        assert (d.x.shape, d.test_x.shape, d.classes) == ((9, 5, 6), (3, 5, 6), 3)
        # 25 -> 18 + 7, 40 -> 28 + 12, 9 -> 7 + 2
        assert (d.y.tolist(), d.test_y.tolist()) == ([0] * 3 + [2] * 5 + [1], [0, 2, 2])
        assert (d.clients.tolist(), d.client_names) == ([1] * 3 + [0] * 5 + [1], [3, 7])
    assert "seglearn" not in sys.modules


def test_smartwatch_by_its_option(tmp_path):
    file, long = tmp_path / motion.FILE, [np.ones((250, 6)), np.ones((510, 6)), np.ones((510, 6))]
    file.write_bytes(npy(CONTENT | {"X": long}))
    setup = Setup(data="smartwatch", data_folder=str(file), partition="natural", nodes=10)
    d = dataset_of(setup)
    assert (d.x.shape, d.test_x.shape) == ((10, 100, 6), (2, 100, 6))
    np.testing.assert_array_equal(shards_of(setup, d).size, [4, 6])


def test_smartwatch_says_what_is_wrong(tmp_path):
    file = tmp_path / motion.FILE
    for value, message in (
        ([1], "must hold a dict with X, y, subject"),
        ({"X": SERIES, "y": np.array(LABELS)}, "must hold a dict"),
        (CONTENT | {"y": np.array([1])}, "a label and a subject for each series"),
        (CONTENT | {"X": [s[:, :2] for s in SERIES]}, r"series, \[t, 6\]"),
    ):
        file.write_bytes(npy(value))
        with pytest.raises(InputError, match=message):
            data.smartwatch(tmp_path)
    file.write_bytes(npy(CONTENT))
    for arguments, message in (
        ({"length": 0}, "length=0"),
        ({"stride": 0}, "stride=0"),
        ({"test_fraction": 1}, "test_fraction=1"),
        ({"length": 90}, "length=90"),
    ):
        with pytest.raises(InputError, match=message):
            data.smartwatch(file, **arguments)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no watch_dataset.npy"):
        data.smartwatch(tmp_path / "empty")
