"""Early exits against their equations in float64: unequal weights, a partial cohort, an absent member."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from nets import CLASSES, DATA, FEATURES, N, X, Y, cohorts, depth_of, own, residual, world

from jaxfl.algorithms.server.early_exit import early_exit
from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.claims import early_exit as claim
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.learn.exits import multi_exit
from jaxfl.measure.submodels import exit_accuracy
from jaxfl.models.residual import MultiExit
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario

BLOCKS, DEPTHS = 3, (2, 1, 3, 0)
MAKE = partial(multi_exit, partial(MultiExit, FEATURES, 4, BLOCKS, CLASSES, 3), X[:1])
TASK = MAKE()
LEVEL = depth_of(TASK)
FIRST = TASK.init(jax.random.key(0))
KW = {"lr": 0.2, "steps": 2, "batch": None}


def equations(rounds, zero_fill, adam, steps=2):
    """The paper's loop over lists of members, with FedAdam's server or none."""
    x, m, v = np.asarray(FIRST, float), np.zeros(TASK.dim), np.full(TASK.dim, 1e-6)
    for members in rounds:
        total, owners, everyone = np.zeros(TASK.dim), np.zeros(TASK.dim), 0
        for i, p, _ in members:
            has = DEPTHS[i % len(DEPTHS)] > LEVEL
            y = np.where(has, x, 0)
            for _ in range(steps):
                y = y - KW["lr"] * np.where(has, residual(TASK, y, *own(i)), 0)
            total += p * np.where(has, y - x, 0)
            owners, everyone = owners + p * has, everyone + p
        delta = total / everyone if zero_fill else np.where(owners > 0, total / np.maximum(owners, 1e-9), 0)
        m, v = 0.9 * m + 0.1 * delta, 0.99 * v + 0.01 * delta**2
        x = x + (0.02 * m / (np.sqrt(v) + 1e-3) if adam else delta)
    return x, m, v


@pytest.mark.parametrize(("zero_fill", "adam"), [(False, False), (True, False), (False, True)])
def test_three_rounds_from_the_equations(zero_fill, adam):
    from jaxfl.learn.server import adam_moment, scale_by_moments

    server = optax.chain(scale_by_moments(adam_moment(0.99), 0.9, 1e-3), optax.scale(-0.02)) if adam else None
    w = world()
    got = run(early_exit(TASK, depths=DEPTHS, zero_fill=zero_fill, server=server, **KW), w, FIRST, 3, every=1)
    x, m, v = equations(cohorts(w, 3), zero_fill, adam)
    np.testing.assert_allclose(got.state.shared["x"], x, atol=3e-6)
    if adam:
        np.testing.assert_allclose(-np.asarray(got.state.shared["server"][0].m), m, atol=3e-6)
        np.testing.assert_allclose(got.state.shared["server"][0].v, v, atol=3e-6)


def test_one_step_of_prefixes_is_one_step_of_a_model_whose_exits_count_by_their_owners():
    """Everybody has all samples: then a step with `zero_fill` is one of full models with exits weighed by owners."""
    alike = DATA.__class__(DATA.x, DATA.y, DATA.order, 0 * DATA.start, 0 * DATA.size + len(Y), len(Y))
    w, kw = scenario(alike, cohort=cohort.everyone(N, np.ones(N))), {"lr": 0.2, "steps": 1, "batch": None}
    held = np.array([DEPTHS[i % len(DEPTHS)] for i in range(N)])
    share = [(held > e).mean() for e in range(BLOCKS)]
    steps = {}
    for zero_fill in (True, False):
        x = run(early_exit(TASK, depths=DEPTHS, zero_fill=zero_fill, **kw), w, FIRST, 1).state.shared["x"]
        steps[zero_fill] = np.asarray(x - FIRST)
    want = -0.2 * residual(TASK, FIRST, X.astype(float), Y, share)
    scale = np.linalg.norm(want)
    assert np.linalg.norm(steps[True] - want) < 2e-6 * scale
    assert np.linalg.norm(steps[False] - want) > 1e-3 * scale
    np.testing.assert_allclose(steps[False] * np.array(share)[LEVEL], want, atol=1e-6)  # in each block by the share
    x = run(fedavg(MAKE(weights=share), **kw), w, FIRST, 1).state.shared["x"]
    np.testing.assert_allclose(x - FIRST, want, atol=1e-6)


def test_full_depth_is_fedavg_to_the_last_bit_and_what_nobody_has_stays():
    w = world()
    for zero_fill in (True, False):
        ours = run(early_exit(TASK, depths=(BLOCKS,), zero_fill=zero_fill, **KW), w, FIRST, 3).state
        jax.tree.map(np.testing.assert_array_equal, ours, run(fedavg(TASK, **KW), w, FIRST, 3).state)
    x = run(early_exit(TASK, depths=(1, 2), **KW), w, FIRST, 3).state.shared["x"]
    np.testing.assert_array_equal(x[LEVEL == 2], FIRST[LEVEL == 2])
    assert (np.asarray(x)[LEVEL < 2] != np.asarray(FIRST)[LEVEL < 2]).mean() > 0.5


def test_a_prefix_is_the_shallower_model_and_each_exit_is_measured():
    """The logits of the exits that it has are those of the model with so many blocks."""
    small = multi_exit(partial(MultiExit, FEATURES, 4, 2, CLASSES, 3), X[:1])
    cut = jnp.where(LEVEL < 2, FIRST, 0)
    said = TASK.predict(TASK.unravel(cut), X)
    of_small = small.predict(small.unravel(FIRST[LEVEL < 2]), X)
    np.testing.assert_array_equal(said[:, :2], of_small)
    assert (said[:, 2] == 0).all()
    metric = exit_accuracy(TASK, jnp.asarray(X), jnp.asarray(Y))
    got = metric.measure(metric.arrays, FIRST)
    right = np.asarray(TASK.predict(TASK.unravel(FIRST), X)).argmax(-1) == Y[:, None]
    np.testing.assert_allclose([got[f"exit_{e}"] for e in (1, 2, 3)], right.mean(0), rtol=1e-6)
    each = TASK.correct(TASK.predict(TASK.unravel(FIRST), X), Y)
    np.testing.assert_allclose(each, right.mean(1), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: early_exit(TASK, depths=(1, 4)), "profile is 4, but must be at least 0 and at most 3"),
        (lambda: MAKE(weights=(1.0, 2.0)), "weights has 2 entries"),
        (lambda: MAKE(classes=4), "must be \\[b, exits, 4\\]"),
        (lambda: early_exit(TASK, lr=0.0), "lr is 0.0"),
    ],
)
def test_what_does_not_fit_is_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()


def test_the_claims_worlds():
    """Five clients of each depth; the strong alone are the last five, who hold four blocks."""
    setting = claim.settings(0)[claim.WORLD]
    strong = claim.only_strong(setting.world)
    assert (np.asarray(strong.arrays["cohort"]["weight"]) > 0).tolist() == [i % 4 == 3 for i in range(20)]
    assert (np.asarray(setting.world.arrays["cohort"]["weight"]) > 0).all()
