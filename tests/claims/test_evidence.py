"""Checks can fail, a NaN never holds, a headline must leave the noise, and the verdict is of the headline alone."""

import numpy as np
import pandas as pd
import pytest

from jaxfl.claims.evidence import FAILS, HOLDS, IN_PART, Check, Evidence, check, first_at, tail


@pytest.mark.parametrize(
    ("values", "relation", "bound", "holds"),
    [
        ([1.0, 3.0], "<=", 2.0, True),
        ([1.0, 3.0], "<", 2.0, False),
        ([1.0, 3.1], "<=", 2.0, False),
        (2.0, ">=", 2.0, True),
        (2.0, ">", 2.0, False),
        (np.nan, "<=", 2.0, False),
        ([np.nan, 5.0], ">=", 2.0, False),
        ([np.inf, 5.0], ">", 2.0, True),
    ],
)
def test_checks_compare_the_mean_over_seeds(values, relation, bound, holds):
    found = check("a", values, relation, bound)
    assert found.holds == holds
    assert found.seeds == (() if np.isscalar(values) else pytest.approx(tuple(values), nan_ok=True))


def test_a_headline_must_be_true_by_more_than_the_standard_error():
    far, near = [1.0, 1.2, 1.1], [0.4, 1.9, 0.9]
    assert check("a", far, ">", 1.0, "headline").noise == pytest.approx(np.std(far, ddof=1) / np.sqrt(3))
    assert check("a", far, ">", 1.0, "headline").holds
    assert not check("a", near, ">", 1.0, "headline").holds
    assert check("a", near, ">", 1.0).holds  # a consequence may be near
    assert check("a", [1.1], ">", 1.0, "headline").holds


@pytest.mark.parametrize(
    ("headline", "others", "verdict"),
    [
        ([1, 1], {"consequence": 0}, HOLDS),
        ([1, 1], {"condition": 0}, IN_PART),
        ([1, 0], {}, IN_PART),
        ([0, 0], {"consequence": 1, "condition": 1}, FAILS),
        ([], {"consequence": 1}, FAILS),
    ],
)
def test_the_verdict_is_of_the_headline_alone(headline, others, verdict):
    checks = [Check(f"h{i}", float(h), ">", 0.5, (), "headline") for i, h in enumerate(headline)]
    checks += [Check(role, float(value), ">", 0.5, (), role) for role, value in others.items()]
    found = Evidence(None, checks)
    assert found.verdict == verdict
    assert found.missing == [c.what for c in checks if c.role != "consequence" and c.measured < 0.5]


def test_tail_takes_evaluated_rounds_and_shows_divergence():
    nan = np.nan
    h = pd.DataFrame(
        {
            "seed": [0] * 5 + [1] * 5,
            "round": list(range(5)) * 2,
            "accuracy": [0.1, nan, 0.5, nan, 0.7] * 2,
            "diverged": [0, nan, 0, nan, 0] * 2,
        }
    )
    np.testing.assert_allclose(tail(h, "accuracy", 3), [0.6, 0.6])
    h.loc[9, "accuracy"] = nan
    np.testing.assert_array_equal(np.isnan(tail(h, "accuracy", 3)), [False, True])


def test_what_was_spent_when_a_target_was_first_reached():
    h = pd.DataFrame({"seed": [0, 0, 0, 1, 1, 1], "time": [0.0, 2.0, 5.0] * 2, "loss": [3, 1, 2, 3, np.nan, 2.5]})
    np.testing.assert_array_equal(first_at(h, "loss", 2.0, "time"), [2.0, np.inf])
    np.testing.assert_array_equal(first_at(h, "loss", 2.7, "time", least=True), [0.0, 0.0])
