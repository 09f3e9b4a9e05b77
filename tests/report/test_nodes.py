"""Pictures by node show the numbers they are given; fairness columns stand in the table."""

import numpy as np
import pandas as pd
import pytest

from jaxfl.errors import InputError
from jaxfl.report import plots, tables

RNG = np.random.default_rng(0)
NAN = float("nan")


def texts(legend):
    return [t.get_text() for t in legend.get_texts()]


def test_curves_are_the_sorted_values_of_those_who_have_one():
    a = RNG.random((3, 4, 20))
    a[:, :, 5] = NAN
    fig = plots.per_node({"A": a, "B": [0.3, NAN, 0.1]})
    one, other = fig.axes[0].get_lines()
    want = np.sort(np.delete(a[:, -1], 5, 1), 1)
    np.testing.assert_allclose(one.get_ydata(), want.mean(0))
    np.testing.assert_allclose(one.get_xdata(), 100 * (np.arange(19) + 0.5) / 19)
    band = fig.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == want.min()
    assert band.max() == want.max()
    np.testing.assert_allclose(other.get_ydata(), [0.1, 0.3])
    loss = plots.per_node({"A": [1.0, 3.0, np.inf]}, lower=True).axes[0].get_lines()[0]
    np.testing.assert_array_equal(loss.get_ydata(), [NAN, 3.0, 1.0])


@pytest.mark.parametrize(
    ("lower", "says"), [(False, "of 4 nodes 50 % gain, 25 % lose"), (True, "25 % gain, 50 % lose")]
)
def test_who_gains_and_who_loses(lower, says):
    before, after = np.array([0.1, 0.2, 0.3, 0.4, NAN, 0.5]), np.array([0.2, 0.5, 0.3, 0.1, 0.3, NAN])
    sizes = np.array([1, 2, 3, 8, 9, 4])
    ax = plots.gains(before, after, ("A", "B"), sizes=sizes, lower=lower).axes[0]
    assert says in ax.get_title()
    points = np.concatenate([c.get_offsets() for c in ax.collections])
    np.testing.assert_allclose(sorted(map(tuple, points)), sorted(zip(before[:4], after[:4], strict=True)))
    area = {tuple(p): s for c in ax.collections for p, s in zip(c.get_offsets(), c.get_sizes(), strict=True)}
    np.testing.assert_allclose([area[a, b] for a, b in zip(before[:4], after[:4], strict=True)], 8 + 82 * sizes[:4] / 9)
    assert ax.get_xlabel().endswith("A")
    assert texts(ax.figure.legends[0]) == ["gains", "loses", "the same", "9 samples"]
    over_seeds = plots.gains(np.tile(before, (3, 2, 1)), np.tile(after, (3, 2, 1)), lower=lower)
    assert over_seeds.axes[0].get_title() == ax.get_title()


def test_one_picture_of_several_systems_or_of_one(tmp_path):
    kept = {"local_accuracy": RNG.random((2, 3, 9)), "evaluated": np.array([[0, 4, 8]] * 2)}
    other = {"local_accuracy": RNG.random((2, 3, 9)), "local_accuracy_x": RNG.random((2, 3, 9)), "norm": np.ones(9)}
    several = plots.own_samples({"fedavg": kept, "ditto": other, "mhd": {}}, np.arange(9), tmp_path / "n.png")
    assert (tmp_path / "n.png").read_bytes()[:4] == b"\x89PNG"
    assert texts(several.legends[0]) == ["fedavg", "ditto", "ditto, x"]
    assert [ax.get_ylabel() for ax in several.axes] == [
        "accuracy on own samples", "accuracy on own samples, ditto"]  # fmt: skip
    alone = plots.own_samples({"fedavg": kept})
    assert [ax.get_xlabel() for ax in alone.axes][1:] == ["accuracy on own samples, round 4"]
    assert len(plots.own_samples({"fedavg": {k: a[:, :2] for k, a in kept.items()}}).axes) == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: plots.per_node({"a": pd.DataFrame({"accuracy": [0.1, 0.2]})}), "is a table, but values by node"),
        (lambda: plots.per_node({}), "values must be a dict"),
        (lambda: plots.per_node({"A": "x"}), r"values\['A'\] is a str"),
        (lambda: plots.per_node({"A": [NAN]}), r"has shape \[1\], but"),
        (lambda: plots.gains([1, 2], [1, 2, 3]), r"are of \[\[2\], \[3\]\] nodes"),
        (lambda: plots.gains([1, 2], [1, 2], sizes=[1]), "of the same nodes"),
        (lambda: plots.gains([1, NAN], [NAN, 1]), "no node has a finite value"),
        (lambda: plots.own_samples({"A": {}}), "neither local_accuracy nor local_loss"),
    ],
)
def test_what_cannot_be_drawn_is_a_sentence(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_fairness_columns_stand_in_the_table_in_one_order():
    rows = {"seed": [0, 0], "round": [0, 1], "diverged": [0.0, 0.0], "local_accuracy_weighted": [0.1, 0.2]}
    parts = ("_jain", "_spread", "_worst_decile", "")
    plain = pd.DataFrame(rows | {f"local_accuracy{p}": [0.1, 0.4] for p in parts})
    both = plain.assign(**{f"local_accuracy_x{p}": [0.2, 0.3] for p in parts})
    frame = tables.summary({"fedavg": plain, "ditto": both}, 4)
    shown = [c for c in frame if not c.endswith("_std")]
    assert shown == ["local_accuracy", "local_accuracy_worst_decile", "local_accuracy_spread", "local_accuracy_jain",
                     "local_accuracy_x", "diverged", "rounds", "seeds"]  # fmt: skip
    assert frame.loc["ditto", "local_accuracy_x"] == 0.3
    assert np.isnan(frame.loc["fedavg", "local_accuracy_x"])
