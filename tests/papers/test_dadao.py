"""DADAO event by event in float64 with scipy's exponential, its fixed point, and waves against single events."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clocks import waves
from common import quadratics
from members import slope
from scipy.linalg import expm

from jaxfl.algorithms.gossip.dadao import clocked, dadao
from jaxfl.core import State
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.world import graph, mixing
from jaxfl.world.churn import crash
from jaxfl.world.events import spectrum
from jaxfl.world.scenario import scenario

LR, KAPPA = 0.3, 12.0
MU = 1 / (LR * KAPPA)


def constants(chi):
    """The paper's, of L = 1 / LR and mu."""
    L, nu = 1 / LR, MU / 2
    q = np.sqrt(nu / L)
    alpha, slow, theta = q / 4, q / 8, 1 / (2 * q)
    M = np.array(
        [
            [-slow, slow, 0, 0, 0, 0],
            [slow, -slow, 0, 0, 0, 0],
            [0, 0, -alpha, alpha, 0, 0],
            [0, -theta * nu, -theta, 0, -theta, 0],
            [0, 0, 0, 0, -alpha, alpha],
            [0, 0, 0, 0, slow, -slow],
        ]
    )
    return nu, M, 1 / (4 * L), 1 / (4 * np.sqrt(L * nu)), q / 4 + 1, 2 * chi / q


def test_forty_waves_event_by_event_in_float64_where_some_are_down():
    """Pairs of unlike rates, two nodes that are down from the start."""
    n, R = 7, 40
    q, task, data = quadratics(n=n, d=3)
    clocks, chi = clocked(mixing.uniform(graph.star(n)))
    world = scenario(data, topology=clocks, churn=crash(n, 0.3, 0, seed=2))
    got = run(dadao(task, chi, lr=LR, kappa=KAPPA), world, jnp.ones(3), R).state.nodes
    now, S = waves(world, R), np.zeros((n, 6, 3))
    S[:, 0] = 1
    nu, M, gamma, gamma_, jump, beta_ = constants(chi)
    met = acted = 0
    for t in range(R):
        wave, up = jax.tree.map(lambda a, t=t: a[t], (now.graph, now.alive))
        for i in np.flatnonzero(up):
            S[i] = expm(M * float(wave.since[i])) @ S[i]
            if wave.acts[i]:
                acted += 1
                D = slope(q, i, S[i, 0]) - nu * S[i, 0] - S[i, 3]
                S[i] -= np.array([gamma, gamma_, 0, -jump, 0, 0])[:, None] * D
        for i in np.flatnonzero(wave.weight[:, 0]):
            j = wave.nbr[i, 0]
            if i < j:
                met += 1
                D = S[i, 2] + S[i, 4] - S[j, 2] - S[j, 4]
                for k, sign in ((i, 1), (j, -1)):
                    S[k, 4] -= sign * D / 2
                    S[k, 5] -= sign * beta_ * D
    assert 0 < (~now.alive[-1]).sum() < n - 2
    assert min(met, acted) > 10
    np.testing.assert_allclose(got, S, rtol=1e-4, atol=1e-4)


def test_nothing_moves_where_the_optimum_is_and_z_sums_to_zero():
    n = 6
    q, task, data = quadratics(n=n, d=3)
    clocks, chi = clocked(graph.ring(n))
    f, world = dadao(task, chi, lr=LR, kappa=KAPPA), scenario(data, topology=clocks)
    A, b = q.A.astype(float), q.b.astype(float)
    best = np.linalg.solve(A.sum(0), np.einsum("nij,nj->i", A, b))
    g = np.stack([slope(q, i, best) for i in range(n)])
    x, y = np.broadcast_to(best, (n, 3)), g - MU / 2 * best
    there = np.stack([x, x, y, y, -g, -g], 1).astype(np.float32)
    still = f._replace(init=lambda key, env, x: State((), jnp.asarray(there), f.init(key, env, x).mail))
    np.testing.assert_allclose(run(still, world, jnp.zeros(3), 60).state.nodes, there, atol=2e-4)
    moved = run(f, world, jnp.zeros(3), 1500)
    rows = np.asarray(moved.state.nodes, float)
    assert np.abs(rows[:, 4:].sum(0)).max() < 1e-4
    np.testing.assert_allclose(rows[:, 0], x, atol=1e-2)
    log = moved.history.iloc[-1]
    np.testing.assert_allclose(log["total_gradients"], n * log["time"], rtol=0.2)  # each node acts once a second


def test_waves_are_the_events_one_by_one():
    """Of two nodes, up to a meeting: then all that came before is done, and nothing after it."""
    _, task, data = quadratics(n=2, d=3)
    worlds = {ahead: clocked(graph.ring(2), ahead=ahead) for ahead in (np.inf, 0.0)}
    w = waves(scenario(data, topology=worlds[np.inf][0]), 30).graph
    last = int(np.flatnonzero(w.weight.sum((1, 2)))[-1])
    events = int(w.acts[: last + 1].sum() + w.weight[: last + 1].sum())
    assert events > last + 1
    states = []
    for ahead, count in ((np.inf, last + 1), (0.0, events)):
        clocks, chi = worlds[ahead]
        made = dadao(task, chi, lr=LR, kappa=KAPPA)
        states.append(np.asarray(run(made, scenario(data, topology=clocks), jnp.ones(3), count).state.nodes))
    np.testing.assert_allclose(*states, rtol=2e-5, atol=2e-5)


def test_rates_make_gradients_independent_of_the_graph():
    """`2 chi1 chi2 = 1`, and on known graphs the spectrum in closed form."""
    n = 10
    for g, first, second in (
        (graph.complete(n), 1 / (2 * n), 1 / (2 * n)),
        (graph.star(n), 1 / 2, 1 / 4),
        (graph.ring(n), 1 / (4 - 4 * np.cos(2 * np.pi / n)), (n - 1) / n / 4),
    ):
        np.testing.assert_allclose(spectrum(g), (first, second), rtol=1e-9)
        clocks, chi = clocked(g)
        rate = float(clocks.arrays["call"])
        np.testing.assert_allclose(2 * (first / rate) * (second / rate), 1, rtol=1e-6)
        np.testing.assert_allclose(chi, first / rate, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda task, data: dadao(task, 0.0), "chi is 0.0, but must be above 0"),
        (lambda task, data: dadao(task, 1.0, kappa=0.5), "kappa is 0.5, but must be at least 1"),
        (lambda task, data: clocked(graph.from_edges(4, [0, 2], [1, 3])), "topology is not connected"),
        (
            lambda task, data: run(
                dadao(task, 1.0), scenario(data, topology=mixing.metropolis(graph.ring(4))), jnp.ones(3), 1
            ),
            "topology has no clocks",
        ),
    ],
)
def test_bad_input_is_refused(make, says):
    _, task, data = quadratics(n=4, d=3)
    with pytest.raises(InputError, match=says):
        make(task, data)
