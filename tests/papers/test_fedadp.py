"""FedADP against its equations in float64: unequal weights, a partial cohort, an absent member."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import CLASSES, FEATURES, N, X, cohorts, own, perceptron, world
from test_flexifed import DEPTH, DEPTHS, FIRST, INNER, KW, LAYER, TASK, filled, held

from jaxfl.algorithms.server.fedadp import architectures, fedadp
from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.claims import fedadp as claim
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.learn import lift
from jaxfl.learn.task import classification
from jaxfl.models.networks import MLP


@pytest.mark.parametrize("lifted", [True, False])
def test_three_rounds_from_the_equations(lifted):
    """Every client's model is cut from the global one, trained, lifted by identity layers and averaged."""
    w, x = world(), np.asarray(FIRST, float)
    for members in cohorts(w, 3):
        total, weight = np.zeros(TASK.dim), np.zeros(TASK.dim)
        for i, p, _ in members:
            y = filled(i, x)
            for _ in range(2):
                y = y - 0.2 * np.where(held(i), perceptron(TASK, y, *own(i)), 0)
            count = p * (np.ones(TASK.dim) if lifted else held(i))
            total, weight = total + count * y, weight + count
        x = np.where(weight > 0, total / np.maximum(weight, 1e-9), x)
    got = run(fedadp(TASK, depths=DEPTHS, lift=lifted, **KW), w, FIRST, 3, every=1)
    np.testing.assert_allclose(got.state.shared["x"], x, atol=3e-6)


def test_alike_clients_are_fedavg_to_the_last_bit():
    ours = run(fedadp(TASK, depths=(INNER,), **KW), world(), FIRST, 3)
    plain = run(fedavg(TASK, **KW), world(), FIRST, 3)
    jax.tree.map(np.testing.assert_array_equal, ours.state, plain.state)
    np.testing.assert_array_equal(ours.history["up_bits"], plain.history["up_bits"])


def test_what_a_client_is_handed_is_its_small_model_and_its_lift_the_same_function():
    """Depth and width at once: the cut of the global model is the small chain, and zeros and identities lift it."""
    policy = architectures(TASK, DEPTHS, (0.5, 1.0))
    for i in range(N):
        sub = policy(None, jnp.int32(i), jnp.int32(0), FIRST)
        cut, wide = jnp.where(sub.held, FIRST, sub.fill), (2, 4)[i % 2]
        small = classification(partial(MLP, (FEATURES, *[wide] * (DEPTH[i] + 1), CLASSES)), X[:1])
        row = FIRST[np.asarray(sub.held)]
        assert row.shape == (small.dim,)
        said = small.predict(small.unravel(row), X)
        np.testing.assert_allclose(TASK.predict(TASK.unravel(cut), X), said, atol=1e-6)
        same = classification(partial(MLP, (FEATURES, *[4] * (DEPTH[i] + 1), CLASSES)), X[:1])
        up = lift.deeper(same, lift.wider(small, row, same), TASK, [*range(DEPTH[i] + 1), INNER + 1])
        said_up = TASK.predict(TASK.unravel(up), X)
        np.testing.assert_allclose(said_up, said, atol=1e-6)
        np.testing.assert_array_equal(np.asarray(up)[np.asarray(sub.held)], row)  # cut(lift(w)) is w
    np.testing.assert_array_equal(up[LAYER == 0].shape, cut[LAYER == 0].shape)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: fedadp(TASK, depths=(4,)), "profile is 4"),
        (lambda: fedadp(TASK, depths=DEPTHS, widths=(0.0, 1.0)), "widths is 0.0"),
        (lambda: fedadp(classification(partial(MLP, (FEATURES, 4, CLASSES)), X[:1])), "no inner layers"),
        (
            lambda: fedadp(classification(partial(MLP, (FEATURES, 4, 5, CLASSES)), X[:1]), depths=(1,)),
            "only a square kernel",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()


def test_the_claims_world():
    """All have one first model, cut to their architecture; each measures its own on the samples of all and its own."""
    setting = claim.settings(0)[claim.WORLD]
    found = setting.evaluate.measure(setting.evaluate.arrays, claim.TASK.init(jax.random.key(0)))
    assert {"node_accuracy", "local_accuracy"} <= set(found)
    assert found["local_accuracy"].shape == (claim.N,)
