"""Drawing for all nodes at once: the same numbers, nothing large, and nothing that is no draw."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.mapping.blocks import block_of
from jaxfl.mapping.draws import SMALL, draws_apart
from jaxfl.mapping.nodes import map_nodes

KEYS = jax.random.split(jax.random.key(3), 6)


def learn(shared, row):
    """A node that draws batches, an order and noise, and walks over data."""
    key, i, x = row
    a, b, c = jax.random.split(key, 3)
    index = shared["start"][i] + jax.random.randint(a, (3, 4), 0, shared["size"][i])
    order = jnp.argsort(jax.random.uniform(b, (4,)))
    pairs = jnp.arange(4)[:, None] < jnp.arange(4)  # the same for every node
    x, seen = jax.lax.scan(lambda x, j: (x + shared["x"][j[order]].mean(0), x.sum()), x, index)
    return x + jax.random.normal(c, x.shape) * pairs.sum(), {"seen": seen, "index": index}


def world(width):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(20, width)).astype(np.float32))
    shared = {"x": x, "start": jnp.arange(4) * 5, "size": jnp.array([5, 4, 3, 2])}
    return shared, (KEYS, jnp.arange(6) % 4, jnp.ones((6, width)))


def same(got, want):
    np.testing.assert_array_equal(got[1]["index"], want[1]["index"])
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [3, SMALL // 4 + 1])
def test_apart_or_not_the_numbers_are_the_same(width):
    shared, rows = world(width)
    row = jax.tree.map(lambda a: a[2], rows)
    draw, rest = draws_apart(learn, shared, row)
    drawn = jax.jit(draw)(shared, row)
    same(jax.jit(rest)(shared, row, drawn), jax.jit(learn)(shared, row))
    with block_of(2):
        blocks = jax.jit(lambda s, r: map_nodes(learn, s, r))(shared, rows)
    same(blocks, jax.jit(jax.vmap(learn, (None, 0)))(shared, rows))


def test_what_is_drawn_is_small_depends_on_the_node_and_leaves_no_draw_behind():
    for width, large in ((3, False), (SMALL // 4 + 1, True)):
        shared, rows = world(width)
        row = jax.tree.map(lambda a: a[0], rows)
        draw, rest = draws_apart(learn, shared, row)
        drawn = jax.eval_shape(draw, shared, row)
        shapes = sorted(a.shape for a in drawn if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key))
        assert shapes == ([(3, 4), (4,)] if large else [(3,), (3, 4), (4,)])
        left = str(jax.make_jaxpr(rest)(shared, row, drawn))
        assert ("random_bits" in left) == large  # noise as long as the model stays where it is added
        assert "random_bits" in str(jax.make_jaxpr(draw)(shared, row))
