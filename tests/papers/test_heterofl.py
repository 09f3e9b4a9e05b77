"""HeteroFL against its round in float64; whole models are FedAvg."""

import numpy as np
from pieces import FIRST, KW, TASK, between, by_hand, world

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.heterofl import heterofl
from jaxfl.engine.run import run

SHARE = (0.75, 0.5, 0.125, 0.3)


def end(make, rounds=3, **more):
    return run(make(TASK, **KW, **more), world(), FIRST, rounds, every=1)


def test_three_rounds_by_hand():
    got = end(heterofl, share=SHARE)
    x = got.state.shared["x"]
    np.testing.assert_allclose(x, by_hand(lambda t, i, x: between(SHARE[i % 4]))[0], atol=1e-5)
    nobodys = ~between(0.75)
    np.testing.assert_array_equal(x[nobodys], FIRST[nobodys])
    assert (x[~nobodys] != FIRST[~nobodys]).all()
    assert (got.history["coverage_index"][1:] == 0).all()


def test_whole_models_are_fedavg_to_the_last_bit():
    np.testing.assert_array_equal(end(heterofl, share=1.0).state.shared["x"], end(fedavg).state.shared["x"])
