"""FedOpt's adaptive servers against Algorithm 2 in float64, and the parts of their claim."""

import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from members import cohorts, slope, world

from jaxfl.algorithms.server.fedopt import fedadagrad, fedadam, fedopt, fedyogi
from jaxfl.claims import fedopt as claim
from jaxfl.data import synthetic
from jaxfl.engine.run import run

KW = {"steps": 2, "batch": None}
MOMENTS = {
    fedadagrad: lambda v, s: v + s,
    fedadam: lambda v, s: 0.7 * v + 0.3 * s,
    fedyogi: lambda v, s: v - 0.3 * s * np.sign(v - s),
}


@pytest.mark.parametrize("make", MOMENTS)
def test_three_rounds_from_the_papers_equations_in_float64(make):
    """Unequal weights, a partial cohort, one absent: Algorithm 2, no bias correction, v from tau^2."""
    q, task, w = world()
    b1, own = (0.6, {"b1": 0.6}) if make is fedadagrad else (0.6, {"b1": 0.6, "b2": 0.7})
    algorithm = make(task, lr=0.03, server_lr=0.2, tau=0.05, **own, **KW)
    state = run(algorithm, w, jnp.ones(3), 3, every=1).state
    x, m, v = np.ones(3), np.zeros(3), np.full(3, 0.05**2)
    for members in cohorts(w, 3):
        total = np.zeros(3)
        for i, p, _ in members:
            y = x.copy()
            for _ in range(2):
                y -= 0.03 * slope(q, i, y)
            total += p * (y - x)
        delta = total / sum(p for _, p, _ in members)
        m, v = b1 * m + (1 - b1) * delta, MOMENTS[make](v, delta**2)
        x = x + 0.2 * m / (np.sqrt(v) + 0.05)
    np.testing.assert_allclose(state.shared["x"], x, atol=1e-5)
    np.testing.assert_allclose(-state.shared["server"][0].m, m, atol=1e-5)  # of the negative, a gradient
    np.testing.assert_allclose(state.shared["server"][0].v, v, atol=1e-5)


def test_a_kept_optimizer_goes_on_where_the_client_was():
    """Heavy ball at the clients: each member's velocity waits for its next turn."""
    q, task, w = world()
    local = optax.sgd(0.03, momentum=0.5)
    state = run(fedopt(task, local=local, keep_state=True, **KW), w, jnp.ones(3), 3, every=1).state
    x, v = np.ones(3), np.zeros((6, 3))
    for members in cohorts(w, 3):
        total = np.zeros(3)
        for i, p, _ in members:
            y = x.copy()
            for _ in range(2):
                v[i] = 0.5 * v[i] + slope(q, i, y)
                y -= 0.03 * v[i]
            total += p * (y - x)
        x = x + total / sum(p for _, p, _ in members)
    np.testing.assert_allclose(state.shared["x"], x, atol=1e-5)
    np.testing.assert_allclose(state.nodes[0].trace, v, atol=1e-5)


def test_the_ladder_of_rates():
    np.testing.assert_allclose([claim.rate(k) for k in range(-4, 4)], [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30])


def test_a_grid_grows_until_its_best_cell_lies_inside():
    calls = []

    def loss(i, j):
        calls.append((i, j))
        return (i - 4) ** 2 + (j + 2) ** 2

    cell, tried, edge = claim.search(loss, range(-1, 2), range(3))
    assert (cell, edge) == ((4, -2), False)
    assert len(calls) == len(set(calls)) == len(tried)
    assert tried[cell] == min(tried.values()) == 0
    assert {i for i, _ in tried} == set(range(-1, 6))
    assert {j for _, j in tried} == set(range(-3, 3))
    assert claim.search(loss, range(3, 6), range(-3, 0))[1].keys() == {(i, j) for i in (3, 4, 5) for j in (-3, -2, -1)}
    cell, tried, edge = claim.search(loss, range(-1, 2), range(3), widen=1)
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
    np.testing.assert_array_equal(claim.reached(history), [10, np.inf])


def test_data_without_the_dense_block_keep_its_columns_at_zero():
    plain = synthetic.sparse_features(100, seed=1, dense=False)
    wide = claim.no_dense(plain)
    assert wide.x.shape == synthetic.sparse_features(100, seed=1).x.shape
    assert not wide.x[:, :10].any()
    np.testing.assert_array_equal(wide.x[:, 10:], plain.x)
    np.testing.assert_array_equal(wide.test_x[:, 10:], plain.test_x)


@pytest.fixture(scope="module")
def tiny():
    first = {"FedAvg": range(1), "FedAdam": range(-2, 0)}
    methods = {name: (claim.METHODS[name][0], rungs) for name, rungs in first.items()}
    return claim.reproduce(2, rounds=4, methods=methods, rows=range(-1, 1))


def test_adaptive_claim_has_a_row_a_method_and_the_cards_inequalities(tiny):
    assert list(tiny.table["system"]) == ["FedAvg", "FedAdam"] * 2
    assert (tiny.table["cells"] >= 9).all()
    np.testing.assert_allclose(tiny.table["loss / FedAvg"][[0, 2]], 1)
    assert [(c.relation, c.required, len(c.seeds)) for c in tiny.checks] == [
        ("<=", 0.6, 2),
        (">=", 4, 2),
        (">=", 0.05, 2),
    ]
    np.testing.assert_allclose(tiny.checks[0].measured, tiny.table["loss / FedAvg"][1])
    gap = tiny.table["accuracy"][1] - tiny.table["accuracy"][0]
    np.testing.assert_allclose(tiny.checks[2].measured, gap, atol=1e-6)
    assert (tiny.table["loss std"] > 0).all()
    assert len(tiny.figure.axes) == 2
