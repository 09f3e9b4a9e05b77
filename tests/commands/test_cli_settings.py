"""The command line: one system with several settings, an interrupted run, what is kept of a run."""

import os
import shutil
import signal
import tomllib

import numpy as np
import pandas as pd
import pytest
from common import jaxfl

from jaxfl import data
from jaxfl.engine import run as engine
from jaxfl.engine.saved import load_model
from jaxfl.errors import InputError
from jaxfl.learn.task import logistic_regression, scores
from jaxfl.options import config
from jaxfl.options.systems import settings_of, system_options

SMALL = ["--nodes", "6", "--data", "digits", "--model", "logistic", "--rounds", "2", "--seeds", "2", "--every", "1"]
TWO = ["fedprox:mu=0.5,lr=0.05", "FedProx:mu=0", "dsgd"]


pytestmark = pytest.mark.usefixtures("process")


@pytest.fixture(scope="module")
def compared(process, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare") / "out"
    assert jaxfl("compare", *TWO, *SMALL, "--checkpoints", "--out", folder) == 0
    return folder


def history(folder, *systems):
    table = pd.read_csv(folder / "history.csv")
    return table[table["system"].isin(systems)].reset_index(drop=True) if systems else table


def test_one_system_with_several_settings_is_compared(compared, tmp_path):
    labels = ["fedprox:mu=0.5,lr=0.05", "fedprox:mu=0", "dsgd"]
    assert list(history(compared)["system"].unique()) == labels
    assert list(pd.read_csv(compared / "summary.csv")["system"]) == labels
    assert tomllib.loads((compared / "config.toml").read_text())["systems"] == labels
    assert (compared / "fedprox-mu=0.5,lr=0.05" / "log.jsonl").exists()
    options = ["--set", "mu=0.5", "--set", "lr=0.05"]
    assert jaxfl("run", "fedprox", *SMALL, *options, "--out", tmp_path / "o") == 0
    pd.testing.assert_frame_equal(
        history(tmp_path / "o").drop(columns="system"),
        history(compared, labels[0]).drop(columns="system").dropna(axis=1, how="all"),
        check_like=True,
    )


def test_what_was_cut_off_and_a_config_go_on_with_the_settings(compared, tmp_path):
    whole, cut = history(compared), tmp_path / "cut"
    shutil.copytree(compared, cut)
    shutil.rmtree(cut / "dsgd")
    shutil.rmtree(cut / "fedprox-mu=0" / "checkpoints" / "2")
    assert jaxfl("compare", "--resume", cut) == 0
    pd.testing.assert_frame_equal(history(cut), whole)
    assert jaxfl("run", "fedprox:mu=0", "--config", compared / "config.toml", "--out", tmp_path / "again") == 0
    again = history(tmp_path / "again")
    pd.testing.assert_frame_equal(again, history(compared, "fedprox:mu=0")[again.columns])


def refused(capsys, *args):
    assert jaxfl(*args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_config_of_several_systems_says_what_to_type(compared, capsys):
    file = compared / "config.toml"
    says = refused(capsys, "run", "--config", file)
    assert f"{file} is of fedprox:mu=0.5,lr=0.05, fedprox:mu=0, dsgd: type `jaxfl compare --config {file}` or" in says
    assert f"`jaxfl run fedprox:mu=0.5,lr=0.05 --config {file}`." in says
    assert refused(capsys, "run", "--resume", compared).endswith(f"dsgd: type `jaxfl compare --resume {compared}`.")
    says = refused(capsys, "plan", "--config", file)
    assert says.endswith(f"dsgd: type `jaxfl plan fedprox:mu=0.5,lr=0.05 --config {file}`.")
    assert "jaxfl sweep fedprox:mu=0.5,lr=0.05 --config" in refused(capsys, "sweep", "--config", file)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["compare", "fedprox:mu=0.5", "fedprox:mu=.50"], "name one twice"),
        (["compare", "fedavg", "fedavg:muu=1"], "system is 'fedavg:muu=1': option 'muu' is unknown"),
        (["compare", "fedprox:mu=0.1,mu=0.2"], "each key once"),
        (["compare", "fedprox:mu=0.1,lr"], "must read NAME:KEY=VALUE"),
        (["run", "fedprox:mu=small"], "mu must be a finite number"),
        (["run", "fedproxx:mu=1"], "did you mean fedprox"),
        (["run", "fedprox:mu=1", "--set", "mu=2"], "set is 'mu=2', but fedprox:mu=1 gives its own mu"),
        (["run", "fedprox:lr=1", "--lr", "0.3"], "changes nothing in fedprox, as fedprox:lr=1 gives its own."),
        (["sweep", "fedprox:mu=1", "--grid", "mu=1,2"], "--grid tries values of that option"),
    ],
)
def test_bad_settings_are_one_sentence(args, says, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(engine, "run", lambda *a, **k: pytest.fail("something ran"))
    monkeypatch.chdir(tmp_path)
    assert says in refused(capsys, *args, *SMALL)
    assert not list(tmp_path.iterdir())


def test_settings_outweigh_what_is_said_of_all():
    setup = config.Setup(options=("lr=1", "fedprox.mu=0.3"))
    labels = ["fedprox:lr=0.5", "fedprox", "fedavg"]
    assert system_options(setup, labels) == {
        "fedprox:lr=0.5": {"lr": 0.5, "mu": 0.3},
        "fedprox": {"lr": 1, "mu": 0.3},
        "fedavg": {"lr": 1},
    }
    with pytest.raises(InputError, match="gives its own lr"):
        system_options(setup, labels[:1])
    assert settings_of("fedavg:batch=0,steps=2") == {"batch": None, "steps": 2}


def test_a_system_of_a_file_takes_settings_and_its_config_names_the_file(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from jaxfl.algorithms import fedavg\n\n\n"
        "def mine(task, net, *, rate=0.1):\n    return fedavg(task, net, lr=rate)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert jaxfl("compare", "./mine.py:mine", "./mine.py:mine:rate=0.5", *SMALL, "--out", "o") == 0
    assert list(history(tmp_path / "o")["system"].unique()) == ["mine", "mine:rate=0.5"]
    saved = tomllib.loads((tmp_path / "o" / "config.toml").read_text())
    assert saved["systems"] == [f"{tmp_path / 'mine.py'}:mine", f"{tmp_path / 'mine.py'}:mine:rate=0.5"]
    assert len(saved["files"]) == 1
    monkeypatch.chdir(tmp_path.parent)
    assert jaxfl("compare", "--config", tmp_path / "o" / "config.toml", "--out", tmp_path / "p") == 0
    pd.testing.assert_frame_equal(history(tmp_path / "o"), history(tmp_path / "p"))


def test_ctrl_c_keeps_the_table_and_says_how_to_go_on(compared, tmp_path, monkeypatch, capsys):
    run, cut = engine.run, tmp_path / "cut"
    press = lambda progress: os.kill(os.getpid(), signal.SIGINT) if progress.round == 1 else None
    monkeypatch.setattr(engine, "run", lambda *a, **k: run(*a, callback=press, **k))
    assert jaxfl("compare", "dsgd", "fedprox:mu=0", *SMALL, "--checkpoints", "--out", cut, "--json") == 130
    told = capsys.readouterr()
    assert "interrupted at round 1 of dsgd; what was computed" in told.err
    assert f"`jaxfl compare --resume {cut}` goes on." in told.err
    assert '"rounds": 1' in told.out.splitlines()[-1]
    assert sorted(history(cut)["round"].unique()) == [0, 1]
    assert (cut / "comparison.png").exists()
    assert load_model(cut / "dsgd" / "models" / "seed-1.npz").about["round"] == 1
    monkeypatch.undo()
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    assert jaxfl("compare", "--resume", cut) == 0
    pd.testing.assert_frame_equal(history(cut, "dsgd").dropna(axis=1), history(compared, "dsgd").dropna(axis=1))
    press_all = lambda progress: os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setattr(engine, "run", lambda *a, **k: run(*a, callback=press_all, **k))
    assert jaxfl("sweep", "fedprox", *SMALL, "--grid", "mu=0,1", "--out", tmp_path / "s") == 130
    assert "interrupted at round 0" in capsys.readouterr().err
    assert jaxfl("run", "fedavg", *SMALL, "--out", tmp_path / "r") == 130
    assert "with --checkpoints it could go on" in capsys.readouterr().err


def test_the_final_models_are_kept(compared):
    digits, task = data.digits(), logistic_regression(64, 10)
    final = history(compared).query("round == 2").set_index(["system", "seed"])["accuracy"]
    some = np.linspace(0, len(digits.test_y) - 1, 500).round().astype(int) if len(digits.test_y) > 500 else slice(None)
    for label, folder in (("fedprox:mu=0", "fedprox-mu=0"), ("dsgd", "dsgd")):
        for seed in (0, 1):
            model = load_model(compared / folder / "models" / f"seed-{seed}.npz")
            assert (model.about["system"], model.about["round"], model.about["seed"]) == (label, 2, seed)
            got = scores(task, model.row, digits.test_x[some], digits.test_y[some])["accuracy"]
            assert float(got) == pytest.approx(final[label, seed])
    nodes = load_model(compared / "dsgd" / "models" / "seed-1-nodes.npz")
    assert nodes.row.shape == (6, 650)
    np.testing.assert_allclose(nodes.row.mean(0), model.row, atol=1e-7)
    assert model.about["mean_of"] == 6
    assert not list(compared.glob("fedprox*/models/*nodes*"))
