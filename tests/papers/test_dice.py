"""DICE: the cascade it reports, what it watches, and what its claim computes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import digits_world, quadratics

from jaxfl.algorithms.gossip.dice import Cascade, dice, retrained
from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.claims import dice as claim
from jaxfl.core import Mail, Shards, State
from jaxfl.data.synthetic import gaussian_quadratics
from jaxfl.engine.run import run
from jaxfl.learn.task import mean_loss, quadratic
from jaxfl.measure.influence import effect, first_order, watched
from jaxfl.world import graph, mixing
from jaxfl.world.scenario import scenario
from jaxfl.world.work import skipping


def small():
    """What DICE probes: training that skips a step, and training that logs the influence of every step."""
    task, world = digits_world(n=8, topology=mixing.uniform(graph.exponential(8)))
    loss = partial(mean_loss, task, x=world.data.x[:10], y=world.data.y[:10])
    system = dsgd(task, lr=0.1, batch=4)
    return {
        "skipping": (system, skipping(world, [1, 6], 2), task.init, 4),
        "watched": (watched(system, loss), world, task.init, 4),
    }


def test_the_cascade_of_quadratics_is_the_truth_up_to_the_square_of_the_step():
    """L is quadratic and D exact, so that estimate - truth = q_k (D' A D) / 2, from NumPy."""
    n, hops = 5, 2
    q, task, data = quadratics(n, d=3)
    w = np.eye(n) / 2 + np.roll(np.eye(n), 1, 1) / 2
    world, system, weight = scenario(data, topology=mixing.from_matrix(w)), dsgd(task, lr=0.1, batch=1), np.arange(5.0)
    loss = partial(mean_loss, task, x=data.x[:1], y=data.y[:1])
    t, rest = run(system, world, jnp.ones(3), 2).carry[:2]

    def both(rest):
        ask = system, world, (t, rest), loss, hops
        return dice(*ask, weight=jnp.asarray(weight)), retrained(*ask, weight=jnp.asarray(weight), nodes=jnp.arange(n))

    guess, truth = jax.device_get(jax.jit(both)(rest))
    x, A, b = np.asarray(rest[1].nodes, float), q.A.astype(float), q.b.astype(float)
    curve = lambda rows: np.einsum("jki,il,jkl->jk", rows, A[0], rows)
    push = np.zeros((n, n, 3))
    push[range(n), range(n)] = -0.1 * np.einsum("nij,nj->ni", A, x - b)
    np.testing.assert_allclose(truth.reach[:, 0] - guess.reach[:, 0], weight * curve(push) / 2, atol=2e-4)
    for s in range(1, hops + 1):
        push = np.einsum("ki,jid->jkd", w, push if s == 1 else push - 0.1 * np.einsum("iab,jib->jia", A, push))
        np.testing.assert_allclose(guess.reach[:, s] - truth.reach[:, s], weight * curve(push) / 2, atol=2e-4)
    assert not guess.reach[:, :, 0].any()  # weight 0


def test_perturbations_of_quadratics_are_exact_with_the_hessian_alone():
    """Directed mixing, float64, hops 1 to 4: relative to replaying the rounds without the step."""
    n, d, hops, rng = 6, 5, 4, np.random.default_rng(0)
    w = np.where((rng.random((n, n)) < 0.5) | np.eye(n, dtype=bool), rng.uniform(0.2, 1, (n, n)), 0)
    with jax.enable_x64(True):
        q, at = gaussian_quadratics(n, d, seed=0), jnp.arange(n, dtype=jnp.int32)
        data = Shards(jnp.asarray(q.A), jnp.asarray(q.b), at, at, jnp.ones(n, jnp.int32), 1)
        world = scenario(data, topology=mixing.from_matrix(w / w.sum(1, keepdims=True)))
        rows = jnp.asarray(rng.normal(size=(n, d)))
        begun = world.init(jax.random.key(0), world.arrays), State((), rows, Mail(((), ()), ((), ())))
        ask = dsgd(quadratic(d), lr=0.05, batch=1), world, (0, begun), lambda rows: rows, hops
        three = jax.jit(lambda: (effect(*ask), first_order(*ask), first_order(*ask, curvature=False)))()
    true, bent, flat = (np.asarray(v)[:, 1:] for v in three)
    size = lambda v: np.sqrt((v**2).sum((0, 2, 3)))  # [hops]
    assert (size(bent - true) / size(true)).max() < 1e-10
    assert (size(flat - true) / size(true))[1:].min() > 0.05


def test_totals_within_hops():
    reach = np.arange(24.0).reshape(2, 3, 4)
    within = Cascade(jnp.asarray(reach)).within
    np.testing.assert_array_equal(within, [[6, 28, 66], [54, 124, 210]])


def test_the_claim_measures_what_it_says():
    truth = np.array([[[1.0, -3.0], [2.0, -2.0]]])  # one seed, two rates, two nodes
    off = np.array([[[1.2, -3.2], [2.1, -2.1]]])
    np.testing.assert_allclose(claim.relative(off, truth), [[0.1, 0.05]])
    said = claim.judged(off, truth, (0.02, 0.01))
    assert (said["error"][0], said["slope"][0], said["correlation"][0]) == pytest.approx((0.05, 1, 1))
    late = np.full((8, 1, 4, 8), -1.0)
    late[:, :, :2] = 50  # rounds that are left out
    for bad in range(8):
        late[bad, 0, 2:, bad] = 2.0 if bad else -2.0
    late[0, 0, 2, 5] = 3.0
    got = claim.detection(late, 2)
    np.testing.assert_array_equal(got["bad"][:, 0], [-2] + [2] * 7)
    np.testing.assert_array_equal(got["found"][:, 0], [0] + [1] * 7)
    np.testing.assert_array_equal(got["bad_harm"][:, 0], [0] + [1] * 7)
    assert (got["sound"][0, 0], got["sound"][1, 0]) == (1, -1)
    assert got["sound_harm"][0, 0] == pytest.approx(1 / 14)


def test_the_claim_s_worlds_differ_in_numbers_alone():
    _, data, loss = claim.setting()
    cuts = [claim.shards(data, alpha, seed=3) for alpha in (None, 1.0)]
    assert cuts[0].longest == cuts[1].longest
    assert all(int(c.size.sum()) == len(data.y) for c in cuts)
    for name, make in claim.GRAPHS.items():
        np.testing.assert_allclose(
            mixing.matrix(claim.mixing_of(name)), mixing.matrix(mixing.uniform(make(8))), atol=1e-7
        )
    assert loss(jnp.zeros(64 * 16 + 16 + 16 * 10 + 10)) == pytest.approx(np.log(10), rel=1e-5)
