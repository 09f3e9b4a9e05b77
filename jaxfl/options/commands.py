"""What can be typed: the commands, their options, and how an earlier run's config becomes their defaults.

Nothing here needs JAX. Options of the world are fields of `config.Setup`; those of a command are fields of its class.
"""

import contextlib
import dataclasses
import io
import re
import textwrap
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, UseAppendAction, arg, subcommand

from jaxfl.errors import InputError, nearest
from jaxfl.options import kept
from jaxfl.options.config import Setup

File = Annotated[str | None, arg(metavar="FILE", help_behavior_hint="(default: none)")]
Resume = Annotated[str | None, arg(metavar="FOLDER", help_behavior_hint="(default: none)")]
Out = Annotated[str | None, arg(metavar="PATH", help_behavior_hint="(default: runs/reproduce-NAME-TIME)")]
System = Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")]
Systems = Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]", help_behavior_hint="")]
Grid = Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="KEY=V,V,...", help_behavior_hint="")]
Score = Annotated[
    str | None, arg(metavar="COLUMN", help_behavior_hint="(default: accuracy, else test_loss, else error)")
]
Memory = Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="(default: none)")]
Samples = Annotated[str | None, arg(metavar="FILE", help_behavior_hint="(default: the run's own test set)")]
DEFAULTS = Setup()
ABOUT = "Federated and decentralized machine learning: thousands of nodes in one compiled step."


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What every command that builds a world takes."""

    setup: OmitArgPrefixes[Setup] = DEFAULTS
    config: File = None
    """A config.toml of an earlier run; other options override it."""
    json: bool = False
    """Print JSON as the last lines, one object a system, a point or a plan."""


@dataclasses.dataclass(frozen=True)
class One(Experiment):
    """An experiment on one system."""

    name: Positional[System] = None
    """A system of `jaxfl list`, or of your own: FILE.py:NAME; with options of its own: NAME:KEY=VALUE,..."""


@dataclasses.dataclass(frozen=True)
class Run(One):
    """Run one system: a table, pictures, the history as CSV and the config that runs it again, in a new folder."""

    resume: Resume = None
    """Go on in this folder of a run with --checkpoints that was cut off, by its own config."""


@dataclasses.dataclass(frozen=True)
class Compare(Experiment):
    """Run several systems on the same data, seeds and local work: one table, one picture, in a new folder."""

    names: Positional[Systems] = ()
    """Systems of `jaxfl list`, or of your own: FILE.py:NAME; one may come with several options: NAME:KEY=VALUE,..."""
    resume: Resume = None
    """Go on in this folder of a run with --checkpoints that was cut off, by its own config."""


@dataclasses.dataclass(frozen=True)
class Sweep(One):
    """Run one system at every combination of values, points and seeds in one compiled program: table and picture."""

    grid: Grid = ()
    """Numbers of an option of the system to try: --grid lr=0.03,0.1,0.3 --grid mu=0,0.1."""
    score: Score = None
    """The column of the history by which points are judged."""
    resume: Resume = None
    """Go on in this folder of a sweep with --checkpoints that was cut off, by its own config and grid."""


@dataclasses.dataclass(frozen=True)
class Plan(One):
    """Compile a system without running it: memory, FLOPs, bytes, collectives and predicted seconds of a round."""

    memory_gb: Memory = None
    """Memory to fit into, in 10^9 bytes of a device, on a CPU of the process: says how many nodes that allows."""


@dataclasses.dataclass(frozen=True)
class List:
    """Show every system with its paper, the paper's number and the verdict on the paper's headline."""


@dataclasses.dataclass(frozen=True)
class Reproduce:
    """Test a paper's headline against its baselines in one run; exit code 1 unless all of it holds."""

    name: Positional[System] = None
    """A system, or the three-digit number of a paper."""
    all: bool = False
    """Every claim, one after the other."""
    seeds: int = 3
    """Seeds of every arm."""
    keep: bool = False
    """Keep table, checks, verdict and picture beside the claims too (`jaxfl/claims/results`), and renew their page."""
    out: Out = None
    """Folder for results; must be new or empty."""


@dataclasses.dataclass(frozen=True)
class Predict:
    """Write as CSV what the final model of a run says of new samples; where targets are known, print the accuracy."""

    run: Positional[Annotated[str, arg(metavar="FOLDER")]]
    """Folder of a run or a comparison."""
    data: Positional[Samples] = None
    """Samples as the run's data has them: the columns of its table; else .npz with x (and y), or .csv of numbers."""
    system: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: the only one)")] = None
    """The system of a comparison."""
    seed: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: the first)")] = None
    """The seed whose model predicts."""
    node: Annotated[
        int | None, arg(metavar="INT", help_behavior_hint="(default: the one model, or the nodes' mean)")
    ] = None
    """The node whose model predicts, in systems where every node has one."""
    out: Annotated[str | None, arg(metavar="FILE", help_behavior_hint="(default: predictions-... in FOLDER)")] = None
    """File to write; must be new."""


@dataclasses.dataclass(frozen=True)
class Cite:
    """Print the reference of a system in BibTeX."""

    name: Positional[Annotated[str, arg(metavar="NAME")]]
    """A system of `jaxfl list`."""


Command = List | Run | Compare | Sweep | Plan | Predict | Reproduce | Cite


def name_of(command: One) -> str:
    """The system of a command on one.

    Raises:
        InputError: none is named, or its config is of several: what to type instead.
    """
    if command.name is not None:
        return command.name
    word, resume = type(command).__name__.lower(), getattr(command, "resume", None)
    where = resume or command.config
    systems, _ = kept.load(Path(where) / "config.toml" if resume else where) if where else ((), None)
    if not systems:
        raise InputError(f"name is missing: {word} needs a system of `jaxfl list`, or a config that names it.")
    option = "resume" if resume else "config"
    one = "" if resume else f"`jaxfl {word} {systems[0]} --config {where}`"
    all_of = f"`jaxfl compare --{option} {where}`" if word == "run" else ""
    raise InputError(f"{option}: {where} is of {', '.join(systems)}: type {' or '.join(filter(None, (all_of, one)))}.")


def parse(args: list[str], about: str = ABOUT) -> Command:
    """The command of a command line. Exits with 0 after `--help`.

    Raises:
        InputError: it does not parse, or a config that is not one.
    """
    systems, setup = kept.load(path) if (path := _config_path(args)) else ([], DEFAULTS)
    one = systems[0] if len(systems) == 1 else None
    command = (
        Annotated[List, subcommand("list")]
        | Annotated[Run, subcommand("run", default=Run(setup, name=one))]
        | Annotated[Compare, subcommand("compare", default=Compare(setup, names=tuple(systems)))]
        | Annotated[Sweep, subcommand("sweep", default=Sweep(setup, name=one))]
        | Annotated[Plan, subcommand("plan", default=Plan(setup, name=one))]
        | Annotated[Predict, subcommand("predict")]
        | Annotated[Reproduce, subcommand("reproduce")]
        | Annotated[Cite, subcommand("cite")]
    )
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(command, prog="jaxfl", description=about, args=args, config=(FlagCreatePairsOff,))  # type: ignore[call-overload]
    except SystemExit as stop:
        if stop.code:
            raise InputError(_short(told.getvalue())) from None
        raise


def _short(told: str) -> str:
    """The first words of a box of many lines, and the nearest name it knows."""
    lines = [line.strip(" │╭╮╰╯") for line in re.sub("\x1b\\[[0-9;]*m", "", told).splitlines()]
    parts = [part for part in re.split("^[─-]+$", "\n".join(lines[1:]), flags=re.MULTILINE) if part.strip()] + ["", ""]
    says = " ".join(parts[0].split()).rstrip(".")
    known = re.findall("^--[\\w-]+", parts[1], re.MULTILINE)
    known += re.findall("\\w+", parts[1].partition("Available subcommands: ")[2])
    word = says.removeprefix("Unrecognized options: ").split(", ")[0]
    near = f"; {nearest(word, known).rstrip('.')}" if word != says and known else ""
    return f"{textwrap.shorten(says, 300, placeholder=' ...')}{near}{'' if near.endswith('?') else '.'}"


def _config_path(args: list[str]) -> str | None:
    """The file whose values are the defaults of all other options, which must be known before these are parsed."""
    for option, file in (("--resume", "config.toml"), ("--config", "")):
        for i, word in enumerate(args):
            name, equals, value = word.partition("=")
            if name == option and (equals or i + 1 < len(args)):
                return str(Path(value if equals else args[i + 1]) / file)
    return None
