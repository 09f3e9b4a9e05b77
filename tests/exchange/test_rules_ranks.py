"""Median, trimmed mean and means of ranks of any number of messages, against float64 NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_definition import median, multi_krum, trimmed

from jaxfl.core import own_weight
from jaxfl.exchange import mix, ranks, rules
from jaxfl.world import graph, mixing

WIDE = 16 * 33  # columns from which 33 rows are sorted by a network written out


def both(f):
    """The two rules as one program."""
    return jax.jit(lambda *args: (rules.median()(*args), rules.trimmed_mean(f)(*args)))


@pytest.mark.parametrize(("k", "m"), [(1, 5), (2, 5), (3, 5), (16, 5), (17, 5), (33, WIDE), (65, 3), (193, 7)])
def test_any_number_of_messages_all_some_one_or_none(k, m):
    rng, rule = np.random.default_rng(k), both(k // 8)
    for share in (1.0, 0.6, 0.0):
        own, x, came = rng.normal(size=m), rng.normal(size=(k, m)), rng.random(k) < share
        came[k // 2] |= share > 0
        silent = ~came & (rng.random(k) < 0.5)  # of weight 0; the others that did not arrive are not finite
        x[~came & ~silent, rng.integers(m)] = rng.choice([np.nan, np.inf, -np.inf])
        got = rule(jnp.float32(own), jnp.float32(x), jnp.float32(~silent / k))
        for a, want in zip(got, (median, trimmed(k // 8)), strict=True):
            np.testing.assert_allclose(a, want(own, x[came], None) if came.any() else own, atol=2e-6)


@pytest.mark.parametrize(("k", "m"), [(9, 40), (33, WIDE), (40, 50)])
def test_ties_and_the_largest_numbers(k, m):
    x = np.random.default_rng(1).choice(np.array([-3e38, -1, -0.0, 0.0, 1, 3e38], np.float32), (k, m))
    got = both(k // 3)(jnp.zeros(m), jnp.asarray(x), jnp.full(k, 1 / k))
    for a, want in zip(got, (median, trimmed(k // 3)), strict=True):
        np.testing.assert_allclose(a, want(None, np.float64(x), None), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("k", "m"), [(5, 300), (33, WIDE), (33, 20), (70, 20)])
def test_the_mean_of_any_ranks_beside_infinities(k, m):
    x = np.random.default_rng(k).integers(-9, 9, (k, m)).astype(np.float32)
    x[: k // 4], x[-(k // 4) :] = -np.inf, np.inf
    mean, order = jax.jit(ranks.mean_of_ranks), np.sort(x, axis=0)
    for low, high in ((k // 4, k // 4), (k // 4, k - 1 - k // 4), (k // 2, k // 2 + 1)):
        np.testing.assert_allclose(mean(x, low, high), order[low : high + 1].mean(0), atol=1e-5)


@pytest.mark.parametrize("k", [7, 40])
def test_the_derivative_of_a_mean_of_ranks_is_shared_by_equals(k):
    """Against finite differences where all values differ; equal values count alike."""
    rng = np.random.default_rng(2)
    x, d, low, high = rng.normal(size=(k, 5)), rng.normal(size=(k, 5)), 2, k - 3
    slope = jax.jit(lambda x, d: jax.jvp(lambda x: ranks.mean_of_ranks(x, low, high), (x,), (d,))[1])
    f = lambda x: np.sort(x, axis=0)[low : high + 1].mean(0)
    got = slope(jnp.float32(x), jnp.float32(d))
    np.testing.assert_allclose(got, (f(x + 1e-6 * d) - f(x - 1e-6 * d)) / 2e-6, atol=1e-5)
    np.testing.assert_allclose(slope(jnp.ones((k, 5)), jnp.float32(d)), d.mean(0), atol=1e-6)


def test_krum_of_the_one_message_that_came():
    x, rule = np.random.default_rng(3).normal(size=(5, 4)).astype(np.float32), jax.jit(rules.krum(1))
    for i in range(5):
        got = rule(jnp.zeros(4), jnp.asarray(x), jnp.float32(np.arange(5) == i))
        np.testing.assert_array_equal(got, multi_krum(1, 1)(None, np.float64(x[i : i + 1]), None))


@pytest.mark.parametrize("rule", [rules.median(), rules.trimmed_mean(1)])
def test_all_receivers_of_a_graph_at_once_hear_what_each_of_them_would(rule):
    """Unlike degrees, links that are down, and nodes whose messages, own ones too, are not finite."""
    rng, n, m = np.random.default_rng(0), 23, 9
    g = mixing.metropolis(graph.erdos_renyi(n, 0.2, seed=1))
    g = dataclasses.replace(g, weight=jnp.where(jnp.asarray(rng.random(g.weight.shape)) < 0.7, g.weight, 0))
    own, sent = (rng.normal(size=(n, m)).astype(np.float32) for _ in range(2))
    sent[3, 2], sent[8] = np.nan, np.inf
    own[5, 0] = -np.inf
    got = jax.jit(lambda own, sent: mix.everywhere(rule, g, m)(own, sent))(own, sent)
    for i in range(n):
        heard = np.concatenate([own[i : i + 1], sent[g.nbr[i]]])
        weight = jnp.concatenate([own_weight(g)[i : i + 1], g.weight[i]])
        np.testing.assert_array_equal(got[i], rule(own[i], jnp.where((weight != 0)[:, None], heard, 0), weight))


def test_where_one_receives_from_many_each_combines_for_itself():
    assert mix.everywhere(rules.median(), mixing.metropolis(graph.star(66)), 5) is None
    assert mix.everywhere(rules.krum(1), mixing.metropolis(graph.ring(8)), 5) is None
