"""The claims of the momentum methods and of the adaptive servers, at sizes where their parts can be checked."""

import numpy as np
import pandas as pd
import pytest

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.momentum_fl import fedavg_m, scaffold_m
from jaxfl.claims import fedopt, momentum_fl
from jaxfl.data import synthetic
from jaxfl.data.partition import by_client


def test_distances_are_those_of_the_closed_form():
    """FedAvg stops where `mean_i (I - (I - lr A_i)^K) (x - b_i) = 0`, and FedAvg-M where FedAvg(lr * beta) does."""
    rates = [0.02, 0.01]
    got = momentum_fl.distances(fedavg, 2, 300, momentum_fl.NODES, {"lr": rates})
    for s in range(2):
        q = synthetic.gaussian_quadratics(20, 10, seed=s)
        A, b = q.A.astype(np.float64), q.b.astype(np.float64)
        for k, lr in enumerate(rates):
            pull = np.stack([np.eye(10) - np.linalg.matrix_power(np.eye(10) - lr * a, 10) for a in A])
            fixed = np.linalg.solve(pull.sum(0), np.einsum("nij,nj->i", pull, b))
            np.testing.assert_allclose(got[s, k], np.linalg.norm(fixed - q.optimum), rtol=1e-9)
    momentum = momentum_fl.distances(fedavg_m, 2, 300, momentum_fl.NODES, {"beta": [0.5]}, lr=0.02)
    np.testing.assert_allclose(momentum[:, 0], got[:, 1], rtol=1e-9)


def test_controls_reach_the_optimum_with_few_clients():
    few = momentum_fl.distances(scaffold_m, 1, 600, momentum_fl.FEW, {"beta": [0.1]}, lr=0.02)
    assert few.shape == (1, 1)
    assert few[0, 0] < 1e-8


def test_descents_start_at_the_gradient_of_their_own_data():
    arms = [arm for arm in momentum_fl.ARMS if arm[1] is fedavg_m and arm[2] == momentum_fl.SAMPLED]
    curves = momentum_fl.descents(2, 3, arms)
    assert list(curves) == [("FedAvg", 8), ("FedAvg-M", 8)]
    for history in curves.values():
        assert len(history) == 2 * 4
        for s in range(2):
            data = by_client(synthetic.linear_regression_clients(seed=s))
            x, y = np.asarray(data.x, np.float64), np.asarray(data.y, np.float64)
            first = history[(history["seed"] == s) & (history["round"] == 0)]["squared_gradient"].item()
            np.testing.assert_allclose(first, np.sum((x.T @ y / len(y)) ** 2), rtol=1e-4)
    final = [h[h["round"] == 3]["squared_gradient"].to_numpy() for h in curves.values()]
    assert not np.allclose(*final)


def flat(level):
    """Histories of two seeds that stay at `level` and `3 * level`."""
    rows = [(s, t, (1 + 2 * s) * level) for s in range(2) for t in range(5)]
    return pd.DataFrame(rows, columns=["seed", "round", "squared_gradient"])


def test_the_momentum_claim_is_judged_by_the_cards_inequalities():
    biased = np.array([[1.0, 0.5, 0.2, 0.1, 0.05], [2.0, 1.0, 0.4, 0.2, 0.1]])
    exact = {momentum_fl.NODES: np.array([1e-9, 2e-9]), momentum_fl.FEW: np.array([1e-9, 2e-9])}
    levels = {"FedAvg": 9.0, "FedAvg-M": 8.0, "FedAvg-M-VR": 2.0, "SCAFFOLD": 4.0, "SCAFFOLD-M": 3.0}
    curves = {(name, c): flat(levels.get(name, 1.0)) for name, _, c, _ in momentum_fl.ARMS}
    good = momentum_fl.judge(biased, biased, exact, curves)
    assert good.holds
    np.testing.assert_allclose(
        [c.measured for c in good.checks], [0, 0.1, 1.5e-9, 1.5e-9, 0.25, 0.375, 1 / 3], atol=1e-12
    )
    row = good.table[(good.table["system"] == "SCAFFOLD-M") & (good.table["clients a round"] == 8)].iloc[0]
    assert (row["mean"], row["beta"]) == (6.0, 0.1)
    np.testing.assert_allclose(row["std"], np.std([3.0, 9.0], ddof=1))
    assert len(good.table) == 12 + len(momentum_fl.ARMS)
    assert len(good.figure.axes) == 3

    bad = curves | {("SCAFFOLD-M-VR", 8): flat(2.0)}
    judged = momentum_fl.judge(biased, 1.01 * biased, exact, bad).checks
    assert [c.holds for c in judged] == [False, True, True, True, True, True, False]


def test_the_ladder_of_rates():
    np.testing.assert_allclose([fedopt.rate(k) for k in range(-4, 4)], [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30])


def test_a_grid_grows_until_its_best_cell_lies_inside():
    calls = []

    def loss(i, j):
        calls.append((i, j))
        return (i - 4) ** 2 + (j + 2) ** 2

    cell, tried, edge = fedopt.search(loss, range(-1, 2), range(3))
    assert (cell, edge) == ((4, -2), False)
    assert len(calls) == len(set(calls)) == len(tried)
    assert tried[cell] == min(tried.values()) == 0
    assert {i for i, _ in tried} == set(range(-1, 6))
    assert {j for _, j in tried} == set(range(-3, 3))
    assert fedopt.search(loss, range(3, 6), range(-3, 0))[1].keys() == {(i, j) for i in (3, 4, 5) for j in (-3, -2, -1)}
    cell, tried, edge = fedopt.search(loss, range(-1, 2), range(3), widen=1)
    assert (cell, edge, len(tried)) == ((2, -1), True, 16)


def test_the_round_in_which_a_loss_is_reached():
    rows = [
        (0, 0, 1.6),
        (0, 5, 0.95),
        (0, 10, 0.89),
        (0, 15, 0.7),
        (1, 0, 1.6),
        (1, 5, 1.2),
        (1, 10, 0.9),
        (1, 15, 1.0),
    ]
    history = pd.DataFrame(rows, columns=["seed", "round", "train_loss"])
    np.testing.assert_array_equal(fedopt.reached(history), [10, np.inf])


def test_data_without_the_dense_block_keep_its_columns_at_zero():
    plain = synthetic.sparse_features(100, seed=1, dense=False)
    wide = fedopt.no_dense(plain)
    assert wide.x.shape == synthetic.sparse_features(100, seed=1).x.shape
    assert not wide.x[:, :10].any()
    np.testing.assert_array_equal(wide.x[:, 10:], plain.x)
    np.testing.assert_array_equal(wide.test_x[:, 10:], plain.test_x)


@pytest.fixture(scope="module")
def small():
    first = {"FedAvg": range(1), "FedAdam": range(-2, 0)}
    methods = {name: (fedopt.METHODS[name][0], rungs) for name, rungs in first.items()}
    return fedopt.reproduce(2, rounds=10, methods=methods, rows=range(-1, 1))


def test_adaptive_claim_has_a_row_a_method_and_the_cards_inequalities(small):
    assert list(small.table["system"]) == ["FedAvg", "FedAdam"] * 2
    assert (small.table["cells"] >= 9).all()
    np.testing.assert_allclose(small.table["loss / FedAvg"][[0, 2]], 1)
    assert [(c.relation, c.required, len(c.seeds)) for c in small.checks] == [
        ("<=", 0.6, 2),
        (">=", 4, 2),
        (">=", 0.05, 2),
    ]
    np.testing.assert_allclose(small.checks[0].measured, small.table["loss / FedAvg"][1])
    gap = small.table["accuracy"][1] - small.table["accuracy"][0]
    np.testing.assert_allclose(small.checks[2].measured, gap, atol=1e-6)
    assert (small.table["loss std"] > 0).all()
    assert len(small.figure.axes) == 2
