"""The options of a run: their checks, the config file, what a command line makes of both."""

import dataclasses

import pytest

from jaxfl import config
from jaxfl.commands.options import Compare, parse
from jaxfl.config import Setup
from jaxfl.core import InputError
from jaxfl.named.options import system_options

TINY = Setup(nodes=8, data="digits", model="logistic", rounds=2, seeds=2)


def test_config_overridden_by_options(tmp_path):
    path = tmp_path / "c.toml"
    setup = dataclasses.replace(TINY, lr=1, out="x", data_folder='a "quoted" \\ \x7f ü', options=("mu=1",))
    path.write_text(config.saved("compare", ["fedprox", "fedavg"], setup, setup), encoding="utf-8")
    same = dataclasses.replace(setup, out=None)
    assert config.load(path) == (["fedprox", "fedavg"], same)
    assert parse(["compare", f"--config={path}"]) == Compare(same, str(path), names=("fedprox", "fedavg"))
    got = parse(["compare", "dsgd", "--config", str(path), "--rounds", "7", "--set", "mu=2", "--json"])
    want = dataclasses.replace(same, rounds=7, options=("mu=1", "mu=2"))
    assert got == Compare(want, str(path), True, names=("dsgd",))
    assert system_options(want, ["fedprox"]) == {"fedprox": {"mu": 2}}
    assert system_options(want, ["dsgd"], inherited=("mu=1", "mu=2")) == {"dsgd": {}}
    with pytest.raises(InputError, match="mu"):
        system_options(want, ["dsgd"], inherited=("mu=1",))
    assert parse(["run", "--config", str(path)]).name is None


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
        config.dump({"x": {1: 2}})


def test_every_option_but_paths_and_flags_says_what_it_allows():
    free = {field.name for field in dataclasses.fields(Setup)} - {name for name, _ in config._allowed()}
    assert free == {"data_folder", "options", "out", "checkpoints"}


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
    ],
)
def test_what_an_option_does_not_allow_is_refused(field, value, says):
    with pytest.raises(InputError, match=f"{field}.*{value}.*{says}"):
        config.check(dataclasses.replace(Setup(), **{field: value}))
    config.check(Setup(batch=0, crash=0.0, lr=1, mbit=10, every=1))
