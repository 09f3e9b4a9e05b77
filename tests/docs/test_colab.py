"""Notebooks in Colab: its jax, built for its accelerator, stays; where jaxfl comes from stands in one place."""

import importlib.metadata
import importlib.util
import re
import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
SHIPPED = dict(line.split("==") for line in (Path(__file__).parent / "colab.txt").read_text().split() if "==" in line)
SCRIPTS = sorted(p for p in (ROOT / "notebooks").glob("*.py") if p.name != "execute.py")


def install_cell(script):
    """The code of the first cell, as Python."""
    return re.search(r"^# %%\n(.*?)^# %%", script.read_text(), re.S | re.M).group(1)


def test_what_colab_ships_is_new_enough():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = [Requirement(text) for text in project["dependencies"]]
    shipped = [need for need in needs if need.name in SHIPPED]
    assert {"jax", "flax", "optax", "numpy"} <= {need.name for need in shipped}
    assert not [
        f"{need}, but {SHIPPED[need.name]}" for need in shipped if not need.specifier.contains(SHIPPED[need.name])
    ]
    assert not any(need.extras for need in needs)  # no plug-in of another CUDA comes along


def test_all_notebooks_begin_alike():
    assert len({install_cell(script) for script in SCRIPTS}) == 1
    assert all(script.read_text().count("SOURCE = ") == 1 for script in SCRIPTS)


@pytest.mark.parametrize("there", [True, False])
def test_the_first_cell_keeps_jax_and_says_in_one_sentence_what_is_missing(there, monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command)
        return SimpleNamespace(returncode=int(not there), stderr="noise\nERROR: No matching distribution found\n")

    monkeypatch.setattr(subprocess, "run", run)
    cell = install_cell(SCRIPTS[0])
    exec(cell, {})  # our own notebook; jaxfl is installed, so nothing happens
    assert not commands
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    if there:
        exec(cell, {})
    else:
        says = r"^jaxfl cannot be installed from 'jaxfl' beside jax==[^\n]*: [^\n]*No matching"
        with pytest.raises(SystemExit, match=says):
            exec(cell, {})
    (command,) = commands
    source = command.index("jaxfl")
    kept = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    assert set(command[source + 1 :]) == {f"{name}=={version}" for name, version in kept.items()}
