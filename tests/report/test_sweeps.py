"""Cutting a sweep's history by point, the last scores, the picture."""

import numpy as np
import pandas as pd
import pytest

from jaxfl.errors import InputError
from jaxfl.report import sweeps


def history():
    rows = [
        {"lr": lr, "mu": mu, "seed": s, "round": r, "accuracy": lr + mu / 10 + s / 100 if r != 1 else np.nan}
        for lr in (0.01, 0.1, 1.0)
        for mu in (0.0, 2.0)
        for s in (0, 1)
        for r in (0, 1, 2)
    ]
    return pd.DataFrame(rows)


def test_each_point_has_its_own_history():
    parts = sweeps.points(history(), ["lr", "mu"])
    assert list(parts)[:3] == ["lr=0.01 mu=0", "lr=0.01 mu=2", "lr=0.1 mu=0"]
    assert len(parts) == 6
    assert all(list(p.columns) == ["seed", "round", "accuracy"] and len(p) == 6 for p in parts.values())
    with pytest.raises(InputError, match="was it swept"):
        sweeps.points(history(), ["rho"])


def test_the_last_score_of_each_point():
    table = sweeps.last(history(), ["lr", "mu"], "accuracy")
    np.testing.assert_allclose(table.loc[(0.1, 2.0), ["mean", "low", "high"]], [0.305, 0.3, 0.31])
    np.testing.assert_allclose(table["std"], np.std([0, 0.01], ddof=1))
    with pytest.raises(InputError, match="nothing was evaluated"):
        sweeps.last(history().assign(loss=np.nan), ["lr"], "loss")


def test_a_point_that_diverged_has_no_last_score():
    late = history()
    late.loc[(late["lr"] == 1.0) & (late["round"] == 2), "accuracy"] = np.nan
    table = sweeps.last(late, ["lr"], "accuracy")
    assert np.isnan(table.loc[1.0, "mean"])
    assert np.isfinite(table.loc[0.1, "mean"])


def test_one_line_for_each_combination_of_the_other_values():
    fig = sweeps.figure(history(), ["lr", "mu"], "accuracy")
    (ax,) = fig.axes
    assert ax.get_xscale() == "log"
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["mu=0", "mu=2"]
    np.testing.assert_allclose(ax.containers[1].lines[0].get_ydata(), [0.215, 0.305, 1.205])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0.01", "0.1", "1"]
    alone = sweeps.figure(history().query("mu == 0"), ["lr"], "accuracy", fig.add_subplot())
    assert len(alone.axes) == 2
