"""FlexiFed's strategies against loops in float64: unequal weights, a partial cohort, an absent member."""

from functools import partial

import jax
import numpy as np
import pytest
from nets import CLASSES, FEATURES, WEIGHT, N, X, cohorts, flat, own, perceptron, tree, world

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.flexifed import basic_common, clustered_common, clustered_fedavg, max_common
from jaxfl.core import Links
from jaxfl.engine.run import run
from jaxfl.learn.layers import layers
from jaxfl.learn.task import classification
from jaxfl.models.networks import MLP

DEPTHS, INNER = (2, 1, 3), 3
TASK = classification(partial(MLP, (FEATURES, *[4] * (INNER + 1), CLASSES)), X[:1])
FIRST = TASK.init(jax.random.key(0))
KW = {"lr": 0.2, "steps": 2, "batch": None}
LAYER = np.concatenate([np.full(a.stop - a.start, int(a.path.split("/")[1])) for a in layers(TASK)])
DEPTH = np.array([DEPTHS[i % 3] for i in range(N)])


def held(i):
    return (DEPTH[i] >= LAYER) | (LAYER == INNER + 1)


def filled(i, row):
    """The model of client `i`: where it has no layer, the identity."""
    p = tree(TASK, row)
    for j in range(DEPTH[i] + 1, INNER + 1):
        p[f"layers/{j}/kernel"], p[f"layers/{j}/bias"] = np.eye(4), np.zeros(4)
    return flat(TASK, p)


def hears(kind, j, i, k, classifier):
    """Whether client `i` averages layer `j` with client `k`."""
    a, b = DEPTH[i], DEPTH[k]
    if j == INNER + 1:
        return a == b if kind is clustered_fedavg else classifier
    if j > min(a, b):
        return False
    return {basic_common: j <= 1, clustered_common: j <= 1 or a == b, max_common: True, clustered_fedavg: a == b}[kind]


@pytest.mark.parametrize(
    ("kind", "classifier"),
    [(basic_common, False), (clustered_common, True), (max_common, False), (clustered_fedavg, None)],
)
def test_three_rounds_from_the_rules(kind, classifier):
    w = world()
    kw = KW if classifier is None else KW | {"classifier": classifier}
    models = np.stack([filled(i, FIRST) for i in range(N)])
    for members in cohorts(w, 3):
        trained = {}
        for i, _, _ in members:
            y = models[i].copy()
            for _ in range(2):
                y = y - 0.2 * np.where(held(i), perceptron(TASK, y, *own(i)), 0)
            trained[i] = y
        for i, _, _ in members:
            for j in range(INNER + 2):
                who = [(k, p) for k, p, _ in members if hears(kind, j, i, k, classifier)]
                new = sum(p * trained[k] for k, p in who) / sum(p for _, p in who) if who else trained[i]
                models[i, j == LAYER] = new[j == LAYER]
    got = run(kind(TASK, depths=DEPTHS, **kw), w, FIRST, 3, every=1)
    np.testing.assert_allclose(got.state.nodes, models, atol=3e-6)


def test_alike_clients_who_all_take_part_are_fedavg_and_what_is_kept_costs_nothing():
    w = world(c=N, change=lambda c, t: c, links=Links(*(np.full(N, v, np.float32) for v in (100.0, 200.0, 0.0, 3.0))))
    one = run(fedavg(TASK, **KW), w, FIRST, 2)
    for kind in (clustered_fedavg, partial(max_common, classifier=True)):
        got = run(kind(TASK, depths=(INNER,), **KW), w, FIRST, 2)
        np.testing.assert_allclose(got.state.nodes, np.tile(one.state.shared["x"], (N, 1)), atol=1e-6)
        np.testing.assert_allclose(got.history["up_bits"].sum(), one.history["up_bits"].sum())
        np.testing.assert_allclose(got.history["seconds"].sum(), one.history["seconds"].sum(), rtol=1e-5)
    got = run(basic_common(TASK, depths=DEPTHS, **KW), w, FIRST, 2)
    assert got.history["up_bits"].sum() == got.history["down_bits"].sum() == 2 * 32 * N * (LAYER <= 1).sum()
    assert len(WEIGHT) == N
