"""Influence along the topology: exact where losses are quadratic, and equal to sums over paths and to retraining."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import quadratics, ring

from jaxfl.algorithms.gossip.dfedsam import dfedsam_mgs
from jaxfl.algorithms.gossip.dsgd import dfedavgm, dsgd
from jaxfl.algorithms.gossip.gradient_tracking import gradient_tracking
from jaxfl.core import Mail, State
from jaxfl.data import partition
from jaxfl.data.corrupt import flipped_labels, noisy_inputs
from jaxfl.data.sets import digits, from_arrays
from jaxfl.engine.rollout import rollout_from
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.learn.task import logistic_regression
from jaxfl.measure.influence import effect, first_order, halves, proximal, totals, watched
from jaxfl.world import cohort, graph, mixing, topology
from jaxfl.world.scenario import scenario
from jaxfl.world.work import skipping, straggling

ROWS = lambda rows: rows  # observes the models themselves


def double(x):
    return jnp.asarray(x, jnp.float64)


def directed(n, seed=0):
    """A random row-stochastic matrix of a directed graph."""
    rng = np.random.default_rng(seed)
    w = rng.random((n, n)) * ((rng.random((n, n)) < 0.5) | np.eye(n, dtype=bool))
    return w / w.sum(1, keepdims=True)


def standing(world, rows, t):
    """A run of plain gossip that stands before round `t` with the models `rows`, in float64."""
    return t, (world.init(jax.random.key(0), world.arrays), State((), double(rows), Mail(((), ()), ((), ()))))


def quickly(f, carry):
    """`f` at a carry as one program, on the host."""
    t, rest = carry[:2]
    return jax.device_get(jax.jit(lambda rest: f((t, rest)))(rest))


def spread(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def test_it_is_the_sum_over_paths_of_the_paper():
    """Graphs that change by the round; every path is walked, with the Hessian of the node that passes it on."""
    n, hops, lr, steps = 4, 3, 0.1, 2
    q, task, data = quadratics(n, d=2)
    with jax.enable_x64(True):
        world = scenario(data, topology=topology.one_peer_exponential(n))
        system = dsgd(task, lr=lr, steps=steps, batch=1)
        x = np.random.default_rng(3).normal(size=(n, 2))
        got, flat = quickly(
            lambda c: [first_order(system, world, c, ROWS, hops, curvature=bends, chunk=3) for bends in (True, False)],
            standing(world, x, 1),
        )
    A, b = q.A.astype(float), q.b.astype(float)
    keep = np.stack([np.linalg.matrix_power(np.eye(2) - lr * a, steps) for a in A])  # I - lr H, once a local step
    move = np.einsum("nij,nj->ni", keep - np.eye(2), x - b)
    W = [(np.eye(n) + np.roll(np.eye(n), 2 ** (t % 2), axis=1)) / 2 for t in range(1, 1 + hops)]
    for bends, found in ((True, got), (False, flat)):
        expected = np.zeros((n, hops + 1, n, 2))
        for j in range(n):
            expected[j, 0, j] = move[j]
            for s in range(1, hops + 1):
                for path in itertools.product(range(n), repeat=s):
                    v, at = move[j], j
                    for r, k in enumerate(path):
                        v = W[r][k, at] * (keep[at] @ v if bends and r else v)
                        at = k
                    expected[j, s, at] += v
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_truth_is_retraining_without_the_step_in_float64_numpy():
    n, t, j, lr, steps = 5, 2, 3, 0.08, 2
    q, task, data = quadratics(n, d=3)
    w = directed(n, seed=4)
    with jax.enable_x64(True):
        world = scenario(data, topology=mixing.from_matrix(w))
        system = dsgd(task, lr=lr, steps=steps, batch=1)
        x = np.random.default_rng(3).normal(size=(n, 3))
        probed = jnp.array([1, j])
        got = quickly(lambda c: effect(system, world, c, ROWS, 3, nodes=probed, chunk=2), standing(world, x, t))[1]
    W = mixing.matrix(world.arrays["topology"])
    A, b, ends = q.A.astype(float), q.b.astype(float), []
    for skip in (False, True):
        z, seen = x, []
        for r in range(t, t + 3):
            y = z.copy()
            for _ in range(steps):
                y = y - lr * np.einsum("nij,nj->ni", A, y - b)
            if skip and r == t:
                step = y[j] - z[j]
                y[j] = z[j]
            z = W @ y
            seen.append(z)
        ends.append(np.array(seen))
    np.testing.assert_allclose(got[1:], ends[0] - ends[1], atol=1e-6)  # own weights are stored in float32
    np.testing.assert_allclose(got[0], np.eye(n)[j][:, None] * step, atol=1e-12)  # before it is mixed, in its own hands
    assert got.dtype == np.float64


def little(n):
    """Noisy batches of a task of nine numbers on a ring, and the samples that losses are seen on."""
    rng = np.random.default_rng(0)
    data = from_arrays(rng.normal(size=(6 * n, 2)), rng.integers(0, 3, 6 * n), classes=3, test_fraction=0.0)
    return logistic_regression(2, 3), scenario(partition.iid(data, n), topology=ring(n)), data.x[:8], data.y[:8]


def test_the_halves_of_a_round_make_the_round_with_momentum_too():
    task, world, _, _ = little(5)
    system = dfedavgm(task, lr=0.05, momentum=0.7, steps=2, batch=3)
    adapt, combine = halves(system)
    both = system._replace(round=lambda key, env, s: combine(key, env, s._replace(nodes=adapt(key, env, s))))
    a, b = (run(f, world, task.init, 2).state.nodes for f in (system, both))
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_tangent_of_a_round_is_its_slope():
    """SAM with several steps and gossip exchanges; slopes against central differences."""
    task, world, x, y = little(5)
    system = dfedsam_mgs(task, lr=0.1, rho=0.05, steps=2, batch=3, gossip_steps=2)
    with jax.enable_x64(True):
        carry = standing(world, 0.1 * np.random.default_rng(3).normal(size=(5, task.dim)), 2)
        losses = jax.vmap(lambda row: task.loss(task.unravel(row), x, y).mean())
        observe = lambda rows: jnp.concatenate([losses(rows)[:, None], rows], 1)
        h, probed = 1e-4, jnp.array([0, 3])

        def everything(carry):
            slope = first_order(system, world, carry, observe, 2)
            (t, (at, state)), _ = rollout_from(system, world, carry, 1)

            def end(move):
                moved = state._replace(nodes=state.nodes + move)
                return observe(rollout_from(system, world, (t, (at, moved)), 1)[0][1][1].nodes)

            signs = jnp.array([1.0, -1.0])
            ends = jax.vmap(lambda move: jax.vmap(lambda sign: end(sign * h * move))(signs))(slope[probed, 1, :, 1:])
            return slope, (ends[:, 0] - ends[:, 1]) / (2 * h), totals(system, world, carry, observe, 2)

        slope, difference, total = quickly(everything, carry)
    np.testing.assert_allclose(slope[[0, 3], 2], difference, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(total, slope.sum((1, 2, 3)), rtol=1e-8)


def test_a_rate_may_be_swept_and_seeds_vmapped():
    task, world, _, _ = little(4)
    factory = partial(dsgd, task, steps=1, batch=3)
    t, rest, _ = run(factory, world, task.init, 2, seeds=2, hyper={"lr": 0.1}).carry
    observe = lambda rows: (rows**2).sum(1)

    def probe(f):
        return lambda seed, rest, lr: f(factory, world, (t, rest), observe, 2, seed=seed, hyper={"lr": lr})

    ask = jnp.arange(2), rest, jnp.array([0.1, 0.2])
    each, total = jax.jit(jax.vmap(lambda *a: (probe(first_order)(*a), probe(totals)(*a))))(*ask)
    assert each.shape == (2, 4, 3, 4)
    np.testing.assert_allclose(each.sum((2, 3)), total, rtol=1e-4, atol=1e-5)
    alone = jax.jit(probe(first_order))(*jax.tree.map(lambda a: a[1], ask))
    np.testing.assert_allclose(each[1], alone, rtol=1e-4, atol=1e-6)


def test_what_is_watched_is_the_influence_through_the_links():
    task, world, x, y = little(6)
    world = scenario(world.data, topology=mixing.from_matrix(directed(6, seed=3)))
    loss = lambda row: task.loss(task.unravel(row), x, y).mean()
    system, q = dsgd(task, lr=0.2, steps=2, batch=3), np.arange(1.0, 7) / 21
    seen = watched(system, loss, q)
    third = run(seen, world, task.init, 3, every=1)
    found = run(seen, world, task.init, 4, every=1, carry=third.carry)
    observe = lambda rows: q * jax.vmap(loss)(rows)

    def expected(carry):
        (_, (_, state)), _ = rollout_from(system, world, carry, 1)
        return state.nodes, first_order(system, world, carry, observe, 1)[:, 1]

    nodes, reach = quickly(expected, third.carry)
    np.testing.assert_allclose(found.state.nodes, nodes, atol=1e-6)
    np.testing.assert_allclose(found.nodes["influence"][0, 0], reach.sum(1) - np.diagonal(reach), rtol=2e-4, atol=1e-7)


def test_proximal_influence_pairs_a_listener_with_whom_it_hears():
    g = graph.from_edges(4, [0, 0, 1, 3], [1, 2, 3, 2])
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4, 3))
    got = np.asarray(proximal(g, jnp.asarray(a), jnp.asarray(b)))
    np.testing.assert_allclose(got, np.take_along_axis(a @ b.T, np.asarray(g.nbr), 1), rtol=1e-5)


def test_a_skipped_step_changes_nothing_else():
    _, _, data = quadratics(n=6, d=2)
    base = scenario(data, cohort=straggling(cohort.uniform(6, 4), 0.5, epochs=4), topology=topology.random_matching(6))
    world = skipping(base, [2, 5], 3)
    assert skipping(base, 1, 0).step is world.step  # one program
    s, there = (jax.jit(w.init)(jax.random.key(0), w.arrays) for w in (base, world))
    assert jax.tree.structure(s) == jax.tree.structure(there)
    draw = jax.jit(lambda k, t: (base.step(k, base.arrays, s, t)[1], world.step(k, world.arrays, s, t)[1]))
    for t in range(2, 5):
        a, b = draw(jax.random.key(t), jnp.int32(t))
        out = np.isin(np.asarray(a.cohort.ids), [2, 5]) & (t == 3)
        np.testing.assert_array_equal(b.cohort.steps, np.where(out, 0, a.cohort.steps))
        for u, v in zip(
            *map(
                jax.tree.leaves,
                (a._replace(cohort=a.cohort._replace(steps=None)), b._replace(cohort=b.cohort._replace(steps=None))),
            ),
            strict=True,
        ):
            np.testing.assert_array_equal(u, v)


def test_a_skipping_node_keeps_its_model_and_nobody_is_minus_one():
    q, task, data = quadratics(n=4, d=2)
    world = scenario(data, topology=mixing.from_matrix(np.eye(4)))
    system = dsgd(task, lr=0.1, steps=2, batch=1)
    x = run(system, skipping(world, [0, 2], 0), jnp.ones(2), 1).state.nodes
    keep = np.stack([np.linalg.matrix_power(np.eye(2) - 0.1 * a, 2) for a in q.A])
    full = q.b + np.einsum("nij,nj->ni", keep, 1 - q.b)
    np.testing.assert_array_equal(x[jnp.array([0, 2])], 1)
    np.testing.assert_allclose(x[jnp.array([1, 3])], full[[1, 3]], rtol=1e-5)
    np.testing.assert_allclose(run(system, skipping(world, [-1, -1], 0), jnp.ones(2), 1).state.nodes, full, rtol=1e-5)
    later = run(system, skipping(world, [0, 1], 1), jnp.ones(2), 1).state.nodes
    np.testing.assert_allclose(later, full, rtol=1e-5)


def shards_of_toy(n=4):
    rng = np.random.default_rng(0)
    data = from_arrays(rng.normal(size=(60, 3)), rng.integers(0, 10, 60), classes=10, test_fraction=0.0)
    return data, partition.iid(data, n, seed=1)


def test_corruption_touches_the_samples_of_its_nodes_only():
    data, shards = shards_of_toy()
    held = np.asarray(shards.order)[15:45]  # nodes 1 and 2
    flipped = flipped_labels(shards, [1, 2], 10)
    mine = np.isin(np.arange(60), held)
    np.testing.assert_array_equal(flipped.y, np.where(mine, 9 - data.y, data.y))
    assert flipped.x is shards.x
    np.testing.assert_array_equal(flipped_labels(flipped, [1, 2], 10).y, data.y)
    noisy = noisy_inputs(shards, 3, 0.5, seed=2)
    change = np.asarray(noisy.x) - data.x
    mine = np.isin(np.arange(60), np.asarray(shards.order)[45:])
    assert not change[~mine].any()
    assert change[mine].std() == pytest.approx(0.5, rel=0.3)
    assert not np.array_equal(noisy.x, noisy_inputs(shards, 3, 0.5, seed=3).x)
    np.testing.assert_array_equal(noisy_inputs(shards, 3, 0.0).x, shards.x)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda s: flipped_labels(s, 4, 10), "nodes = 4"),
        (lambda s: flipped_labels(s, [], 10), "nodes = "),
        (lambda s: flipped_labels(s, 0, 5), "labels below 5"),
        (lambda s: noisy_inputs(s, 0, -1.0), "deviation is -1"),
        (lambda s: flipped_labels(partition.resampled(digits(), 4, size=900), 0, 10), "shares samples"),
    ],
)
def test_bad_corruption_is_refused(call, word):
    with pytest.raises(InputError, match=word):
        call(shards_of_toy()[1])


def test_bad_probes_are_refused():
    _, task, data = quadratics(n=4, d=2)
    world = scenario(data, topology=ring(4))
    system = dsgd(task, lr=0.1, batch=1)
    carry = run(system, world, jnp.ones(2), 1).carry
    for kw, word in (({"hops": 0}, "hops is 0"), ({"hops": 1, "chunk": 0}, "chunk is 0")):
        with pytest.raises(InputError, match=word):
            first_order(system, world, carry, ROWS, **kw)
    tracking = gradient_tracking(task, lr=0.1)
    with pytest.raises(InputError, match="one array"):
        effect(tracking, world, run(tracking, world, jnp.ones(2), 1).carry, ROWS, 1)
    with pytest.raises(InputError, match="spreads over a graph"):
        effect(system, scenario(data), carry, ROWS, 1)
    for nodes, t, word in ((4, 0, "nodes = 4"), (-2, 0, "nodes = -2"), (0, -1, "round = -1")):
        with pytest.raises(InputError, match=word):
            skipping(world, nodes, t)
