import datetime

import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import StandardScaler

from jaxfl import data
from jaxfl.errors import InputError

N = 30
RNG = np.random.default_rng(0)
FRAME = pd.DataFrame(
    {
        "age": RNG.integers(18, 90, N),
        "pay": pd.array(RNG.normal(2000, 300, N), "Float64"),
        "job": np.array(["baker", "nurse", "clerk"])[RNG.integers(0, 3, N)],
        "size": pd.Categorical(["S", "L"] * (N // 2), categories=["S", "M", "L"]),
        "ill": pd.array([True, False, True] * (N // 3), "boolean"),
        "since": pd.date_range("2020-02-27 12:00", periods=N, freq="36h", tz="Europe/Berlin"),
        "born": [f"19{50 + i}-03-01" for i in range(N)],
        "wait": pd.to_timedelta(RNG.integers(1, 99, N), unit="h"),
        "clinic": ["x", "y", "z"] * (N // 3),
        "risk": RNG.integers(0, 100, N),
        "grade": RNG.integers(3, 6, N),
    }
)


def every(d):
    """Train and test rows together, sorted by what the target was made unique for."""
    return np.concatenate([d.x, d.test_x])


def test_columns_are_those_of_pandas_and_scikit_learn():
    frame = FRAME.assign(key=np.arange(float(N)))
    inputs = ["age", "pay", "job", "size", "ill", "since", "born", "wait"]
    d = data.from_pandas(frame, "key", features=inputs, test_fraction=0.2, seed=3)
    order = np.argsort(np.concatenate([d.y, d.test_y]))
    got, train = every(d)[order], np.sort(d.y).astype(int)
    assert (d.task, d.classes, len(d.test_y)) == ("regression", None, 6)
    days = lambda v: pd.to_datetime(v, utc=True).astype("datetime64[ns, UTC]").astype("int64") / 86_400e9
    hours = FRAME["wait"] / pd.Timedelta(hours=1)
    numbers = np.stack([FRAME["age"], FRAME["pay"].astype(float), days(FRAME["since"]), days(FRAME["born"]), hours], 1)
    want = StandardScaler().fit(numbers[train]).transform(numbers)
    dummies = pd.get_dummies(FRAME[["job", "size"]]).to_numpy(float)
    np.testing.assert_allclose(got[:, [0, 1, 9, 10, 11]], want, atol=2e-6)
    np.testing.assert_array_equal(got[:, 2:8], dummies)
    np.testing.assert_array_equal(got[:, 8], FRAME["ill"].astype(float))
    raw = data.from_pandas(frame, "key", features=["age"], scale=False)
    np.testing.assert_array_equal(np.sort(every(raw)[:, 0]), np.sort(FRAME["age"]))


def test_targets_and_keys():
    d = data.from_pandas(FRAME, "job", "clinic")
    assert (d.task, d.class_names, d.classes) == ("classification", ["baker", "clerk", "nurse"], 3)
    assert d.client_names == ["x", "y", "z"]
    assert (len(d.clients), len(d.test_clients)) == (24, 6)
    assert d.x.shape[1] == 11  # neither target nor key
    assert data.from_pandas(FRAME, "grade", features=["age"]).class_names == sorted(set(FRAME["grade"].tolist()))
    assert data.from_pandas(FRAME, "risk", features=["age"]).task == "regression"
    real = data.from_pandas(FRAME, "grade", features=["age"], task="regression")
    assert set(np.unique(np.concatenate([real.y, real.test_y]))) == set(FRAME["grade"])
    assert real.y.dtype == np.float32
    both = FRAME.assign(a=FRAME["grade"] == 4, b=(FRAME["risk"] > 50).astype(int))
    several = data.from_pandas(both, ["a", "b"], features=["age"], test=both)
    assert (several.task, several.class_names) == ("multilabel", ["a", "b"])
    np.testing.assert_array_equal(several.y, both[["a", "b"]].astype(int))
    np.testing.assert_array_equal(several.test_y, several.y)
    two = data.from_pandas(FRAME, ["age", "risk"], features=["pay"])
    assert (two.task, two.y.shape) == ("regression", (24, 2))


@pytest.mark.parametrize(
    ("change", "arguments", "says"),
    [
        ({}, {"target": "jobb"}, "table has no column 'jobb': did you mean job?"),
        ({}, {"features": ["age", "pai"]}, "no column 'pai': did you mean pay"),
        ({}, {"features": ["grade"]}, "column 'grade' is a target"),
        ({}, {"features": []}, r"features is \[\]"),
        ({}, {"task": "ranking"}, "task is 'ranking'"),
        ({"pay": [1.0, None, *[2.0] * 28]}, {}, "column 'pay' has no value in 1 of 30 rows, first in row 1"),
        ({"job": ["a", "b", None, *["a"] * 27]}, {}, "column 'job' has no value in 1 of 30 rows, first in row 2"),
        ({"clinic": [None, *["a"] * 29]}, {"clients": "clinic"}, "column 'clinic' has no value in 1 of 30"),
        ({"grade": [np.nan, *[1.0] * 29]}, {}, "column 'grade' has no value"),
        ({"pay": [1.0, 2.0, np.inf, *[2.0] * 27]}, {}, "column 'pay' holds inf in row 2, it must be finite"),
        ({"pay": [1, "2,5", *[2] * 28]}, {}, "column 'pay' mixes number and string, first in row 1: '2,5'"),
        ({"pay": ["1", "2,5", *["2"] * 28]}, {}, "column 'pay' holds '2,5' in row 1, among numbers"),
        ({"pay": ["1"] * 30}, {}, "numbers as strings"),
        ({"job": [f"j{i}" for i in range(30)] * 4}, {"repeat": 4}, None),
        ({"job": [f"j{i}" for i in range(120)]}, {"repeat": 4}, "column 'job' holds 120 different strings"),
        ({"job": [[1]] * 30}, {}, "column 'job' holds values of type list"),
        ({"pay": [1j] * 30}, {}, "column 'pay' holds values of type complex"),
        ({"job": ["a"] * 30}, {"target": "job"}, "column 'job' holds 'a' alone"),
        ({}, {"target": ["job", "age"]}, "column 'job' is a category, but a regression needs numbers"),
        ({}, {"target": ["grade", "ill"], "task": "multilabel"}, "column 'grade' holds . in row 0, but labels of"),
        ({"clinic": ["a", 1] * 15}, {"clients": "clinic", "features": ["age"]}, "keys of the types int, str"),
        ({}, {"target": "born", "task": "regression"}, "column 'born' is a date, but a regression needs numbers"),
    ],
)
def test_what_a_table_cannot_be_is_named(change, arguments, says):
    arguments = {"target": "grade"} | arguments
    frame = pd.concat([FRAME] * arguments.pop("repeat", 1), ignore_index=True).assign(**change)
    if says is None:
        data.from_pandas(frame, **arguments)
        return
    with pytest.raises(InputError, match=says):
        data.from_pandas(frame, **arguments)


def test_test_rows_are_read_as_the_train_rows_were():
    train, test = FRAME[:20], FRAME[20:]
    d = data.from_pandas(train, "grade", "clinic", ["age", "job"], test=test)
    want = (test["age"] - train["age"].mean()) / train["age"].std(ddof=0)
    np.testing.assert_allclose(d.test_x[:, 0], want, atol=1e-6)
    assert [d.client_names[k] for k in d.test_clients] == test["clinic"].tolist()
    for change, says in (
        (
            {"job": "pilot"},
            "test rows of table: column 'job' holds 'pilot' in row 20, which the train rows do not have",
        ),
        ({"grade": 9}, "test rows of table: column 'grade' holds 9"),
        ({"age": "old"}, "test rows of table: column 'age' is a category, but in the train rows a number"),
    ):
        with pytest.raises(InputError, match=says):
            data.from_pandas(train, "grade", features=["age", "job"], test=test.assign(**change))
    with pytest.raises(InputError, match="test rows of table has no column 'job'"):
        data.from_pandas(train, "grade", features=["job"], test=test.drop(columns="job"))
    with pytest.raises(InputError, match="two columns 'age'"):
        data.from_pandas(pd.concat([FRAME, FRAME[["age"]]], axis=1), "grade")
    with pytest.raises(InputError, match="is a dict, but must be a pandas frame"):
        data.from_pandas({"a": [1]}, "a")
    with pytest.raises(InputError, match="has no rows"):
        data.from_pandas(FRAME[:0], "grade")


def test_dates_of_pythons_own_type_are_dates():
    frame = pd.DataFrame({"d": [datetime.date(2020, 1, 1 + i) for i in range(6)], "y": np.arange(6.0)})
    d = data.from_pandas(frame, "y", scale=False, test=frame)
    np.testing.assert_array_equal(d.x[:, 0], 18262 + np.arange(6))
