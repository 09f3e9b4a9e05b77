"""CDFL in float64, its fixed point, one cluster as FedAsync, and what its claim's worlds promise."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from common import quadratics
from members import N, absent, cohorts, slope, world
from mixtures_by_faces import nearest

from jaxfl.algorithms.asynchronous.cdfl import async_ifca, cdfl
from jaxfl.algorithms.asynchronous.fedasync import fedasync
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange.staleness import constant
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario

KW: dict[str, Any] = {"lr": 0.1, "steps": 2, "batch": None, "clusters": 3, "alpha": 0.3}
FIRST = np.random.default_rng(5).normal(size=(3, 3))


def local(q, i, start, anchor, rho):
    y = start.copy()
    for _ in range(2):
        y = y - 0.1 * (slope(q, i, y) + rho * (y - anchor))
    return y


def test_rounds_from_the_equations_in_float64():
    """Four contacts a round, the third never comes; thresholds let some clusters move and others not."""
    q, task, w = world(absent)
    f = cdfl(task, threshold=0.7, beta=0.4, rho=0.3, warmup=2, **KW)
    got = run(f, w, jnp.asarray(FIRST, jnp.float32), 4, every=1).state
    C, rows, heard, share = FIRST.copy(), np.tile(FIRST.mean(0), (N, 1)), np.zeros(N), np.full((N, 3), 1 / 3)
    count, moved = 0, set()
    for members in cohorts(w, 4):
        sent = {i: local(q, i, rows[i], rows[i], 0.3) for i, *_ in members}
        for i, *_ in members:
            u = nearest(sent[i], C)
            pull = np.where(u >= 0.7, u, 0)
            if count < 2:
                pull[np.argmax(u)] = u.max()
            moved.add(int((pull > 0).sum()))
            C = C + (0.3 * pull * (1 + (count - heard[i]) / N) ** -0.5)[:, None] * (sent[i] - C)
            rows[i], share[i] = 0.4 * u @ C + 0.6 * sent[i], u
            count += 1
            heard[i] = count
    np.testing.assert_allclose(got.shared["models"], C, atol=2e-3)
    np.testing.assert_allclose(got.nodes["w"], rows, atol=2e-3)
    np.testing.assert_allclose(got.nodes["share"], share, atol=4e-3)
    np.testing.assert_array_equal(got.nodes["heard"], heard)
    assert int(got.shared["contacts"]) == count == 12
    assert moved == {0, 1}


def test_the_rival_from_its_equations_in_float64():
    q, task, w = world(absent)
    done = run(async_ifca(task, **KW), w, jnp.asarray(FIRST, jnp.float32), 3, every=1)
    C, rows, heard, count, chosen = FIRST.copy(), np.tile(FIRST.mean(0), (N, 1)), np.zeros(N), 0, set()
    for members in cohorts(w, 3):
        loss = lambda i, x: (x - q.b[i]) @ q.A[i].astype(float) @ (x - q.b[i])
        best = {i: int(np.argmin([loss(i, c) for c in C])) for i, *_ in members}
        sent = {i: local(q, i, C[best[i]], C[best[i]], 0) for i, *_ in members}
        for i, *_ in members:
            s = best[i]
            chosen.add(s)
            C[s] = C[s] + 0.3 * (1 + (count - heard[i]) / N) ** -0.5 * (sent[i] - C[s])
            rows[i] = C[s]
            count += 1
            heard[i] = count
    np.testing.assert_allclose(done.state.shared["models"], C, atol=1e-5)
    np.testing.assert_allclose(done.state.nodes["w"], rows, atol=1e-5)
    assert len(chosen) > 1
    mine = run(cdfl(task, **KW), w, jnp.asarray(FIRST, jnp.float32), 3, every=1).history
    np.testing.assert_array_equal(done.history["down_bits"], 3 * mine["down_bits"])
    np.testing.assert_array_equal(done.history["up_bits"], mine["up_bits"])


def test_where_clients_agree_with_their_mixture_nothing_moves():
    """Every client's optimum is a cluster's: all stays, shares are one cluster's, and sum to 1."""
    _, task, data = quadratics(n=6, d=3)
    centre = FIRST[np.arange(6) % 3].astype(np.float32)
    w = scenario(dataclasses.replace(data, y=jnp.asarray(centre)), cohort=cohort.uniform(6, 6))
    f = cdfl(task, **{**KW, "lr": 0.3, "steps": 40}, rho=0.0)
    state = run(f, w, jnp.asarray(FIRST, jnp.float32), 6).state
    np.testing.assert_allclose(state.shared["models"], FIRST, atol=1e-2)
    np.testing.assert_allclose(state.nodes["share"], np.eye(3)[np.arange(6) % 3], atol=2e-2)
    np.testing.assert_allclose(np.asarray(state.nodes["share"]).sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(state.nodes["w"], centre, atol=2e-2)


def test_one_cluster_and_one_client_is_fedasync():
    _, task, data = quadratics(n=1, d=3)
    w = scenario(data, cohort=cohort.uniform(1, 1))
    alone = {**KW, "clusters": 1}
    own = cdfl(task, **alone, rho=0.2, beta=1.0, discount=constant())
    got = run(own, w, jnp.ones((1, 3)), 5).state.shared["models"][0]
    kw = {name: KW[name] for name in ("lr", "steps", "batch", "alpha")}
    want = run(fedasync(task, rho=0.2, discount=constant(), **kw), w, jnp.ones(3), 5).state.shared["x"]
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize(
    ("kw", "says"),
    [
        ({"beta": 2.0}, "beta is 2.0, but must be"),
        ({"threshold": -1}, "threshold is -1, but must be"),
        ({"clusters": 0}, "clusters is 0, but must be at least 1"),
        ({"clusters": 2}, "model has 3 rows, but clusters is 2"),
    ],
)
def test_bad_input_is_refused(kw: dict[str, Any], says):
    _, task, w = world(absent)
    with pytest.raises(InputError, match=says):
        run(cdfl(task, **{**KW, **kw}), w, jnp.asarray(FIRST, jnp.float32), 1)
