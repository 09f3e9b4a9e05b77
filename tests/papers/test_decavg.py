"""DecAvg under loss of nodes, against its equations in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import quadratics
from members import SHARE, WEIGHT, N, slope

from jaxfl.algorithms.gossip.decavg import decavg
from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.claims import decavg as claim
from jaxfl.engine.run import run
from jaxfl.world import cohort, graph, mixing, removal
from jaxfl.world.scenario import scenario
from jaxfl.world.tiers import edges, in_tiers

GRAPH = mixing.uniform(graph.from_edges(N, [0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 5, 3], both=True))
KW = {"lr": 0.03, "batch": None, "steps": 2}


def weights(v, up):
    """Rows in proportion to `v` over who is up, in float64."""
    W = np.eye(N)
    for i, j, _ in zip(*edges(GRAPH), strict=True):
        W[i, j] = up[i] and up[j]
    W = W * v
    total = W.sum(1, keepdims=True)
    return np.where(total > 0, W / np.where(total > 0, total, 1), np.eye(N))


@pytest.mark.parametrize("by_size", [True, False])
def test_four_rounds_from_the_equations_in_float64(by_size):
    """Unequal sizes, a relay that never had data, a node that vanishes in the third round, momentum within a round."""
    q, task, data = quadratics(n=N, d=3)
    who = removal.without_data(cohort.everyone(N, WEIGHT), N, [1])
    w = scenario(data, topology=GRAPH, cohort=who, churn=removal.vanish(N, [3], 2))
    state = run(decavg(task, momentum=0.5, by_size=by_size, **KW), w, jnp.ones(3), 4, every=1).state
    x = np.ones((N, 3))
    for t in range(4):
        up, y = np.arange(N) != (3 if t >= 2 else -1), x.copy()
        for i in range(N):
            trace = np.zeros(3)
            for _ in range(2 if up[i] and i != 1 else 0):
                trace = slope(q, i, y[i]) + 0.5 * trace
                y[i] -= 0.03 * trace
        x = np.where(up[:, None], weights(SHARE if by_size else np.ones(N), up) @ y, x)
    np.testing.assert_allclose(state.nodes, x, atol=1e-5)


def test_on_a_whole_network_of_equals_it_is_gossip_with_uniform_weights():
    _, task, data = quadratics(n=N, d=3)
    go = lambda f: run(f, scenario(data, topology=GRAPH), jnp.ones(3), 3).state.nodes
    np.testing.assert_allclose(go(decavg(task, momentum=0.0, **KW)), go(dsgd(task, **KW)), atol=1e-6)


def test_weights_in_proportion_sum_to_one_as_tiers_too():
    """A relay that hears relays alone keeps its own; no message is lost or made."""
    v = jnp.array([0.0, 0.0, 2.0, 1.0, 0.0, 0.0])
    table = jax.jit(mixing.proportional)(GRAPH, v)
    np.testing.assert_allclose(mixing.matrix(table), weights(np.asarray(v), np.ones(N, bool)), atol=1e-6)
    assert mixing.matrix(table)[5, 5] == 1
    i, j, w = edges(GRAPH)
    np.testing.assert_allclose(
        mixing.matrix(mixing.proportional(in_tiers(N, i, j, w), v)), mixing.matrix(table), atol=1e-7
    )


def test_the_worlds_of_the_claim_differ_in_what_is_lost_alone():
    for name, setting in claim.settings(0).items():
        seen = {}
        for arm, system in claim.arms().items():
            world = system.world(setting.world)
            seen[arm] = jax.tree.map(np.shape, world.arrays)
            lost = np.asarray(world.arrays["cohort"]["lost"])
            assert lost.sum() == round(claim.NODES * (0.4 if "40" in name else 0.2))
        assert len({str(s) for s in seen.values()}) == 1  # one program
