"""`jaxfl predict`: the model of a run on its test set and on files of samples."""

import shutil
from functools import cache

import jax
import numpy as np
import pandas as pd
import pytest
from common import jaxfl

from jaxfl import data
from jaxfl.commands import predict
from jaxfl.engine.saved import load_model, save_model
from jaxfl.learn.task import logistic_regression

SMALL = ["--nodes", "6", "--data", "digits", "--model", "logistic", "--rounds", "2", "--seeds", "2", "--seed", "3"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a comparison; the digits are read once."""
    memory, folder = jax.config.jax_compilation_cache_dir, tmp_path_factory.mktemp("predict") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_NUM_CPU_DEVICES", "1")
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(data, "digits", cache(data.digits))
        assert jaxfl("compare", "fedavg:lr=0.3", "dsgd", *SMALL, "--out", folder) == 0
        yield folder
    jax.config.update("jax_compilation_cache_dir", memory)


def by_hand(row, x):
    """Softmax probabilities by NumPy in float64."""
    params = logistic_regression(64, 10).unravel(row)
    logits = x.astype(float) @ np.asarray(params["kernel"], float) + np.asarray(params["bias"], float)
    each = np.exp(logits - logits.max(1, keepdims=True))
    return each / each.sum(1, keepdims=True)


def test_the_test_set_is_predicted_as_the_run_was_scored(run, capsys):
    assert jaxfl("predict", run, "--system", "fedavg:lr=0.3") == 0
    said, digits = capsys.readouterr().out.strip(), data.digits()
    path = run / "predictions-fedavg-lr=0.3-seed-3-test.csv"
    table = pd.read_csv(path)
    assert list(table) == ["sample", "target", "prediction", "probability"]
    each = by_hand(load_model(run / "fedavg-lr=0.3" / "models" / "seed-3.npz").row, digits.test_x)
    np.testing.assert_array_equal(table["prediction"], each.argmax(1))
    np.testing.assert_allclose(table["probability"], each.max(1), rtol=1e-4)
    np.testing.assert_array_equal(table["target"], digits.test_y)
    history = pd.read_csv(run / "history.csv").query("system == 'fedavg:lr=0.3' and round == 2 and seed == 3")
    accuracy = (table["prediction"] == table["target"]).mean()
    assert accuracy == pytest.approx(history["accuracy"].item())  # 360 samples: all are evaluated
    assert said == f"360 predictions, accuracy {accuracy:.4f}, in {path}"
    assert jaxfl("predict", run, "--system", "fedavg:lr=0.3") == 2
    assert "exists already" in capsys.readouterr().err


def test_files_of_samples_and_the_model_of_a_node(run, tmp_path, capsys):
    x, y = data.digits().test_x[:5], data.digits().test_y[:5]
    np.savez(tmp_path / "flat.npz", x=x)
    np.savez(tmp_path / "known.npz", x=x.astype(float).reshape(5, 8, 8), y=y)
    np.savetxt(tmp_path / "bare.csv", x, delimiter=",")
    pd.DataFrame(x).to_csv(tmp_path / "counted.csv", index=False)
    pd.DataFrame(x).rename(columns="pixel {}".format).assign(y=y).to_csv(tmp_path / "named.csv", index=False)
    model = load_model(run / "dsgd" / "models" / "seed-4-nodes.npz").row[2]
    np.savez(tmp_path / "bytes.npz", x=np.round(255 * x).astype(np.uint8))
    given = {"flat.npz": False, "known.npz": True, "bare.csv": False, "counted.csv": False, "named.csv": True}
    for name, known in given.items():
        out = tmp_path / f"{name}.out"
        options = ["--system", "dsgd", "--seed", 4, "--node", 2, "--out", out]
        assert jaxfl("predict", run, tmp_path / name, *options) == 0
        assert ("accuracy" in capsys.readouterr().out) == ("target" in pd.read_csv(out)) == known
        np.testing.assert_allclose(pd.read_csv(out)["probability"], by_hand(model, x).max(1), rtol=1e-4)
    assert jaxfl("predict", run, tmp_path / "bytes.npz", *options[:-1], tmp_path / "o") == 0
    np.testing.assert_allclose(pd.read_csv(tmp_path / "o")["probability"], by_hand(model, x).max(1), rtol=1e-2)


def test_what_is_kept_of_personal_parts_is_every_nodes_own_model(run, tmp_path, capsys):
    folder, digits = tmp_path / "own", data.digits()
    assert jaxfl("run", "fedavg:lr=0.3", *SMALL, "--personal", "bias", "--out", folder) == 0
    kept = folder / "fedavg-lr=0.3" / "models"
    kept = kept if kept.exists() else folder / "models"
    rows = load_model(kept / "seed-3-nodes.npz").row
    each = [logistic_regression(64, 10).unravel(row) for row in rows]
    assert all((p["kernel"] == each[0]["kernel"]).all() for p in each)
    assert len({np.asarray(p["bias"]).tobytes() for p in each}) > 1
    said = [(by_hand(row, digits.test_x).argmax(1) == digits.test_y).mean() for row in rows]
    history = pd.read_csv(folder / "history.csv").query("round == 2 and seed == 3")
    assert np.mean(said) == pytest.approx(history["accuracy"].item(), abs=0.01)  # it looks at some of the samples
    mean = load_model(kept / "seed-3.npz")
    np.testing.assert_allclose(mean.row, rows.astype(float).mean(0), atol=1e-6)
    assert mean.about["mean_of"] == 6
    assert jaxfl("predict", folder, "--seed", 3, "--node", 2) == 0
    assert f"accuracy {said[2]:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "system is missing: .* has fedavg:lr=0.3, dsgd; name one by --system"),
        (["--system", "dsgb"], "system 'dsgb'"),
        (["--system", "dsgd", "--seed", "0"], "there is no model .*seed-0.npz; .* keeps seed-3, seed-3-nodes, seed-4"),
        (["--system", "dsgd", "--node", "6"], "node is 6, but the run has nodes 0 to 5"),
        (["--system", "fedavg:lr=0.3", "--node", "0"], "there is no model"),
        (["no.npz", "--system", "dsgd"], "no.npz cannot be read"),
        (["x.parquet", "--system", "dsgd"], "must be a file .npz or .csv"),
        (["few.npz", "--system", "dsgd"], r"samples of few.npz are \[63\], but those of the run \[64\]"),
        (["odd.npz", "--system", "dsgd"], "has z, but must have x"),
        (["nan.npz", "--system", "dsgd"], "sample 1 of nan.npz is not finite"),
        (["label.npz", "--system", "dsgd"], "y of label.npz is 0 to 10, but must be whole, 0 to 9"),
        (["pickled.npz", "--system", "dsgd"], "pickled.npz is no .npz file of numbers"),
        (["words.csv", "--system", "dsgd"], "column b of words.csv holds other things than numbers"),
        (["torn.csv", "--system", "dsgd"], "torn.csv is no .csv file of numbers"),
        (["--system", "dsgd", "--out", "no/where.csv"], "there is no folder no"),
    ],
)
def test_bad_input_is_one_sentence(run, tmp_path, monkeypatch, capsys, args, says):
    monkeypatch.chdir(tmp_path)
    x = np.zeros((3, 64))
    np.savez("few.npz", x=x[:, :63])
    np.savez("odd.npz", z=x)
    np.savez("nan.npz", x=np.where(np.arange(3)[:, None] == 1, np.nan, x))
    np.savez("label.npz", x=x, y=[0, 1, 10])
    np.savez("pickled.npz", x=np.array([{}], object))
    (tmp_path / "words.csv").write_text("a,b\n1,x\n")
    (tmp_path / "torn.csv").write_text('a,b\n1,"x\n')
    assert jaxfl("predict", run, *args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(line)


def test_what_is_no_run_or_another_task(run, tmp_path, capsys):
    assert jaxfl("predict", tmp_path) == 2
    assert "config.toml cannot be read" in capsys.readouterr().err
    shutil.copytree(run, tmp_path / "run")
    task = logistic_regression(3, 2)
    save_model(tmp_path / "run" / "dsgd" / "models" / "seed-3.npz", task, np.zeros(8))
    assert jaxfl("predict", tmp_path / "run", "--system", "dsgd") == 2
    assert "not of the task" in capsys.readouterr().err


def test_rows_of_a_regression_of_tokens_and_of_labels_with_names():
    real = data.from_arrays(np.zeros((4, 3)), np.ones((4, 2)), np.zeros((2, 3)), np.ones((2, 2)))
    told = predict.table(np.arange(4.0).reshape(2, 2), real.test_y, real)
    assert list(told) == ["target_0", "target_1", "prediction_0", "prediction_1"]
    assert told["prediction_1"].to_list() == [1, 3]
    ids = np.zeros((4, 3), int)
    text = data.from_arrays(ids, ids, ids, ids, classes=5, tokens=True)
    logits = np.zeros((2, 3, 5))
    logits[1, 2, 4] = np.log(4.0)
    told = predict.table(logits, None, text)
    assert told["prediction_2"].to_list() == [0, 4]
    np.testing.assert_allclose(told["probability_2"], [0.2, 0.5])
    labels, sure = [0, 1, 1, 0], np.array([[0, np.log(3.0)], [np.log(3.0), 0]])
    called = data.from_arrays(np.zeros((4, 3)), labels, np.zeros((2, 3)), [0, 1], class_names=["no", "yes"])
    told = predict.table(sure, called.test_y, called)
    assert told.to_dict("list") == {
        "target": ["no", "yes"],
        "prediction": ["yes", "no"],
        "probability": pytest.approx([0.75] * 2),
    }
    several = called._replace(task="multilabel", y=np.eye(4, 2, dtype=int), test_y=np.eye(2, dtype=int))
    told = predict.table(sure - 0.1, several.test_y, several)
    assert told["target_yes"].to_list() == [0, 1]
    assert told["prediction_yes"].to_list() == [1, 0]
    np.testing.assert_allclose(told["probability_no"], 1 / (1 + np.exp(0.1 - sure[:, 0])))
