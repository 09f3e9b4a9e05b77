"""The command line: killed, refused, resumed, moved; a folder is whole, and one command at a time has it."""

import json
import os
import shutil
import signal
import tomllib
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from common import jaxfl

from jaxfl.commands import experiment, results
from jaxfl.engine import run as engine
from jaxfl.engine.disk import held
from jaxfl.errors import InputError

SMALL = ["--nodes", "6", "--data", "digits", "--model", "logistic", "--rounds", "2", "--seeds", "2", "--every", "1"]

pytestmark = pytest.mark.usefixtures("process")


@pytest.fixture(scope="module")
def finished(process, tmp_path_factory):
    """A run with checkpoints, whose summary it was."""
    folder = tmp_path_factory.mktemp("whole") / "out [1] \\ x"
    assert jaxfl("run", "dsgd", *SMALL, "--checkpoints", "--out", folder) == 0
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def refused(capsys, *args):
    assert jaxfl(*args) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    return line


def test_a_refusal_leaves_nothing_and_blocks_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiment, "check_state", lambda *a: None)  # which would refuse it before there is a folder
    for out in ("x", "there"):
        Path("there").mkdir(exist_ok=True)
        assert "sample" in refused(capsys, "run", "modest", *SMALL, "--set", "sample=100", "--out", out)
    assert [p.name for p in tmp_path.rglob("*")] == ["there"]
    assert "sample" in refused(capsys, "run", "modest", *SMALL, "--set", "sample=100")
    assert not list((tmp_path / "runs").iterdir())


def test_a_kill_before_the_first_round_blocks_nothing(tmp_path, monkeypatch):
    """What was described is written anew, and what was measured at the start."""
    run, out = engine.run, tmp_path / "o"

    def killed(*args, **arguments):
        run(*args, **arguments, callback=lambda p: True)
        raise SystemExit(137)

    monkeypatch.setattr(engine, "run", killed)
    assert jaxfl("run", "dsgd", *SMALL, "--checkpoints", "--out", out) == 137
    assert (out / "dsgd" / "log.jsonl").read_text().count("\n") == 2
    monkeypatch.setattr(engine, "run", run)
    assert jaxfl("run", "dsgd", *SMALL, "--lr", 0.2, "--checkpoints", "--out", out) == 0
    assert tomllib.loads((out / "config.toml").read_text())["lr"] == 0.2
    with pytest.raises(InputError, match="exists already"):
        results._check_free(out)


@pytest.mark.parametrize(
    "names", [["mine.txt"], ["config.toml"], ["labels.png"], ["machine.json", "dsgd/mine"], ["machine.json", "a/b/c"]]
)
def test_what_a_user_keeps_in_a_folder_is_left_alone(names, tmp_path, capsys):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert "exists already" in refused(capsys, "run", "dsgd", *SMALL, "--out", tmp_path)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()) == sorted(names)


def test_runs_of_one_second_get_a_folder_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = {results._named("run-x") for _ in range(4)}
    assert len(folders) == 4
    assert len({folder.name[:20] for folder in folders}) == 1


def test_one_command_at_a_time_has_a_folder(copy, capsys):
    with held(copy):
        assert f"another run is writing to {copy}" in refused(capsys, "run", "--resume", copy)
    assert not (copy / ".lock").exists()


def test_a_run_without_checkpoints_says_how_to_run_it_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(engine, "run", lambda *a, **k: (_ for _ in ()).throw(SystemExit(137)))
    assert jaxfl("run", "dsgd", *SMALL, "--out", tmp_path / "o") == 137
    says = refused(capsys, "run", "--resume", tmp_path / "o")
    assert "was run without --checkpoints" in says
    assert f"`--config {tmp_path / 'o' / 'config.toml'}` runs it again." in says


def test_a_resumed_run_is_whole(finished, copy):
    """It writes the files that are missing, pictures too, and its seconds are of both sessions."""
    for name in ("topology.png", "labels.png", "comparison.png", "machine.json", "history.csv", "summary.csv"):
        (copy / name).unlink()
    shutil.rmtree(copy / "dsgd" / "models")
    assert jaxfl("run", "--resume", copy) == 0
    assert sorted(p.name for p in copy.rglob("*")) == sorted(p.name for p in finished.rglob("*"))
    for name in ("topology.png", "labels.png", "comparison.png", "history.csv"):
        assert (copy / name).read_bytes() == (finished / name).read_bytes()
    first, again = (pd.read_csv(folder / "summary.csv")["seconds"][0] for folder in (finished, copy))
    assert again > 0.5 * first  # nothing was computed this time


def test_what_changes_numbers_is_recorded_and_another_session_too(copy, monkeypatch):
    kept = json.loads((copy / "machine.json").read_text())
    assert kept["jax_enable_x64"] is False
    assert kept["jax_default_prng_impl"] == "threefry2x32"
    assert kept["jax_threefry_partitionable"] is True
    assert "jax_default_matmul_precision" in kept
    assert "resumed" not in kept
    machine = results.tables.machine
    monkeypatch.setattr(results.tables, "machine", lambda: machine() | {"devices": 7})
    for _ in range(2):
        results._describe_machine(copy / "machine.json")
    assert json.loads((copy / "machine.json").read_text()) == kept | {"resumed": [machine() | {"devices": 7}]}


def test_a_changed_config_is_not_gone_on_from(copy, monkeypatch, capsys):
    config = copy / "config.toml"
    text = config.read_text()
    for old, new, says in (
        ("steps = 3", "steps = 4", "steps was 3 there, and is 4 here."),
        ("seed = 0", "seed = 1", "seed was 0 there, and is 1 here."),
        ('rule = "mean"', 'rule = "median"', "rule was mean there, and is median here."),
        ("rounds = 2", "rounds = 3", "rounds was 2 there, and is 3 here."),
    ):
        assert old in text
        config.write_text(text.replace(old, new))
        with monkeypatch.context() as patch:  # before a world is built
            patch.setattr(experiment, "prepare", lambda *a: pytest.fail("a world was built"))
            assert refused(capsys, "run", "--resume", copy).endswith(f"is of another run: {says}")
    config.write_text(text.replace('systems = ["dsgd"]', 'systems = ["dfedsam"]'))
    (copy / "dsgd").rename(copy / "dfedsam")
    assert refused(capsys, "run", "--resume", copy).endswith("system was dsgd there, and is dfedsam here.")


GRID = ["--grid", "lr=0.3,0.1", "--grid", "mu=0,1", "--score", "test_loss"]


@pytest.fixture(scope="module")
def swept(process, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "sweep"
    assert jaxfl("sweep", "fedprox", *SMALL, *GRID, "--checkpoints", "--out", folder) == 0
    return folder


def arrays(folder):
    with zipfile.ZipFile(folder / "fedprox" / "checkpoints" / "2" / "0.npz") as last:
        return {name: last.read(name) for name in last.namelist() if name != "run.json"}


def test_a_sweep_that_was_cut_off_goes_on_bit_for_bit(swept, tmp_path):
    """After round 1; and once more, killed before its first checkpoint."""
    cut = Path(shutil.copytree(swept, tmp_path / "cut"))
    for round_ in ("2", "1"):
        shutil.rmtree(cut / "fedprox" / "checkpoints" / round_)
        for name in ("history.csv", "summary.csv", "best.toml", "sweep.png", "comparison.png", "labels.png"):
            (cut / name).unlink()
        assert jaxfl("sweep", "--resume", cut) == 0
        for name in ("history.csv", "best.toml", "config.toml", "fedprox/log.jsonl"):
            assert (cut / name).read_bytes() == (swept / name).read_bytes(), (round_, name)
        assert arrays(cut) == arrays(swept)
        assert sorted(p.name for p in cut.rglob("*")) == sorted(p.name for p in swept.rglob("*"))
        shutil.rmtree(cut / "fedprox" / "checkpoints" / "2")


def test_another_sweep_is_not_gone_on_from(swept, tmp_path, capsys):
    copy = Path(shutil.copytree(swept, tmp_path / "copy"))
    config = copy / "config.toml"
    text = config.read_text()
    assert 'grid = ["lr=0.1,0.3", "mu=0.0,1.0"]' in text
    for old, new, says in (
        (
            "lr=0.1,0.3",
            "lr=0.1,0.2",
            "grid was ['lr=0.1,0.3', 'mu=0.0,1.0'] there, and is ['lr=0.1,0.2', 'mu=0.0,1.0'] here.",
        ),
        ("seed = 0", "seed = 1", "seed was 0 there, and is 1 here."),
    ):
        config.write_text(text.replace(old, new))
        assert refused(capsys, "sweep", "--resume", copy).endswith(f"is of another run: {says}")
    config.write_text(text)
    for other in (["--grid", "lr=0.1"], ["--score", "accuracy"], ["--lr", 1]):
        assert "but others are given beside it." in refused(capsys, "sweep", "--resume", copy, *other)
    says = refused(capsys, "run", "--resume", copy)
    assert says.endswith(f"{copy} is of `jaxfl sweep`, so type `jaxfl sweep --resume {copy}`.")


def test_a_sweep_says_how_it_goes_on_and_a_config_has_its_grid(swept, tmp_path, monkeypatch, capsys):
    run, out = engine.run, tmp_path / "o"
    press = lambda progress: os.kill(os.getpid(), signal.SIGINT) if progress.round == 1 else None
    monkeypatch.setattr(engine, "run", lambda *a, **k: run(*a, callback=press, **k))
    assert jaxfl("sweep", "--config", swept / "config.toml", "--out", out) == 130
    says = f"interrupted at round 1 of all points; what was computed is in {out}; `jaxfl sweep --resume {out}` goes on."
    assert says in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    assert jaxfl("sweep", "--resume", out) == 0
    assert (out / "history.csv").read_bytes() == (swept / "history.csv").read_bytes()


def test_a_damaged_log_is_a_sentence_and_an_old_checkpoint_serves(copy, finished, capsys):
    log = copy / "dsgd" / "log.jsonl"
    rows = log.read_text().splitlines(keepends=True)
    log.write_text("".join([*rows[:5], rows[5][:30]]))  # the last round of the second seed is torn
    assert jaxfl("run", "--resume", copy) == 0
    assert "Goes on from round 1, the checkpoint before." in capsys.readouterr().err
    assert (copy / "history.csv").read_text() == (finished / "history.csv").read_text()
    log.write_text("".join([rows[0], *rows]))
    assert f"line 2 of {log} is of round 0 where round 1 is due." in refused(capsys, "run", "--resume", copy)
