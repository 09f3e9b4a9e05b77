"""Checks can fail, and a NaN never holds."""

import numpy as np
import pandas as pd

from jaxfl.claims.evidence import Evidence, at_least, at_most, tail


def test_checks_compare_the_mean_over_seeds():
    assert at_most("a", [1.0, 3.0], 2.0).holds
    assert not at_most("a", [1.0, 3.1], 2.0).holds
    assert at_least("a", 2.0, 2.0).holds
    assert not at_least("a", 1.9, 2.0).holds
    assert at_most("a", [1.0, 3.0], 2.0).seeds == (1.0, 3.0)
    assert at_least("a", 2.0, 2.0).seeds == ()
    assert not at_most("a", np.nan, 2.0).holds
    assert not at_least("a", [np.nan, 5.0], 2.0).holds


def test_evidence_holds_if_every_check_does():
    good, bad = at_most("a", 1, 2), at_most("b", 3, 2)
    assert Evidence(None, [good]).holds
    assert not Evidence(None, [good, bad]).holds


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
