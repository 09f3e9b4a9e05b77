"""The benchmark of faults at its smallest: a kill, a few damages, and a table of how they ended."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_faults_are_counted_and_none_goes_wrong():
    command = [sys.executable, BENCHMARKS / "faults.py", "--tiny", "--seed", "5"]  # whose lines need no run before them
    told = subprocess.run(command, capture_output=True, text=True, cwd=BENCHMARKS.parent)
    assert told.returncode == 0, told.stderr
    head, _, *rows = [line.strip("|").split("|") for line in told.stdout.splitlines() if line.startswith("|")]
    assert head[0].strip() == "what"
    names = [row[0].strip() for row in rows]
    assert sum(int(row[1]) for row, name in zip(rows, names, strict=True) if name.startswith("odd lines")) == 4
    assert [name for name in names if not name.startswith("odd lines")] == [
        "fedavg: runs with 1 kills",
        "damaged checkpoints",
        "damaged logs",
        "damaged archives by node",
        "changed configs",
    ]
    for row in rows:
        tried, *outcomes = map(int, row[1:])
        assert tried == sum(outcomes) > 0
    assert "jax" in told.stdout.splitlines()[-1]


def test_an_outcome_that_is_wrong_is_seen():
    import trial

    from jaxfl.errors import InputError

    def fails(error):
        raise error

    assert trial.tried(lambda: True) == trial.EQUAL
    assert trial.tried(lambda: not print("Goes on from round 2", file=sys.stderr)) == trial.BACK
    assert trial.tried(lambda: False) == trial.SILENT
    assert trial.tried(lambda: fails(InputError("no"))) == trial.SENTENCE
    assert trial.tried(lambda: fails(InputError("no\nno"))) == trial.TRACEBACK
    assert trial.tried(lambda: fails(KeyError("no"))) == trial.TRACEBACK
    assert trial.tried(lambda: fails(TimeoutError())) == trial.HUNG


def test_an_odd_line_is_judged_by_its_exit_code_and_by_what_it_says():
    import trial
    from odd_lines import LONGEST, outcome

    progress = "jaxfl: 8 nodes.\n1/1 dsgd ...\nround 1 of 2, accuracy 0.1, 3 s\n"
    for code, says, ended in (
        (0, progress, trial.RAN),
        (2, "jaxfl: no.\n", trial.SENTENCE),
        (2, f"{progress}jaxfl: no.\n", trial.SENTENCE),
        (-signal.SIGXCPU, progress, trial.STOPPED),
        (-signal.SIGXCPU, "", trial.FAILED),  # before it said anything
        (0, "E1127 a library says\n", trial.FAILED),
        (2, "", trial.FAILED),
        (2, "jaxfl: no.\n" * 4, trial.FAILED),
        (2, f"jaxfl: {'x' * LONGEST}\n", trial.FAILED),
        (1, "jaxfl: no.\n", trial.FAILED),
        (-9, progress, trial.FAILED),
        (None, progress, trial.HUNG),
        (1, "Traceback (most recent call last):\n", trial.TRACEBACK),
    ):
        assert outcome(code, says, "") == ended, (code, says)


def test_odd_lines_are_drawn_by_their_seed_and_are_of_every_command():
    from odd_lines import LINES, OWN, line_of

    draw = lambda: [line_of(rng) for rng in [random.Random(1)] for _ in range(300)]
    assert draw() == draw()
    assert len({tuple(line) for line in draw()}) > 250
    assert set(OWN) == set(filter(None, LINES))
    assert {word for line in draw() for word in line[:1]} >= set(OWN)
    assert {"nodes", "set", "grid", "resume", "memory-gb"} <= {name for options in OWN.values() for name in options}


def test_a_full_disk_must_be_said_in_one_sentence_that_names_a_file():
    import trial
    from full_disk import said

    where = Path("/a b/x")
    assert said(2, "1/1 dsgd ...\njaxfl: out: the disk of /a b/x/log is full.\n", where) is None
    assert said(2, "jaxfl: out: the disk is full.\n", where) == trial.FAILED
    assert said(2, "jaxfl: /a b/x/log.\n/a b/x/log\n", where) == trial.FAILED
    assert said(1, "jaxfl: /a b/x/log.\n", where) == trial.FAILED
    assert said(None, "", where) == trial.HUNG
    assert said(1, "Traceback: /a b/x", where) == trial.TRACEBACK


def test_damage_is_drawn_by_its_seed_and_mostly_changes_something():
    import faults

    data = b'{"a": 1.5}\n{"b": 2}\n{"c": [3, 4]}\n'
    draw = lambda: [faults.changed(data, rng) for rng in [random.Random(1)] for _ in range(50)]
    assert draw() == draw()
    assert len({new for new in draw() if new != data}) > 25
    assert all(isinstance(faults.changed(b"", random.Random(i)), bytes) for i in range(20))
