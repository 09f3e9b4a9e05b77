"""DiLoCo and DiLoCoX: what they become when a part is switched off, and what they cost."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from common import QUICK, digits_world, one_sample_each, quadratics

from jaxfl.algorithms.server.diloco import all_reduce, diloco, open_diloco
from jaxfl.algorithms.server.dilocox import adaptive, cocktail_sgd, dilocox, gentle
from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.engine.run import rollout
from jaxfl.errors import InputError
from jaxfl.exchange.codecs import error_feedback, top_k
from jaxfl.exchange.network import Network
from jaxfl.learn import task as tasks
from jaxfl.world import cohort
from jaxfl.world.links import links
from jaxfl.world.scenario import scenario

KW: dict[str, Any] = {"steps": 4, "batch": 8}


@functools.cache
def digits(c=None):
    return digits_world(n=8, c=c, links=links(8, up=2e5, latency=0.01, step=0.1), round_seconds=0.0)


def small():
    """Tiny instances of every system of this file."""
    t, world = digits()
    systems = {
        "diloco": diloco(t, **KW),
        "open_diloco": open_diloco(t, delay=2, **KW),
        "all_reduce": all_reduce(t, batch=8),
        "dilocox": dilocox(t, lr=0.01, rank=4, window=2, **KW),
        "cocktail_sgd": cocktail_sgd(t, batch=8),
    }
    return {name: (system, world, t.init, 4) for name, system in systems.items()}


def go(algorithm, world, start, rounds):
    """Final state and logs `[rounds]` of a run."""
    whole = jax.jit(lambda x: rollout(algorithm, world, x, rounds), compiler_options=QUICK)
    return whole(start(jax.random.key(0)) if callable(start) else start)


def model(algorithm, world=None, rounds=4, start=None):
    t, w = digits()
    return np.asarray(go(algorithm, world or w, t.init if start is None else start, rounds)[0].shared["x"])


@pytest.mark.parametrize("name", small())
def test_each_system_learns_and_reports_its_cost(name):
    algorithm, world, start, rounds = small()[name]
    state, h = go(algorithm, world, start, 2 * rounds)
    t, data = digits()[0], world.data
    before, after = (tasks.mean_loss(t, x, data.x, data.y) for x in (jnp.zeros(t.dim), state.shared["x"]))
    assert after < before - 0.01
    assert (h["up_bits"] > 0).all()
    assert (h["seconds"] > 0).all()
    np.testing.assert_array_equal(h["up_bits"], h["down_bits"])


def test_diloco_with_a_plain_outer_step_and_fresh_states_is_fedavg():
    t, world = digits(5)
    plain: dict[str, Any] = {"local": optax.sgd(0.1), "server": optax.sgd(1.0), "keep_state": False}
    got = model(diloco(t, **plain, **KW), world)
    want = np.asarray(go(fedavg(t, lr=0.1, **KW), world, t.init, 4)[0].shared["x"])
    np.testing.assert_array_equal(got, want)


def adamw(grad, x, rounds, steps, lr, b1=0.9, b2=0.999, eps=1e-8, decay=1e-4):
    """Plain AdamW in float64."""
    m, v = np.zeros_like(x), np.zeros_like(x)
    for k in range(1, rounds * steps + 1):
        g = grad(x)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        x = x - lr * (m / (1 - b1**k) / (np.sqrt(v / (1 - b2**k)) + eps) + decay * x)
    return x


def test_one_worker_with_a_plain_outer_step_is_adamw():
    q, t, data = quadratics(n=1, d=3)
    A, b = np.float64(q.A[0]), np.float64(q.b[0])
    want = adamw(lambda x: A @ (x - b), np.ones(3), 5, 4, 0.05)
    one = diloco(t, lr=0.05, server=optax.sgd(1.0), steps=4, batch=None)
    np.testing.assert_allclose(model(one, scenario(data), 5, jnp.ones(3)), want, atol=1e-5)
    fresh = diloco(t, lr=0.05, server=optax.sgd(1.0), steps=4, batch=None, keep_state=False)
    assert np.abs(model(fresh, scenario(data), 5, jnp.ones(3)) - want).max() > 0.01
    every = all_reduce(t, lr=0.05, batch=None)
    np.testing.assert_allclose(model(every, scenario(data), 20, jnp.ones(3)), want, atol=1e-5)


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_the_outer_step_is_nesterov_on_a_late_pseudo_gradient(delay):
    """Noise-free quadratics in float64, from the card's equations."""
    q, t, data = quadratics(n=4, d=3)
    A, b = np.float64(q.A), np.float64(q.b)
    x, m, line = np.ones(3), np.zeros(3), []
    for _ in range(8):
        y = np.tile(x, (4, 1))
        for _ in range(5):
            y = y - 0.03 * np.einsum("nij,nj->ni", A, y - b)
        line.append(x - y.mean(0))
        if len(line) > delay:
            late = line[-1 - delay]
            m = 0.9 * m + late
            x = x - 0.7 * (late + 0.9 * m)
    system = diloco(t, local=optax.sgd(0.03), steps=5, batch=1, delay=delay)
    np.testing.assert_allclose(model(system, scenario(data), 8, jnp.ones(3)), x, rtol=1e-4, atol=1e-4)


def test_an_outer_optimizer_that_counts_starts_when_something_came():
    _, t, data = quadratics(n=2, d=3)
    kw: dict[str, Any] = {"local": optax.sgd(0.1), "server": optax.adam(0.1), "steps": 2, "batch": 1}
    now = go(diloco(t, **kw), scenario(data), jnp.ones(3), 1)[0].shared
    late = go(diloco(t, delay=2, **kw), scenario(data), jnp.ones(3), 3)[0].shared
    np.testing.assert_allclose(late["x"], now["x"], atol=1e-6)
    assert int(late["outer"][0].count) == 1


def test_without_delay_and_compression_dilocox_is_diloco():
    t, data = matrices(side=4)
    world, sgd = scenario(data), dict[str, Any](local=optax.sgd(0.1), steps=3, batch=1)
    plain: dict[str, Any] = {"rank": 4, "bits": None, "window": None, "server": optax.sgd(0.5)}
    go_from = lambda system: model(system, world, 4, jnp.ones(16))
    for delay in (0, 1):
        want = go_from(diloco(t, server=optax.sgd(0.5), delay=delay, **sgd))
        np.testing.assert_allclose(go_from(dilocox(t, delay=delay, **plain, **sgd)), want, atol=2e-6)
    np.testing.assert_array_equal(go_from(dilocox(t, **sgd)), go_from(dilocox(t, server=gentle(), delay=1, **sgd)))


def matrices(n=8, side=32):
    """Node `i` pulls a matrix to its own centre."""
    loss = lambda p, x, y: 0.5 * ((p - y) ** 2).sum((1, 2))
    t = tasks.from_functions(lambda key: jnp.ones((side, side)), loss)
    centres = np.random.default_rng(0).normal(size=(n, side, side)).astype(np.float32)
    return t, one_sample_each(np.zeros((n, 1), np.float32), centres)


def test_bits_and_seconds_of_the_card():
    """Rank 8 in four bits is a 16th of a dense 32 x 32 matrix, and 20 steps of AllReduce are 320 times as many bits."""
    t, data = matrices()
    world = scenario(data, links=links(8, up=32 * 1024 / 100, step=1.0), round_seconds=0.0)
    sgd: dict[str, Any] = {"local": optax.sgd(0.05), "steps": 20, "batch": 1}
    whole: dict[str, Any] = {"rank": 8, "window": None, **sgd}
    arms = {
        "every": (all_reduce(t, optimizer=optax.sgd(0.05), batch=1), 40),
        "dense": (diloco(t, **sgd), 2),
        "factors": (dilocox(t, scale_bits=0, **whole), 2),
        "scales": (dilocox(t, **whole), 2),
    }
    logs = {k: go(f, world, t.init, rounds)[1] for k, (f, rounds) in arms.items()}
    bits, time = ({k: np.float64(h[c]).sum() for k, h in logs.items()} for c in ("up_bits", "seconds"))
    assert bits["dense"] == 2 * 8 * 32 * 1024
    assert bits["dense"] / bits["factors"] == 16
    assert bits["every"] / bits["factors"] == 320
    assert bits["scales"] - bits["factors"] == 2 * 8 * 2 * 32
    assert time["dense"] / time["factors"] == 6
    assert time["every"] / time["factors"] == 101
    assert time["scales"] == 40


def test_half_and_top_k_bits():
    t, world = digits()
    end = lambda f: go(f, world, t.init, 2)[1]["up_bits"][-1]
    assert end(open_diloco(t, **KW)) == 8 * 16 * 650
    assert end(cocktail_sgd(t, keep=0.2, bits=3, batch=8)) == 8 * (130 * (3 + 10) + 32)
    assert end(cocktail_sgd(t, keep=0.1, bits=None, batch=8)) == 8 * 65 * (32 + 10)


def test_cocktail_sgd_is_a_composition():
    t, _ = digits()
    codec = error_feedback(top_k(0.3))
    want = all_reduce(t, Network(codec=codec), optimizer=optax.sgd(0.2), batch=8, delay=2)
    got = cocktail_sgd(t, keep=0.3, bits=None, optimizer=optax.sgd(0.2), batch=8, delay=2)
    np.testing.assert_array_equal(model(got), model(want))
    dense = all_reduce(t, lr=0.01, batch=8, delay=1)
    np.testing.assert_allclose(model(cocktail_sgd(t, keep=1.0, bits=None, lr=0.01, batch=8)), model(dense), atol=1e-5)


def test_rank_and_steps_follow_the_effective_rank_down():
    """All nodes move along one direction: after a window of two rounds rank 1 is known to be enough."""
    t = matrices()[0]
    rank_one = np.tile(np.outer(np.arange(1.0, 33.0), np.ones(32)).astype(np.float32), (8, 1, 1))
    world = scenario(one_sample_each(np.zeros((8, 1), np.float32), rank_one))
    start = jnp.zeros(1024)
    system = dilocox(t, rank=8, window=2, share=0.8, least_steps=3, local=optax.sgd(0.01), steps=16, batch=1, bits=8)
    _, h = go(system, world, start, 4)
    assert h["rank"].tolist() == [8, 4, 1, 1]  # round(4.5) is even
    assert h["local_steps"].tolist() == [16, 8, 3, 3]
    assert h["gradients"].tolist() == [8 * 16, 8 * 8, 8 * 3, 8 * 3]
    assert h["up_bits"].tolist() == [8 * (8 * 64 * r + 64) for r in (8, 4, 1, 1)]
    still = dilocox(t, rank=8, window=None, local=optax.sgd(0.01), steps=16, batch=1, bits=8)
    assert go(still, world, start, 4)[1]["gradients"][-1] == 8 * 16


def test_the_rank_never_grows():
    t, _ = matrices()
    pace = adaptive(t, 6, 12, 2, 0.9, 1)
    memory = pace.see(pace.see(pace.init(), jnp.ones(1024)), jnp.ones(1024))
    assert float(memory[1]) == 1
    memory = pace.see(memory, jnp.eye(32).ravel())
    assert float(memory[1]) == 1
    assert memory[0].tolist() == [1, 29]


def test_steps_are_bounded_by_the_cohort_and_by_the_pace():
    t, data = matrices()
    who = cohort.everyone(8)

    def slower(key, arrays, s, at):
        s, c = who.step(key, arrays, s, at)
        return s, c._replace(steps=jnp.arange(8))

    world = scenario(data, cohort=who._replace(step=slower))
    system = dilocox(t, rank=8, window=1, share=1.0, local=optax.sgd(0.01), steps=5, batch=1)
    assert go(system, world, t.init, 1)[1]["gradients"][-1] == sum(min(5, k) for k in range(8))


def test_workers_keep_their_own_optimizer_and_the_absent_theirs():
    t, world = digits(3)
    nodes = go(diloco(t, **KW), world, t.init, 1)[0].nodes
    count = np.asarray(nodes[0].count)
    assert sorted(count.tolist()) == [0] * 5 + [4] * 3
    who = cohort.everyone(8, np.arange(8.0))  # node 0 never counts
    state = go(diloco(t, **KW), scenario(world.data, cohort=who), t.init, 2)[0]
    assert np.asarray(state.nodes[0].count).tolist() == [0] + [8] * 7


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda t: diloco(t, lr=0.0), "lr is 0.0"),
        (lambda t: diloco(t, delay=-1), "delay is -1"),
        (lambda t: all_reduce(t, lr=-1.0), "lr is -1.0"),
        (lambda t: dilocox(t, window=0), "window is 0"),
        (lambda t: dilocox(t, rank=0), "rank is 0"),
        (lambda t: dilocox(t, least_steps=30), "least_steps is 30"),
        (lambda t: cocktail_sgd(t, keep=1.5), "keep is 1.5"),
    ],
)
def test_bad_numbers(make, words):
    with pytest.raises(InputError, match=words):
        make(digits()[0])
