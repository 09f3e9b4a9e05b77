"""The benchmark of faults at its smallest: a kill, a few damages, and a table of how they ended."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def faults(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import faults

    return faults


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_faults_are_counted_and_none_goes_wrong():
    command = [sys.executable, BENCHMARKS / "faults.py", "--tiny"]
    told = subprocess.run(command, capture_output=True, text=True, cwd=BENCHMARKS.parent)
    assert told.returncode == 0, told.stderr
    head, _, *rows = [line.strip("|").split("|") for line in told.stdout.splitlines() if line.startswith("|")]
    assert head[0].strip() == "what"
    assert [row[0].strip() for row in rows] == [
        "sweep: runs with 1 kills",
        "damaged checkpoints",
        "damaged logs",
        "damaged archives by node",
        "changed configs",
    ]
    for row in rows:
        tried, *outcomes = map(int, row[1:])
        assert tried == sum(outcomes) > 0
    assert "jax" in told.stdout.splitlines()[-1]


def test_an_outcome_that_is_wrong_is_seen(faults):
    from jaxfl.errors import InputError

    def fails(error):
        raise error

    assert faults.tried(lambda: True) == faults.EQUAL
    assert faults.tried(lambda: not print("Goes on from round 2", file=sys.stderr)) == faults.BACK
    assert faults.tried(lambda: False) == faults.SILENT
    assert faults.tried(lambda: fails(InputError("no"))) == faults.SENTENCE
    assert faults.tried(lambda: fails(InputError("no\nno"))) == faults.TRACEBACK
    assert faults.tried(lambda: fails(KeyError("no"))) == faults.TRACEBACK
    assert faults.tried(lambda: fails(TimeoutError())) == faults.HUNG


def test_damage_is_drawn_by_its_seed_and_mostly_changes_something(faults):
    data = b'{"a": 1.5}\n{"b": 2}\n{"c": [3, 4]}\n'
    draw = lambda: [faults.changed(data, rng) for rng in [random.Random(1)] for _ in range(50)]
    assert draw() == draw()
    assert len({new for new in draw() if new != data}) > 25
    assert all(isinstance(faults.changed(b"", random.Random(i)), bytes) for i in range(20))
