"""FjORD against its round in float64, with the shares that it draws; of one step it is HeteroFL."""

import jax
import numpy as np
from pieces import FIRST, KW, TASK, between, by_hand, key_of, world

from jaxfl.algorithms.server.fjord import fjord
from jaxfl.algorithms.server.heterofl import heterofl
from jaxfl.engine.run import run

SHARE, GRID = (1.0, 0.6), (0.25, 0.5, 1.0)


def end(make, **more):
    return run(make(TASK, **KW, **more), world(), FIRST, 3, every=1)


def test_three_rounds_by_hand():
    """Even clients draw among three steps of the grid, odd ones among the first two."""
    got, widths = end(fjord, share=SHARE, grid=GRID).state.shared["x"], set()

    def masks(t, i, x):
        q = GRID[int(jax.random.randint(key_of(t, i), (), 0, 2 if i % 2 else 3))]
        widths.add((i % 2, q))
        return between(q)

    np.testing.assert_allclose(got, by_hand(masks)[0], atol=1e-5)
    assert len({q for _, q in widths}) > 1
    assert (1, 1.0) not in widths


def test_of_one_step_it_is_heterofl_to_the_last_bit():
    one, other = end(fjord, share=SHARE, grid=(0.5,)), end(heterofl, share=0.5)
    np.testing.assert_array_equal(one.state.shared["x"], other.state.shared["x"])
    np.testing.assert_array_equal(one.history["up_bits"], other.history["up_bits"])
