"""A claim as a declaration: systems x settings x a grid x seeds, the best point of each, inequalities between two.

A claim's file says what its `Study` is; everything that could flatter is done here. All systems meet the same data,
cohorts and grid. Each inequality is asked twice, at the paper's point and at the best point of each system. What is
not finite counts as the worst. A headline must be strict, and true by more than the standard error over seeds; must be
asked against the ablation that switches the paper's own idea off; and fails if the system that is praised spends more
gradients or bits than the other. Best points lie inside their grids. Exceptions need a reason in words, which goes into
the results.
"""

import dataclasses
from collections.abc import Callable, Mapping
from itertools import product
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxfl.claims.evidence import IN_PART, RELATIONS, Check, Evidence
from jaxfl.core import Metric, Scenario, Shards
from jaxfl.engine.run import run
from jaxfl.errors import InputError, require

POINTS = ("paper", "best")


class Setting(NamedTuple):
    """One world of a study, and what is measured in it."""

    world: Scenario
    evaluate: Metric


class Arm(NamedTuple):
    """One system of a study: a factory called with the numbers of the grid and those of its own.

    `make` takes the study's grid, `grid` and `hyper` by name. `paper` is the paper's point where it is not that of the
    study. An arm at equal gradients or messages is one more arm, with other steps in `make` or other `rounds`.
    """

    make: Callable
    hyper: Mapping[str, float] = {}  # not tuned
    grid: Mapping[str, tuple[float, ...]] = {}  # tuned for this arm alone
    paper: Mapping[str, float] = {}
    world: Callable[[Scenario], Scenario] = lambda world: world  # what else it lives in
    rounds: float = 1.0  # times those of the study
    settings: tuple[str, ...] = ()  # of the study, where it takes part; empty: all
    small: Mapping[str, Any] = {}  # fields in the small study, where arms that differ in counts alone share a program


class Score(NamedTuple):
    """What is compared: `of(history)` gives one value a seed `[s]`; `better` is "low" or "high"."""

    of: Callable[[Any], np.ndarray]
    better: str = "low"


class Inequality(NamedTuple):
    """`score` of `ours` over ("/") or minus ("-") that of `theirs`, beside `bound`, at the paper's point.

    At the best point of each the bound is `tuned`, mostly the direction alone: 1 for "/", 0 for "-". The relation is
    that of the score: "<" where low is better. A headline needs bounds that equal systems miss.
    """

    score: str
    ours: str
    op: str
    theirs: str
    bound: float | None = None  # None: the direction
    setting: str = ""  # "": all
    source: str = "plan"  # of the bound, as in `Check`
    headline: bool = True  # False: a consequence, which does not decide
    every_seed: bool = False  # the direction must hold in each seed too
    tuned: float | None = None  # None: the direction
    untuned: str = ""  # why it is not asked at the best points
    costlier: str = ""  # why ours may spend more than theirs


class Study(NamedTuple):
    """Which systems, in which worlds, on which grid, and what is said of them."""

    settings: Mapping[str, Setting] | Callable[[int], Mapping[str, Setting]]  # by name; of a seed: other data each
    arms: Mapping[str, Arm]
    ablations: tuple[str, ...]  # arms without the paper's own idea
    model: Callable  # a function of a key, as in `run`
    rounds: int
    grid: Mapping[str, tuple[float, ...]]  # tried by every arm
    paper: Mapping[str, float]  # the paper's point, always tried
    scores: Mapping[str, Score]  # points are chosen by the first
    says: tuple[Inequality, ...]
    every: int = 5
    ends: Mapping[str, str] = {}  # "lr low" or "lr high": why a best point may lie at that end of the grid
    picture: Mapping[str, Any] = {}  # arguments of `plots.learning_curves`
    beside: Callable[[Mapping], list[Check]] | None = None  # of scores by (point, setting, arm): what compares settings
    stand_in: Mapping[str, Setting] | Callable[[int], Mapping[str, Setting]] | None = None  # of the small study


Cells = Mapping[tuple, Any]  # (setting, arm, point) -> history of all seeds


def axes(study: Study, arm: Arm) -> dict[str, tuple[float, ...]]:
    """The values by number of the grid of an arm: those of the study, then its own."""
    return {**study.grid, **arm.grid}


def points(study: Study, arm: Arm) -> list[dict[str, float]]:
    """The points at which an arm is tried, its paper's among them."""
    grid, paper = axes(study, arm), paper_point(study, arm)
    found = [dict(zip(grid, p, strict=True)) for p in product(*grid.values())]
    return found + [paper] * (paper not in found)


def paper_point(study: Study, arm: Arm) -> dict[str, float]:
    """The paper's point of an arm, over the axes of its grid in order."""
    known = {**study.paper, **arm.paper}
    return {name: float(known[name]) for name in axes(study, arm)}


def tiny(study: Study) -> Study:
    """The same study so small that it only shows that it runs: two rounds, the paper's points alone, no files."""
    alone = lambda arm: arm._replace(grid={name: (paper_point(study, arm)[name],) for name in arm.grid}, **arm.small)
    arms = {name: alone(arm) for name, arm in study.arms.items()}
    shared = {name: (study.paper[name],) for name in study.grid}
    return study._replace(arms=arms, grid=shared, rounds=2, every=1, settings=study.stand_in or study.settings)


def explore(study: Study, seeds: int) -> Cells:
    """The history of all seeds by (setting, arm, point of the grid).

    Raises:
        InputError: a study that could flatter (`examine`).
    """
    import pandas as pd

    examine(study)
    cells: dict[tuple, list] = {}
    for settings, who in _of_seeds(study, seeds):
        for where, (world, measure) in settings.items():
            for name, arm in study.arms.items():
                if arm.settings and where not in arm.settings:
                    continue
                tried, rounds = points(study, arm), max(1, round(arm.rounds * study.rounds))
                hyper = {k: [p[k] for p in tried] for k in tried[0]} | dict(arm.hyper)
                kw = {"hyper": hyper, "every": study.every, "evaluate": measure, "progress": False}
                history = run(arm.make, arm.world(world), study.model, rounds, **who, **kw).history
                for p in tried:
                    part = history[np.logical_and.reduce([history[k] == v for k, v in p.items()])]
                    cells.setdefault((where, name, tuple(p.values())), []).append(part)
    return {cell: pd.concat(parts, ignore_index=True) for cell, parts in cells.items()}


def _of_seeds(study: Study, seeds: int) -> list[tuple[dict[str, Setting], dict[str, int]]]:
    """The settings, and which seeds of `run` live there."""
    require("seeds", seeds, least=1, whole=True)
    if not callable(study.settings):
        return [(dict(study.settings), {"seed": 0, "seeds": seeds})]
    drawn, cut = [dict(study.settings(seed)) for seed in range(seeds)], lambda part: isinstance(part, Shards)
    parts = jax.tree.leaves([[s.world.data for s in settings.values()] for settings in drawn], is_leaf=cut)
    longest = max((part.longest for part in parts if cut(part)), default=0)
    alike = lambda part: dataclasses.replace(part, longest=longest) if cut(part) else part
    for settings in drawn:  # one bound for all draws, which one program then serves
        for name, (world, measure) in settings.items():
            settings[name] = Setting(world._replace(data=jax.tree.map(alike, world.data, is_leaf=cut)), measure)
    return [(settings, {"seed": seed, "seeds": 1}) for seed, settings in enumerate(drawn)]


def examine(study: Study) -> None:
    """Raise InputError for a study whose headline could not fail, or that names what it does not have."""
    tuned = {axis: 0 for arm in study.arms.values() for axis in axes(study, arm)}
    for kind, names, known in (
        ("ablations", study.ablations, study.arms),
        ("says.ours", [s.ours for s in study.says], study.arms),
        ("says.theirs", [s.theirs for s in study.says], study.arms),
        ("says.score", [s.score for s in study.says], study.scores),
        ("paper", study.paper, study.grid),
        ("ends", study.ends, [f"{axis} {end}" for axis in tuned for end in ("low", "high")]),
    ):
        for name in names:
            if name not in known:
                raise InputError(f"study: {kind} has {name!r}, but known are {', '.join(known)}.")
    for s in study.says:
        if s.op not in ("/", "-"):
            raise InputError(f"study: op = {s.op!r}, but '/' or '-' is needed.")
        for bound in (bound_of(s, point) for point in POINTS if s.headline and asked(s, point)):
            if RELATIONS[relation_of(study, s)](float(s.op == "/"), bound):
                raise InputError(f"study: the headline {named(s)!r} is true of two equal systems (bound {bound:g}).")
    headlines = [s for s in study.says if s.headline]
    if not any(s.theirs in study.ablations for s in headlines):
        raise InputError("study: no headline is asked against an ablation, the system without the paper's own idea.")


def asked(s: Inequality, point: str) -> bool:
    """Whether an inequality is asked at the paper's point, or at the best points."""
    return point == "paper" or not s.untuned


def bound_of(s: Inequality, point: str) -> float:
    """The bound at the paper's point or at the best points."""
    bound = given_bound(s, point)
    return float(s.op == "/") if bound is None else float(bound)


def given_bound(s: Inequality, point: str) -> float | None:
    """The bound there as the claim gives it; None is the direction."""
    return s.bound if point == "paper" else s.tuned


def relation_of(study: Study, s: Inequality) -> str:
    """Strict, in the direction in which the score gets better."""
    return "<" if study.scores[s.score].better == "low" else ">"


def named(s: Inequality, setting: str = "") -> str:
    """An inequality in words."""
    how = "over that of" if s.op == "/" else "minus that of"
    return f"{within(setting)}{s.score} of {s.ours} {how} {s.theirs}"


def within(setting: str) -> str:
    """How a check begins that is asked in a setting."""
    return f"{setting}: " if setting else ""


def reproduce(claim: ModuleType, seeds: int = 3, *, small: bool = False) -> Evidence:
    """What a claim's file says, measured.

    The file has `studies() -> list[Study]`, or `extra(seeds, small) -> Evidence` for what no study says, or both; and
    perhaps `DATA`, functions that read the files it needs, which are called before anything is run.

    Args:
        claim: a module of `jaxfl.claims`.
        seeds: runs of every cell.
        small: so small that it only shows that it runs (`tiny`).

    Raises:
        InputError: a study that could flatter, or two checks of one name.
    """
    import pandas as pd

    from jaxfl.claims.judge import draw, judge

    found = [tiny(s) if small else s for s in (claim.studies() if hasattr(claim, "studies") else [])]
    if small:  # one model for all, not drawn anew in every program
        found = [s._replace(model=jax.jit(s.model)(jax.random.key(0))) for s in found]
    cells = [explore(study, seeds) for study in found]
    parts = [judge(study, c) for study, c in zip(found, cells, strict=True)]
    if hasattr(claim, "extra"):
        parts.append(claim.extra(seeds, small))
    seen = [c.what for part in parts for c in part.checks if c.role == "condition"]  # studies of the same arms
    own = lambda c, i: f"{c.what}, study {i}" if c.role == "condition" and seen.count(c.what) > 1 else c.what
    checks: list[Check] = [c._replace(what=own(c, i)) for i, part in enumerate(parts, 1) for c in part.checks]
    twice = sorted({c.what for c in checks if sum(c.what == other.what for other in checks) > 1})
    if twice:
        raise InputError(f"claim: two checks are called {twice[0]!r}.")
    tables = [part.table for part in parts if part.table is not None]
    table = tables[0] if len(tables) == 1 else pd.concat([t.reset_index() for t in tables], ignore_index=True)
    evidence = Evidence(table, checks, (), tuple(dict.fromkeys(note for part in parts for note in part.notes)))
    figures = (*([draw(found, cells)] if found else []), *(f for part in parts for f in part.figures))
    for figure in figures:
        says = f"The headline {'holds in part' if evidence.verdict == IN_PART else evidence.verdict}."
        figure.supxlabel(says, fontsize=10, fontweight="bold")
    return evidence._replace(figures=figures)
