"""What a command line says to bad input: one sentence, exit code 2, and nothing is written."""

import os
from functools import cache

import pytest
from common import jaxfl

from jaxfl import data, zoo
from jaxfl.claims import record
from jaxfl.engine import run as engine

SMALL = ["--nodes", "8", "--data", "digits", "--model", "logistic", "--rounds", "2", "--seeds", "2"]


@pytest.fixture(scope="module", autouse=True)
def process():
    """JAX keeps the devices it has, as other tests share the process; the digits are read once, nothing is kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_NUM_CPU_DEVICES", "1")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", "nowhere")
        patch.setattr(data, "digits", cache(data.digits))
        yield


@pytest.fixture
def no_run(monkeypatch):
    monkeypatch.setattr(engine, "run", lambda *a, **k: pytest.fail("something ran"))


BAD = {
    "crash of nobody": (["run", "fedavg", "--crash", 0.01], "of 8 nodes that is nobody"),
    "set and grid": (["sweep", "fedprox", "--grid", "mu=0,1", "--set", "mu=3"], "--grid tries values"),
    "rule of one": (["run", "fedasync", "--concurrency", 2, "--rule", "median"], "one message is heard"),
    "unknown system": (["run", "fedavgg"], "did you mean fedavg"),
    "no system": (["compare"], "needs a system"),
    "twice": (["compare", "dsgd", "DSGD"], "twice"),
    "protocol": (["compare", "dsgd", "push_sum"], "cannot be compared"),
    "nodes": (["run", "fedavg", "--nodes", 0], "nodes is 0"),
    "more nodes than samples": (["run", "fedavg", "--nodes", 2000], "2000"),
    "cohort": (["run", "fedavg", "--cohort", 9], "cohort is 9"),
    "no cohort": (["run", "fedavg", "--cohort", 0], "cohort is 0"),
    "rounds": (["run", "fedavg", "--rounds", 0], "rounds is 0"),
    "every": (["run", "fedavg", "--every", 0], "every is 0"),
    "lr": (["run", "fedavg", "--lr", 0], "lr is 0.0"),
    "lr nan": (["run", "fedavg", "--lr", "nan"], "lr is nan"),
    "alpha": (["run", "fedavg", "--alpha", -1], "alpha is -1.0"),
    "steps": (["run", "fedavg", "--steps", 0], "steps is 0"),
    "batch": (["run", "fedavg", "--batch", -1], "batch is -1"),
    "seeds": (["run", "fedavg", "--seeds", 0], "seeds is 0"),
    "seed": (["run", "fedavg", "--seed", -1], "seed is -1"),
    "large seed": (["run", "fedavg", "--seed", 2**31], "2\\^31"),
    "devices": (["run", "fedavg", "--devices", 99], "devices is 99"),
    "data": (["run", "fedavg", "--data", "digit"], "did you mean digits"),
    "partition": (["run", "fedavg", "--partition", "drichlet"], "did you mean dirichlet"),
    "topology": (["run", "dsgd", "--topology", "tours"], "did you mean torus"),
    "model": (["run", "fedavg", "--model", "logistc"], "did you mean logistic"),
    "mixing": (["run", "dsgd", "--mixing", "metropoli"], "did you mean metropolis"),
    "labels": (["run", "fedavg", "--partition", "pathological", "--labels-per-node", 0], "labels_per_node is 0"),
    "natural": (["run", "fedavg", "--partition", "natural"], "no natural key"),
    "text model": (["run", "fedavg", "--model", "transformer"], "needs mlp"),
    "lenet": (["run", "fedavg", "--model", "lenet"], "12 pixels"),
    "folder": (["run", "fedavg", "--data-folder", "x"], "data digits does not read it"),
    "no files": (["run", "fedavg", "--data", "fashion", "--data-folder", "nowhere", "--model", "mlp"], "nowhere"),
    "hypercube": (["run", "dsgd", "--topology", "hypercube", "--nodes", 12], "power of two"),
    "torus": (["run", "dsgd", "--topology", "torus", "--nodes", 11], "prime"),
    "caveman": (["run", "dsgd", "--topology", "caveman", "--degree", 5], "multiple"),
    "degree": (["run", "dsgd", "--topology", "regular", "--degree", 8], "degree is 8"),
    "odd degree": (["run", "dsgd", "--topology", "regular", "--degree", 3, "--nodes", 9], "even"),
    "disconnected": (["run", "dsgd", "--topology", "erdos_renyi", "--degree", 1, "--nodes", 40], "disconnected"),
    "directed": (["run", "dsgd", "--mixing", "metropolis"], "directed"),
    "negative weight": (["run", "dsgd", "--topology", "star", "--mixing", "optimal", "--nodes", 20], "at most 1"),
    "varying": (["run", "dsgd", "--topology", "matching", "--mixing", "lazy"], "matching does not read it"),
    "rule": (["run", "fedavg", "--rule", "medain"], "did you mean median"),
    "attack": (["run", "fedavg", "--attack", "ally"], "did you mean alie"),
    "nobody lies": (["run", "fedavg", "--attack", "alie"], "nobody lies"),
    "all lie": (["run", "fedavg", "--byzantine", 8], "byzantine is 8"),
    "codec": (["run", "fedavg", "--codec", "int"], "did you mean int"),
    "crash": (["run", "fedavg", "--crash", 1], "crash is 1.0"),
    "mbit": (["run", "fedavg", "--mbit", 0], "mbit is 0.0"),
    "latency": (["run", "fedavg", "--latency-ms", -1], "latency_ms is -1.0"),
    "concurrency": (["run", "fedbuff", "--concurrency", 8, "--goal", 3], "concurrency \\+ goal - 1 = 10 nodes"),
    "sweep nothing": (["sweep", "fedprox"], "grid is missing"),
    "sweep whom": (["sweep", "--grid", "lr=1"], "name is missing"),
    "sweep key": (["sweep", "fedprox", "--grid", "mo=1"], "did you mean mu"),
    "sweep count": (["sweep", "fedprox", "--grid", "steps=1,2"], "shapes the program"),
    "sweep numbers": (["sweep", "fedprox", "--grid", "mu=a,b"], "KEY=NUMBER"),
    "sweep twice": (["sweep", "fedprox", "--grid", "mu=1", "--grid", "mu=2"], "mu twice"),
    "sweep nan": (["sweep", "fedprox", "--grid", "mu=nan"], "must be finite"),
    "sweep no number": (["sweep", "fedprox", "--grid", "mu"], "KEY=NUMBER"),
    "sweep function": (["sweep", "fedbuff", "--grid", "discount=1"], "'discount' is unknown"),
    "sweep fixed": (["sweep", "cocktail_sgd", "--grid", "keep=0.1,0.2"], "shapes the program"),
    "sweep protocol": (["sweep", "push_sum", "--grid", "lr=1"], "known are none"),
    "sweep score": (["sweep", "fedprox", "--grid", "mu=0,1", "--score", "acc"], "score is 'acc'"),
    "sweep range": (["sweep", "fedprox", "--grid", "mu=0,-1"], "mu is -1.0"),
    "plan whom": (["plan"], "name is missing"),
    "plan memory": (["plan", "fedavg", "--memory-gb", 0], "memory_gb is 0.0"),
    "plan memory nan": (["plan", "fedavg", "--memory-gb", "nan"], "memory_gb is nan"),
    "plan memory inf": (["plan", "fedavg", "--memory-gb", "inf"], "memory_gb is inf"),
    "set": (["run", "fedprox", "--set", "mu"], "KEY=VALUE"),
    "set key": (["run", "fedprox", "--set", "nu=1"], "did you mean mu"),
    "set system": (["run", "dfedsam", "--set", "dfedsan.rho=1"], "did you mean dfedsam"),
    "set type": (["run", "fedprox", "--set", "mu=big"], "mu must be a finite number"),
    "set count": (["run", "dsgd", "--set", "steps=1.5"], "whole number"),
    "set function": (["run", "fedbuff", "--set", "discount=1"], "'discount' is unknown"),
    "set optimizer": (["run", "diloco", "--set", "server=0.1"], "'server' is unknown"),
    "set protocol": (["run", "push_sum", "--set", "lr=1"], "known are none"),
    "set refused": (["run", "scaffold", "--set", "lr=-1"], "lr is -1"),
    "set of the system itself": (["run", "clipped_gossip", "--set", "keep_state=false"], "'keep_state' is unknown"),
    "hidden": (["run", "fedavg", "--hidden", 5], "hidden is 5, but model logistic"),
    "cohort of gossip": (["run", "dsgd", "--cohort", 5], "cohort is 5, but changes nothing in dsgd"),
    "strata of gossip": (["run", "dsgd", "--strata", 2], "strata is 2, but changes nothing in dsgd"),
    "strata of a system that draws": (["run", "modest", "--strata", 2, "--cohort", 4], "strata is 2, but changes"),
    "topology of a server": (["run", "fedavg", "--topology", "ring"], "topology is ring, but changes nothing"),
    "mixing of a server": (["compare", "fedavg", "fedprox", "--mixing", "lazy"], "mixing is lazy, but changes nothing"),
    "goal of a server": (["run", "fedavg", "--goal", 3], "goal is 3, but changes nothing in fedavg"),
    "more at work than there are": (["run", "fedbuff", "--concurrency", 100], "concurrency is 100, but can be"),
    "concurrency of gossip": (["run", "dsgd", "--concurrency", 3], "concurrency is 3, but changes nothing"),
    "steps of one step": (["run", "fedsgd", "--steps", 5], "steps is 5, but changes nothing in fedsgd, which has no"),
    "batch of the whole": (["run", "fedsgd", "--batch", 5], "batch is 5, but changes nothing in fedsgd, which has no"),
    "steps under epochs": (["run", "fedavg", "--steps", 5, "--set", "epochs=1"], "as --set gives epochs"),
    "lr twice": (["run", "fedavg", "--lr", 0.5, "--set", "lr=0.2"], "lr is 0.5, but changes nothing in fedavg, as"),
    "lr under a grid": (["sweep", "fedavg", "--lr", 0.5, "--grid", "lr=0.1,0.2"], "as --grid gives another"),
    "rule of its own": (["run", "clipped_gossip", "--rule", "median"], "rule is median, but clipped_gossip brings"),
    "codec under masks": (["run", "papaya", "--codec", "int4"], "codec is int4, but papaya brings its own"),
    "nobody talks": (["run", "local_only", "--codec", "int4"], "codec is int4, but changes nothing in local_only"),
    "nobody listens": (["run", "local_only", "--byzantine", 2, "--attack", "alie"], "byzantine is 2, but changes"),
    "crash of one": (["run", "centralized", "--crash", 0.5], "crash is 0.5, but changes nothing in centralized"),
    "too many liars": (["run", "dsgd", "--topology", "ring", "--byzantine", 2, "--rule", "krum"], "5 messages, and 3"),
    "plan saves nothing": (["plan", "fedavg", "--checkpoints"], "checkpoints is True, but plan does not read it"),
    "plan writes nothing": (["plan", "fedavg", "--out", "x"], "out is x, but plan does not read it"),
    "claim": (["reproduce", "dsgd"], "has no claim"),
    "card": (["reproduce", "999"], "999"),
    "reproduce nothing": (["reproduce"], "name is missing"),
    "reproduce seeds": (["reproduce", "fedprox", "--seeds", 0], "seeds is 0"),
}


PROTOCOL = {
    "lr": (["--lr", 0.5], "lr is 0.5, but changes nothing in push_sum"),
    "alpha": (["--alpha", 0.5], "alpha is 0.5, but changes nothing in push_sum"),
    "data": (["--data", "digits"], "data is digits, but changes nothing"),
    "model": (["--model", "mlp"], "model is mlp, but changes nothing"),
    "partition": (["--partition", "iid"], "partition is iid, but changes nothing"),
    "steps": (["--steps", 7], "steps is 7, but changes nothing"),
    "batch": (["--batch", 7], "batch is 7, but changes nothing"),
    "codec": (["--codec", "int8"], "codec is int8, but the messages of a protocol"),
    "rule": (["--rule", "median"], "rule is median, but the messages of a protocol"),
    "liars": (["--byzantine", 2], "byzantine is 2, but the messages of a protocol"),
    "step time": (["--step-ms", 2], "step_ms is 2.0, but changes nothing"),
}


@pytest.mark.parametrize("case", PROTOCOL)
def test_what_means_nothing_to_a_protocol_is_refused(case, tmp_path, monkeypatch, capsys, no_run):
    monkeypatch.chdir(tmp_path)
    args, says = PROTOCOL[case]
    assert jaxfl("run", "push_sum", "--nodes", 8, "--rounds", 2, *args) == 2
    told = capsys.readouterr()
    assert told.err.startswith(f"jaxfl: {says}")
    assert told.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_writes_nothing(case, tmp_path, monkeypatch, capsys, no_run):
    monkeypatch.chdir(tmp_path)
    args, says = BAD[case]
    names = next((i for i, word in enumerate(args) if str(word).startswith("--")), len(args))
    small = SMALL if args[0] in ("run", "compare", "sweep", "plan") else []
    assert jaxfl(*args[:names], *small, *args[names:]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("jaxfl: ")
    assert told.err.count("\n") == 1
    assert says.replace("\\", "") in told.err
    assert not list(tmp_path.iterdir())


def test_a_used_folder_is_refused_and_left_alone(tmp_path, capsys, no_run):
    used, file = tmp_path / "used", tmp_path / "file"
    used.mkdir()
    (used / "precious").write_text("x")
    file.write_text("y")
    for out in (used, file, file / "below"):
        assert jaxfl("run", "fedavg", *SMALL, "--out", out) == 2
        assert jaxfl("reproduce", "dsgd", "--out", out) == 2
        assert "Traceback" not in capsys.readouterr().err
    assert [p.name for p in used.iterdir()] == ["precious"]


def test_options_that_do_not_parse_exit_with_2(capsys):
    for args in (["run", "fedavg", "--nodes", "x"], ["run", "fedavg", "--nodez", 3], ["ran"], []):
        assert jaxfl(*args) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_odd_letters_in_names_stay_on_one_line(capsys, no_run):
    name = "a\nb\x1b[31m\u202e\udcff"
    for args in (["cite"], ["run"], ["run", "dsgd", "--config"], ["run", "dsgd", "--data"], ["predict"], ["reproduce"]):
        assert jaxfl(*args, name) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert told[:-1].isprintable()


def test_what_is_no_config_is_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    texts = {"digits": "rounds = " + "9" * 5000, "deep": "lr = " + "[" * 5000 + "]" * 5000, "big": "#" * 2**20 + "# "}
    texts |= {"high": "lr = 1" + "0" * 400, "bytes": "\udcff", "lists": "options = " + "[" * 60 + "]" * 60}
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    os.mkfifo("pipe")
    for name in (*texts, "pipe", "/dev/zero", ".", "nothing", "a\0b"):
        for args in (["run", "fedavg", "--config", name], ["run", "--resume", name]):
            assert jaxfl(*args) == 2
            told = capsys.readouterr().err
            assert told.startswith("jaxfl: config: ")
            assert told.count("\n") == 1
            assert len(told) < 400


def test_a_folder_that_cannot_be_is_a_sentence(tmp_path, monkeypatch, capsys, no_run):
    monkeypatch.chdir(tmp_path)
    for out in ("s3://bucket/x", "a\0b", "/dev/null/x", "/proc/nothing/x"):
        assert jaxfl("run", "fedavg", *SMALL, "--out", out) == 2
        told = capsys.readouterr().err
        assert told.startswith("jaxfl: out")
        assert told.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_claim_that_cannot_be_kept_is_not_begun(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zoo.Claim, "reproduce", lambda *a, **k: pytest.fail("it began"))
    monkeypatch.setattr(record.check, "__defaults__", (tmp_path / "nothing" / "there",))
    assert jaxfl("reproduce", "fedprox", "--keep") == 2
    assert capsys.readouterr().err.startswith("jaxfl: keep: ")
    assert not list(tmp_path.iterdir())
