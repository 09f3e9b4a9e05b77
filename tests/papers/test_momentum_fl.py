"""The claim of the momentum methods, at sizes where its parts can be checked; their equations: test_scaffold."""

import numpy as np
import pandas as pd

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.momentum_fl import fedavg_m, scaffold_m
from jaxfl.claims import momentum_fl
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
