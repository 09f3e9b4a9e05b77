"""Randomized gossip one by one in float64, its mean, and the expected contraction of a meeting in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clocks import waves
from common import rounds

from jaxfl.engine.rollout import rollout
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.paper import Given
from jaxfl.programs.gossip_averaging import gossip_averaging
from jaxfl.programs.random_gossip import _clocks, random_gossip
from jaxfl.world import graph, mixing, topology
from jaxfl.world.churn import crash
from jaxfl.world.events import poisson
from jaxfl.world.scenario import scenario


def test_meetings_one_by_one_in_float64_where_some_are_down():
    n, x = 10, np.random.default_rng(1).normal(size=(10, 4))
    clocks, off = poisson(mixing.metropolis(graph.star(n))), crash(n, 0.3, 5)
    world = scenario(jnp.asarray(x, jnp.float32), nodes=n, topology=clocks, churn=off)
    done = run(random_gossip(), world, jnp.zeros(1), 40)
    now = waves(world, 40)
    for wave, partner in zip(now.graph.weight, now.graph.nbr, strict=True):
        met = np.flatnonzero(wave[:, 0] > 0)
        for i in met:
            j = int(partner[i, 0])
            if i < j:
                x[[i, j]] = (x[i] + x[j]) / 2
    answer = random_gossip().read(done.state)
    np.testing.assert_allclose(answer, x, atol=1e-5)
    assert 0 < now.alive[-1].sum() < n


def test_the_mean_stays_and_the_distance_shrinks_as_in_closed_form():
    """One event at a time on a complete graph: by 1 - 1 / (n - 1) in the mean, whatever the values."""
    n, events, seeds = 6, 8, 800
    x = np.random.default_rng(0).normal(size=(n, 1)).astype(np.float32)
    clocks = poisson(graph.complete(n), ahead=0.0)
    world, f = scenario(jnp.asarray(x), nodes=n, topology=clocks), random_gossip()
    after = lambda seed: f.read(rollout(f, world, jnp.zeros(1), events, seed=seed)[0])
    states = jax.jit(jax.vmap(after))(jnp.arange(seeds))[:, :, 0]
    gap = (np.asarray(states, float) - x.mean()) ** 2
    assert np.abs(np.asarray(states).mean(1) - x.mean()).max() < 1e-6
    ratio = gap.sum(1) / ((x - x.mean()) ** 2).sum()
    expected, error = (1 - 1 / (n - 1)) ** events, ratio.std() / np.sqrt(seeds)
    assert abs(ratio.mean() - expected) < 4 * error


def test_a_perfect_matching_of_clocks_is_gossip_averaging_on_it():
    """Where every pair meets once, as two nodes with one clock, one wave is one round of averaging."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)), jnp.float32)
    pair = mixing.metropolis(graph.ring(2))
    one = run(gossip_averaging(), scenario(x, nodes=2, topology=pair), jnp.zeros(1), 1).state
    other = run(random_gossip(), scenario(x, nodes=2, topology=poisson(pair)), jnp.zeros(1), 1).state
    np.testing.assert_array_equal(gossip_averaging().read(one), random_gossip().read(other))


def test_pairs_meet_as_often_as_nodes_pick_each_other():
    example = _clocks(Given(6, 1, 0, None, None, None, mixing.metropolis(graph.ring(6))))
    w = rounds(example.topology, 300)
    per_second = (np.asarray(w.weight) > 0).sum() / 2 / float(w.seconds.sum())
    assert abs(per_second / (6 * 2 / 3) - 1) < 0.15  # each node wakes once a second, and a third of its P is its own


def test_a_topology_that_changes_is_refused():
    with pytest.raises(InputError, match="need one fixed graph"):
        _clocks(Given(6, 1, 0, None, None, None, topology.random_matching(6)))
