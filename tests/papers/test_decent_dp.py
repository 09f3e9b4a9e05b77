"""Decent-DP against its equations in float64 with a node down; groups that average; the worlds of its claim."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from common import quadratics

from jaxfl.algorithms.gossip.decent_dp import dadam, decent_dp
from jaxfl.algorithms.gossip.dsgd import dsgd, gossip_training
from jaxfl.claims import decent_dp as claim
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.learn.accumulate import accum_adam
from jaxfl.world import churn, graph, groups, mixing
from jaxfl.world.links import links
from jaxfl.world.scenario import scenario

N, ROUNDS, DOWN = 5, 5, {1: 3}  # in round 1 node 3 is down
LINKS = mixing.metropolis(graph.from_edges(N, [0, 0, 1, 2, 3], [1, 4, 2, 3, 4], both=True))
UP = churn.events(N, leaves=[(1, [3])], joins=[(2, [3])])
B1, B2, EPS, LR, DECAY = 0.8, 0.9, 1e-3, 0.05, 0.3


@pytest.mark.parametrize(("overlap", "every"), [(True, 2), (False, 3)])
def test_five_rounds_from_the_papers_equations_in_float64(overlap, every):
    q, task, data = quadratics(n=N, d=3)
    make = decent_dp(
        task, lr=LR, accumulate=every, b1=B1, b2=B2, eps=EPS, weight_decay=DECAY, batch=None, overlap=overlap
    )
    speed = links(N, up=[100.0, 50, 25, 10, 200], latency=0.5, step=[1.0, 2, 3, 4, 9])
    result = run(make, scenario(data, topology=LINKS, churn=UP, links=speed), jnp.ones(3), ROUNDS, every=1)
    A, b, whole = q.A.astype(float), q.b.astype(float), mixing.matrix(LINKS).astype(float)
    x, seconds = np.ones((N, 3)), []
    m, v, a, step = (np.zeros((N, 3)) for _ in range(3)), None, None, np.zeros(N, int)
    m, v, a = m
    for t in range(ROUNDS):
        up = np.arange(N) != DOWN.get(t, -1)
        W = whole * up[:, None] * up
        W += np.diag(1 - W.sum(1))
        y = x.copy()
        for i in np.flatnonzero(up):
            g = A[i] @ (x[i] - b[i])
            step[i] += 1
            k = -(-step[i] // every)
            a[i] += g / every
            m_hat = (B1 * m[i] + (1 - B1) * g) / (1 - B1**k)
            v_hat = (B2 * v[i] + (1 - B2) * g**2) / (1 - B2**k)
            y[i] = x[i] - LR * (m_hat / (np.sqrt(v_hat) + EPS) + DECAY * x[i])
            if step[i] % every == 0:
                m[i], v[i], a[i] = B1 * m[i] + (1 - B1) * a[i], B2 * v[i] + (1 - B2) * a[i] ** 2, 0
        x = W @ x + (y - x) if overlap else W @ y
        degree = (W > 0).sum(1) - 1
        work = (np.array([1, 2, 3, 4, 9]) * up).max()
        way = np.where(degree > 0, 0.5 + degree * 96 / np.array([100, 50, 25, 10, 200]), 0).max()
        seconds.append(max(work, way) if overlap else work + way)
    models, (state, *_) = result.state.nodes
    for got, want in ((models, x), (state.mu, m), (state.nu, v), (state.mean, a)):
        np.testing.assert_allclose(got, want, atol=1e-4)
    np.testing.assert_array_equal(state.step, step)
    np.testing.assert_allclose(result.history["seconds"].iloc[1:], seconds, rtol=1e-6)


def test_a_period_of_one_step_is_adam():
    g = jax.random.normal(jax.random.key(0), (7, 4))
    one, other = accum_adam(0.1, accumulate=1, weight_decay=0.2), optax.adamw(0.1, weight_decay=0.2)
    x: Any = jnp.ones(4)
    y: Any = jnp.ones(4)
    s, t = one.init(x), other.init(y)
    for row in g:
        (d, s), (e, t) = one.update(row, s, x), other.update(row, t, y)
        x, y = optax.apply_updates(x, d), optax.apply_updates(y, e)
    np.testing.assert_allclose(x, y, rtol=1e-6)


def test_dadam_is_dsgd_with_adam_after_the_exchange():
    """Adapt, then combine: `gossip_training` by optax's Adam, to rounding."""
    _, task, data = quadratics(n=4, d=3)
    world = scenario(data, topology=mixing.metropolis(graph.ring(4)))
    ours = run(dadam(task, lr=0.1, batch=None, overlap=False), world, jnp.ones(3), 3).state.nodes[0]
    adam = gossip_training(task, local=optax.adam(0.1), batch=None, keep_state=True)
    np.testing.assert_allclose(ours, run(adam, world, jnp.ones(3), 3).state.nodes[0], rtol=1e-5)


def test_overlap_keeps_the_sum_as_adapt_then_combine_does():
    """Doubly stochastic mixing moves the mean by the mean step alone, in either order."""
    q, task, data = quadratics(n=4, d=3)
    world = scenario(data, topology=groups.averaging(groups.pairs(4)))
    got = run(dsgd(task, lr=0.1, batch=None, overlap=True), world, jnp.ones(3), 1).state.nodes
    step = -0.1 * np.einsum("nij,nj->ni", q.A.astype(float), 1 - q.b.astype(float))
    np.testing.assert_allclose(np.asarray(got, float).mean(0), 1 + step.mean(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("labels", "exact"),
    [
        (groups.alternating_exponential(8, 4), True),
        (groups.alternating_exponential(2, 1), True),
        (groups.pairs(8), True),
        (groups.one_peer_ring(6), False),
    ],
)
def test_groups_average_and_a_period_is_the_exact_mean(labels, exact):
    period, n = labels.shape
    where = groups.averaging(labels)
    of = jax.jit(lambda t: where.step(jax.random.key(0), where.arrays, (), t)[1])
    product = np.eye(n)
    for t in range(period):
        W = mixing.matrix(of(t)).astype(float)
        np.testing.assert_allclose(W.sum(0), 1, atol=1e-6)
        np.testing.assert_allclose(W.sum(1), 1, atol=1e-6)
        np.testing.assert_allclose(W @ W, W, atol=1e-6)  # an average of groups
        np.testing.assert_array_equal(W > 0, labels[t][:, None] == labels[t])
        same = labels[t][:, None] == labels[t]
        product = (same / same.sum(1)) @ product
    assert np.allclose(product, 1 / n, atol=1e-12) == exact


def test_the_alternating_ring_crosses_machines_in_half_of_the_pairs():
    labels = groups.alternating_exponential(8, 4)
    assert labels.shape == (6, 32)
    for row in labels:
        size = np.bincount(row)
        assert sorted(size) == [4] * 4 + [8] * 2  # four machines at home, two pairs
    assert (labels.reshape(6, 8, 4) == labels.reshape(6, 8, 4)[:, :, :1]).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: groups.pairs(6), "n is 6, but must be a power of two"),
        (lambda: groups.one_peer_ring(5), "n is 5, but must be even"),
        (lambda: groups.alternating_exponential(3, 1), "machines is 3"),
        (lambda: groups.alternating_exponential(4, 0), "local is 0"),
        (lambda: groups.averaging([0]), r"labels have shape \[1\]"),
        (lambda: groups.averaging([0, -1]), "labels is -1"),
        (lambda: accum_adam(0.1, accumulate=0), "accumulate is 0"),
        (lambda: accum_adam(0.1, b2=1.0), "b2 is 1.0"),
        (lambda: accum_adam(0.1, weight_decay=-1.0), "weight_decay is -1.0"),
        (lambda: decent_dp(quadratics()[1], lr=0.0), "lr is 0.0"),
        (lambda: decent_dp(quadratics()[1], eps=-1.0), "eps is -1.0"),
    ],
)
def test_bad_numbers(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_the_claim_s_run_times():
    """Where nothing varies and an exchange hides there is nothing to gain."""
    assert claim.speedup(0.0, 0.0, 0.5, rounds=40) == pytest.approx(1.0, abs=0.02)
    (found,) = claim.studies()
    assert {arm for s in found.says for arm in (s.ours, s.theirs)} <= set(found.arms)
