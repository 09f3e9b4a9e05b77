"""The bounds compute what they say, for any number of nodes on any number of devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

HERE = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(HERE))

import bound  # noqa: E402
import bound_cnn  # noqa: E402
import bound_graph  # noqa: E402

SIZES = (6, 5, 3)
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((40, 6)).astype(np.float32), RNG.integers(0, 3, 40)
MADE = {"samples": 7, "batch": 4, "lr": 0.2, "rounds": 3}
NODES = 7
NBR = np.array([[(i + s) % NODES for s in (1, 3, 4, 6)] for i in range(NODES)], np.int32)
WEIGHT = np.where(np.arange(4) < 3, RNG.random((NODES, 4)) / 4, 0).astype(np.float32)  # the last is no link


def rows(count: int) -> dict:
    """A model for every row, all unlike."""
    return jax.vmap(lambda i: bound.init(jax.random.fold_in(jax.random.key(1), i), SIZES))(jnp.arange(count))


def numbers() -> dict[str, list]:
    """The first weights after three rounds of each bound, of all real nodes."""
    data = bound.everywhere((X, Y))
    federation = {"clients": 11, "cohort": 5, "steps": 2} | MADE
    found = {"fedavg": bound.fedavg(**federation)(bound.init(jax.random.key(0), SIZES), 0, *data)["w1"]}
    seats = bound.seats(NODES).reshape(-1)
    start = jax.tree.map(lambda a: bound.by_row(a[np.maximum(seats, 0)]), rows(NODES))
    found["ring"] = np.asarray(bound.ring_gossip(nodes=NODES, **MADE)(start, 0, *data)["w1"])[seats >= 0]
    for rule in bound_graph.RULES:
        start = bound.by_row(rows(NODES + -NODES % jax.device_count()))
        run = bound_graph.table_gossip(nbr=NBR, weight=WEIGHT, rule=rule, **MADE)
        found[rule] = run(start, 0, *data)["w1"][:NODES]
    return {name: np.asarray(a).tolist() for name, a in found.items()}


def test_any_number_of_devices_gives_the_same():
    """One device, and three for 5 members, a ring of 7 and a graph of 7 nodes."""
    code = "import jax, json; jax.config.update('jax_num_cpu_devices', 3); import test_bounds as t"
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", f"{code}; print(json.dumps(t.numbers()))"]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | {"PYTHONPATH": paths}
    )
    found, here = json.loads(done.stdout), numbers()
    assert found.keys() == here.keys()
    for name, value in here.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_clients_of_weight_0_fill_a_block():
    """Five in blocks of 1, 3 (as 2 of 3) and 4 (as 2 of 3)."""
    made = {"clients": 11, "cohort": 5, "steps": 2} | MADE
    run = lambda k: bound.fedavg(**made, together=k)(bound.init(jax.random.key(0), SIZES), 0, X, Y)
    first, *others = map(run, (1, 3, 4))
    for other in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), first, other)


def test_mixing_is_the_matrix_and_the_median_numpys():
    values = RNG.standard_normal((NODES, 5)).astype(np.float32)
    matrix = np.diag(1.0 - WEIGHT.sum(1))
    np.add.at(matrix, (np.arange(NODES)[:, None], NBR), WEIGHT)
    want = {"mean": matrix @ values, "median": np.median(np.concatenate([values[:, None], values[NBR]], 1), 1)}
    for name, rule in bound_graph.RULES.items():
        np.testing.assert_allclose(rule(NBR, WEIGHT, values, values), want[name], rtol=1e-5, atol=1e-6)
    even = bound_graph.RULES["median"](NBR[:, :3], WEIGHT[:, :3], values, values)
    assert np.allclose(even, np.median(np.concatenate([values[:, None], values[NBR[:, :3]]], 1), 1))


@pytest.mark.parametrize("n", range(1, 18))
def test_the_network_sorts(n):
    """All inputs of zeros and ones up to 10 values, by which a network sorts everything; random ones above."""
    found = np.array(np.meshgrid(*[[0, 1]] * n)).reshape(n, -1) if n <= 10 else RNG.random((n, 100))
    want = np.sort(found, 0)
    for a, b in bound_graph.network(n):
        found[[a, b]] = np.minimum(found[a], found[b]), np.maximum(found[a], found[b])
    assert (found == want).all()


def test_the_step_by_hand_is_the_gradients():
    """Against `jax.grad` of the loss, node by node."""
    x, y = RNG.standard_normal((4, 3, 6)).astype(np.float32), RNG.integers(0, 3, (4, 3))
    want = jax.vmap(lambda p, x, y: bound.sgd(p, x, y, 0.3))(rows(4), x, y)
    got = bound_graph.step(rows(4), x, y, 0.3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, want)


def test_the_network_of_images_is_convolutions_and_pools():
    """Logits and gradients, against XLA's own convolution and window."""
    p, x = bound_cnn.init(jax.random.key(0)), RNG.random((3, 784)).astype(np.float32)
    p = p | {"b1": p["b1"] + 0.1, "b2": p["b2"] - 0.1}

    def plain(p, x):
        x = x.reshape(-1, 28, 28, 1)
        for kernel, bias in ((p["k1"].reshape(3, 3, 1, 16), p["b1"]), (p["k2"].reshape(3, 3, 16, 32), p["b2"])):
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.lax.reduce_window(jax.nn.relu(x + bias), -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return x.reshape(len(x), -1) @ p["w"] + p["b"]

    for f in (lambda predict: predict(p, x), lambda predict: jax.grad(lambda p: (predict(p, x) ** 2).sum())(p)):
        got, want = f(bound_cnn.predict), f(plain)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), got, want)
