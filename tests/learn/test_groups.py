"""Unlike architectures side by side."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from common import digits_world, same
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxfl.core import Cohort, Env
from jaxfl.errors import InputError
from jaxfl.learn.groups import Group, at_groups, by_group, draw, first_rows, in_node_order, map_groups, require_groups
from jaxfl.learn.local import local_sgd
from jaxfl.learn.task import from_functions
from jaxfl.mapping.at import at

FLAT = {d: from_functions(lambda key, d=d: jax.random.normal(key, (d,)), lambda p, x, y: y) for d in (2, 3)}


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(7)), st.integers(1, 6))
def test_cutting_by_group_and_joining_in_node_order_are_inverse(order, cut):
    parts = Group(FLAT[2], tuple(order[:cut])), Group(FLAT[3], tuple(order[cut:]))
    tree = {"a": jnp.arange(7.0), "b": jnp.arange(14).reshape(7, 2)}
    cuts = by_group(parts, tree)
    assert [p["a"].tolist() for p in cuts] == [order[:cut], order[cut:]]
    assert same(in_node_order(parts, cuts), tree)


def test_a_node_draws_the_same_first_model_in_any_group():
    key = jax.random.key(3)
    whole = draw((Group(FLAT[3], (0, 1, 2, 3)),))(key)[0]
    assert len(np.unique(whole)) == 12
    first, second = draw((Group(FLAT[3], (3, 1)), Group(FLAT[3], (0, 2))))(key)
    np.testing.assert_array_equal(first, whole[np.array([3, 1])])
    np.testing.assert_array_equal(second, whole[np.array([0, 2])])


def test_first_rows_are_one_model_for_all_or_one_each():
    parts = Group(FLAT[2], (0, 2)), Group(FLAT[3], (1,))
    rows = first_rows(parts, (jnp.arange(2.0), jnp.ones((1, 3))))
    assert same(rows, (jnp.array([[0.0, 1], [0, 1]]), jnp.ones((1, 3))))
    assert same(first_rows(parts[:1], jnp.arange(2.0)), (jnp.array([[0.0, 1], [0, 1]]),))
    for bad in ((jnp.ones(2),), (jnp.ones(2), jnp.ones(2)), (jnp.ones((3, 2)), jnp.ones(3)), jnp.ones(2)):
        with pytest.raises(InputError, match="model"):
            first_rows(parts, bad)


@pytest.mark.parametrize(
    ("bad", "n"),
    [((), None), ([Group(FLAT[2], (0,))], None), ((Group(FLAT[2], ()),), 0), ((Group(FLAT[2], (0, 2)),), 3)]
    + [((Group(FLAT[2], (0, 1)), Group(FLAT[3], (1,))), None), ((Group(FLAT[2], (0, 1)),), 3)],
)
def test_groups_hold_every_node_once(bad, n):
    with pytest.raises(InputError, match="groups"):
        require_groups(bad, n)
    require_groups((Group(FLAT[2], (2, 0)), Group(FLAT[3], (1,))), 3)


def test_each_node_is_mapped_with_the_task_of_its_group():
    parts = Group(FLAT[2], (0, 3)), Group(FLAT[3], (2, 1))
    stacked = {"w": jnp.array([[1.0, 2], [3, 4]])}, {"w": jnp.array([[5.0, 6, 7], [8, 9, 10]])}
    out = map_groups(parts, lambda task, s, row: s + task.dim * row["w"].sum(), 1.0, stacked, bytes_each=64)
    assert in_node_order(parts, out).tolist() == [7, 82, 55, 15]


def test_training_in_groups_of_one_architecture_is_training_in_one():
    task, world = digits_world(n=6)
    cohort = Cohort(jnp.arange(6), jnp.ones(6))
    env = Env(jnp.int32(0), jnp.float32(1), world.data, None, cohort, jnp.zeros(6, bool))
    make = partial(local_sgd, optimizer=optax.sgd(0.2, momentum=0.5), steps=3, batch=4, keep_state=True)
    parts = Group(task, (4, 0, 1)), Group(task, (2, 5, 3))
    rows = jax.random.normal(jax.random.key(1), (6, task.dim)) / 10
    state = jax.tree.map(lambda a: jnp.zeros((6, *a.shape)), optax.sgd(0.2, momentum=0.5).init(task.unravel(rows[0])))
    steps, key = jnp.array([3, 2, 1, 0, 3, 2]), jax.random.key(2)
    plain = at(jnp.arange(6), make(task))(key, env, rows, steps=steps, state=state)
    moved = at_groups(parts, make)(
        key, env, by_group(parts, rows), None, steps=by_group(parts, steps), state=by_group(parts, state), control=None
    )
    np.testing.assert_allclose(in_node_order(parts, moved.rows), plain.rows, atol=1e-6)
    np.testing.assert_allclose(moved.each["loss"], plain.each["loss"], rtol=1e-5)
    np.testing.assert_allclose(moved.log["loss"], plain.log["loss"], rtol=1e-5)
    assert moved.each["steps"].tolist() == steps.tolist()
    assert not np.allclose(plain.rows[0], rows[0])
