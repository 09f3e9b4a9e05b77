"""Mapping over nodes: blocks, sums by weight, and what the rule of the block size looks at."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from common import digits_world

from jaxfl.core import Cohort, Env, Strata
from jaxfl.exchange.codecs import half
from jaxfl.exchange.network import Network
from jaxfl.learn.local import displacement, local_sgd
from jaxfl.learn.task import classification
from jaxfl.mapping import nodes
from jaxfl.mapping.at import at
from jaxfl.mapping.blocks import block_of, block_size
from jaxfl.mapping.nodes import map_memory, map_nodes
from jaxfl.models.networks import CNN


def test_blocks_divide_where_they_can():
    assert block_size(1000, 2**18) == 8
    assert block_size(7, 2**19) == 4
    assert block_size(5, 1) == 5
    doubled = map_nodes(lambda s, r: s * r, jnp.float32(2), jnp.arange(7.0), bytes_each=2**20)
    np.testing.assert_array_equal(doubled, 2 * np.arange(7.0))


@pytest.mark.parametrize("block", [None, 1, 3, 4, 11])
def test_a_sum_by_weight_is_that_of_the_rows_and_what_weighs_nothing_may_be_nan(block):
    rows = np.random.default_rng(0).normal(size=(11, 5)).astype(np.float32)
    weight = np.linspace(0, 1, 11, dtype=np.float32)  # the first weighs nothing
    f = lambda s, r: (s * jnp.where(r == rows[0], jnp.nan, r), r[0])
    with block_of(block):
        total, first = map_nodes(f, jnp.float32(2), jnp.asarray(rows), weight=jnp.asarray(weight))
    np.testing.assert_allclose(total, 2 * weight.astype(np.float64) @ rows, rtol=1e-5)
    np.testing.assert_array_equal(first, rows[:, 0])


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("block", [None, 1, 3, 11])
def test_what_nodes_keep_is_replaced_row_by_row(block, weighed):
    rows, before = jnp.arange(22.0).reshape(11, 2), {"sum": jnp.ones((11, 2)), "rounds": jnp.arange(11)}
    weight = jnp.linspace(0, 1, 11) if weighed else None
    f = lambda s, row, memory: ((s * row, row[0]), {"sum": memory["sum"] + row, "rounds": memory["rounds"] + 1})
    with block_of(block):
        (message, first), after = map_nodes(f, jnp.float32(2), rows, memory=before, weight=weight)
    np.testing.assert_allclose(message, 2 * (np.asarray(weight) @ rows if weighed else np.asarray(rows)), rtol=1e-6)
    np.testing.assert_array_equal(first, rows[:, 0])
    chex.assert_trees_all_equal(after, {"sum": 1 + rows, "rounds": 1 + jnp.arange(11)})


@pytest.mark.parametrize("block", [None, 1, 3, 4, 11])
def test_members_rows_are_read_and_replaced_where_they_are(block):
    """11 of 29 rows; those of nobody keep every bit, and there is one copy of them all, also in a loop over rounds."""
    rng = np.random.default_rng(0)
    rows, memory = rng.normal(size=(11, 3)).astype("f"), rng.normal(size=(29, 3, 2**12)).astype("f")
    place = rng.permutation(29)[:11]
    f = lambda s, row, mine: (mine["model"][:, 0] * row, {"model": s * mine["model"], "rounds": mine["rounds"] + 1})

    def rounds(memory):
        once = lambda memory, _: map_nodes(f, jnp.float32(2), rows, memory=memory, place=jnp.asarray(place))[::-1]
        return jax.lax.scan(once, memory, length=2)

    before = {"model": jnp.asarray(memory), "rounds": jnp.arange(29)}
    with block_of(block):
        program = jax.jit(rounds, donate_argnums=0).lower(before).compile()
    assert program.memory_analysis().temp_size_in_bytes < 2.2 * memory[place].nbytes < memory.nbytes
    after, said = program(before)
    np.testing.assert_array_equal(said, [memory[place, :, 0] * rows, 2 * memory[place, :, 0] * rows])
    times = np.ones(29, int)
    times[place] = 4
    np.testing.assert_array_equal(after["model"], times[:, None, None] * memory)
    np.testing.assert_array_equal(after["rounds"], np.arange(29) + 2 * (times > 1))


def test_the_gradient_through_what_nodes_keep_does_not_depend_on_blocks():
    def loss(x, memory):
        f = lambda x, row, memory: (jnp.sin(memory * row).sum(), jnp.cos(x * memory) + row)
        for _ in range(2):
            out, memory = map_nodes(f, x, jnp.arange(5.0), memory=memory)
        return (out**2).sum() + (memory**3).sum()

    found = []
    for block in (5, 1, 2):
        with block_of(block):
            slope = jax.jit(lambda *a: jax.grad(loss, (0, 1))(*a))
            found.append(slope(jnp.float32(0.7), jnp.linspace(0, 1, 15).reshape(5, 3)))
    for other in found[1:]:
        chex.assert_trees_all_close(other, found[0], rtol=1e-5)


@pytest.mark.parametrize("block", [1, 2, 3])
def test_there_is_one_copy_of_what_nodes_keep(block):
    """In a loop over rounds as well, with members who are absent and results that need what was kept before."""
    who = Cohort(jnp.arange(32), jnp.ones(32), strata=Strata(32))
    f = lambda x, k, memory: (memory.sum(), jnp.sin(memory) + x)

    def rounds(memory, present):
        once = lambda memory, _: map_memory(who, f, jnp.float32(1), who.ids, memory, present=present)[::-1]
        return jax.lax.scan(once, memory, length=3)

    memory, present = jnp.ones((32, 2**14)), jnp.arange(32) > 0
    with block_of(block):
        program = jax.jit(rounds, donate_argnums=0).lower(memory, present).compile()
    assert program.memory_analysis().temp_size_in_bytes < 0.2 * memory.nbytes
    after, sums = program(memory, present)
    now = np.stack([np.ones(32), np.where(present, 1 + np.sin(1), 1), np.where(present, 1 + np.sin(1 + np.sin(1)), 1)])
    np.testing.assert_allclose(sums, 2**14 * now, rtol=1e-5)
    np.testing.assert_allclose(after[:, 0], np.where(present, 1 + np.sin(now[2]), 1), rtol=1e-6)


def test_a_block_holds_the_windows_of_images_and_not_just_the_rows():
    """The windows [144, 20 * 7 * 7] of the second convolution, a quarter of them, are 7 times a row of parameters."""
    task = classification(CNN, jnp.zeros((1, 784)))
    x, y = jnp.zeros((20, 784)), jnp.zeros(20, jnp.int32)

    def train(x, row):
        down = lambda r, _: (r - jax.grad(lambda r: task.loss(task.unravel(r), x, y).mean())(r), None)
        return jax.lax.scan(down, row, None, length=3)[0]

    largest = lambda f, s: nodes._matmul_bytes(jax.make_jaxpr(f)(s, jnp.zeros(task.dim)).jaxpr)
    assert largest(train, x) == 4 * 144 * 20 * 7 * 7
    assert largest(lambda s, r: r + s, jnp.float32(1)) == 0


@pytest.mark.parametrize("net", [Network(), Network(codec=half())])
def test_what_a_network_collects_is_what_it_aggregates(net):
    """Also with absent members and several blocks: where it is a plain mean the messages are never stored."""
    task, world = digits_world(c=5)
    key, x = jax.random.key(1), task.init(jax.random.key(2))
    _, now = world.step(key, world.arrays, world.init(key, world.arrays), jnp.int32(0))
    members = now.cohort._replace(weight=now.cohort.weight.at[0].set(0))
    env = Env(jnp.int32(0), now.seconds, world.data, now.graph, members, world.byz)
    learn = displacement(local_sgd(task, optax.sgd(0.1), steps=2, batch=4))
    mail = net.init(env, x)

    @jax.jit
    def both(env, mail, x):
        with block_of(2):
            got = net.collect(key, env, mail, learn, x)
            slow = at(members, learn)(key, env, x)
        want, _, log = net.aggregate(key, env, mail, slow.rows)
        return (got.mean, got.each, dict(got.log)), (want, slow.each, dict(slow.log | log))

    (mean, each, log), (want, slow, whole) = both(env, mail, x)
    np.testing.assert_allclose(mean, want, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_close(each, slow, rtol=1e-5)
    assert whole.pop("down_bits") == 0  # `aggregate` and `at` hand nothing down
    assert float(log.pop("down_bits")) == 4 * 32 * 650
    chex.assert_trees_all_close(log, whole, rtol=1e-5)


@pytest.mark.parametrize("block", [1, 2, 3, 5])
def test_results_are_written_over_the_rows_that_they_were_made_of(block):
    """Of 32 rows, in a loop over rounds, with several results, some of no row's shape, and what nodes keep beside."""
    rng = np.random.default_rng(1)
    x, count = rng.normal(size=(32, 2**14)).astype("f"), np.arange(32)

    def rounds(x, count):
        def once(carry, _):
            f = lambda s, row, kept: ((row["i"], s * row["x"] + kept, row["x"][::1024]), kept + 1)
            (i, x, few), count = map_nodes(f, 2.0, {"x": carry[0], "i": jnp.arange(32)}, memory=carry[1])
            return (x, count), (i, few)

        return jax.lax.scan(once, (x, count), length=3)

    with block_of(block):
        program = jax.jit(rounds, donate_argnums=0).lower(x, count).compile()
    assert program.memory_analysis().temp_size_in_bytes < 0.3 * x.nbytes
    (after, kept), (i, few) = program(jnp.asarray(x), count)
    steps = [x, 2 * x + count[:, None], 4 * x + 3 * count[:, None] + 1]
    np.testing.assert_allclose(after, 2 * steps[2] + count[:, None] + 2, rtol=1e-6)
    np.testing.assert_allclose(few, [a[:, ::1024] for a in steps], rtol=1e-6)
    np.testing.assert_array_equal(kept, count + 3)
    np.testing.assert_array_equal(i, np.tile(count, (3, 1)))


@pytest.mark.parametrize("block", [1, 3, 32])
def test_rows_that_others_still_read_stay_as_they_are(block):
    x = jnp.asarray(np.random.default_rng(2).normal(size=(32, 300)).astype("f"))
    with block_of(block):
        new, old = jax.jit(lambda x: (map_nodes(lambda s, row: row + s, 1.0, x), x + 0.0))(x)
        total, both = map_nodes(lambda s, row: (row, (row, s * row)), 2.0, x, weight=jnp.ones(32))
    np.testing.assert_array_equal(old, x)
    np.testing.assert_array_equal(new, x + 1)
    np.testing.assert_allclose(total, x.sum(0), rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_equal(both, (x, 2 * x))
