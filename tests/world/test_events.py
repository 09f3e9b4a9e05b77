"""Clocks of edges and nodes: waves against the same events one by one, and the laws of both."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import quadratics, rounds
from scipy import stats

from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.core import Cohort, Env
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange.codecs import error_feedback, top_k
from jaxfl.exchange.network import Network
from jaxfl.world import cohort, graph, mixing, topology
from jaxfl.world.churn import crash
from jaxfl.world.clock import buffered
from jaxfl.world.durations import exponential
from jaxfl.world.events import Events, poisson
from jaxfl.world.scenario import byzantine, scenario

N = 12


def weighted():
    """A ring one way and a hub that calls all: pairs of several rates."""
    here = np.arange(N)
    return mixing.uniform(graph.from_edges(N, [*here, *(0 * here)], [*((here + 1) % N), *here]))


@functools.cache
def waves(ahead, count, act=0.7):
    return jax.device_get(rounds(poisson(weighted(), call=3.0, act=act, ahead=ahead), count))


def listed(w):
    """All events as `(wave, time, nodes)`, times absolute in float64, summed up node by node."""
    now, found = np.zeros(N), []
    for t in range(len(w.acts)):
        meets = w.weight[t, :, 0] > 0
        assert not (meets & w.acts[t]).any()
        event = meets | w.acts[t]
        assert (w.since[t][~event] == 0).all()
        assert (w.since[t] >= 0).all()
        now = now + w.since[t].astype(float)
        for i in np.flatnonzero(event):
            j = w.nbr[t, i, 0]
            assert w.nbr[t, j, 0] == i
            if i <= j:
                assert abs(now[i] - now[j]) < 1e-3
                now[j] = now[i]
                found.append((t, now[i], (int(i), int(j)) if i < j else (int(i),)))
    return found


def test_waves_are_the_events_one_by_one_and_as_early_as_can_be():
    many, single = waves(np.inf, 400), waves(0.0, 1500)
    assert (single.acts.sum(1) + (single.weight > 0).sum((1, 2)) / 2 == 1).all()
    one_by_one = [(nodes, time) for _, time, nodes in listed(single)]
    assert [time for _, time in one_by_one] == sorted(time for _, time in one_by_one)
    found, over = sorted(listed(many), key=lambda event: event[1]), many.seconds.astype(float).sum()
    complete = [(nodes, time) for _, time, nodes in found if time < over - 1e-3]
    for (nodes, time), (same, when) in zip(complete, one_by_one, strict=False):
        assert (nodes, pytest.approx(time, abs=1e-3)) == (same, when)
    level = np.zeros(N, int)
    for wave, _, nodes in found:
        assert wave == level[list(nodes)].max()  # as soon as all before it at its nodes are done
        level[list(nodes)] = wave + 1
    assert len(complete) > 900


def test_seconds_are_how_far_the_earliest_clock_moves_and_time_goes_forward():
    many, single = waves(np.inf, 400), waves(0.0, 1500)
    assert (many.seconds >= 0).all()
    ends = single.seconds.astype(float).cumsum()
    np.testing.assert_allclose(ends[:-1], [time for _, time, _ in listed(single)][1:], atol=1e-3)


def test_ahead_bounds_how_far_nodes_are_apart():
    for ahead in (0.1, 0.5):
        w = waves(ahead, 400)
        before = np.concatenate([[0], w.seconds.astype(float).cumsum()])
        assert all(time <= before[wave] + ahead + 1e-3 for wave, time, _ in listed(w) if wave)
    assert len(listed(waves(0.1, 400))) < len(listed(waves(0.5, 400))) < len(listed(waves(np.inf, 400)))


def test_averages_wave_by_wave_are_those_one_by_one_bit_for_bit():
    w, net = waves(np.inf, 400), Network()
    x = np.random.default_rng(0).normal(size=(N, 5)).astype(np.float32)

    @jax.jit
    def whole(x, waves):
        def meet(x, g):
            everyone = Cohort(jnp.arange(N), jnp.ones(N))
            env = Env(jnp.int32(0), jnp.float32(0), (), g, everyone, byzantine(N))
            mixed, _, log = net.gossip(jax.random.key(0), env, net.init(env, x[0]), x)
            return mixed, log["up_bits"]

        return jax.lax.scan(meet, x, waves)

    mixed, bits = whole(jnp.asarray(x), jax.tree.map(jnp.asarray, w))
    for _, _, nodes in sorted(listed(w), key=lambda e: e[1]):
        x[list(nodes)] = np.float32(0.5) * x[nodes[0]] + np.float32(0.5) * x[nodes[-1]]
    np.testing.assert_array_equal(mixed, x)
    np.testing.assert_array_equal(bits, (w.weight > 0).sum((1, 2)) * 32 * 5)


def test_clocks_ring_as_often_as_they_should_and_forget():
    w = waves(np.inf, 2000)
    over = w.seconds.astype(float).sum()
    events, g = [(nodes, time) for _, time, nodes in listed(w) if time < over], weighted()
    W = np.asarray(mixing.matrix(g))
    pairs = [(i, j) for i in range(N) for j in range(i + 1, N) if W[i, j] + W[j, i] > 0]
    clocks = {**{(i, j): 3 * (W[i, j] + W[j, i]) for i, j in pairs}, **{(i,): 0.7 for i in range(N)}}
    unit = []
    for nodes, rate in clocks.items():
        times = np.sort([time for who, time in events if who == nodes])
        assert abs(len(times) - rate * over) < 5 * np.sqrt(rate * over)
        unit.append(np.diff(times, prepend=0) * rate)
    assert {who for who, _ in events} == set(clocks)
    assert stats.kstest(np.concatenate(unit), stats.expon.cdf).pvalue > 1e-3


def test_a_gossip_system_acts_and_meets_by_the_clocks():
    n, (_, task, data) = 8, quadratics(n=8, d=3)
    world = scenario(data, topology=poisson(graph.ring(n), call=0.5, act=0.5))
    w = jax.device_get(rounds(poisson(graph.ring(n), call=0.5, act=0.5), 30))
    done = run(dsgd(task, lr=0.1, steps=2, batch=None), world, jnp.ones(3), 30, every=1)
    log = done.history.iloc[1:]
    assert 0.5 < log["gradients"].sum() / (2 * 30 * n) / w.acts.mean() < 2
    assert set(np.unique(log["up_bits"])) <= {2 * 96 * k for k in range(n // 2 + 1)}
    assert np.isfinite(done.state.nodes).all()
    assert log["seconds"].between(0, 5).all()


def test_who_meets_nobody_codes_nothing():
    n, (_, task, data) = 8, quadratics(n=8, d=3)
    world = scenario(data, topology=poisson(graph.ring(n), call=0.5, act=0.5))
    done = run(dsgd(task, Network(codec=error_feedback(top_k(1))), lr=0.1, batch=None), world, jnp.ones(3), 1)
    met = float(done.history["up_bits"].iloc[-1]) > 0
    memory = np.concatenate([np.asarray(a).reshape(n, -1) for a in jax.tree.leaves(done.state.mail.nodes[0])], 1)
    assert met
    assert 0 < (memory != 0).any(1).sum() < n


def test_who_is_down_has_no_event():
    n, (_, task, data) = 8, quadratics(n=8, d=3)
    world = scenario(data, topology=poisson(graph.complete(n), act=1.0), churn=crash(n, 1.0, 0))
    done = run(dsgd(task, batch=None), world, jnp.ones(3), 20)
    assert done.history[["gradients", "up_bits"]].to_numpy()[-1].sum() == 0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: poisson(graph.ring(4), call=-1.0), "call is -1.0, but must be at least 0"),
        (lambda: poisson(graph.ring(4), call=0.0), r"act = 0.0, call = 0.0: no clock ever rings"),
        (lambda: poisson(graph.ring(4), act=np.ones(3)), r"one a node \[4\], is needed"),
        (lambda: poisson(graph.ring(4), act=np.nan), "act = nan: a finite number"),
        (lambda: poisson(graph.ring(4), ahead=-1), "ahead is -1, but must be at least 0"),
        (lambda: poisson(topology.random_matching(4)), "a Process, but clocks of calls need one fixed graph"),
        (lambda: poisson(graph.star(40_000)), "has hubs"),
        (lambda: on(cohort=cohort.uniform(4, 2)), "cohort is set, but the clocks"),
        (lambda: on(cohort=buffered(4, 2, 1, exponential())), "cohort is set, but the clocks"),
    ],
)
def test_bad_clocks_are_refused(make, says):
    with pytest.raises(InputError, match=says):
        make()


def on(**kw):
    return scenario(jnp.zeros((4, 1)), nodes=4, topology=poisson(graph.ring(4)), **kw)


def test_edges_without_slots_and_nodes_without_edges():
    alone = poisson(graph.from_edges(3, [], []), act=(1.0, 0.0, 2.0))
    w = rounds(alone, 50)
    assert w.acts.any(0).tolist() == [True, False, True]
    assert not (w.weight > 0).any()
    assert isinstance(w, Events)


def small():
    """For the matrix: local steps and meetings by the clocks."""
    _, task, data = quadratics(n=16, d=3)
    world = scenario(data, topology=poisson(mixing.metropolis(graph.ring(16)), call=3.0, act=0.5))
    return {"clocks": (dsgd(task, Network(codec=error_feedback(top_k(1))), lr=0.1, batch=None), world, jnp.ones(3), 6)}
