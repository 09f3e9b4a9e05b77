"""Learning from History and ClippedGossip: identities, one round by hand, worker momentum, their bits and memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from common import digits_world, quadratics, ring
from scipy.linalg import solve_discrete_lyapunov

from jaxfl.algorithms.gossip.clipped_gossip import clipped_gossip, robust_gossip
from jaxfl.algorithms.gossip.dsgd import dsgd, gossip_training
from jaxfl.algorithms.server.fedavg import fedsgd
from jaxfl.algorithms.server.robust_sgd import learning_from_history, robust_sgd
from jaxfl.claims import robust_sgd as claim
from jaxfl.core import Metric
from jaxfl.data import sets
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange import attacks, rules
from jaxfl.exchange.network import Network
from jaxfl.learn import hooks
from jaxfl.learn.task import from_functions, logistic_regression
from jaxfl.measure import metrics
from jaxfl.world import cohort, graph, mixing
from jaxfl.world.scenario import scenario


def small():
    """Tiny instances of every system of this file, for the tests that all systems share."""
    task, server = digits_world(n=8, c=5, byz=2)
    _, gossip = digits_world(n=8, topology=mixing.metropolis(graph.barabasi_albert(8, 2, seed=0)), byz=2)
    lie = Network(attack=attacks.mimic(2))
    kw = {"lr": 0.2, "batch": 8}
    return {
        "learning_from_history": (learning_from_history(task, lie, tau=1.0, iterations=2, **kw), server, task.init, 6),
        "robust_sgd": (robust_sgd(task, lie._replace(rule=rules.krum(1)), **kw), server, task.init, 6),
        "clipped_gossip": (clipped_gossip(task, lie, **kw), gossip, task.init, 6),
        "robust_gossip": (robust_gossip(task, lie._replace(rule=rules.median()), steps=2, **kw), gossip, task.init, 6),
    }


def test_without_clipping_and_momentum_it_is_plain_sgd_with_everyone():
    task, world = digits_world(n=8)
    world = scenario(world.data, cohort=cohort.everyone(8))
    kw = {"lr": 0.3, "batch": 8}
    ours = run(learning_from_history(task, tau=jnp.inf, beta=0.0, **kw), world, task.init, 4)
    mean = run(robust_sgd(task, beta=0.0, **kw), world, task.init, 4)
    np.testing.assert_allclose(ours.state.shared["x"], mean.state.shared["x"], atol=1e-6)
    whole = run(robust_sgd(task, beta=0.0, lr=0.3, batch=None), digits_world(n=8)[1], task.init, 3)
    full = run(fedsgd(task, lr=0.3), digits_world(n=8)[1], task.init, 3)
    np.testing.assert_allclose(whole.state.shared["x"], full.state.shared["x"], atol=1e-6)


def test_three_rounds_at_a_server_against_float64():
    """Momentum, clipping around the last aggregate, a liar, a member that is absent and keeps its momentum."""
    q, task, data = quadratics(n=5, d=3)
    who = cohort.everyone(5, weight=np.array([1.0, 2.0, 1.0, 1.0, 0.0]))
    world = scenario(data, cohort=who, byz=1)
    net = Network(attack=attacks.sign_flip(2.0))
    result = run(
        learning_from_history(task, net, lr=0.1, beta=0.6, tau=1.5, iterations=2, batch=1), world, jnp.ones(3), 3
    )
    A, b = q.A.astype(np.float64), q.b.astype(np.float64)
    x, v, m, w = np.ones(3), np.zeros(3), np.zeros((5, 3)), np.array([0.2, 0.4, 0.2, 0.2, 0])
    for t in range(3):
        g = np.einsum("nij,nj->ni", A, x - b)
        m[:4] = g[:4] if t == 0 else 0.6 * m[:4] + 0.4 * g[:4]
        said = m.copy()
        said[0] *= -2
        for _ in range(2):
            size = np.maximum(np.linalg.norm(said - v, axis=1), 1e-9)
            v = v + (w * np.minimum(1, 1.5 / size)) @ (said - v)
        x = x - 0.1 * v
    np.testing.assert_allclose(result.state.shared["x"], x, atol=1e-5)
    np.testing.assert_allclose(result.state.shared["v"], v, atol=1e-5)
    np.testing.assert_allclose(result.state.nodes.momentum, m, atol=1e-5)
    assert result.state.nodes.count.tolist() == [3, 3, 3, 3, 0]
    last = result.history.iloc[-1]
    assert (last["up_bits"], last["down_bits"], last["gradients"]) == (4 * 32 * 3, 4 * 32 * 3, 4)


@pytest.mark.parametrize("tau", [0.8, None])
def test_three_rounds_of_clipped_gossip_against_float64(tau):
    q, task, data = quadratics(n=9, d=3)
    g = mixing.metropolis(graph.barabasi_albert(9, 2, seed=1))
    net = Network(attack=attacks.sign_flip(3.0))
    system = clipped_gossip(task, net, lr=0.1, beta=0.5, tau=tau, delta=0.25, batch=1)
    result = run(system, scenario(data, topology=g, byz=2), jnp.ones(3), 3)
    A, b, W = q.A.astype(np.float64), q.b.astype(np.float64), mixing.matrix(g)
    x, m = np.ones((9, 3)), None
    for _ in range(3):
        slope = np.einsum("nij,nj->ni", A, x - b)
        m = slope if m is None else 0.5 * m + 0.5 * slope
        y = x - 0.1 * m
        told = np.where(np.arange(9)[:, None] < 2, -3 * y, y)
        x = y.copy()
        for i in range(9):
            near = [j for j in range(9) if W[i, j] > 0 and j != i]
            gap = {j: np.linalg.norm(told[j] - y[i]) for j in near}
            radius = tau
            if tau is None:
                memory, gone = list(near), 0.0
                for j in sorted(near, key=lambda j: -gap[j]):
                    gone += W[i, j]
                    if gone > 0.25 * (1 + 1e-6):
                        break
                    memory.remove(j)
                radius = np.sqrt(sum(W[i, j] * gap[j] ** 2 for j in memory) / 0.25)
            x[i] += sum(W[i, j] * (told[j] - y[i]) * min(1, radius / gap[j]) for j in near)
    np.testing.assert_allclose(system.read(result.state), x, atol=2e-5)
    assert float(result.history["up_bits"].iloc[-1]) == float((g.weight != 0).sum()) * 32 * 3


def test_gossip_without_clipping_momentum_and_liars_is_dsgd():
    task, world = digits_world(n=8, topology=ring(8))
    kw = {"lr": 0.2, "batch": 8, "steps": 2}
    plain = run(dsgd(task, **kw), world, task.init, 3).state.nodes
    ours = run(clipped_gossip(task, beta=0.0, tau=1e9, **kw), world, task.init, 3).state.nodes[0]
    np.testing.assert_allclose(ours, plain, atol=1e-6)
    memory = run(robust_gossip(task, beta=0.0, **kw), world, task.init, 3)
    np.testing.assert_allclose(memory.state.nodes[0], plain, atol=1e-6)


def test_an_optimizer_that_is_kept_goes_on_and_one_that_is_not_starts_anew():
    """One heavy-ball step a round on one node: kept momentum is a chain of steps, without it each step is plain."""
    q, task, data = quadratics(n=1, d=3)
    world = scenario(data, topology=mixing.uniform(graph.ring(1)))
    local = optax.sgd(0.1, momentum=0.5)
    rows = {
        keep: run(gossip_training(task, local=local, batch=1, keep_state=keep), world, jnp.ones(3), 3).state.nodes
        for keep in (True, False)
    }
    for keep, got in ((True, rows[True][0]), (False, rows[False])):
        x, m = np.ones(3), np.zeros(3)
        for _ in range(3):
            m = (0.5 * m if keep else 0) + q.A[0] @ (x - q.b[0])
            x = x - 0.1 * m
        np.testing.assert_allclose(got[0], x, atol=1e-5)


def test_worker_momentum_leaves_the_predicted_share_of_the_noise():
    """The variance of m in the stationary state is (1 - beta) / (1 + beta) of that of g; the first m is g."""
    noise = np.random.default_rng(0).normal(size=(4000, 50)).astype(np.float32)
    tx = hooks.worker_momentum(0.8)

    def step(state, g):
        m, state = tx.update(g, state)
        return state, m

    _, m = jax.lax.scan(step, tx.init(jnp.zeros(50)), jnp.asarray(noise))
    np.testing.assert_array_equal(m[0], noise[0])
    np.testing.assert_allclose(m[1], 0.8 * noise[0] + 0.2 * noise[1], atol=1e-6)
    assert np.var(m[100:]) == pytest.approx(0.2 / 1.8, rel=0.05)


def test_another_transformation_and_another_server_take_their_places():
    q, task, data = quadratics(n=4, d=3)
    system = robust_sgd(task, lr=9.0, batch=1, worker=optax.scale(2.0), server=optax.sgd(0.1, momentum=0.5))
    x = run(system, scenario(data), jnp.ones(3), 3).state.shared["x"]
    z, m = np.ones(3), np.zeros(3)
    for _ in range(3):
        m = 0.5 * m + 2 * np.einsum("nij,nj->ni", q.A, z - q.b).mean(0)
        z = z - 0.1 * m
    np.testing.assert_allclose(x, z, rtol=1e-4)


def test_metrics_among_the_honest():
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32).at[1].set(1e9)
    inner = metrics.distance_to(jnp.zeros(3))
    for ids in ([0, 2, 5], np.array([True, False, True, False, False, True])):
        metric = metrics.among(inner, ids)
        got = jax.jit(metric.measure)(metric.arrays, rows)
        want = inner.measure(inner.arrays, rows[jnp.array([0, 2, 5])])
        assert {k: float(v) for k, v in got.items()} == pytest.approx({k: float(v) for k, v in want.items()})
    one = metrics.among(Metric(lambda arrays, answer: {"sum": answer.sum()}), [0])
    assert float(one.measure(one.arrays, jnp.arange(4.0))["sum"]) == 6
    with pytest.raises(InputError, match="at least one"):
        metrics.among(inner, np.zeros(6, bool))


@pytest.mark.parametrize("kw", [{"lr": 0.0}, {"beta": 1.0}, {"tau": -1.0}, {"delta": 0.0}])
def test_numbers_out_of_range_are_refused(kw):
    task, _ = digits_world(n=8)
    with pytest.raises(InputError, match="but must be"):
        clipped_gossip(task, **kw)
    if "delta" not in kw:
        with pytest.raises(InputError, match="but must be"):
            learning_from_history(task, **kw)


def test_the_noise_that_stays_is_that_of_the_lyapunov_equation():
    """`E |x|^2` of SGD with momentum at 25 honest workers, on the sphere of the claim: stationary in (x, m)."""
    lr, beta = 0.1, 0.5
    step = np.array([[1 - lr * (1 - beta), -lr * beta], [1 - beta, beta]])
    push = (1 - beta) * np.array([-lr, 1.0])
    floor = claim.D / claim.N * solve_discrete_lyapunov(step, np.outer(push, push))[0, 0]
    task = from_functions(lambda key: jnp.ones(claim.D), lambda p, x, y: 0.5 * ((p - y) ** 2).sum(1))
    system = robust_sgd(task, lr=lr, beta=beta, batch=1)
    at = metrics.distance_to(jnp.zeros(claim.D))
    h = run(system, scenario(claim.sphere(0)), task.init, 800, seeds=2, every=4, evaluate=at).history
    assert h[h["round"] > 100]["error"].mean() == pytest.approx(floor, rel=0.08)


def test_the_worlds_of_the_claim():
    """Noise whose mean is the optimum; a long tail of classes; liars by attack, none of them where labels are wrong."""
    y = np.asarray(claim.sphere(1).y).reshape(claim.N, -1, claim.D)
    np.testing.assert_allclose(y.mean(1), 0, atol=1e-5)
    assert y.std() == pytest.approx(1, abs=0.01)
    counts = np.bincount(claim.long_tail(sets.digits(), 0.05, 0).y, minlength=10)
    assert counts[0] > 8 * counts[9] > 0
    lie = {a: int(claim.on_sphere(a, 0)[f"sphere, {a}"].world.byz.sum()) for a in ("none", "ALIE", "IPM")}
    assert lie == {"none": 0, "ALIE": 5, "IPM": 11}
    worlds = [claim.on_digits(logistic_regression(64, 10), a, 0)[f"digits, {a}"].world for a in ("ALIE", "label flip")]
    assert not worlds[1].byz.any()
    first = lambda w: np.asarray(w.data.y)[np.asarray(w.data.order)]
    wrong = first(worlds[0]) != first(worlds[1])
    assert wrong[: int(worlds[0].data.size[:5].sum())].all()
    assert not wrong[int(worlds[0].data.size[:5].sum()) :].any()
