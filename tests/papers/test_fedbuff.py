"""FedBuff, Papaya and FedAsync: a float64 replay, identities, fixed points."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from common import one_sample_each, quadratics, rounds

from jaxfl.algorithms.asynchronous.fedasync import fedasync
from jaxfl.algorithms.asynchronous.fedbuff import fedbuff, papaya
from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.fedopt import fedopt
from jaxfl.algorithms.server.fedprox import fedprox
from jaxfl.claims.fedbuff import arrives
from jaxfl.core import Cohort, Metric
from jaxfl.engine.keys import init_key, round_key, run_key
from jaxfl.engine.rollout import rollout
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange.network import Network
from jaxfl.exchange.secure import enclave
from jaxfl.exchange.staleness import Staleness, constant, hinge, polynomial, threshold
from jaxfl.learn import task
from jaxfl.mapping.canonical import canonical
from jaxfl.world import cohort
from jaxfl.world.clock import buffered
from jaxfl.world.deadline import deadline
from jaxfl.world.durations import exponential, fixed, lognormal
from jaxfl.world.scenario import scenario

KW = {"lr": 0.05, "steps": 3, "batch": 1}


def world_of(n=16, C=6, K=4, law=None, d=3, **kw):
    q, problem, data = quadratics(n=n, d=d)
    return q, problem, scenario(data, cohort=buffered(n, C, K, law or lognormal(), **kw))


def small():
    _, problem, data = quadratics(n=8, d=3)
    late = scenario(data, cohort=buffered(8, 4, 2, lognormal()))
    single = scenario(data, cohort=buffered(8, 5, 1, exponential()))
    prompt = scenario(data, cohort=deadline(cohort.uniform(8, 6), lognormal(), keep=4))
    x = jnp.ones(3)
    return {
        "fedbuff": (fedbuff(problem, longest=4, server_momentum=0.5, **KW), late, x, 6),
        "papaya": (papaya(problem, longest=4, **KW), late, x, 6),
        "fedasync": (fedasync(problem, longest=6, rho=0.1, **KW), single, x, 8),
        "over-selected": (fedavg(problem, **KW), prompt, x, 4),
    }


def quickly(f, *args):
    return jax.jit(f)(*args)


def simulate(system, world, x, count):
    """Final model `[d]` and logs `[count]`, compiled without care."""
    state, logs = quickly(lambda x: rollout(system, world, x, count), x)
    return np.asarray(state.shared["x"]), jax.device_get(logs)


@functools.cache
def _schedule(init, step, count):
    def cohorts(arrays):
        def body(s, t):
            s, now = step(round_key(run_key(0), t, "world"), arrays, s, t)
            return s, now.cohort

        return jax.lax.scan(body, init(init_key(run_key(0), "world"), arrays), jnp.arange(count))[1]

    return jax.jit(cohorts)


def schedule(world, count):
    """The cohorts of the first rounds of seed 0, in turn."""
    c = jax.device_get(_schedule(world.init, world.step, count)(world.arrays))
    return [Cohort(c.ids[t], c.weight[t], c.age[t]) for t in range(count)]


def replay(q, cohorts, s, *, longest, server=1.0, momentum=0.0, normalised=False, mixing=False, rho=0.0):
    """The equations in float64, from a full history of models."""
    A, b = q.A.astype(np.float64), q.b.astype(np.float64)
    x, v, past = np.ones(A.shape[1]), 0.0, []
    for c in cohorts:
        past.append(x)
        total, weights, discounted = 0.0, 0.0, 0.0
        for i, w, a in zip(*(np.asarray(f) for f in (c.ids, c.weight, c.age)), strict=True):
            if a > longest:
                continue
            start = past[-1 - a] if a < len(past) else past[0]
            y = start.copy()
            for _ in range(KW["steps"]):
                y = y - KW["lr"] * (A[i] @ (y - b[i]) + rho * (y - start))
            total = total + w * s(a) * (y - (x if mixing else start))
            weights, discounted = weights + w, discounted + w * s(a)
        share = discounted if normalised else weights
        v = momentum * v + (total / share if share else 0.0)
        x = x + server * v
    return x


@pytest.mark.parametrize(
    ("make", "s", "how"),
    [
        (
            lambda p: fedbuff(
                p, longest=2, server_lr=0.7, server_momentum=0.9, discount=threshold(1, 0.3), normalised=True, **KW
            ),
            lambda a: 1.0 if a <= 1 else 0.3,
            {"longest": 2, "server": 0.7, "momentum": 0.9, "normalised": True},
        ),
        (
            lambda p: fedasync(p, longest=8, alpha=0.4, rho=0.5, discount=hinge(2.0, 1), **KW),
            lambda a: 1 / (2 * max(a - 1, 0) + 1),
            {"longest": 8, "server": 0.4, "rho": 0.5, "mixing": True},
        ),
    ],
)
def test_twelve_rounds_against_float64(make, s, how):
    q, problem, world = world_of(weight=np.linspace(1, 3, 16))
    x, history = simulate(make(problem), world, jnp.ones(3), 12)
    cohorts = schedule(world, 12)
    np.testing.assert_allclose(x, replay(q, cohorts, s, **how), atol=2e-5)
    ages = np.stack([c.age for c in cohorts])
    assert ages.max() > 2
    np.testing.assert_allclose(history["age"], ages.mean(1), rtol=1e-6)
    np.testing.assert_array_equal(history["dropped"], (ages > how["longest"]).sum(1))
    np.testing.assert_array_equal(history["up_bits"], 32 * 3 * (ages <= how["longest"]).sum(1))
    np.testing.assert_array_equal(history["down_bits"], 32 * 3 * 4)
    np.testing.assert_array_equal(history["gradients"], 3 * 4)


def test_if_nobody_is_stale_it_is_fedopt_bit_for_bit():
    _, problem, world = world_of()
    fresh = scenario(world.data, cohort=cohort.uniform(16, 5))
    server = optax.sgd(0.8, momentum=0.9)
    pairs = (
        (
            fedbuff(problem, server_lr=0.8, server_momentum=0.9, **KW),
            fedopt(problem, local=optax.sgd(KW["lr"]), server=server, steps=3, batch=1),
        ),
        # mixing all the way in is FedProx: the models of members that are not stale replace the server's
        (fedasync(problem, alpha=1.0, rho=0.7, **KW), fedprox(problem, mu=0.7, **KW)),
    )
    for late, plain in pairs:
        a, b = (simulate(f, fresh, jnp.ones(3), 6)[0] for f in (late, plain))
        np.testing.assert_array_equal(a, b)


def test_a_lone_slot_is_sequential_training_and_never_stale():
    """Concurrency 1 with goal 1: every job reads the model its predecessor wrote."""
    q, problem, world = world_of(C=1, K=1)
    x, log = simulate(fedbuff(problem, longest=1, **KW), world, jnp.ones(3), 10)
    assert not log["age"].any()
    np.testing.assert_allclose(x, replay(q, schedule(world, 10), lambda a: 1.0, longest=0), atol=1e-5)


def test_equal_clients_and_equal_times_make_a_delayed_iteration():
    """K = 1 and C equal jobs: age C - 1 always, x_{t+1} = x_t + g (x_{t-C+1} - c), exactly a delay equation."""
    n, C = 12, 4
    data = one_sample_each(np.tile(np.eye(2, dtype=np.float32), (n, 1, 1)), np.full((n, 2), 3, np.float32))
    world = scenario(data, cohort=buffered(n, C, 1, fixed(2.0)))
    got, history = simulate(fedbuff(task.quadratic(2), discount=constant(), **KW), world, jnp.zeros(2), 24)
    np.testing.assert_array_equal(history["age"], np.minimum(np.arange(24), C - 1))
    np.testing.assert_array_equal(history["seconds"], np.where(np.arange(24) % C, 0, 2))
    pull = 1 - (1 - KW["lr"]) ** KW["steps"]
    x = [0.0]
    for t in range(24):
        x.append(x[-1] + pull * (3 - x[t - min(t, C - 1)]))
    np.testing.assert_allclose(got, [x[-1]] * 2, rtol=1e-5)


def test_the_fixed_point_weighs_nodes_by_how_often_they_arrive_and_how_stale():
    """Unlike optima and speeds: with small steps FedBuff goes to the mean of optima under frequency times discount."""
    n, C, K = 12, 6, 2
    centre = np.random.default_rng(0).normal(size=(n, 2)).astype(np.float32) * 3
    data = one_sample_each(np.tile(np.eye(2, dtype=np.float32), (n, 1, 1)), centre)
    clock = buffered(n, C, K, exponential(np.where(np.arange(n) < 6, 0.2, 5.0)))
    members, _ = rounds(clock, 20_000, seed=5)
    ids, ages = np.asarray(members.ids).ravel(), np.asarray(members.age).ravel()
    system = lambda a: fedbuff(task.quadratic(2), lr=0.003, steps=1, batch=1, longest=400, discount=polynomial(a))
    where, points = Metric(lambda arrays, x: {"x0": x[0], "x1": x[1]}), []
    for a in (0.0, 1.0):
        got = run(system, scenario(data, cohort=clock), jnp.zeros(2), 6000, every=100, evaluate=where, hyper={"a": a})
        late = got.history[got.history["round"] > 2000]
        load = np.bincount(ids, (1.0 + ages) ** -a, n)
        points.append(load @ centre / load.sum())
        np.testing.assert_allclose(late[["x0", "x1"]].mean(), points[-1], atol=0.12)
    share = np.bincount(ids, minlength=n)[6:].sum() / len(ids)
    assert share < 0.45  # the slow are at work for longer, so they are idle, and drawn, less often
    assert np.abs(points[0] - points[1]).max() > 0.3


def test_papaya_is_fedbuff_to_the_resolution_and_its_bits_hold_a_seed():
    q, problem, world = world_of()
    x, kw = jnp.ones(3), {"longest": 8, "discount": threshold(1, 0.5)} | KW
    plain, log = simulate(fedbuff(problem, **kw), world, x, 12)
    want = replay(q, schedule(world, 12), lambda a: 1.0 if a <= 1 else 0.5, longest=8)
    np.testing.assert_allclose(plain, want, atol=2e-5)
    masked, secret = simulate(papaya(problem, resolution=2.0**-16, levels=2, **kw), world, x, 12)
    np.testing.assert_allclose(masked, plain, atol=12 * 2.0**-16)
    assert not np.array_equal(masked, plain)
    np.testing.assert_array_equal(secret["up_bits"] - log["up_bits"], 4 * 128)
    assert canonical(fedbuff(problem)) is canonical(fedbuff(problem, discount=polynomial(0.5)))  # the paper's


def test_a_system_that_remembers_nothing_drops_what_is_stale():
    _, problem, world = world_of()
    stale = Staleness(discount=polynomial(1.0))
    system = fedopt(problem, local=optax.sgd(KW["lr"]), stale=stale, steps=3, batch=1)
    _, history = simulate(system, world, jnp.ones(3), 12)
    fresh = [int((c.age == 0).sum()) for c in schedule(world, 12)]
    np.testing.assert_array_equal(history["up_bits"], 96 * np.array(fresh))
    assert 0 < sum(fresh) < 48


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: fedbuff(p, longest=-1), "longest is -1"),
        (lambda p: fedbuff(p, server_lr=0.0), "server_lr is 0.0"),
        (lambda p: fedbuff(p, server_momentum=1.0), "server_momentum is 1.0"),
        (lambda p: fedasync(p, alpha=1.5), "alpha is 1.5"),
        (lambda p: fedasync(p, rho=-0.1), "rho is -0.1"),
        (lambda p: papaya(p, Network(collective=enclave())), "net.collective is set"),
    ],
)
def test_bad_numbers_are_refused(make, said):
    with pytest.raises(InputError, match=said):
        make(task.quadratic(2))


def test_a_claim_s_run_arrives_when_it_stays():
    """A model that flies past the target has not arrived; one that never stays gives infinity."""
    error = [9, 0.1, 9, 0.1, 0.1, 0.1], [9, 9, 0.1, 9, 9, 9]
    rows = [(s, t, 2.0 * t, 10.0 * t, e) for s, each in enumerate(error) for t, e in enumerate(each)]
    history = pd.DataFrame(rows, columns=["seed", "round", "time", "total_up_bits", "error"])
    assert arrives(history, "error", 0.5, "time").tolist() == [6.0, np.inf]
    assert arrives(history, "error", 0.5, "total_up_bits").tolist() == [30.0, np.inf]
