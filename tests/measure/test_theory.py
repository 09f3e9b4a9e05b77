import io
import json

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from jaxfl.data.synthetic import gaussian_quadratics
from jaxfl.errors import InputError
from jaxfl.measure import theory
from jaxfl.report import tables
from jaxfl.world import graph, mixing


@pytest.fixture(scope="module")
def problem():
    A, b, optimum = gaussian_quadratics(6, 3, seed=1)
    return np.asarray(A, np.float64), np.asarray(b, np.float64), optimum


def gradient(A, b, x):
    return np.einsum("nij,nj->ni", A, x - b)


def test_consensus_rate_is_how_fast_a_ring_forgets():
    ring = mixing.uniform(graph.ring(12))
    rate = theory.consensus_rate(ring)
    assert rate == pytest.approx(1 / 3 + 2 / 3 * np.cos(2 * np.pi / 12), abs=1e-6)
    x, W = np.random.default_rng(0).normal(size=12), mixing.matrix(ring)
    gaps = []
    for _ in range(200):
        x = W @ x
        gaps.append(np.linalg.norm(x - x.mean()))
    assert gaps[150] / gaps[149] == pytest.approx(rate, abs=1e-5)


def test_quadratic_optimum_is_where_the_weighted_gradient_vanishes(problem):
    A, b, optimum = problem
    np.testing.assert_allclose(theory.quadratic_optimum(A, b), optimum, atol=1e-10)
    weight = np.arange(6.0)
    x = theory.quadratic_optimum(A, b, weight)
    np.testing.assert_allclose(weight @ gradient(A, b, np.tile(x, (6, 1))), 0, atol=1e-10)


@pytest.mark.parametrize(("steps", "weight"), [(1, None), (7, None), (3, [1.0, 0, 2, 5, 1, 1])])
def test_fedavg_fixed_point_is_the_limit_of_iterating(problem, steps, weight):
    A, b, optimum = problem
    share = np.full(6, 1 / 6) if weight is None else np.array(weight) / np.sum(weight)
    x = np.zeros(3)
    for _ in range(2000):
        y = np.tile(x, (6, 1))
        for _ in range(steps):
            y = y - 0.1 * gradient(A, b, y)
        x = share @ y
    found = theory.fedavg_fixed_point(A, b, 0.1, steps, weight)
    np.testing.assert_allclose(found, x, atol=1e-9)
    if steps == 1:
        np.testing.assert_allclose(found, optimum, atol=1e-9)
    else:
        assert np.linalg.norm(found - theory.quadratic_optimum(A, b, weight)) > 0.01


def test_dsgd_bias_is_the_limit_of_iterating_and_shrinks_with_the_rate(problem):
    A, b, optimum = problem
    W = mixing.matrix(mixing.metropolis(graph.star(6)))
    x = np.zeros((6, 3))
    for _ in range(5000):
        x = W @ (x - 0.05 * gradient(A, b, x))
    np.testing.assert_allclose(theory.dsgd_bias(A, b, W, 0.05), x, atol=1e-8)
    off = [np.linalg.norm(theory.dsgd_bias(A, b, W, lr) - optimum) for lr in (1e-3, 5e-4)]
    assert off[0] / off[1] == pytest.approx(2, rel=0.02)


def test_dsgd_on_a_complete_graph_has_no_bias_and_knows_direction(problem):
    A, b, optimum = problem
    np.testing.assert_allclose(theory.dsgd_bias(A, b, np.full((6, 6), 1 / 6), 0.1), np.tile(optimum, (6, 1)), atol=1e-9)
    W = mixing.matrix(mixing.uniform(graph.circulant(6, (1, 2))))  # not symmetric
    x = theory.dsgd_bias(A, b, W, 0.1)
    np.testing.assert_allclose(W @ (x - 0.1 * gradient(A, b, x)), x, atol=1e-10)


@pytest.mark.parametrize(("n", "steps"), [(1, 1), (4, 1), (4, 3)])
def test_noise_floor_is_the_variance_of_simulated_sgd(n, steps):
    rng = np.random.default_rng(0)
    a, lr, sigma = np.array([0.5, 1.0, 3.0]), 0.4, 1.5
    x = np.zeros((10_000, n, 3))  # independent runs, nodes, coordinates
    for _ in range(40):
        for _ in range(steps):
            x = x - lr * (a * x + sigma * rng.normal(size=x.shape))
        x = np.broadcast_to(x.mean(1, keepdims=True), x.shape)
    want = theory.noise_floor(lr, sigma, a, n)
    np.testing.assert_allclose(x[:, 0].var(0), want, rtol=0.05)
    np.testing.assert_allclose(want, (1 - lr * a) ** 2 * want + (lr * sigma) ** 2 / n, rtol=1e-12)


def test_consensus_floor_is_the_disagreement_of_simulated_dsgd():
    rng = np.random.default_rng(0)
    a, lr, sigma = np.array([0.5, 2.0]), 0.3, 0.7
    W = mixing.matrix(mixing.uniform(graph.ring(8)))
    x = np.zeros((4000, 8, 2))
    for _ in range(60):
        x = W @ (x - lr * (a * x + sigma * rng.normal(size=x.shape)))
    gap = x - x.mean(1, keepdims=True)
    np.testing.assert_allclose((gap**2).mean((0, 1)), theory.consensus_floor(lr, sigma, a, W), rtol=0.03)
    np.testing.assert_allclose(x.mean(1).var(0), theory.noise_floor(lr, sigma, a, 8), rtol=0.07)
    np.testing.assert_allclose(theory.consensus_floor(lr, sigma, 1.0, np.full((8, 8), 1 / 8)), 0, atol=1e-15)


def test_linear_speedup_trades_nodes_for_rounds():
    line = theory.linear_speedup(2.0, 4, [1, 25, 100], scale=3.0)
    np.testing.assert_allclose(line, [3.0, 0.6, 0.3])
    np.testing.assert_allclose(theory.linear_speedup(2.0, 8, 50), theory.linear_speedup(2.0, 4, 100))


EYES = np.tile(np.eye(2), (3, 1, 1))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: theory.quadratic_optimum(EYES, np.zeros((3, 4))), "A has shape"),
        (lambda: theory.quadratic_optimum(EYES, np.zeros((3, 2)), [1, -1, 1]), "weight = "),
        (lambda: theory.quadratic_optimum(0 * EYES, np.zeros((3, 2))), "no curvature"),
        (lambda: theory.quadratic_optimum(EYES * [[1, 0], [0, 0]], np.ones((3, 2))), "no curvature"),
        (lambda: theory.fedavg_fixed_point(EYES, np.zeros((3, 2)), 0.0, 2), "lr = 0.0"),
        (lambda: theory.fedavg_fixed_point(EYES, np.zeros((3, 2)), 0.1, 0), "steps = 0"),
        (lambda: theory.dsgd_bias(EYES, np.zeros((3, 2)), np.eye(2), 0.1), "W has shape"),
        (lambda: theory.dsgd_bias(EYES, np.zeros((3, 2)), np.eye(3), -1.0), "lr = -1.0"),
        (lambda: theory.noise_floor(1.0, 1.0, [1.0, 2.0]), "0 < lr \\* a < 2"),
        (lambda: theory.noise_floor(1.0, -1.0, 1.0), "sigma = -1.0"),
        (lambda: theory.noise_floor(1.0, 1.0, 1.0, 0), "n = 0"),
        (lambda: theory.consensus_floor(0.1, 1.0, 1.0, [[0, 1], [0.5, 0.5]]), "symmetric"),
        (lambda: theory.consensus_floor(0.1, 1.0, 1.0, [[0.5, 0.4], [0.4, 0.6]]), "row 0 of W sums to 0.9"),
        (lambda: theory.consensus_floor(0.1, 1.0, 1.0, [[2.0, -1.0], [-1.0, 2.0]]), "W has the eigenvalue 3"),
        (lambda: theory.consensus_floor(0.1, 1.0, 1.0, [[0.5, np.nan], [np.nan, 0.5]]), "row 0 of W sums to nan"),
        (lambda: theory.dsgd_bias(EYES, np.zeros((3, 2)), 2 * np.eye(3), 0.1), "row 0 of W sums to 2"),
        (lambda: theory.linear_speedup(1.0, 2, [0, 1]), "rounds has"),
        (lambda: theory.linear_speedup(1.0, 0, [1]), "n = 0"),
    ],
)
def test_bad_input_is_one_sentence(call, says):
    with pytest.raises(InputError, match=says):
        call()


def frame(**columns):
    return pd.DataFrame({"seed": [0, 0, 0, 1, 1, 1], "round": [0, 1, 2] * 2} | columns)


NAN = float("nan")
RUN = frame(
    accuracy=[0.1, NAN, 0.5, 0.1, NAN, 0.7],
    consensus=[0, NAN, 2, 0, NAN, NAN],
    diverged=[0, NAN, 0, 0, NAN, 3],
    total_up_bits=[0, 8e6, 16e6, 0, 8e6, 48e6],
    total_gradients=[0, 5, 10, 0, 5, 10],
)


def test_summary_by_hand():
    cut = RUN.assign(accuracy=[0.1, 0.3, NAN, 0.2, 0.5, NAN], diverged=[0, 1, NAN, 0, 1, NAN])
    cut = cut.assign(consensus=[0, 1, NAN, 0, 1, NAN])
    table = tables.summary({"ring": RUN, "cut off": cut, "bare": RUN[["seed", "round"]]}, nodes=4)
    assert list(table.index) == ["ring", "cut off", "bare"]
    ring = table.loc["ring"]
    assert ring["accuracy"] == pytest.approx(0.6)
    assert ring["accuracy_std"] == pytest.approx(0.2 / np.sqrt(2))
    assert np.isnan(ring["consensus"])  # a diverged seed is not averaged away
    assert ring["diverged"] == 1.5
    assert ring["megabytes"] == pytest.approx((0.5 + 1.5) / 2)
    assert ring["megabytes_std"] == pytest.approx(1 / np.sqrt(2))
    assert (ring["gradients"], ring["gradients_std"], ring["rounds"], ring["seeds"]) == (10, 0, 2, 2)
    assert table.loc["cut off", ["accuracy", "megabytes", "rounds"]].tolist() == pytest.approx([0.4, 0.25, 1])
    assert np.isnan(table.loc["bare", "accuracy"])
    assert table.loc["bare", "rounds"] == 2
    alone = tables.summary({"one": RUN[RUN.seed == 0]}, nodes=1).loc["one"]
    assert alone["accuracy"] == 0.5
    assert np.isnan(alone["accuracy_std"])


def test_table_shows_deviation_in_the_same_digits():
    rows = pd.DataFrame(
        {
            "accuracy": [0.9123, 0.5, NAN],
            "accuracy_std": [0.0041, NAN, NAN],
            "megabytes": [12345.6, 12.34, 1e-7],
            "megabytes_std": [0.0, 0.06, 2e-8],
            "rounds": [100, 100, 2000],
        },
        index=["a", "[bold]b", "c"],
    )
    console = Console(width=100, record=True, file=io.StringIO())
    tables.table(rows, "digits [64 nodes]", console)
    text = console.export_text()
    lines = {
        line.split("│")[1].strip(): [c.strip() for c in line.split("│")[2:-1]]
        for line in text.splitlines()
        if "│" in line
    }
    assert "digits [64 nodes]" in text
    assert lines["a"] == ["0.912 ± 0.004", "12,346", "100"]
    assert lines["[bold]b"] == ["0.500", "12.3 ± 0.1", "100"]
    assert lines["c"] == ["–", "1.00e-07 ± 2e-08", "2,000"]


def test_table_is_never_cut_where_there_is_no_terminal(capsys):
    wide = pd.DataFrame([{f"quantity {i}": i + 0.25 for i in range(30)}], index=["system"])
    tables.table(wide)
    out = capsys.readouterr().out
    assert "quantity 29" in out
    assert "29.2" in out
    assert "…" not in out


def test_rounds_to_by_hand():
    history = frame(accuracy=[0.2, 0.6, 0.4, 0.9, 0.1, 0.95])
    assert tables.rounds_to(history, "accuracy", 0.5).to_dict() == {0: pytest.approx(0.75), 1: 0}
    assert np.isnan(tables.rounds_to(history, "accuracy", 0.7)[0])
    # The best so far, 0.9, not the 0.1 before it, is where the line to 0.95 starts.
    assert tables.rounds_to(history, "accuracy", 0.94)[1] == pytest.approx(1 + 0.04 / 0.05)
    sparse = frame(loss=[3.0, NAN, 1.0, 3.0, float("inf"), 2.5]).iloc[::-1]
    found = tables.rounds_to(sparse, "loss", 2.0, lower=True)
    assert found[0] == pytest.approx(1.0)
    assert np.isnan(found[1])
    assert found.index.name == "seed"


def test_json_line_is_strict_json_of_finite_numbers():
    row = {"a": np.float32(0.5), "b": NAN, "c": np.array([1.0, np.inf]), "d": {"e": np.int64(3), "f": -np.inf}}
    line = tables.json_line("ring", row | {"g": None, "h": True, "i": (1, "x")})
    assert "\n" not in line
    want = {"a": 0.5, "b": None, "c": [1.0, None], "d": {"e": 3, "f": None}, "g": None, "h": True, "i": [1, "x"]}
    assert json.loads(line, parse_constant=pytest.fail) == {"name": "ring"} | want
    summary = tables.summary({"ring": RUN}, nodes=4).loc["ring"]
    assert json.loads(tables.json_line("ring", summary))["consensus"] is None


def test_machine_says_what_a_result_needs_and_no_more():
    import platform

    import jax

    info = tables.machine()
    assert info["jax"] == jax.__version__
    assert info["numpy"] == np.__version__
    assert info["device"] == jax.devices()[0].device_kind
    assert len(info["date"]) == 10
    assert {"system", "processor", "cpus", "backend", "devices", "python", "jaxlib", "flax", "optax", "jaxfl"} <= set(
        info
    )
    line = tables.json_line("machine", info)
    assert platform.node() not in line
    assert "/" not in line


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: tables.summary({}, 3), "histories is empty"),
        (lambda: tables.summary({"a": RUN}, 0), "nodes = 0"),
        (lambda: tables.summary({"a": RUN[:0]}, 1), "'a'"),
        (lambda: tables.rounds_to(RUN, "speed", 1.0), "column = 'speed'"),
        (lambda: tables.rounds_to(RUN, "accuracy", NAN), "target = nan"),
        (lambda: tables.json_line("a", {"name": "b"}), "name = 'b'"),
        (lambda: tables.json_line("a", {"x": object()}), r"row\['x'\] is of type object"),
    ],
)
def test_bad_reports_are_one_sentence(call, says):
    with pytest.raises(InputError, match=says):
        call()
