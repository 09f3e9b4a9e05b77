"""AD-PSGD event by event in float64, with its old gradients; without meetings it is local SGD; where it stops."""

import jax.numpy as jnp
import numpy as np
import pytest
from clocks import waves
from common import quadratics
from members import slope

from jaxfl.algorithms.gossip.ad_psgd import ad_psgd
from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.world import graph, mixing
from jaxfl.world.churn import crash
from jaxfl.world.events import poisson
from jaxfl.world.scenario import scenario


def test_forty_waves_event_by_event_in_float64_where_some_are_down():
    n, rounds = 7, 40
    q, task, data = quadratics(n=n, d=3)
    clocks = poisson(mixing.uniform(graph.star(n)), call=2.0, act=np.linspace(0.5, 1.5, n))
    world = scenario(data, topology=clocks, churn=crash(n, 0.3, 0, seed=2))
    got = run(ad_psgd(task, lr=0.2, batch=None), world, jnp.ones(3), rounds).state.nodes
    now, x, read, old = waves(world, rounds), np.ones((n, 3)), np.ones((n, 3)), 0
    for t in range(rounds):
        wave, up = now.graph, now.alive[t]
        for i in np.flatnonzero(up & wave.acts[t]):
            old += not np.array_equal(x[i], read[i])
            x[i] = x[i] - 0.2 * slope(q, i, read[i])
            read[i] = x[i]
        for i in np.flatnonzero(wave.weight[t, :, 0]):
            j = wave.nbr[t, i, 0]
            if i < j:
                x[[i, j]] = (x[i] + x[j]) / 2
    assert old > 3
    assert not up.all()
    np.testing.assert_allclose(got["x"], x, atol=1e-5)
    np.testing.assert_allclose(got["read"], read, atol=1e-5)


def test_without_meetings_it_is_local_sgd():
    _, task, data = quadratics(n=4, d=3)
    alone = scenario(data, topology=poisson(graph.ring(4), call=0.0, act=1.0))
    one = run(ad_psgd(task, lr=0.2, batch=None), alone, jnp.ones(3), 12).state.nodes["x"]
    other = run(dsgd(task, lr=0.2, batch=None), alone, jnp.ones(3), 12).state.nodes
    np.testing.assert_allclose(one, other, rtol=1e-6)  # two programs, which round apart


def test_meetings_keep_the_mean_and_agreeing_nodes_stay_at_their_optimum():
    q, task, data = quadratics(n=6, d=3)
    met = run(ad_psgd(task), scenario(data, topology=poisson(graph.ring(6))), jnp.ones(3), 20)
    np.testing.assert_array_equal(met.state.nodes["x"], 1)
    same = data.__class__(data.x, jnp.broadcast_to(data.y[0], data.y.shape), data.order, data.start, data.size, 1)
    busy = scenario(same, topology=poisson(graph.ring(6), act=1.0))
    done = run(ad_psgd(task, lr=0.2, batch=None), busy, jnp.ones(3), 600)
    np.testing.assert_allclose(done.state.nodes["x"], np.tile(q.b[0], (6, 1)), atol=1e-4)


def test_a_topology_without_clocks_is_refused():
    _, task, data = quadratics(n=4, d=3)
    with pytest.raises(InputError, match="topology has no clocks"):
        run(ad_psgd(task), scenario(data, topology=mixing.metropolis(graph.ring(4))), jnp.ones(3), 1)
