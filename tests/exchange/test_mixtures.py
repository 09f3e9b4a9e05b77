"""Estimates of mixtures against a search over the faces of the simplex, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixtures_by_faces import nearest

from jaxfl.errors import InputError
from jaxfl.exchange import mixtures
from jaxfl.learn import task as tasks


def test_projection_finds_the_nearest_mixture():
    r = np.random.default_rng(0)
    C = 3 + r.normal(size=(4, 10))
    estimate = jax.jit(mixtures.projected())
    inside = r.dirichlet(np.ones(4), 5)
    np.testing.assert_allclose([estimate(*f32(u @ C, C)) for u in inside], inside, atol=2e-3)
    for w in 3 + r.normal(size=(10, 10)):
        np.testing.assert_allclose(estimate(*f32(w, C)), nearest(w, C), atol=2e-3)
    np.testing.assert_allclose(estimate(*f32(C[1], np.tile(C[1], (4, 1)))), 1 / 4)


def f32(*arrays):
    return [jnp.asarray(a, jnp.float32) for a in arrays]


def test_the_nearest_point_of_the_simplex():
    r = np.random.default_rng(1)
    for v in (r.normal(size=5), np.array([0.2, 0.3, 0.5]), np.array([9.0, 0, 0]), np.full(3, -4.0), np.zeros(1)):
        u = np.asarray(mixtures.onto_simplex(jnp.asarray(v, jnp.float32)), float)
        np.testing.assert_allclose(u.sum(), 1, atol=1e-6)
        assert u.min() >= 0
        np.testing.assert_allclose(u, nearest(v, np.eye(v.size)), atol=1e-5)


def test_proxy_samples_and_distances():
    r, task = np.random.default_rng(2), tasks.linear_regression(3)
    x, y, C, w = r.normal(size=(2, 6, 3)), r.normal(size=(2, 6)), r.normal(size=(2, task.dim)), r.normal(size=task.dim)
    loss = np.array([float(tasks.mean_loss(task, *f32(w, x[s], y[s]))) for s in range(2)])
    far = np.linalg.norm(C - w, axis=1)
    z = 0.3 * loss / loss.mean() + 0.7 * far / far.mean()
    estimate = mixtures.by_proxy(task, *f32(x, y), mix=0.3, power=3.0)
    np.testing.assert_allclose(estimate(*f32(w, C)), z**-3 / (z**-3).sum(), rtol=1e-5)
    np.testing.assert_array_equal(mixtures.uniform()(*f32(w, C)), [0.5, 0.5])
    assert float(estimate(*f32(C[0], C))[0]) > 0.5
    with pytest.raises(InputError, match="y has samples of 2 clusters, but there are 3 models"):
        estimate(*f32(w, r.normal(size=(3, task.dim))))
    with pytest.raises(InputError, match="steps is 0, but must be at least 1"):
        mixtures.projected(0)
    with pytest.raises(InputError, match="mix is 2, but must be"):
        mixtures.by_proxy(task, *f32(x, y), mix=2)
