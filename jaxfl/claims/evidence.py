"""What a claim file returns: a table of what was measured, and the checks of the paper's inequalities."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Check(NamedTuple):
    """One inequality: `measured relation required`. `seeds` are the values of single seeds behind `measured`."""

    what: str
    measured: float
    relation: str  # "<=" or ">="
    required: float
    seeds: tuple[float, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether the inequality is true; a NaN never is."""
        return self.measured <= self.required if self.relation == "<=" else self.measured >= self.required


class Evidence(NamedTuple):
    """Everything a claim measured. `table` is a pandas frame, one row an arm; `figure` draws a picture of it."""

    table: Any
    checks: list[Check]
    figure: Any = None  # matplotlib Figure

    @property
    def holds(self) -> bool:
        """Whether every check holds."""
        return all(c.holds for c in self.checks)


def at_most(what: str, values: ArrayLike, bound: float) -> Check:
    """The mean over seeds of `values` must not exceed `bound`."""
    return _check(what, values, "<=", bound)


def at_least(what: str, values: ArrayLike, bound: float) -> Check:
    """The mean over seeds of `values` must reach `bound`."""
    return _check(what, values, ">=", bound)


def _check(what, values, relation, bound):
    seeds = np.atleast_1d(np.asarray(values, np.float64))
    return Check(what, float(seeds.mean()), relation, float(bound), tuple(map(float, seeds)) if seeds.size > 1 else ())


def tail(history: Any, column: str, rounds: int) -> np.ndarray:
    """Mean of `column` over the last `rounds` rounds, one value a seed `[s]`.

    Of a column that is evaluated between rounds, the rounds without an evaluation are left out; a run that diverged
    gives NaN, which holds no check.
    """
    last = history[history["round"] > history["round"].max() - rounds]
    if "diverged" in last and last[column].isna().any():
        last = last[last["diverged"].notna()]
    return last.groupby("seed")[column].agg(lambda v: v.mean(skipna=False)).to_numpy()
