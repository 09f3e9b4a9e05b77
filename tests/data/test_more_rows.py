"""Rows that come after a table was learned from are encoded as its train rows were."""

import numpy as np
import pandas as pd
import pytest

from jaxfl import data
from jaxfl.commands.predict import samples
from jaxfl.data.frames import more_rows
from jaxfl.errors import InputError

RNG = np.random.default_rng(0)
FRAME = pd.DataFrame(
    {
        "age": RNG.normal(40, 9, 30),
        "job": RNG.choice(list("abc"), 30),
        "since": pd.Timestamp("2020-01-01") + pd.to_timedelta(RNG.integers(0, 900, 30), "D"),
        "ill": RNG.random(30) < 0.5,
        "who": RNG.integers(0, 4, 30),
        "rent": RNG.normal(600, 90, 30),
    }
)


@pytest.mark.parametrize("target", ["ill", "rent", ["ill"], ["rent", "age"]])
def test_rows_of_the_table_get_the_numbers_they_had(target):
    given = data.from_pandas(FRAME, target, "who", seed=3)
    x, y = more_rows(given, FRAME.sample(frac=1, random_state=1), "new")
    mine, there = (np.concatenate([a.reshape(len(a), -1), b.reshape(len(b), -1)], 1) for a, b in ((x, y), pairs(given)))
    np.testing.assert_array_equal(mine[np.lexsort(mine.T)], there[np.lexsort(there.T)])
    assert (x.dtype, y.dtype) == (given.x.dtype, given.y.dtype)


def pairs(given):
    return np.concatenate([given.x, given.test_x]), np.concatenate([given.y, given.test_y])


def test_a_file_needs_neither_target_nor_key_nor_an_order_of_columns(tmp_path):
    FRAME.to_csv(tmp_path / "all.csv", index=False)
    given = data.from_file(tmp_path / "all.csv", "ill", "who")
    FRAME[["job", "rent", "age", "since"]].head(5).to_csv(tmp_path / "new.csv")
    x, y = samples(str(tmp_path / "new.csv"), given)
    assert y is None
    np.testing.assert_array_equal(x, more_rows(given, pd.read_csv(tmp_path / "all.csv").head(5), "all")[0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.drop(columns="age"), "new.csv has no column 'age'"),
        (lambda f: f.assign(job="z"), "holds 'z' in line 2, which the train rows do not have"),
        (lambda f: f.assign(age=[np.nan, *f["age"][1:]]), "'age' has no value in 1 of 30 rows"),
        (lambda f: f.assign(age="old"), "column 'age' is a category, but in the train rows a number"),
        (lambda f: f.head(0), "new.csv has no rows"),
    ],
)
def test_other_rows_are_refused(tmp_path, change, says):
    given = data.from_pandas(FRAME, "ill", "who")
    change(FRAME).to_csv(tmp_path / "new.csv", index=False)
    with pytest.raises(InputError, match=says):
        samples(str(tmp_path / "new.csv"), given)


def test_a_run_on_a_table_takes_tables(tmp_path):
    given = data.from_pandas(FRAME, "ill")
    for name, says in (("x.npz", "learned from a table"), ("x.csv", "no such file")):
        with pytest.raises(InputError, match=says):
            samples(str(tmp_path / name), given)
