"""Identities and theorems that tie the systems to each other and to closed forms."""

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from common import digits_world, one_sample_each, quadratics, ring, same

from jaxfl.algorithms.gossip.dfedsam import dfedsam, dfedsam_mgs
from jaxfl.algorithms.gossip.dsgd import dfedavgm, dsgd
from jaxfl.algorithms.gossip.gradient_tracking import gradient_tracking
from jaxfl.algorithms.server.fedavg import fedavg, fedsgd
from jaxfl.algorithms.server.fedopt import fedadagrad, fedadam, fedopt, fedyogi
from jaxfl.algorithms.server.fedprox import fedprox
from jaxfl.algorithms.server.momentum_fl import fedavg_m, fedavg_m_vr, scaffold_m, scaffold_m_vr
from jaxfl.algorithms.server.scaffold import scaffold
from jaxfl.engine.rollout import rollout
from jaxfl.engine.run import run
from jaxfl.measure.metrics import consensus_distance
from jaxfl.programs.gossip_averaging import gossip_averaging
from jaxfl.world import cohort, graph, mixing, topology
from jaxfl.world.scenario import scenario

KW = {"lr": 0.2, "steps": 4, "batch": 8}


def test_fedprox_without_its_term_is_fedavg_bit_for_bit():
    task, world = digits_world(c=5)
    kw = {"lr": 0.3, "steps": 4, "batch": 8}
    a = run(fedavg(task, **kw), world, task.init, 6)
    b, c = (run(partial(fedprox, task, **kw), world, task.init, 6, hyper={"mu": mu}) for mu in (0.0, 1.0))
    assert same(a.state, b.state)
    assert not same(a.state, c.state)


def test_gossip_on_a_complete_graph_is_full_participation_fedavg():
    task, world = digits_world(n=12)
    alike = cohort.everyone(12, weight=jnp.ones(12))
    equal = scenario(world.data, cohort=alike)
    full = scenario(world.data, topology=mixing.uniform(graph.complete(12)), cohort=alike)
    kw = {"lr": 0.3, "steps": 3, "batch": 8}
    server = run(fedavg(task, **kw), equal, task.init, 5).state.shared["x"]
    nodes = run(dsgd(task, **kw), full, task.init, 5).state.nodes
    np.testing.assert_allclose(nodes, np.tile(server, (12, 1)), atol=2e-6)


def test_fedsgd_with_everyone_is_gradient_descent_on_the_pooled_data():
    task, world = digits_world(n=12)
    x = run(fedsgd(task, lr=0.5), world, task.init, 3).state.shared["x"]
    data, row = world.data, np.zeros((65, 10))
    features = np.concatenate([np.ones((len(data.y), 1)), np.asarray(data.x, np.float64)], 1)
    target = np.eye(10)[np.asarray(data.y)]
    for _ in range(3):
        logits = features @ row
        soft = np.exp(logits - logits.max(1, keepdims=True))
        row -= 0.5 * features.T @ (soft / soft.sum(1, keepdims=True) - target) / len(target)
    got = task.unravel(x)
    np.testing.assert_allclose(np.concatenate([got["bias"][None], got["kernel"]]), row, atol=1e-5)


def test_three_rounds_of_fedavg_against_float64():
    """The whole round again in NumPy, from the batches jaxfl drew."""
    q, task, data = quadratics(n=6, d=4)
    world = scenario(data, cohort=cohort.uniform(6, 3, weight=np.arange(1.0, 7.0)))
    x = run(fedavg(task, lr=0.05, steps=3, batch=1), world, jnp.ones(4), 3).state.shared["x"]
    from jaxfl.engine.keys import round_key, run_key

    A, b, z = q.A.astype(np.float64), q.b.astype(np.float64), np.ones(4)
    for t in range(3):
        key = round_key(run_key(0), jnp.int32(t), "world")
        _, (_, c, *_) = world.step(key, world.arrays, world.init(key, world.arrays), jnp.int32(t))
        total, weight = np.zeros(4), np.asarray(c.weight, np.float64)
        for i, w in zip(np.asarray(c.ids), weight, strict=True):
            y = z.copy()
            for _ in range(3):
                y -= 0.05 * A[i] @ (y - b[i])
            total += w * (y - z)
        z = z + total / weight.sum()
    np.testing.assert_allclose(x, z, atol=1e-5)


def test_three_rounds_of_dsgd_against_float64():
    q, task, data = quadratics(n=7, d=4)
    g = mixing.metropolis(graph.watts_strogatz(7, 4, 0.5, seed=1))
    x = run(dsgd(task, lr=0.05, steps=2, batch=1), scenario(data, topology=g), jnp.ones(4), 3).state.nodes
    A, b, W, z = q.A.astype(np.float64), q.b.astype(np.float64), mixing.matrix(g), np.ones((7, 4))
    for _ in range(3):
        for _ in range(2):
            z = z - 0.05 * np.einsum("nij,nj->ni", A, z - b)
        z = W @ z
    np.testing.assert_allclose(x, z, atol=1e-5)


@pytest.mark.parametrize("make", [graph.ring, graph.exponential, graph.complete, graph.star, graph.hypercube])
def test_mixing_preserves_the_mean_and_contracts(make):
    g = mixing.metropolis(make(16)) if make is not graph.exponential else mixing.uniform(make(16))
    values = jnp.asarray(np.random.default_rng(0).normal(size=(16, 5)), jnp.float32)
    rate, before = mixing.second_eigenvalue(g), float(consensus_distance(values))
    world = scenario(values, nodes=16, topology=g)
    for rounds in (1, 4):
        after = run(gossip_averaging(), world, jnp.zeros(0), rounds).state.nodes[0]
        np.testing.assert_allclose(after.mean(0), values.mean(0), atol=1e-6)
        assert float(consensus_distance(after)) <= rate**rounds * before * (1 + 1e-5) + 1e-6


def test_consensus_contracts_by_exactly_the_second_eigenvalue():
    """On flat objectives (zero curvature) D-SGD is pure mixing; along the second eigenvector the rate is exact."""
    n = 12
    g = ring(n)
    values, vectors = np.linalg.eigh(mixing.matrix(g))
    slow = vectors[:, np.argsort(np.abs(values))[-2]]
    _, task, _ = quadratics(n, 2)
    data = one_sample_each(np.zeros((n, 2, 2), np.float32), np.zeros((n, 2), np.float32))
    world = scenario(data, topology=g)
    algorithm = dsgd(task, lr=0.1, steps=1, batch=1)
    start = algorithm._replace(
        init=lambda key, env, x: algorithm.init(key, env, x)._replace(
            nodes=jnp.asarray(np.stack([slow, 2 * slow], 1), jnp.float32)
        )
    )
    distances = [float(consensus_distance(run(start, world, jnp.zeros(2), t).state.nodes)) for t in (1, 5, 9)]
    rate = mixing.second_eigenvalue(g)
    np.testing.assert_allclose(np.diff(np.log(distances)) / 4, np.log(rate), atol=1e-5)


def test_tracking_reaches_the_optimum_where_dsgd_stops_at_its_bias():
    q, task, data = quadratics(n=8, d=3)
    g = ring(8)
    world = scenario(data, topology=g)
    x = run(dsgd(task, lr=0.05, steps=1, batch=1), world, jnp.zeros(3), 1500).state.nodes
    # fixed point of x = W (x - lr A (x - b)), solved in float64
    A, b, W = q.A.astype(np.float64), q.b.astype(np.float64), mixing.matrix(g)
    big = np.zeros((24, 24))
    for i in range(8):
        big[3 * i : 3 * i + 3, 3 * i : 3 * i + 3] = A[i]
    wide = np.kron(W, np.eye(3))
    fixed = np.linalg.solve(np.eye(24) - wide @ (np.eye(24) - 0.05 * big), wide @ (0.05 * big) @ b.ravel())
    np.testing.assert_allclose(np.asarray(x).ravel(), fixed, atol=1e-4)
    bias = np.linalg.norm(fixed.reshape(8, 3) - q.optimum, axis=1)
    tracked = run(gradient_tracking(task, lr=0.05), world, jnp.zeros(3), 1500).state
    assert bias.min() > 0.05
    np.testing.assert_allclose(tracked.nodes[0], np.tile(q.optimum, (8, 1)), atol=2e-5)
    np.testing.assert_allclose(tracked.nodes[1].mean(0), tracked.nodes[2].mean(0), atol=1e-5)  # mean v = mean gradient


def test_scaffold_reaches_the_optimum_where_fedavg_stops_at_its_bias():
    q, task, data = quadratics(n=8, d=3)
    world = scenario(data, cohort=cohort.everyone(8))
    kw = {"lr": 0.02, "steps": 10, "batch": 1}
    biased = run(fedavg(task, **kw), world, jnp.zeros(3), 400).state.shared["x"]
    # FedAvg stops where mean_i (I - (I - lr A_i)^K) (x - b_i) = 0
    A, b = q.A.astype(np.float64), q.b.astype(np.float64)
    pull = np.stack([np.eye(3) - np.linalg.matrix_power(np.eye(3) - 0.02 * a, 10) for a in A])
    fixed = np.linalg.solve(pull.sum(0), np.einsum("nij,nj->i", pull, b))
    np.testing.assert_allclose(biased, fixed, atol=1e-5)
    assert np.linalg.norm(fixed - q.optimum) > 0.02
    for part in (world, scenario(data, cohort=cohort.uniform(8, 3))):
        x = run(scaffold(task, **kw), part, jnp.zeros(3), 1500).state.shared["x"]
        np.testing.assert_allclose(x, q.optimum, atol=2e-5)


def test_scaffold_takes_a_share_of_the_move():
    _, task, data = quadratics(n=8, d=3)
    world = scenario(data, cohort=cohort.everyone(8))
    make = partial(scaffold, task, lr=0.02, steps=4, batch=1)
    whole, half = (run(make, world, jnp.ones(3), 1, hyper={"server_rate": r}).state.shared["x"] - 1 for r in (1.0, 0.5))
    np.testing.assert_allclose(half, whole / 2, rtol=1e-4)


@functools.cache
def learned(make, **kw):
    """The model of a server after four rounds with cohorts, on digits."""
    task, world = digits_world(c=5)
    return np.asarray(run(make(task, lr=0.2, steps=4, batch=8, **kw), world, task.init, 4).state.shared["x"])


@pytest.mark.parametrize("make", [fedavg_m, scaffold_m, fedavg_m_vr, scaffold_m_vr])
def test_momentum_off_is_the_plain_method(make):
    plain = learned(fedavg if make in (fedavg_m, fedavg_m_vr) else scaffold)
    np.testing.assert_allclose(learned(make, beta=1.0), plain, atol=1e-5)


@pytest.mark.parametrize("make", [fedavg_m, fedavg_m_vr, scaffold_m, scaffold_m_vr])
def test_one_round_of_the_momentum_methods_by_hand(make):
    """Two rounds with noise-free quadratics, in float64 from the equations of the paper."""
    q, task, data = quadratics(n=4, d=3)
    world = scenario(data, cohort=cohort.everyone(4))
    lr, rate, beta, K = 0.03, 0.2, 0.3, 3
    x = run(make(task, lr=lr, server_lr=rate, beta=beta, steps=K, batch=1), world, jnp.ones(3), 2).state.shared["x"]
    A, b = q.A.astype(np.float64), q.b.astype(np.float64)
    grad = lambda i, y: A[i] @ (y - b[i])
    z, old, g, c, ci = np.ones(3), np.ones(3), np.zeros(3), np.zeros(3), np.zeros((4, 3))
    for _ in range(2):
        moves, new = [], []
        for i in range(4):
            y, seen = z.copy(), []
            for _ in range(K):
                G = grad(i, y)
                seen.append(G)
                drift = ci[i] - c if make in (scaffold_m, scaffold_m_vr) else 0.0
                if make in (fedavg_m, scaffold_m):
                    d = beta * (G - drift) + (1 - beta) * g
                else:
                    d = G - beta * drift + (1 - beta) * (g - grad(i, old))
                y = y - lr * d
            moves.append((z - y) / (lr * K))
            new.append(np.mean(seen, 0))
        old, g = z, np.mean(moves, 0)
        z = z - rate * g
        c, ci = c + (np.stack(new) - ci).sum(0) / 4, np.stack(new)
    np.testing.assert_allclose(x, z, atol=1e-5)


def test_a_server_optimizer_is_optaxs():
    """One full-gradient client: FedOpt with optax's Adam is Adam on the scaled gradient."""
    q, task, data = quadratics(n=1, d=3)
    world = scenario(data)
    x = run(fedopt(task, local=optax.sgd(0.1), server=optax.adam(0.05), steps=1, batch=1), world, jnp.ones(3), 5)
    tx, p = optax.adam(0.05), jnp.ones(3)
    opt = tx.init(p)
    for _ in range(5):
        u, opt = tx.update(0.1 * q.A[0] @ (p - q.b[0]), opt, p)
        p = p + u
    np.testing.assert_allclose(x.state.shared["x"], p, atol=1e-6)


@pytest.mark.parametrize("make", [fedadagrad, fedadam, fedyogi])
def test_adaptive_servers_by_hand(make):
    q, task, data = quadratics(n=1, d=3)
    b1, b2, tau, lr, eta = 0.8, 0.9, 0.05, 0.1, 0.3
    kw = {"b1": b1, "tau": tau} | ({} if make is fedadagrad else {"b2": b2})
    x = run(make(task, lr=lr, server_lr=eta, steps=1, batch=1, **kw), scenario(data), jnp.ones(3), 4).state.shared["x"]
    z, m, v = np.ones(3), np.zeros(3), np.full(3, tau**2)
    for _ in range(4):
        delta = -lr * q.A[0].astype(np.float64) @ (z - q.b[0])
        m, s = b1 * m + (1 - b1) * delta, delta**2
        if make is fedadagrad:
            v = v + s
        elif make is fedadam:
            v = b2 * v + (1 - b2) * s
        else:
            v = v - (1 - b2) * s * np.sign(v - s)
        z = z + eta * m / (np.sqrt(v) + tau)
    np.testing.assert_allclose(x, z, rtol=1e-4)


def test_server_momentum_is_heavy_ball_on_the_mean_move():
    q, task, data = quadratics(n=1, d=3)
    x = run(fedavg(task, lr=0.1, server_momentum=0.7, steps=1, batch=1), scenario(data), jnp.ones(3), 4)
    z, m = np.ones(3), np.zeros(3)
    for _ in range(4):
        m = 0.7 * m - 0.1 * q.A[0] @ (z - q.b[0])
        z = z + m
    np.testing.assert_allclose(x.state.shared["x"], z, rtol=1e-4)


def test_dfedsam_without_radius_and_dfedavgm_without_momentum_are_dfedavg():
    task, world = digits_world(n=12, topology=ring(12))
    go = partial(run, scenario=world, model=task.init, rounds=3)
    plain = go(dsgd(task, **KW)).state.nodes
    for make, name, on in ((dfedsam, "rho", 0.5), (dfedavgm, "momentum", 0.9)):
        off, other = (go(partial(make, task, **KW), hyper={name: value}).state.nodes for value in (0.0, on))
        np.testing.assert_allclose(off, plain, atol=1e-6)
        assert not np.allclose(other, plain, atol=1e-3)


def test_sam_evaluates_the_gradient_at_the_ascent_point():
    q, task, data = quadratics(n=1, d=3)
    world = scenario(data, topology=mixing.uniform(graph.ring(1)))
    x = run(dfedsam(task, lr=0.1, rho=0.4, steps=2, batch=1), world, jnp.ones(3), 1).state.nodes[0]
    y = np.ones(3)
    for _ in range(2):
        g = q.A[0] @ (y - q.b[0])
        y = y - 0.1 * q.A[0] @ (y + 0.4 * g / np.linalg.norm(g) - q.b[0])
    np.testing.assert_allclose(x, y, atol=1e-5)


def test_gossip_steps_are_powers_of_the_matrix_and_cost_their_messages():
    _, task, data = quadratics(n=12)
    world, kw = scenario(data, topology=ring(12)), {"lr": 0.1, "steps": 2, "batch": 1, "rho": 0.1}
    once = run(dfedsam(task, **kw), world, jnp.ones(3), 1)
    four = run(dfedsam_mgs(task, gossip_steps=4, **kw), world, jnp.ones(3), 1)
    third = np.linalg.matrix_power(mixing.matrix(ring(12)), 3)
    np.testing.assert_allclose(four.state.nodes, third @ np.asarray(once.state.nodes, np.float64), atol=1e-5)
    bits = [r.history["up_bits"].iloc[-1] for r in (once, four)]
    assert bits == [24 * 32 * 3, 4 * 24 * 32 * 3]


def test_permuting_the_nodes_permutes_the_result():
    q, task, _ = quadratics(n=9, d=3)
    g = graph.erdos_renyi(9, 0.4, seed=3)
    order = np.random.default_rng(1).permutation(9)
    matrix = mixing.matrix(mixing.metropolis(g))

    def nodes(A, b, W):
        world = scenario(one_sample_each(A, b), topology=mixing.from_matrix(W))
        return np.asarray(run(dsgd(task, lr=0.05, steps=2, batch=1), world, jnp.ones(3), 5).state.nodes)

    plain = nodes(q.A, q.b, matrix)
    moved = nodes(q.A[order], q.b[order], matrix[np.ix_(order, order)])
    np.testing.assert_allclose(moved, plain[order], atol=1e-6)


@pytest.mark.skipif(jax.__version_info__ < (0, 8), reason="jax 0.7.2 on a CPU: wrong gradient through its constants")
def test_gradient_through_twenty_gossip_rounds_against_finite_differences():
    with jax.enable_x64(True):
        q, task, data = quadratics(n=6, d=2)
        data = jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, data)
        g = ring(6)
        base = scenario(data, topology=g)
        algorithm = dsgd(task, lr=0.05, steps=1, batch=1)

        def final(weight):
            arrays = base.arrays | {"topology": dataclasses.replace(g, weight=weight)}
            state, _ = rollout(algorithm, base._replace(arrays=arrays), jnp.ones(2, jnp.float64), 20)
            return ((state.nodes - q.optimum) ** 2).sum()

        weight = jnp.asarray(g.weight, jnp.float64)
        slope = jax.jit(jax.grad(final))(weight)
        value = jax.jit(final)
        for i, s in ((0, 0), (3, 1), (5, 0)):
            step = jnp.zeros_like(weight).at[i, s].set(1e-6)
            difference = (value(weight + step) - value(weight - step)) / 2e-6
            np.testing.assert_allclose(slope[i, s], difference, rtol=1e-5)


def test_one_peer_exponential_averages_exactly():
    values = jnp.asarray(np.random.default_rng(0).normal(size=(16, 3)), jnp.float32)
    world = scenario(values, nodes=16, topology=topology.one_peer_exponential(16))
    after = run(gossip_averaging(), world, jnp.zeros(0), 4).state.nodes[0]
    np.testing.assert_allclose(after, np.tile(values.mean(0), (16, 1)), atol=1e-6)
