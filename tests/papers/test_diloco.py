"""DiLoCo, OpenDiLoCo and AllReduce against their equations in float64: unequal weights, partial cohorts, one absent."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from common import digits_world, quadratics
from members import N, cohorts, slope, world

from jaxfl.algorithms.server.diloco import all_reduce, diloco, open_diloco
from jaxfl.algorithms.server.dilocox import cocktail_sgd, dilocox
from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.world.links import links
from jaxfl.world.scenario import scenario

KW: dict[str, Any] = {"steps": 2, "batch": None}


@functools.cache
def digits():
    return digits_world(n=8, links=links(8, up=2e5, latency=0.01, step=0.1), round_seconds=0.0)


def small():
    """Tiny instances of every system, DiLoCoX's among them, on links."""
    t, world = digits()
    kw: dict[str, Any] = {"steps": 4, "batch": 8}
    systems = {
        "diloco": diloco(t, **kw),
        "open_diloco": open_diloco(t, delay=2, **kw),
        "all_reduce": all_reduce(t, batch=8),
        "dilocox": dilocox(t, lr=0.01, rank=4, window=2, **kw),
        "cocktail_sgd": cocktail_sgd(t, batch=8),
    }
    return {name: (system, world, t.init, 4) for name, system in systems.items()}


def adamw(g, x, m, v, k, lr, b1=0.9, b2=0.999, eps=1e-8, decay=1e-4):
    """The k-th step of AdamW, k from 1: the new `(x, m, v)`."""
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    return x - lr * (m / (1 - b1**k) / (np.sqrt(v / (1 - b2**k)) + eps) + decay * x), m, v


@pytest.mark.parametrize(("delay", "keep"), [(0, True), (0, False), (3, True)])
def test_rounds_from_the_papers_equations_in_float64(delay, keep):
    """AdamW at the workers, whose states last (of the absent too) or begin anew, Nesterov on a late pseudo-gradient."""
    q, t, w = world()
    count = 6 if delay else 3
    result = run(diloco(t, lr=0.05, delay=delay, keep_state=keep, **KW), w, jnp.ones(3), count, every=1)
    x, momentum, line = np.ones(3), np.zeros(3), []
    m, v, k = np.zeros((N, 3)), np.zeros((N, 3)), np.zeros(N, int)
    for members in cohorts(w, count):
        total = np.zeros(3)
        for i, p, _ in members:
            if not keep:
                m[i], v[i], k[i] = 0, 0, 0
            y = x.copy()
            for _ in range(2):
                k[i] += 1
                y, m[i], v[i] = adamw(slope(q, i, y), y, m[i], v[i], k[i], 0.05)
            total += p * (x - y)
        line.append(total / sum(p for _, p, _ in members))
        if len(line) > delay:
            momentum = 0.9 * momentum + line[-1 - delay]
            x = x - 0.7 * (line[-1 - delay] + 0.9 * momentum)
    np.testing.assert_allclose(result.state.shared["x"], x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(result.state.shared["outer"][0].trace, momentum, rtol=1e-4, atol=1e-4)
    if keep:
        adam = result.state.nodes[0]
        np.testing.assert_array_equal(adam.count, k)
        np.testing.assert_allclose(adam.mu, m, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(adam.nu, v, rtol=1e-3, atol=1e-4)


def test_all_reduce_of_one_worker_is_adamw():
    q, t, data = quadratics(n=1, d=3)
    got = run(all_reduce(t, lr=0.05, batch=None), scenario(data), jnp.ones(3), 20, every=10).state.shared["x"]
    x, m, v = np.ones(3), np.zeros(3), np.zeros(3)
    for k in range(1, 21):
        x, m, v = adamw(slope(q, 0, x), x, m, v, k, 0.05)
    np.testing.assert_allclose(got, x, atol=1e-5)


def test_with_a_plain_outer_step_and_fresh_states_it_is_fedavg():
    _, t, w = world()
    plain = diloco(t, local=optax.sgd(0.1), server=optax.sgd(1.0), keep_state=False, **KW)
    a, b = (run(f, w, jnp.ones(3), 4, every=1).state.shared["x"] for f in (plain, fedavg(t, lr=0.1, **KW)))
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_an_outer_optimizer_that_counts_starts_when_something_came():
    _, t, w = world()
    late = diloco(t, local=optax.sgd(0.1), server=optax.adam(0.1), delay=2, **KW)
    state = run(late, w, jnp.ones(3), 3, every=1).state.shared
    assert int(state["outer"][0].count) == 1
    np.testing.assert_allclose(np.abs(state["x"] - 1), 0.1, rtol=1e-3)  # the first step of Adam is the rate


def test_open_diloco_sends_half_as_many_bits():
    _, t, w = world()
    history = run(open_diloco(t, **KW), w, jnp.ones(3), 2, every=1).history
    np.testing.assert_array_equal(history["up_bits"].iloc[1:], [3 * 16 * 3] * 2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda t: diloco(t, lr=0.0), "lr is 0.0"),
        (lambda t: diloco(t, delay=-1), "delay is -1"),
        (lambda t: all_reduce(t, lr=-1.0), "lr is -1.0"),
    ],
)
def test_bad_numbers(make, words):
    with pytest.raises(InputError, match=words):
        make(quadratics(n=1, d=3)[1])
