"""The options of a run: their checks, the config file, what a command line makes of both."""

import dataclasses
import hashlib
import re

import pytest

from jaxfl.errors import InputError
from jaxfl.options import config, files, kept
from jaxfl.options.commands import Compare, parse
from jaxfl.options.config import Setup
from jaxfl.options.systems import own_options, system_options

TINY = Setup(nodes=8, data="digits", model="logistic", rounds=2, seeds=2)


def test_config_overridden_by_options(tmp_path):
    path = tmp_path / "c.toml"
    setup = dataclasses.replace(TINY, lr=1, out="x", data_folder='a "quoted" \\ \x7f ü', options=("mu=1",))
    path.write_text(kept.saved("compare", ["fedprox", "fedavg"], setup, setup), encoding="utf-8")
    same = dataclasses.replace(setup, out=None)
    assert kept.load(path) == (["fedprox", "fedavg"], same)
    assert parse(["compare", f"--config={path}"]) == Compare(same, str(path), names=("fedprox", "fedavg"))
    got = parse(["compare", "dsgd", "--config", str(path), "--rounds", "7", "--set", "mu=2", "--json"])
    want = dataclasses.replace(same, rounds=7, options=("mu=1", "mu=2"))
    assert got == Compare(want, str(path), True, names=("dsgd",))
    assert system_options(want, ["fedprox"]) == {"fedprox": {"mu": 2}}
    earlier = kept.load(path)
    assert own_options(want, ["fedprox"], earlier) == want
    assert own_options(want, ["dsgd"], earlier).options == ("mu=2",)  # mu=1 was for fedprox
    assert own_options(want, ["dsgd"], None) == want
    with pytest.raises(InputError, match="mu=2"):
        system_options(own_options(want, ["dsgd"], earlier), ["dsgd"])
    assert parse(["run", "--config", str(path)]).name is None


def test_a_file_of_a_topology_is_kept_by_what_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "g.csv").write_text("source,target\n0,1\n")
    setup = dataclasses.replace(TINY, topology="g.csv")
    path = tmp_path / "c.toml"
    path.write_text(kept.saved("run", ["dsgd"], setup, setup), encoding="utf-8")
    mark = hashlib.sha256((tmp_path / "g.csv").read_bytes()).hexdigest()
    assert f'files = ["{mark} {tmp_path / "g.csv"}"]' in path.read_text()
    assert kept.load(path)[1].topology == str(tmp_path / "g.csv")
    (tmp_path / "g.csv").write_text("source,target\n1,0\n")
    with pytest.raises(InputError, match=r"g\.csv is not the file that .*c\.toml was written with"):
        kept.load(path)
    with pytest.raises(InputError, match=r"topology 'g\.cvs' is unknown"):
        config.check(dataclasses.replace(TINY, topology="g.cvs"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nodez = 3", "did you mean nodes"),
        ("nodes = 'many'", "another type"),
        ("nodes = true", "another type"),
        ("options = [1]", "another type"),
        ("nodes = ", "not a TOML file"),
        (None, "cannot be read"),
    ],
)
def test_bad_config(text, says, tmp_path):
    path = tmp_path / "c.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=says):
        parse(["run", "fedavg", "--config", str(path)])


def test_toml_of_other_types_is_refused():
    with pytest.raises(InputError, match="cannot be written"):
        files.dump({"x": {1: 2}})


def test_every_option_but_paths_and_flags_says_what_it_allows():
    free = {field.name for field in dataclasses.fields(Setup)} - {name for name, _ in config._allowed()}
    known = {
        "data_folder",
        "target",
        "client_column",
        "features",
        "personal",
        "options",
        "out",
        "checkpoints",
        "weights",
        "durations",
        "deadline",
        "availability",
        "links",
        "trace",
    }
    assert free == known


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("nodes", 0, "whole number of at least 1"),
        ("batch", -1, "whole number of at least 0"),
        ("mbit", float("nan"), "finite and above 0"),
        ("lr", float("inf"), "finite and above 0"),
        ("crash", 1.0, "at least 0 and below 1"),
        ("latency_ms", -0.5, "at least 0"),
        ("codec", "int", "did you mean int"),
        ("every", 0, "whole number of at least 1"),
        ("weights", "diso", "did you mean disco"),
        ("weights", "size:a=1", "size has no number"),
        ("weights", "disco:a=1,a=2", "disco has a, b, measure, each once"),
        ("weights", "disco:a=nan", "a must be a finite number of at least 0"),
        ("weights", "disco:measure=k2", "did you mean l2 or kl"),
    ],
)
def test_what_an_option_does_not_allow_is_refused(field, value, says):
    with pytest.raises(InputError, match=f"{field}.*{value}.*{says}"):
        config.check(dataclasses.replace(Setup(), **{field: value}))
    config.check(Setup(batch=0, crash=0.0, lr=1, mbit=10, every=1))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"hidden": 5, "model": "logistic"}, "hidden is 5, but model logistic does not read it: mlp, transformer do."),
        ({"compute": "float16", "model": "logistic"}, "compute is float16, but model logistic"),
        ({"shard_size": 5, "partition": "iid"}, "shard_size is 5, but partition iid"),
        ({"labels_per_node": 5, "partition": "iid"}, "labels_per_node is 5, but partition iid"),
        ({"alpha": 5.0, "partition": "iid"}, "alpha is 5.0, but partition iid"),
        ({"degree": 5, "topology": "ring"}, "degree is 5, but topology ring"),
        ({"mixing": "lazy", "topology": "matching"}, "mixing is lazy, but topology matching"),
        ({"data_folder": "x", "data": "digits"}, "data_folder is x, but data digits"),
        ({"concurrency": 100, "nodes": 20}, "concurrency is 100, but can be at most the number of nodes, 20."),
    ],
)
def test_an_option_that_another_one_leaves_without_effect_is_refused(options, says):
    with pytest.raises(InputError, match=re.escape(says)):
        config.check(dataclasses.replace(Setup(), **options))
    if "nodes" in options:
        return
    name, other = options
    config.check(dataclasses.replace(Setup(), **{other: options[other]}))  # defaults never complain
    config.check(dataclasses.replace(Setup(), **options | {other: config.READ_BY[name][1][0]}))


def test_every_option_that_another_one_reads_is_one():
    fields = {field.name for field in dataclasses.fields(Setup)}
    assert set(config.READ_BY) | {other for other, _ in config.READ_BY.values()} <= fields
    assert set(config.KINDS) | set(config.SLOTS) <= fields
    assert {n for _, names in config.READ_BY.values() for n in names} <= {
        *config.DATA,
        *config.PARTITIONS,
        *config.MODELS,
        *config.STATIC,
        *config.VARYING,
    }


def test_what_none_stands_for():
    setup = Setup(nodes=50, concurrency=20, byzantine=3)
    full = config.filled(setup)
    assert (full.cohort, full.concurrency, full.goal, full.attack) == (5, 20, 2, "sign_flip")
    usual = config.usual(full)
    assert {name: usual[name] for name in ("cohort", "concurrency", "goal", "attack", "mixing")} == {
        "cohort": 5,
        "concurrency": 5,
        "goal": 2,
        "attack": "sign_flip",
        "mixing": "uniform",
    }
    assert config.filled(Setup()).attack is None
    assert config.usual(Setup(topology="ring"))["mixing"] == "metropolis"


def test_what_decides_numbers_is_known_wherever_files_are(tmp_path):
    """Folders, devices and checkpoints do not; of a file its name counts here, and what is in it elsewhere."""
    made = []
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        file = tmp_path / place / "contacts.csv"
        file.write_text("source,target\n0,1\n1,0\n")
        setup = Setup(
            topology=str(file), personal="layers/1/*", out=place, devices=len(made) + 1, checkpoints=place == "b"
        )
        made.append(kept.deciding("run", [f"{tmp_path / place / 'mine.py'}:mine:mu=1"], setup))
    assert made[0] == made[1]
    assert made[0]["topology"] == "contacts.csv"
    assert made[0]["systems"] == ["mine.py:mine:mu=1"]
    assert made[0]["personal"] == "layers/1/*"
    assert not {"out", "devices", "checkpoints", "files"} & set(made[0])
