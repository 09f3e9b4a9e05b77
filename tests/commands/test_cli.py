"""The command line end to end on a few nodes."""

import dataclasses
import json
import shutil
import subprocess
import sys
import tomllib

import jax
import numpy as np
import pandas as pd
import pytest
from common import jaxfl

from jaxfl import zoo
from jaxfl.claims import record
from jaxfl.commands import start
from jaxfl.core import State
from jaxfl.engine import plan, sharding
from jaxfl.engine import run as engine
from jaxfl.engine.run import Carry, Result
from jaxfl.errors import InputError
from jaxfl.options import kept
from jaxfl.options.build import VALUES
from jaxfl.options.config import Setup

SMALL = ["--nodes", "8", "--data", "digits", "--model", "logistic", "--rounds", "2", "--seeds", "2"]
TINY = Setup(nodes=8, data="digits", model="logistic", rounds=2, seeds=2)


pytestmark = pytest.mark.usefixtures("process")


@pytest.fixture(scope="module")
def compared(process, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare") / "out"
    code = jaxfl("compare", "FedAvg", "dsgd", *SMALL, "--every", 1, "--set", "dsgd.batch=2", "--out", folder)
    return folder, code


def done(table):
    """A result of this history, of models that are of no task."""
    rows = np.zeros((2, 8, 5))
    return Result(table, {}, State({"x": rows}, rows), Carry(2, (), {}))


def history(offset=0.0):
    rows = [{"seed": s, "round": r, "accuracy": 0.1 * r + offset, "consensus": 0.0} for s in (0, 1) for r in (0, 1, 2)]
    return pd.DataFrame(rows).assign(total_up_bits=8e6)


def test_compare_writes_everything_that_describes_and_repeats_it(compared):
    folder, code = compared
    assert code == 0
    for name in ("comparison.png", "topology.png", "labels.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    table = pd.read_csv(folder / "history.csv")
    assert table.columns[0] == "system"
    assert table.groupby(["system", "seed"])["round"].apply(list).to_dict() == {
        (name, seed): [0, 1, 2] for name in ("fedavg", "dsgd") for seed in (0, 1)
    }
    assert table["accuracy"].notna().all()
    shown = pd.read_csv(folder / "summary.csv", index_col="system")
    last = table[table["round"] == 2].groupby("system")["accuracy"].mean()
    assert shown["accuracy"].to_dict() == pytest.approx(last.to_dict())
    # 8 nodes hear 3 others each on the exponential graph; a model is 650 numbers of 32 bits
    bits = table[(table["system"] == "dsgd") & (table["round"] == 2)]["total_up_bits"]
    assert (bits == 2 * 8 * 3 * 32 * 650).all()
    saved = tomllib.loads((folder / "config.toml").read_text())
    assert saved["systems"] == ["fedavg", "dsgd"]
    assert saved["options"] == ["dsgd.batch=2"]
    assert "out" not in saved
    assert "# cohort = 1\n" in (folder / "config.toml").read_text()
    assert json.loads((folder / "machine.json").read_text())["devices"] >= 1
    assert (folder / "dsgd" / "log.jsonl").read_text().count("\n") == 6


def test_run_from_a_config_gives_the_same_numbers(compared, tmp_path, capsys):
    folder, out = compared[0], tmp_path / "again"
    assert jaxfl("run", "fedavg", "--config", folder / "config.toml", "--out", out, "--json", "--devices", 1) == 0
    first, second = (pd.read_csv(f / "history.csv") for f in (folder, out))
    first = first[first["system"] == "fedavg"].reset_index(drop=True)
    pd.testing.assert_frame_equal(second, first[second.columns], check_exact=True)
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["name"] == "fedavg"
    assert line["rounds"] == 2
    assert line["accuracy"] == pytest.approx(second[second["round"] == 2]["accuracy"].mean())
    assert kept.load(out / "config.toml") == (
        ["fedavg"],
        dataclasses.replace(TINY, every=1, devices=1),
    )


def test_protocols_reach_the_average(tmp_path, capsys):
    names = ["gossip_averaging", "push-sum"]
    options = ["--nodes", 8, "--topology", "one_peer", "--rounds", 3, "--seeds", 1, "--json", "--out", tmp_path / "o"]
    assert jaxfl("compare", *names, *options, "--checkpoints") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [line["name"] for line in lines] == ["gossip_averaging", "push_sum"]
    # three one-peer rounds average eight nodes exactly
    assert all(line["error"] < 1e-10 for line in lines)
    table = pd.read_csv(tmp_path / "o" / "history.csv")
    values = np.random.default_rng(0).standard_normal((8, VALUES), np.float32).astype(float)
    start = ((values - values.mean(0)) ** 2).sum(1).mean()
    assert table[table["round"] == 0]["error"].to_numpy() == pytest.approx(start, rel=1e-5)
    assert (tmp_path / "o" / "comparison.png").exists()
    assert (tmp_path / "o" / "push_sum" / "checkpoints").is_dir()


def test_what_is_finished_outlives_a_failure_and_an_interrupt(tmp_path, monkeypatch, capsys):
    for error, code, name in ((KeyboardInterrupt, 130, "a"), (InputError("out: the disk is full."), 2, "b")):
        results = iter([done(history()), error])

        def fake(*args, results=results, **arguments):
            got = next(results)
            if isinstance(got, Result):
                return got
            raise got

        monkeypatch.setattr(engine, "run", fake)
        assert jaxfl("compare", "fedavg", "fedprox", *SMALL, "--out", tmp_path / name) == code
        assert set(pd.read_csv(tmp_path / name / "history.csv")["system"]) == {"fedavg"}
    assert (tmp_path / "a" / "summary.csv").exists()
    assert (tmp_path / "a" / "comparison.png").exists()
    told = capsys.readouterr().err
    assert "interrupted; what was computed is in" in told
    assert "Traceback" not in told


def test_every_option_reaches_the_engine(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(engine, "run", lambda *a, **k: given.update(k, rounds=a[3]) or done(history()))
    options = ["--every", 1, "--seed", 5, "--checkpoints", "--devices", 1, "--out", tmp_path / "o"]
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert jaxfl("run", "fedavg", *SMALL, *options) == 0
    assert given.pop("mesh").size == 1
    monkeypatch.undo()
    assert start.mesh_of(jax.device_count(), 8) is None  # all there are: the engine chooses
    assert given.pop("evaluate").arrays[0].shape == (360, 64)
    origin = given.pop("origin")
    assert (origin["system"], origin["systems"], origin["seed"], origin["data"]) == ("fedavg", ["fedavg"], 5, "digits")
    assert not {"out", "checkpoints", "devices", "files"} & set(origin)
    assert given == {
        "rounds": 2,
        "seed": 5,
        "seeds": 2,
        "every": 1,
        "out": tmp_path / "o" / "fedavg",
        "checkpoints": True,
        "resume": False,
        "progress": True,
    }


def test_default_folder_is_named_after_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine, "run", lambda *a, **k: done(history()))
    assert jaxfl("run", "fedavg", *SMALL) == 0
    assert [p.name.startswith("run-fedavg-") for p in (tmp_path / "runs").iterdir()] == [True]


def test_list_and_cite(capsys):
    assert jaxfl("list") == 0
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [row[0].strip() for row in rows if row[0].strip()] == list(zoo.systems()), "but for what is folded"
    assert [cell.strip() for cell in next(r for r in rows if "dfedsam " in r[0])][3:] == [
        "004",
        record.kept()["dfedsam"]["verdict"],
    ]
    assert jaxfl("cite", "dfedsam") == 0
    assert "https://arxiv.org/abs/2302.04083" in capsys.readouterr().out
    assert jaxfl("cite", "dfedsum") == 2


def test_a_sweep_writes_its_table_and_picture_and_its_best_point_runs_again(tmp_path, capsys):
    grid, out = ["--grid", "lr=0.01,0.3", "--grid", "mu=0,1"], tmp_path / "o"
    assert jaxfl("sweep", "fedprox", *SMALL, *grid, "--json", "--out", out) == 0
    lines = capsys.readouterr().out.splitlines()
    points = [json.loads(line) for line in lines[-4:]]
    assert [(p["name"], p["lr"], p["mu"]) for p in points] == [
        (f"lr={lr:g} mu={mu:g}", lr, mu) for lr in (0.01, 0.3) for mu in (0, 1)
    ]
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
    table, history = pd.read_csv(out / "summary.csv"), pd.read_csv(out / "history.csv")
    last = history[history["round"] == 2].groupby(["lr", "mu"])["accuracy"].mean()
    np.testing.assert_allclose(table["accuracy"], last.loc[list(zip(table["lr"], table["mu"], strict=True))])
    assert history.groupby(["lr", "mu", "seed"]).size().to_list() == [3] * 8
    best = table.loc[table["best"]]
    assert best["accuracy"].to_list() == [table["accuracy"].max()]
    says = f"best accuracy: {table['accuracy'].max():.4g} at {best['system'].iloc[0]}; again: jaxfl run --config "
    assert f"{says}{out / 'best.toml'}" in lines
    assert jaxfl("run", "--config", out / "best.toml", "--out", tmp_path / "again") == 0
    again = pd.read_csv(tmp_path / "again" / "summary.csv")
    assert again["accuracy"].to_list() == pytest.approx(best["accuracy"].to_list())


def test_a_point_that_diverged_is_not_the_best(tmp_path, monkeypatch, capsys):
    def diverged(*args, hyper, **arguments):
        rows = [
            {"lr": lr, "seed": 0, "round": r, "test_loss": float("nan") if lr > 0.1 and r else 1.0 + lr}
            for lr in hyper["lr"]
            for r in (0, 1)
        ]
        return done(pd.DataFrame(rows))

    monkeypatch.setattr(engine, "run", diverged)
    options = [*SMALL, "--score", "test_loss", "--out"]
    assert jaxfl("sweep", "fedavg", "--grid", "lr=0.1,0.05,3", *options, tmp_path / "o") == 0
    assert "best test_loss: 1.05 at lr=0.05;" in capsys.readouterr().out
    assert "lr=0.05" in kept.load(tmp_path / "o" / "best.toml")[1].options
    assert jaxfl("sweep", "fedavg", "--grid", "lr=2,3", *options, tmp_path / "p") == 0
    assert "no point has a finite test_loss" in capsys.readouterr().out
    assert not (tmp_path / "p" / "best.toml").exists()


@pytest.mark.parametrize("name", ["dsgd", "fedavg"])
def test_as_many_nodes_as_a_plan_says_fit_and_a_quarter_more_do_not(name, monkeypatch, capsys):
    """Asked of a tiny world, whose nodes hardly count beside what it holds anyway."""
    monkeypatch.setattr(plan, "resident", lambda: (0, 0))  # of arrays alone
    monkeypatch.setattr(plan.rates, "seconds", lambda *a: 1.0)
    asked, options = 0.04, ["--data", "digits", "--model", "logistic", "--partition", "resampled", "--seeds", 1]
    options += ["--topology", "ring"] * (name == "dsgd")

    def row(nodes, *more):
        assert jaxfl("plan", name, *options, "--nodes", nodes, "--devices", 1, *more, "--json") == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    most = row(64, "--memory-gb", asked)[f"nodes that fit {asked} GB"]
    assert row(most)["memory MB a device"] <= 1000 * asked < row(most * 5 // 4)["memory MB a device"]


def test_liars_crashes_links_and_codecs_are_options(tmp_path, capsys):
    world = ["--byzantine", 2, "--attack", "alie", "--rule", "median", "--codec", "int4", "--crash", 0.3]
    world += ["--mbit", 1, "--latency-ms", 20, "--step-ms", 3, "--topology", "ring"]
    code = jaxfl("compare", "fedavg", "dsgd", *SMALL, *world, "--out", tmp_path / "o")
    assert code == 0
    table = pd.read_csv(tmp_path / "o" / "summary.csv", index_col="system")
    assert (table["simulated_s"] > 0).all()
    history = pd.read_csv(tmp_path / "o" / "history.csv")
    bits = history.query("system == 'dsgd' and round == 1")["up_bits"]
    assert (bits < 8 * 2 * 650 * 8).all()  # 4 bits a number and a scale, not 32


LIGHT = """
import sys
try:
    import jaxfl.cli
    jaxfl.cli.main({args})
except SystemExit as e:
    assert not e.code
assert not {{'jax', 'flax', 'optax', 'scipy', 'networkx', 'pandas', 'matplotlib'}} & set(sys.modules)
"""


def without_jax(*args):
    """What the command line prints in a process in which nothing heavy is imported."""
    command = [sys.executable, "-c", LIGHT.format(args=list(args))]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_help_names_every_option_and_starts_no_jax():
    told = without_jax("compare", "--help")
    for field in dataclasses.fields(Setup):
        assert f"--{'set' if field.name == 'options' else field.name.replace('_', '-')}" in told
    assert "None" not in told


def test_a_device_a_core_unless_told_otherwise(monkeypatch):
    asked = []
    monkeypatch.setattr(sharding, "use_cores", asked.append)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    start._start_devices(3)
    start._start_devices(None)
    assert asked[0] == 3
    assert asked[1] >= 1
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    start._start_devices(None)
    assert len(asked) == 2


def test_compiled_programs_are_kept_where_the_help_says(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    start.start_jax(None)
    assert jax.config.jax_compilation_cache_dir == str(start.cache_folder())
    assert jaxfl("--help") == 0
    assert f"keptin{start.cache_folder()};" in "".join(capsys.readouterr().out.split())
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    memory = jax.config.jax_compilation_cache_dir
    start.start_jax(None)
    assert jax.config.jax_compilation_cache_dir == memory  # JAX has read its own variable when it started
    assert start.cache_folder() == tmp_path
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "0")
    assert start.cache_folder() is None
    assert jaxfl("--help") == 0
    assert "kept in memory only" in capsys.readouterr().out


def test_a_run_that_was_cut_off_goes_on_in_its_folder(tmp_path, capsys):
    options = [*SMALL[:-4], "--rounds", 4, "--every", 2, "--seeds", 2, "--checkpoints"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        assert jaxfl("compare", "fedavg", "dsgd", *options, "--out", folder) == 0
    shutil.rmtree(cut / "dsgd")  # never begun
    shutil.rmtree(cut / "fedavg" / "checkpoints" / "4")  # ended after round 2
    (cut / "history.csv").unlink()
    assert jaxfl("compare", "--resume", cut) == 0
    a, b = (pd.read_csv(folder / "history.csv") for folder in (whole, cut))
    pd.testing.assert_frame_equal(a, b)
    capsys.readouterr()
    assert jaxfl("compare", "--resume", cut, "--lr", 0.2) == 2
    assert "own systems and options" in capsys.readouterr().err
    for name in ("2", "4"):  # killed before its first checkpoint: it begins anew, the other one does not
        shutil.rmtree(cut / "fedavg" / "checkpoints" / name, ignore_errors=True)
    assert jaxfl("compare", f"--resume={cut}") == 0
    pd.testing.assert_frame_equal(pd.read_csv(cut / "history.csv"), a)
    assert jaxfl("compare", "--resume", tmp_path / "nowhere") == 2
    assert (cut / "history.csv").exists()


def notes(capsys):
    """The lines on stderr that are not about progress."""
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("jaxfl: ")]


def test_in_a_comparison_an_option_is_fine_if_one_system_uses_it(tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(engine, "run", lambda *a, **k: ran.append(a) or done(history()))
    names = ["dsgd", "clipped_gossip", "robust_gossip"]
    world = ["--byzantine", 2, "--attack", "alie", "--rule", "median", "--set", "epochs=1", "--set", "delta=0.3"]
    assert jaxfl("compare", *names, *SMALL, *world, "--out", tmp_path / "a") == 0
    assert len(ran) == 3
    rule, delta = notes(capsys)
    assert rule.startswith("jaxfl: without --rule runs clipped_gossip: rule is median, but clipped_gossip brings")
    assert delta == "jaxfl: without --set delta=0.3 runs dsgd, robust_gossip: no such option."
    assert jaxfl("compare", "fedavg", "dsgd", *SMALL, "--cohort", 4, "--topology", "ring", "--out", tmp_path / "b") == 0
    assert [line.partition(":")[2].partition(":")[0] for line in notes(capsys)] == [
        " without --topology runs fedavg",
        " without --cohort runs dsgd",
    ]


def test_what_a_config_says_of_other_systems_is_passed_over(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(engine, "run", lambda *a, **k: done(history()))
    first = [*SMALL, "--cohort", 4, "--set", "fedprox.mu=0.1", "--out", tmp_path / "a"]
    assert jaxfl("compare", "fedprox", "dsgd", *first) == 0
    capsys.readouterr()
    config_of = lambda name: tmp_path / name / "config.toml"
    assert jaxfl("run", "dsgd", "--config", config_of("a"), "--out", tmp_path / "b") == 0
    (line,) = notes(capsys)
    assert line.startswith("jaxfl: without --cohort runs dsgd: cohort is 4, but")
    assert jaxfl("run", "dsgd", "--config", config_of("b"), "--out", tmp_path / "c") == 0
    assert jaxfl("run", "dsgd", "--config", config_of("a"), "--cohort", 3, "--out", tmp_path / "d") == 2
    text = config_of("a").read_text().replace("fedprox.mu", "muu")
    config_of("a").write_text(text)
    assert jaxfl("run", "dsgd", "--config", config_of("a"), "--out", tmp_path / "e") == 2
    assert "'muu'" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()
    assert not (tmp_path / "e").exists()


def test_a_value_that_is_the_default_never_complains(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(engine, "run", lambda *a, **k: done(history()))
    same = ["--cohort", 1, "--lr", 0.1, "--rule", "mean", "--topology", "exponential", "--mixing", "uniform"]
    same += ["--concurrency", 1, "--goal", 1, "--steps", 3, "--crash", 0, "--latency-ms", 0]
    assert jaxfl("run", "fedavg", *SMALL, *same, "--out", tmp_path / "a") == 0
    assert notes(capsys) == []


def test_nodes_hold_out_a_part_of_their_samples(tmp_path, capsys):
    """Trained on the rest, and scored by node where a system shares the data; also when it goes on."""
    out, kw = tmp_path / "o", ["--hold-out", 0.4, "--byzantine", 1, "--checkpoints", "--every", 1]
    assert jaxfl("compare", "fedavg", "mhd", *SMALL, *kw, "--out", out) == 0
    assert "without --hold-out runs mhd: hold_out is 0.4, but mhd brings its own data." in capsys.readouterr().err
    table = pd.read_csv(out / "summary.csv", index_col="system")
    fair = ["local_accuracy", "local_accuracy_worst_decile", "local_accuracy_spread", "local_accuracy_jain"]
    assert table.loc["fedavg", fair].between(0, 1).all()
    assert table.loc["mhd", fair].isna().all()
    with np.load(out / "fedavg" / "nodes" / "1-2.npz") as kept:
        each = kept["_local_accuracy"]
    assert each.shape == (2, 1, 8)
    assert np.isnan(each[:, :, 0]).all()  # who lies is no score
    np.testing.assert_allclose(table.loc["fedavg", "local_accuracy"], np.nanmean(each), rtol=1e-5)
    picture = (out / "nodes.png").read_bytes()
    (out / "nodes.png").unlink()
    assert jaxfl("compare", "--resume", out) == 0
    assert (out / "nodes.png").read_bytes() == picture


def test_a_protocol_and_a_system_with_its_own_data_hold_nothing_out(capsys):
    for name, says in (("push_sum", "of kind protocol"), ("mhd", "brings its own data")):
        assert jaxfl("run", name, *SMALL, "--hold-out", 0.2) == 2
        assert says in capsys.readouterr().err


@pytest.mark.parametrize(("args", "word"), [(["list"], "dsgd"), (["cite", "fedavg"], "@inproceedings")])
def test_what_is_in_the_zoo_is_told_without_jax(args, word):
    assert word in without_jax(*args)
