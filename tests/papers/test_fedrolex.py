"""FedRolex against its round in float64; that stands still it is HeteroFL."""

import numpy as np
from pieces import FIRST, KW, TASK, between, by_hand, world

from jaxfl.algorithms.server.fedrolex import fedrolex
from jaxfl.algorithms.server.heterofl import heterofl
from jaxfl.engine.run import run

SHARE = (0.75, 0.5, 0.125)


def end(make, rounds=3, **more):
    return run(make(TASK, **KW, share=SHARE, **more), world(), FIRST, rounds, every=1).state.shared["x"]


def test_three_rounds_by_hand():
    """The window goes around the end of each layer."""
    masks = lambda t, i, x: between(SHARE[i % 3], 3 * t)
    np.testing.assert_allclose(end(fedrolex, speed=3), by_hand(masks)[0], atol=1e-5)


def test_every_unit_is_trained_sooner_or_later_only_if_it_rolls():
    assert (end(fedrolex, 8) != FIRST).all()
    still = end(fedrolex, 8, speed=0)
    assert (still == FIRST).any()
    np.testing.assert_array_equal(still, end(heterofl, 8))
