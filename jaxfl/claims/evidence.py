"""What a claim returns: a table of what was measured, the checks of the paper's inequalities, a verdict, pictures."""

import operator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

RELATIONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
HOLDS, IN_PART, FAILS = VERDICTS = ("holds", "in part", "does not hold here")


class Check(NamedTuple):
    """One inequality: `measured relation required`.

    `seeds` are the values of single seeds behind `measured`. `role` is "headline" (what the paper is about),
    "consequence" (what it says beside), or "condition" (without it the comparison says nothing). `source` is where the
    bound is from: "paper", "derived", "plan" (ours, before the first run), or "ours, after a first look".
    """

    what: str
    measured: float
    relation: str
    required: float
    seeds: tuple[float, ...] = ()
    role: str = "consequence"
    source: str = "plan"

    @property
    def noise(self) -> float:
        """The standard error of the mean over seeds; 0 where there are no two, or not all are finite."""
        if len(self.seeds) < 2 or not np.isfinite(self.seeds).all():
            return 0.0
        return float(np.std(self.seeds, ddof=1) / np.sqrt(len(self.seeds)))

    @property
    def holds(self) -> bool:
        """Whether the inequality is true, of a headline by more than its `noise`; a NaN never is."""
        far = abs(self.measured - self.required) > self.noise if self.role == "headline" and self.noise else True
        return far and bool(RELATIONS[self.relation](self.measured, self.required))


class Evidence(NamedTuple):
    """Everything a claim measured.

    `table` is a pandas frame, one row an arm; `figures` are pictures of it, `notes` what a reader of the checks must
    know: which comparisons were left out, and why.
    """

    table: Any
    checks: list[Check]
    figures: tuple = ()  # of matplotlib's Figure
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """Of the headline alone: "holds", "in part" (some of it, or a condition fails), "does not hold here"."""
        headline = [c.holds for c in self.checks if c.role == "headline"]
        if not any(headline):
            return FAILS
        return HOLDS if all(headline) and all(c.holds for c in self.checks if c.role == "condition") else IN_PART

    @property
    def missing(self) -> list[str]:
        """What of the headline, or of its conditions, is not true here."""
        return [c.what for c in self.checks if c.role != "consequence" and not c.holds]


def check(
    what: str, values: ArrayLike, relation: str, bound: float, role: str = "consequence", source: str = "plan"
) -> Check:
    """The mean over seeds of `values` `[s]` must stand in `relation` to `bound`."""
    seeds = np.atleast_1d(np.asarray(values, np.float64))
    each = tuple(map(float, seeds)) if seeds.size > 1 else ()
    return Check(what, float(seeds.mean()), relation, float(bound), each, role, source)


def tail(history: Any, column: str, rounds: int) -> np.ndarray:
    """Mean of `column` over the last `rounds` rounds, one value a seed `[s]`.

    Of a column that is evaluated between rounds, the rounds without an evaluation are left out; a run that diverged
    gives NaN, which holds no check.
    """
    last = history[history["round"] > history["round"].max() - rounds]
    if "diverged" in last and last[column].isna().any():
        last = last[last["diverged"].notna()]
    return last.groupby("seed")[column].agg(lambda v: v.mean(skipna=False)).to_numpy()


def first_at(history: Any, column: str, target: float, cost: str = "round", *, least: bool = False) -> np.ndarray:
    """What a run had spent when `column` first was at most `target` (at least, if `least`), one value a seed `[s]`.

    `cost` is a column: "round", "time" (simulated seconds), "total_up_bits", "total_gradients" and so on. A run that
    never gets there gives infinity.
    """
    values = history[column]
    there = history[values >= target if least else values <= target]
    spent = there.groupby("seed")[cost].min().reindex(sorted(history["seed"].unique()))
    return spent.fillna(np.inf).to_numpy(float)
