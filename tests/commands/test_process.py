"""A command as a process: signals, closed and full and narrow streams, errors of parsing."""

import io
import os
import signal
import subprocess
import sys
from functools import partial

import pytest
from common import jaxfl

from jaxfl import cli
from jaxfl.commands import process, show
from jaxfl.engine import run as engine

SMALL = ["--nodes", "6", "--data", "digits", "--model", "logistic", "--rounds", "2", "--seeds", "1", "--every", "1"]
AT_IMPORT = """
import os, signal, sys
from jaxfl import cli

class Killer:
    def find_spec(name, *_):
        if name == "tyro":
            os.kill(os.getpid(), signal.{name})

sys.meta_path.insert(0, Killer)
cli.main(["run", "fedavg"])
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_before_anything_is_computed_is_one_line(name, code):
    ended = subprocess.run([sys.executable, "-c", AT_IMPORT.format(name=name)], capture_output=True, text=True)
    assert ended.returncode == code
    assert ended.stderr == f"jaxfl: interrupted by {name}; what was finished before is kept.\n"


@pytest.mark.usefixtures("process")
def test_sigterm_keeps_the_table_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    run, out = engine.run, tmp_path / "it's"
    press = lambda progress: os.kill(os.getpid(), signal.SIGTERM) if progress.round == 1 else None
    monkeypatch.setattr(engine, "run", partial(run, callback=press))
    assert jaxfl("run", "dsgd", *SMALL, "--checkpoints", "--out", out) == 143
    told = capsys.readouterr()
    assert "interrupted at round 1 of dsgd" in told.err
    assert f"`jaxfl run --resume '{tmp_path}/it'\"'\"'s'` goes on." in told.err
    assert "accuracy" in told.out
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    monkeypatch.setattr(engine, "run", run)
    assert jaxfl("run", "--resume", out) == 0


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_outside_the_rounds_says_how_to_go_on(number, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(engine, "run", lambda *a, **k: os.kill(os.getpid(), number))
    assert jaxfl("run", "dsgd", *SMALL, "--checkpoints", "--out", tmp_path) == 128 + number
    assert capsys.readouterr().err.endswith(f"interrupted; what was computed is in {tmp_path}; "
                                            f"`jaxfl run --resume {tmp_path}` goes on.\n")  # fmt: skip


class Broken(io.StringIO):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error


def test_who_stops_reading_ends_the_output_and_a_full_disk_is_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Broken(BrokenPipeError(32, "Broken pipe")))
    assert jaxfl("cite", "fedavg") == 0
    monkeypatch.setattr(sys, "stdout", Broken(OSError(28, "No space left on device")))
    assert jaxfl("cite", "fedavg") == 2
    assert capsys.readouterr().err == "jaxfl: standard output cannot be written (No space left on device).\n"


@pytest.mark.parametrize(("encoding", "says"), [("ascii", "0.5 +- 0.1 - n?e ?"), ("latin-1", "0.5 ± 0.1 - née ?")])
def test_letters_a_terminal_has_not_are_spelt(encoding, says, monkeypatch):
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding, write_through=True))
    with process.streams():
        show.console().print("0.5 ± 0.1 – née 文")
    assert (
        out.getvalue().decode(encoding).strip() == "0.5 +- 0.1 - n?e ?" if encoding == "ascii" else "0.5 ± 0.1 - née ?"
    )


def test_closed_streams_lead_nowhere(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "stdout", None)
    assert jaxfl("run", "fedavgg") == 2
    for stream in (sys.stdout, sys.stderr):
        assert stream.name == os.devnull
        stream.close()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["run", "fedavg", "--nodez", 3], "Unrecognized options: --nodez, 3; did you mean --node or --nodes?"),
        (["run", "fedavg", "--nodes", "x"], "Error parsing --nodes: invalid literal for int() with base 10: 'x'."),
        (["run", "fedavg", "--nodes", "9" * 5000], "Error parsing --nodes: Exceeds the limit (4300"),
        (["ran"], "Unrecognized options: ran; did you mean run or plan?"),
        ([], "Expected one of {list, run, compare, sweep, plan, predict, reproduce, cite}."),
        (["cite"], "Missing from jaxfl cite: NAME"),
        (["run", "x" * 5000, "--y"], "Unrecognized options: --y"),
    ],
)
def test_what_does_not_parse_is_one_line(args, says, capsys):
    assert jaxfl(*args) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"jaxfl: {says}")
    assert told.count("\n") == 1
    assert len(told) < 400


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out.startswith("jaxfl 0.")
