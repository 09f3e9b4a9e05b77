"""FedOpt's adaptive servers against Algorithm 2 in float64, and the parts of their claim."""

import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from members import cohorts, slope, world

from jaxfl.algorithms.server.fedopt import fedadagrad, fedadam, fedopt, fedyogi
from jaxfl.claims import fedopt as claim
from jaxfl.claims.study import points
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


def test_the_claim_s_methods_are_tuned_with_the_same_effort():
    for found in claim.studies():
        assert len({len(points(found, arm)) for arm in found.arms.values()}) == 1
        for arm in found.arms.values():
            np.testing.assert_allclose(np.diff(np.log10(arm.grid["server_lr"])), 0.5, atol=0.03)


def test_data_without_the_dense_block_keep_its_columns_at_zero():
    plain = synthetic.sparse_features(100, seed=1, dense=False)
    wide = claim.no_dense(plain)
    assert wide.x.shape == synthetic.sparse_features(100, seed=1).x.shape
    assert not wide.x[:, :10].any()
    np.testing.assert_array_equal(wide.x[:, 10:], plain.x)
    np.testing.assert_array_equal(wide.test_x[:, 10:], plain.test_x)


def test_the_round_in_which_the_claim_s_loss_is_reached():
    losses = {0: (1.6, 0.95, 0.89, 0.7), 1: (1.6, 1.2, 0.95, 1.0)}
    rows = [(seed, 5 * i, v) for seed, values in losses.items() for i, v in enumerate(values)]
    history = pd.DataFrame(rows, columns=["seed", "round", "train_loss"])
    np.testing.assert_array_equal(claim.arrives(history), [10, 15])  # never counts as the last round


def test_the_claim_s_fedavg_is_fedopt_without_a_server_optimizer():
    _, task, w = world()
    plain = run(fedopt(task, local=optax.sgd(0.03), **KW), w, jnp.ones(3), 2).state.shared["x"]
    served = claim.sgd_server(task, lr=0.03, server_lr=1.0, momentum=0.0, **KW)
    np.testing.assert_allclose(run(served, w, jnp.ones(3), 2).state.shared["x"], plain, atol=1e-7)


def test_the_claim_s_films_are_the_first_ratings_of_each_user():
    drawn = claim.few_films()
    many = drawn._replace(x=np.repeat(drawn.x, 7, 0), y=np.repeat(drawn.y, 7), clients=np.repeat(drawn.clients, 7))
    few = claim.liked(many)
    assert np.bincount(few.clients).tolist() == [claim.RATED] * 12
    np.testing.assert_array_equal(few.x, np.concatenate([many.x[many.clients == u][: claim.RATED] for u in range(12)]))
    np.testing.assert_array_equal(few.y[: claim.RATED], many.y[: claim.RATED] > 3)
    task = claim.liking()
    alone, both = (claim.films(drawn, 3, task)[name] for name in (claim.FILMS, claim.RATERS))
    assert np.asarray(both.world.data.x[:, 0]).max() == 11
    assert not np.asarray(alone.world.data.x[:, 0]).any()
    row = task.ravel({"constant": jnp.float32(0.1), "film": jnp.arange(1682.0) / 9, "user": -jnp.arange(943.0)})
    x, y = jnp.array([[2, 27], [0, 9]]), jnp.array([1, 0])
    np.testing.assert_allclose(task.loss(task.unravel(row), x, y), np.log1p(np.exp([-1.1, 1.1])), rtol=1e-5)
