"""A user's own data on the command line: what is made of them, refused, and kept in a config."""

import dataclasses
import re

import jax
import numpy as np
import pandas as pd
import pytest

from jaxfl.commands import results
from jaxfl.errors import InputError
from jaxfl.learn.task import scores
from jaxfl.options import kept
from jaxfl.options.build import prepare
from jaxfl.options.config import Setup

TINY = Setup(nodes=6, rounds=2, seeds=1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng, n = np.random.default_rng(0), 120
    rooms = rng.integers(1, 6, n)
    frame = {"rooms": rooms, "city": rng.choice(["Bonn", "Ulm"], n), "agent": rng.integers(0, 8, n)}
    frame |= {"rent": rooms + rng.random(n), "dear": np.where(rooms > 3, "yes", "no"), "a": rooms > 2, "b": rooms < 2}
    pd.DataFrame(frame).to_csv("flats.csv", index=False)
    np.savez("arrays.npz", x=rng.normal(size=(n, 12, 14, 3)), y=np.arange(n) % 3)
    np.savez("tokens.npz", x=rng.integers(0, 7, (n, 5)), y=rng.integers(0, 7, (n, 5)))
    return tmp_path


TABLE = {"data": "flats.csv", "features": "rooms,city"}


@pytest.mark.parametrize(
    ("options", "task", "filled", "dim", "pictures"),
    [
        (TABLE | {"target": "rent"}, "regression", ("dirichlet", "mlp"), 81, {"values"}),
        (
            TABLE | {"target": "rent", "model": "linear", "bins": 4},
            "regression",
            ("dirichlet", "linear"),
            4,
            {"values"},
        ),
        (TABLE | {"target": "dear", "model": "logistic"}, "classification", ("dirichlet", "logistic"), 8, {"labels"}),
        (TABLE | {"target": "dear", "client_column": "agent"}, "classification", ("natural", "mlp"), 98, {"labels"}),
        (TABLE | {"target": "a,b"}, "multilabel", ("dirichlet", "mlp"), 98, {"labels", "labels-per-sample"}),
        (TABLE | {"target": "agent", "task": "regression"}, "regression", ("dirichlet", "mlp"), 81, {"values"}),
        (TABLE | {"target": "rent,agent"}, "regression", ("iid", "mlp"), 98, {"values"}),
        ({"data": "arrays.npz", "model": "cnn"}, "classification", ("dirichlet", "cnn"), None, {"labels"}),
        ({"data": "tokens.npz"}, "language_model", ("iid", "transformer"), None, set()),
    ],
)
def test_the_task_the_model_and_the_partition_follow_from_the_data(options, task, filled, dim, pictures, folder):
    setup = dataclasses.replace(TINY, **options)
    world = prepare(setup, ["fedavg"])
    assert world.dataset.task == task
    assert (world.setup.partition, world.setup.model) == filled
    assert dim in (None, world.task.dim)
    assert world.data.size.shape == (6,)
    value = jax.eval_shape(
        lambda r: scores(world.task, r, world.dataset.test_x, world.dataset.test_y),
        np.zeros(world.task.dim, np.float32),
    )
    assert ("accuracy" in value) == (task != "regression")
    (folder / "out").mkdir()
    results.describe(world, {}, folder / "out")
    assert {p.stem for p in (folder / "out").glob("*.png")} == pictures


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"data": "flats.csv"}, "target is missing, but data flats.csv is a table: --target names"),
        ({"data": "cars.csv", "target": "rent"}, "data is cars.csv, but there is no such file"),
        ({"data": "./cars"}, "data is cars, but is neither a folder that exists nor a file .npz"),
        ({"data": "cars"}, "data 'cars' is unknown"),
        (
            {"data": "digits", "target": "y"},
            "target is y, but data digits does not read it: your own .csv, .parquet do.",
        ),
        ({"data": "digits", "task": "regression"}, "task is regression, but data digits does not read it"),
        (
            {"data": "flats.csv", "target": "rent", "image_size": 8},
            "image_size is 8, but data flats.csv does not read it: a",
        ),
        ({"data": "arrays.npz", "client_column": "agent"}, "client_column is agent, but data arrays.npz"),
        (TABLE | {"target": "rnt"}, "flats.csv has no column 'rnt': did you mean rent"),
        (
            TABLE | {"target": "rent", "model": "logistic"},
            "model is logistic, but data flats.csv is a regression: mlp, cnn",
        ),
        (TABLE | {"target": "rent", "model": "cnn"}, "model is cnn, but data flats.csv has 3 features, not square"),
        (TABLE | {"target": "dear", "model": "linear"}, "model is linear, but data flats.csv is a classification: mlp"),
        (TABLE | {"target": "dear", "model": "transformer"}, "model is transformer, but data flats.csv is a classif"),
        (TABLE | {"target": "dear", "bins": 4}, "bins is 4, but data flats.csv is a classification: targets of"),
        (TABLE | {"target": "rent", "bins": 4, "partition": "iid"}, "bins is 4, but partition iid does not read it"),
        (
            TABLE | {"target": "dear", "partition": "natural"},
            "partition is natural, but data flats.csv has no natural key",
        ),
        (
            TABLE | {"target": "a,b", "task": "classification"},
            "target is ['a', 'b'], but a classification has one column",
        ),
        (
            {"data": "tokens.npz", "partition": "dirichlet"},
            "partition is dirichlet, but data tokens.npz has no one label",
        ),
        (
            {"data": "tokens.npz", "model": "mlp"},
            "model is mlp, but data tokens.npz is a language model: transformer fit",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(options, says, folder):
    with pytest.raises(InputError, match=re.escape(says)) as error:
        prepare(dataclasses.replace(TINY, **options), ["fedavg"])
    assert "\n" not in str(error.value)


def test_a_config_keeps_where_the_data_were_and_what_they_were(folder, monkeypatch):
    setup = dataclasses.replace(TINY, **TABLE, target="rent")
    (folder / "c.toml").write_text(kept.saved("run", ["fedavg"], setup, setup))
    monkeypatch.chdir("/")
    systems, again = kept.load(folder / "c.toml")
    assert (systems, again.data) == (["fedavg"], str(folder / "flats.csv"))
    prepare(again, systems)
    with (folder / "flats.csv").open("a") as file:
        file.write("1,Ulm,3,2.0,no,False,True\n")
    with pytest.raises(InputError, match=r"flats.csv is not the file that .*c.toml was written with"):
        kept.load(folder / "c.toml")


def test_a_line_says_what_the_data_were_taken_for(folder, capsys):
    prepare(dataclasses.replace(TINY, **TABLE, target="dear", client_column="agent"), ["fedavg"])
    prepare(dataclasses.replace(TINY, **TABLE, target="rent", model="linear"), ["fedavg"])
    first, second = capsys.readouterr().err.splitlines()
    want = "jaxfl: flats.csv, classification of 2 labels: 96 train and 24 test samples of shape [3], 8 clients."
    assert first == want
    assert re.fullmatch(r"jaxfl: flats.csv, regression of targets from 1\S* to 5\S*: 96 train and .*", second)


def test_a_folder_is_kept_by_the_names_and_contents_in_it(folder):
    (folder / "imgs" / "a").mkdir(parents=True)
    (folder / "imgs" / "a" / "0.png").write_text("0")
    (folder / "c.toml").write_text(kept.saved("run", ["fedavg"], dataclasses.replace(TINY, data="imgs"), TINY))
    assert kept.load(folder / "c.toml")[1].data == str(folder / "imgs")
    (folder / "imgs" / "a" / "0.png").rename(folder / "imgs" / "a" / "1.png")
    with pytest.raises(InputError, match="imgs is not the file"):
        kept.load(folder / "c.toml")
