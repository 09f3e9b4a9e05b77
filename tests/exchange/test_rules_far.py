"""Rules where rounding or memory could fail: messages far from zero and from `own`, a thousand nodes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_definition import multi_krum, weiszfeld

from jaxfl.core import Cohort, Env
from jaxfl.exchange import attacks, rules
from jaxfl.exchange.network import Network
from jaxfl.world import graph, mixing

K, M, DRAWS = 11, 50, 64
FAR_RULES = {"krum": rules.krum(2), "multi_krum": rules.multi_krum(2), "rfa": rules.geometric_median(60, 1e-12)}


@functools.cache
def far_from_own(spread, lie):
    """Draws `[draws, K, m]` around a point of norm 1; the first two lie, one coordinate or all, equal or not."""
    rng = np.random.default_rng(0)
    point = rng.normal(size=(DRAWS, 1, M))
    point /= np.linalg.norm(point, axis=2, keepdims=True)
    x = point + spread * rng.normal(size=(DRAWS, K, M)) / np.sqrt(M)
    if lie:
        x[:, :2] = point + spread * lie * rng.normal(size=(DRAWS, 2, M))
        x[::2, :2, 1:] = point[::2, :, 1:]
        x[::4, 1] = x[::4, 0]
    return x.astype(np.float32)


each_far = pytest.mark.parametrize("spread", [0.1, 1e-3, 1e-4, 1e-6])
each_lie = pytest.mark.parametrize("lie", [0, 1e6, 1e15])


def one(names):
    """The rules with `own` 0 of one draw, as at a server."""
    return lambda x: [FAR_RULES[name](jnp.zeros(M), x, jnp.full(K, 1 / K)) for name in names]


@functools.cache
def of_draws(*names):
    """Of one draw, and of all, as on a graph."""
    return jax.jit(one(names)), jax.jit(jax.vmap(one(names)))


def over_draws(x, *names):
    alone, many = of_draws(*names)
    got = [np.asarray(a) for a in many(x)]
    for i in range(4):
        for a, b in zip(got, alone(x[i]), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=2e-7)
    return got


@each_far
@each_lie
def test_krum_is_exact_far_from_own(spread, lie):
    """Around `own`, Krum picked another message in a third of all draws at 1e-3 and in nearly all at 1e-4."""
    x = far_from_own(spread, lie)
    first, several = over_draws(x, "krum", "multi_krum")
    want = np.stack([multi_krum(2, 1)(None, x, None) for x in x.astype(np.float64)])
    np.testing.assert_array_equal(first, want.astype(np.float32))
    want = np.stack([multi_krum(2)(None, x, None) for x in x.astype(np.float64)])
    np.testing.assert_allclose(several, want, atol=1e-7)


@each_far
@each_lie
def test_the_geometric_median_is_exact_far_from_own(spread, lie):
    """Around `own`, it was a whole spread off at 1e-4; what is left are roundings of messages of norm 1."""
    x, w = far_from_own(spread, lie), np.full(K, 1 / K)
    want = np.stack([weiszfeld(60, 1e-12)(None, x, w) for x in x.astype(np.float64)])
    assert np.linalg.norm(over_draws(x, "rfa")[0] - want, axis=1).max() < 1e-5 * spread + 2e-7


def test_krum_is_exact_far_from_zero_where_own_is_near():
    """Distances of 0.01 between messages of norm 1,000: their squares around zero would be lost to rounding."""
    x = (1000 + 0.01 * np.random.default_rng(0).normal(size=(K, M))).astype(np.float32)
    got = jax.jit(rules.krum(2))(jnp.asarray(x[0]), jnp.asarray(x), jnp.full(K, 1 / K))
    np.testing.assert_array_equal(got, multi_krum(2, 1)(None, x.astype(np.float64), None).astype(np.float32))


@pytest.mark.parametrize("rule", [rules.krum(2), rules.median(), rules.centered_clipping(1.0)])
def test_a_thousand_nodes_fit_beside_their_messages(rule):
    """Temporary memory in units of all messages `[n, m]`, from compiling alone; `[n, k, m]` would be 16."""
    n, m = 1000, 20_000
    g = mixing.metropolis(graph.random_regular(n, 16, seed=0))
    rows, row = jax.ShapeDtypeStruct((n, m), jnp.float32), jax.ShapeDtypeStruct((m,), jnp.float32)
    net, who = Network(rule, attack=attacks.alie()), Cohort(np.arange(n), np.ones(n))
    env = Env(np.int32(0), np.float32(0), (), None, who, np.arange(n) < 9)

    def temporary(f, *shapes):
        memory = jax.jit(f).lower(*shapes).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes / (4 * n * m)

    at_server = lambda x, v: net.aggregate(jax.random.key(0), env, net.init(env, x[0]), x, v)[0]
    on_graph = lambda x: net.gossip(jax.random.key(0), env._replace(graph=g), net.init(env, x[0]), x)[0]
    assert temporary(at_server, rows, row) < 1.5
    assert temporary(on_graph, rows) < 0.5
