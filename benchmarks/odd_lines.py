"""Odd command lines of every command: each must run, or be refused in one sentence with exit code 2, in a minute."""

import os
import random
import resource
import shutil
import signal
import sys
import typing
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import trial

from jaxfl import cli
from jaxfl.options.commands import Command
from jaxfl.options.config import Setup

PATIENCE = 60  # seconds
LONG = 30  # CPU-seconds after which a run that is under way is stopped
LONGEST = 1000  # letters of a line that is said
SMALL = ["--nodes", "6", "--data", "small.npz", "--rounds", "2", "--every", "1", "--seeds", "1", "--devices", "1"]
SPELT = {"options": "set"}
LINES = {
    "run": [
        ["run", "fedavg", *SMALL, "--cohort", "3", "--set", "lr=0.1"],
        ["run", "dsgd", *SMALL, "--codec", "int4", "--topology", "ring", "--checkpoints", "--out", "x"],
        ["run", "fedprox:mu=0.1", *SMALL, "--partition", "iid", "--model", "logistic", "--mbit", "10"],
        ["run", "push_sum", "--nodes", "6", "--rounds", "3", "--topology", "graph.csv", "--json"],
        ["run", "own.py:mine", "--data", "table.csv", "--target", "y", *SMALL[:2], *SMALL[4:], "--model", "linear"],
        ["run", "--config", "done/config.toml"],
        ["run", "--resume", "done"],
    ],
    "compare": [
        ["compare", "fedavg", "scaffold", *SMALL, "--cohort", "2", "--hold-out", "0.2"],
        ["compare", "dsgd", "dsgd:lr=0.3", *SMALL, "--rule", "median", "--degree", "4", "--topology", "regular"],
        ["compare", "--config", "done/config.toml", "--rounds", "1"],
    ],
    "sweep": [
        ["sweep", "fedprox", *SMALL, "--grid", "mu=0,0.1", "--grid", "lr=0.1,0.3", "--score", "accuracy"],
        ["sweep", "dsgd", *SMALL, "--grid", "lr=0.1,1e9", "--checkpoints", "--out", "x"],
        ["sweep", "--resume", "swept"],
    ],
    "plan": [["plan", "fedavg", *SMALL, "--memory-gb", "1"], ["plan", "dsgd", *SMALL, "--json"]],
    "list": [["list"]],
    "cite": [["cite", "fedavg"]],
    "reproduce": [["reproduce", "fedporx", "--seeds", "1"], ["reproduce", "999", "--out", "x"]],
    "predict": [
        ["predict", "done"],
        ["predict", "done", "small.npz", "--system", "dsgd", "--seed", "0", "--node", "1", "--out", "said.csv"],
    ],
    "": [["--help"], ["--version"], ["run", "--help"]],
}


def _options(command: type) -> dict[str, str]:
    """The options of a command, as they are typed, and their types."""
    found = {}
    for name, hint in typing.get_type_hints(command).items():
        found |= _options(Setup) if name == "setup" else {SPELT.get(name, name.replace("_", "-")): str(hint)}
    return found


OWN = {c.__name__.lower(): _options(c) for c in typing.get_args(Command)}
KINDS = {name: kind for options in OWN.values() for name, kind in options.items()}
# fmt: off
NUMBERS = [
    "-1", "0", "1", "2", "3", "7", "0.5", "-0.0", "nan", "inf", "-inf", "1e3", "1e400", "1e-400", "1e308",
    "2147483647", "2147483648", "9223372036854775808", "100000000000000000000000000000", "0x10", "1_000", "٣", "½",
    "1,2", "+1", "1.", ".5", "1e", "1e99999999",
]
WORDS = [
    "", " ", "é", "日本", "\u202e", "\udcff", "'", "\"", "`x`", "$(x)", ";", "=", ",", ":", "::", "*", "a=b", "[1,2]",
    "{}", "{0}", "%s", "\\", "None", "true", 'a\x00b', 'a\nb', '\x1b[31m', "--", "-", "x" * 5000, "s3://b/x", "@x",
    "natural", "iid", "resampled", "cnn", "lenet", "transformer", "torus", "star", "geometric", "el_local", "krum",
    "alie", "top_k", "regression", "multilabel", "float16", "digits", "synthetic", "layers/0/*", "**", "y", "a,y",
]
FILES = [
    "/dev/zero", "/dev/null", "/dev/full", "/dev/stdin", "/", ".", "..", "~", "pipe", "folder", "nowhere/x", "done",
    "small.npz", "table.csv", "graph.csv", "own.py", "empty.csv", "text.npz", "done/config.toml", "text.toml",
    "other.toml", "a" * 300, "empty.npz", "text.csv", "loop", "folder/", "done/dsgd/models/seed-0.npz", "empty.toml",
]
SYSTEMS = [
    "fedavg", "dsgd", "modest", "fedbuff", "push_sum", "centralized", "diloco", "FEDAVG", "fedavgg", "own.py:mine",
    "own.py:raises", "own.py:number", "own.py:nothing", "own.py:", ":x", "::", "json:dumps", "nowhere:x",
    "text.npz:x", "fedprox:", "fedprox:mu", "fedprox:mu=", "fedprox:mu=,,", "fedprox:=1", "fedprox:mu=nan",
    "fedprox:mu=1,mu=2", "fedprox:rate=1", "fedprox:lr=1e400", "dsgd:steps=0", "dsgd:batch=99999999999", "a/b", "037",
    "..",
]
SETTINGS = [
    "lr=", "=1", "lr", "mu=x", "lr=nan", "lr=1e400", "lr=-1", "lr=0", "steps=1.5", "fedavg.lr=1", "nobody.lr=1",
    ".lr=1", "lr.=1", "lr==1", "lr=1,2", "lr=,", "mu=0,nan", "lr=1,lr=2", "epochs=1", "batch=0", "momentum=0.9",
    "lr=0.1,0.1", "lr=1e-320", "lr=٣", "lr=1e38", "steps=2147483647",
]
# fmt: on
SYSTEM = """
from jaxfl.algorithms import fedavg as mine
number = 3
def raises(*a, **k): raise KeyError("two\\nlines")
"""


def odd(option: str, rng: random.Random) -> str:
    """A value for an option, mostly one of its kind that it should not have."""
    hint = KINDS.get(option, "")
    fitting = NUMBERS if "int" in hint or "float" in hint else WORDS + FILES
    fitting = {"set": SETTINGS, "grid": SETTINGS, "name": SYSTEMS, "system": SYSTEMS}.get(option, fitting)
    if option in ("config", "resume", "data", "out", "topology", "data-folder"):
        fitting = FILES
    return rng.choice(rng.choice((*[fitting] * 7, NUMBERS, WORDS, FILES, SYSTEMS)))


def _at(line: list[str], rng: random.Random) -> int:
    return rng.randrange(1, max(2, len(line)))


def _value(line: list[str], rng: random.Random) -> None:
    """Another value for an option, or for a name."""
    i = min(_at(line, rng), len(line) - 1)
    if line[i].startswith("--") and i + 1 < len(line):
        i += 1
    before = line[i - 1] if i else ""
    line[i] = odd(before[2:] if before.startswith("--") else "name", rng)


def _another(line: list[str], rng: random.Random) -> None:
    """One more option, of this command or of none, with a value or without one."""
    own = OWN[next((word for word in line if OWN.get(word)), "run")]
    name = rng.choice(list(rng.choice((own, own, own, KINDS))))
    value = odd(name, rng)
    more = rng.choice((*[[f"--{name}", value]] * 6, [f"--{name}={value}"], [f"--{name}"]))
    i = rng.choice((len(line), _at(line, rng)))
    line[i:i] = more


def _twice(line: list[str], rng: random.Random) -> None:
    i = _at(line, rng)
    line[i:i] = line[i : i + 2]


def _without(line: list[str], rng: random.Random) -> None:
    i = _at(line, rng)
    del line[i : i + rng.choice((1, 1, 2))]


def _swapped(line: list[str], rng: random.Random) -> None:
    i, j = rng.randrange(len(line)), rng.randrange(len(line))
    line[i], line[j] = line[j], line[i]


def _misspelt(line: list[str], rng: random.Random) -> None:
    i = rng.randrange(len(line))
    k = rng.randrange(len(line[i]) + 1)
    line[i] = rng.choice(
        (line[i][:k] + line[i][k + 1 :], line[i][:k] + "x" + line[i][k:], line[i].upper(), line[i][:k])
    )


def _shuffled(line: list[str], rng: random.Random) -> None:
    rest = line[1:]
    rng.shuffle(rest)
    line[1:] = rest


def line_of(rng: random.Random) -> list[str]:
    """A command line that was right, changed once to three times."""
    line = list(rng.choice(LINES[rng.choice(("run", "run", *LINES))]))
    ways = [*[_value] * 6, *[_another] * 6, _twice, _without, _swapped, _misspelt, _shuffled]
    for _ in range(rng.choice((1, 1, 2, 3))):
        if line:
            rng.choice(ways)(line, rng)
    return line


def furnish(place: Path) -> None:
    """The files that lines name."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 4)).astype(np.float32), rng.integers(0, 3, 90)
    np.savez(place / "small.npz", x=x, y=y)
    rows = [f"{a:.3f},{b:.3f},{c + a:.3f}" for a, b, c, _ in x]
    (place / "table.csv").write_text("\n".join(["a,b,y", *rows]))
    (place / "graph.csv").write_text("source,target\n" + "".join(f"{i},{(i + 1) % 6}\n" for i in range(6)))
    (place / "own.py").write_text(SYSTEM)
    for name in ("empty.csv", "empty.npz", "empty.toml"):
        (place / name).write_text("")
    for name in ("text.npz", "text.csv", "text.toml"):
        (place / name).write_text("no such thing\nas a, \0 file\n")
    (place / "other.toml").write_text('systems = ["fedavg", "dsgd"]\nnodes = "many"\n')
    (place / "folder").mkdir()


def ran(place: Path, line: list[str]) -> int | None:
    """Run a line in a folder; what takes an hour is not begun."""
    from jaxfl import zoo
    from jaxfl.errors import InputError

    def begun(*_: Any, **__: Any) -> None:
        raise InputError("a claim would be tested now.")

    os.chdir(place)
    os.environ |= {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CPU, (LONG, LONG + 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    zoo.Claim.reproduce = zoo.Claim.read_files = begun
    return cli.main(line)


def outcome(code: int | None, says: str, told: str) -> str:
    """How a line ended: its exit code, its standard error, and its output."""
    rows = says.splitlines()
    ours = [row.startswith("jaxfl: ") for row in rows]
    other = [row for row, own in zip(rows, ours, strict=True) if not own and not trial.PROGRESS.match(row)]
    if "Traceback" in says + told:
        return trial.TRACEBACK
    if code is None:
        return trial.HUNG
    if other or sum(ours) > 3 or any(len(row) > LONGEST for row in rows):
        return trial.FAILED
    if code == 0:
        return trial.RAN
    if code == -signal.SIGXCPU and sum(ours) < len(rows):  # it had begun to compute
        return trial.STOPPED
    return trial.SENTENCE if code == 2 and rows and ours[-1] else trial.FAILED


def lines(count: int, rng: random.Random, place: Path) -> list[dict]:
    """A row a command: odd lines of it, each in a process and a folder of its own."""
    base, out, err = place / "furnished", place / "out", place / "err"
    base.mkdir()
    furnish(base)
    drawn = [line_of(rng) for _ in range(count)]
    for line in (["run", "dsgd", "--out", "done"], ["sweep", "dsgd", "--grid", "lr=0.1,0.2", "--out", "swept"]):
        if not any(word.startswith(line[-1]) for other in drawn for word in other):
            continue
        if trial.forked(partial(ran, base, [*line, *SMALL, "--checkpoints"]), out) != 0:
            raise SystemExit(f"no line runs: {out.read_text()[-2000:]}")
    counts: dict[str, Counter] = {}
    for i, line in enumerate(drawn):
        folder = place / f"line{i}"
        shutil.copytree(base, folder)
        os.mkfifo(folder / "pipe")
        os.symlink("loop", folder / "loop")
        for file in (out, err):
            file.write_text("")
        code = trial.forked(partial(ran, folder, line), out, err, after=trial.patience(PATIENCE))
        says, told = err.read_text(errors="replace"), out.read_text(errors="replace")
        ended = outcome(code, says, told)
        if ended in trial.WRONG:
            print(f"line {i} {line!r}: {ended}, exit code {code}: {says[-3000:]}", file=sys.stderr, flush=True)
        command = next((word for word in line if word in LINES and word), "")
        counts.setdefault(command, Counter())[ended] += 1
        shutil.rmtree(folder)
    named = {c: f"odd lines of {c}" if c else "odd lines without a command" for c in LINES if c in counts}
    return [{"what": what, "tried": sum(counts[c].values()), **counts[c]} for c, what in named.items()]
