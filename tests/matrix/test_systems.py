"""Every system trains, compiles once, goes on bit for bit, is the same on 8 devices, and counts its costs."""

import importlib
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from workers import BATCHED, DOZEN, FILES

from jaxfl import zoo
from jaxfl.errors import InputError
from jaxfl.paper import KINDS, Paper, System

NAMES = list(zoo.systems())
DOZENS = {name: tuple(NAMES[i : i + DOZEN]) for i in range(0, len(NAMES), DOZEN) for name in NAMES[i : i + DOZEN]}


@cache
def found(words):
    """What a process of its own finds out about some systems, by name, and what it complains of."""
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name("examples.py")), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
    return rows, done.stderr[-3000:]


@pytest.mark.parametrize("name", NAMES)
def test_a_system(name, record_property):
    rows, says = found(DOZENS[name])
    assert name in rows, says
    row, kind = rows[name], zoo.find(name).kind
    record_property("cpu_seconds", row["cpu_seconds"])
    assert row["finite"]
    assert row["resumed"]
    assert row["programs"] == 1
    assert row["apart"] == []
    column, first, last = row["score"]
    assert last < first or last == 0, column
    costs = {cost for cost, value in row["costs"].items() if value > 0}
    messages = set() if kind == "reference" else {"up_bits", "down_bits"}
    assert costs == messages | {"seconds"} | (set() if kind == "protocol" else {"gradients"})


BATCHES = {file: tuple(FILES[i % BATCHED :: BATCHED]) for i, file in enumerate(FILES)}


@pytest.mark.parametrize("file", FILES)
def test_what_a_test_file_holds_up(file):
    """Blocks and worlds that no example has: go on bit for bit, compile once, the same on 8 devices."""
    rows, says = found(BATCHES[file])
    mine = {name: row for name, row in rows.items() if name.startswith(f"{file}: ")}
    assert mine, says
    assert not says
    for name, row in mine.items():
        assert (row["resumed"], row["programs"], row["apart"]) == (True, 1, []), name


def test_every_file_of_systems_says_what_it_must():
    """A paper with its facts, systems whose first words are their own, and a claim that can be called."""
    for kind, file in zoo._files():
        module = importlib.import_module(f"{zoo.FOLDERS[kind]}.{file}")
        assert module.__doc__, file
        assert module.SYSTEMS, file
        papers = [s.paper for s in module.SYSTEMS.values() if s.paper is not None]
        assert (getattr(module, "PAPER", None) in papers) == bool(papers), file
        assert all(s.make.__doc__ for s in module.SYSTEMS.values()), file
    numbers = [claim.paper.number for claim in zoo.claims_by_name().values()]
    assert len(set(numbers)) == len(numbers)
    assert all(number is not None and len(number) == 3 for number in numbers)
    for name, claim in zoo.claims_by_name().items():
        assert zoo.find_claim(str(claim.paper.number)) == zoo.find_claim(name) == claim
        assert callable(claim.reproduce)
    assert {system.kind for system in zoo.systems().values()} == set(KINDS)


def test_every_paper_has_a_test_file_of_its_own_name():
    there = {p.stem.removeprefix("test_") for p in (Path(__file__).parents[1] / "papers").glob("test_*.py")}
    assert set(zoo.claims_by_name()) <= there


def test_two_systems_of_one_name_are_refused(monkeypatch):
    monkeypatch.setattr(zoo, "_files", lambda: iter([("gossip", "dsgd"), ("gossip", "dsgd")]))
    with pytest.raises(InputError, match="has a system 'dsgd', but there is one of that name"):
        zoo.entries.__wrapped__()


def test_the_text_of_the_files_says_what_they_hold_when_they_run():
    for name, entry in zoo.entries().items():
        system = zoo.find(name)
        assert importlib.import_module(entry.module).SYSTEMS[name].make is system.make
        assert (entry.kind, entry.paper) == (system.kind, system.paper), name
    for name, claim in zoo.claims_by_name().items():
        assert claim.paper in [entry.paper for entry in zoo.entries().values() if entry.module.endswith(f".{name}")]
    held = {
        module: set(importlib.import_module(module).SYSTEMS) for module in {e.module for e in zoo.entries().values()}
    }
    assert set.union(*held.values()) == set(zoo.entries())


@pytest.mark.parametrize(
    "text", ["SYSTEMS = dict(a=System(f))", "SYSTEMS = {'a': f}", "SYSTEMS = {'a': System(f, PAPER)}"]
)
def test_a_file_whose_text_does_not_say_its_systems_is_refused(text, tmp_path, monkeypatch):
    (tmp_path / "unlike.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"^unlike must say `NAME = Paper\(...\)` in literals"):
        zoo._papers("unlike")


@pytest.mark.parametrize(
    ("f", "name", "words"),
    [
        (zoo.find, "fedavgg", "did you mean fedavg"),
        (zoo.find, "zzz", "known are"),
        (zoo.find_claim, "999", "paper '999' has no claim"),
        (zoo.find_claim, "push_sum", "has no claim"),
    ],
)
def test_unknown_names_get_the_nearest(f, name, words):
    with pytest.raises(InputError, match=words):
        f(name)
    assert zoo.find("FedAvg-M") is zoo.find("fedavg_m")


def test_bibtex_of_a_conference_a_journal_and_a_preprint():
    of = lambda venue, **more: Paper("The Deep & Wide", "Kürten, Li", venue, "https://x.org/a_b&c", **more).bibtex
    assert of("ICML 2023").startswith("@inproceedings{kurten2023deep,\n  title = {{The Deep \\& Wide}},\n")
    assert "author = {Kürten and Li}" in of("2023")
    assert "booktitle = {ICML},\n  year = {2023},\n  url = {https://x.org/a_b&c}\n}" in of("ICML 2023")
    assert "@article" in (text := of("Systems & Control Letters 2004", journal=True))
    assert "journal = {Systems \\& Control Letters}" in text
    assert "@misc" in (text := of("2025"))
    assert "journal" not in text
    assert System(print).kind == ""
