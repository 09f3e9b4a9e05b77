"""SAVIC against its equations in float64: unequal weights, a partial cohort, an absent member."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import same
from members import N, cohorts, slope, world

from jaxfl.algorithms.server.fedavg import fedavg, fedsgd
from jaxfl.algorithms.server.savic import savic
from jaxfl.claims import savic as claim
from jaxfl.engine.run import run
from jaxfl.exchange import codecs
from jaxfl.exchange.network import Network

LR, BETA, ALPHA = 0.05, 0.6, 0.3
KW = {"lr": LR, "beta": BETA, "alpha": ALPHA, "steps": 2, "batch": None}


def averaged(mean, count, h, rule):
    """Adam's corrected mean square, or OASIS' mean of what is given."""
    if rule == "oasis":
        return h if count == 0 else BETA * mean + (1 - BETA) * h
    keep = (BETA - BETA ** (count + 1)) / (1 - BETA ** (count + 1))
    return keep * mean + (1 - keep) * h**2


def floor(mean, rule):
    return np.maximum(ALPHA, np.abs(mean) if rule == "oasis" else np.sqrt(mean))


def equations(q, rounds, shared, squares):
    """Three rounds of the rule "adam"."""
    x, mean, count = np.ones(3), np.zeros(3) if shared else np.zeros((N, 3)), np.zeros(N, int)
    for t, members in enumerate(rounds):
        total = sum(p for _, p, _ in members)
        if shared:
            h = [slope(q, i, x) ** (2 if squares else 1) for i, _, _ in members]
            h = sum(p * g for g, (_, p, _) in zip(h, members, strict=True)) / total
            mean = averaged(mean, t, np.sqrt(h) if squares else h, "adam")
        new = np.zeros(3)
        for i, p, _ in members:
            if not shared:
                mean[i] = averaged(mean[i], count[i], slope(q, i, x), "adam")
                count[i] += 1
            y, d = x.copy(), floor(mean if shared else mean[i], "adam")
            for _ in range(2):
                y -= LR * slope(q, i, y) / d
            new += p / total * (y - x)
        x = x + new
    return x, mean, count


@pytest.mark.parametrize(("shared", "squares"), [(True, False), (True, True), (False, False)])
def test_three_rounds_from_the_equations(shared, squares):
    q, task, w = world()
    state = run(savic(task, shared=shared, squares=squares, **KW), w, jnp.ones(3), 3, every=1).state
    x, mean, count = equations(q, cohorts(w, 3), shared, squares)
    np.testing.assert_allclose(state.shared["x"], x, atol=1e-5)
    scale = state.shared["scale"] if shared else state.nodes
    np.testing.assert_allclose(scale.mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(scale.count, 3 if shared else count)


def test_oasis_on_diagonal_quadratics():
    """There Hutchinson's product is the curvature, whatever the signs."""
    setting = claim.quadratics(np.array([0.5, 3.0, 0.1]), 1, samples=2)
    data, x, mean = setting.world.data, np.zeros(3), None
    a, b = np.asarray(data.x[0][::2], float).diagonal(axis1=1, axis2=2), np.asarray(data.y[::2], float)
    for t in range(3):
        mean = averaged(mean, t, a.mean(0), "oasis")
        y = np.tile(x, (len(a), 1))
        for _ in range(2):
            y -= LR * a * (y - b) / floor(mean, "oasis")
        x = y.mean(0)
    task = claim.quadratic_noise(3, claim.SIGMA)
    state = run(savic(task, rule="oasis", **KW), setting.world, task.init, 3, every=1).state
    np.testing.assert_allclose(state.shared["x"], x, atol=1e-5)
    np.testing.assert_allclose(state.shared["scale"].mean, a.mean(0), rtol=1e-5)


def test_without_scaling_it_is_fedavg_and_with_one_step_scaled_gradient_descent():
    _, task, w = world()
    go = lambda algorithm, rounds=3: run(algorithm, w, jnp.ones(3), rounds, every=1)
    plain, mean = go(savic(task, rule="identity", **KW)), go(fedavg(task, lr=LR, steps=2, batch=None))
    np.testing.assert_allclose(plain.state.shared["x"], mean.state.shared["x"], atol=1e-6)
    assert plain.history["up_bits"].equals(mean.history["up_bits"])
    one = go(savic(task, **KW | {"steps": 1}), 1).state.shared
    step = go(fedsgd(task, lr=LR), 1).state.shared["x"] - 1
    np.testing.assert_allclose(one["x"] - 1, step / np.maximum(ALPHA, np.sqrt(one["scale"].mean)), rtol=1e-4)


def test_what_it_costs():
    """Three members: x and D down, h and y - x up; alone with a D of their own as FedAvg, and a gradient more."""
    _, task, w = world()
    for shared, vectors, gradients in ((True, 2, 9), (False, 1, 9)):
        log = run(savic(task, shared=shared, **KW), w, jnp.ones(3), 1).history.iloc[-1]
        assert log["up_bits"] == log["down_bits"] == 3 * vectors * 32 * 3
        assert log["gradients"] == gradients


def test_both_phases_have_their_own_memory_of_what_a_codec_lost():
    _, task, w = world()
    net = Network(codec=codecs.error_feedback(codecs.top_k(0.4)))
    state = run(savic(task, net, **KW), w, jnp.ones(3), 3).state
    first, second = (jax.tree.leaves(nodes)[0] for nodes in state.mail.nodes)
    assert first.shape == second.shape == (N, 3)
    assert not same(first, second)


def test_the_claim_s_quadratics_have_their_optimum_where_the_measure_is_zero():
    world, metric = claim.both(2)[claim.UNLIKE]
    x, y, noise = np.asarray(world.data.x[0], float), np.asarray(world.data.y, float), np.asarray(world.data.x[1])
    best = np.asarray(metric.arrays[1], float)
    gradient = np.einsum("nij,nj->i", x, best - y) / len(y)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)
    np.testing.assert_allclose(noise.reshape(claim.M, -1, claim.DIM).mean(1), 0, atol=1e-6)
    loss = lambda p: 0.5 * np.einsum("ni,nij,nj->", p - y, x, p - y) / len(y)
    got = metric.measure(metric.arrays, jnp.zeros(claim.DIM))["excess"]
    assert float(got) == pytest.approx(loss(np.zeros(claim.DIM)) - loss(best), rel=1e-4)
