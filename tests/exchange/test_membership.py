"""Views merge like a replicated table; samples follow from the hash; both against plain Python."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pinging import pinged
from scipy import stats

from jaxfl.exchange import membership as m

ROWS = st.lists(st.tuples(st.integers(-3, 9), st.integers(0, 9)), min_size=3, max_size=3)
some_view = ROWS.map(lambda row: m.View(*(jnp.array(a) for a in zip(*row, strict=True))))


merge = jax.jit(m.merge)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@given(some_view, some_view, some_view)
def test_merging_is_commutative_associative_and_idempotent(a, b, c):
    assert same(merge(a, b), merge(b, a))
    assert same(merge(merge(a, b), c), merge(a, merge(b, c)))
    assert same(merge(a, a), a)


def test_news_in_any_order_and_number_give_one_view():
    """Of join, leave, join of one member the last wins in every order of delivery, duplicates included."""
    yes, no = jnp.array([True, False]), jnp.array([False, False])
    start = m.founders(jnp.array([False, True]))
    said, stamp = [], start.stamp
    for t, comes in enumerate((True, False, True)):
        said.append(m.news(stamp, yes if comes else no, no if comes else yes, jnp.int32(t)))
        stamp = said[-1].stamp
    in_at = lambda view: m.members(view, jnp.int32(3), 5).tolist()
    assert [in_at(merge(start, s)) for s in said] == [[True, True], [False, True], [True, True]]
    for order in itertools.permutations([*said, said[0]]):
        view = start
        for s in order:
            view = merge(view, s)
        assert same(view, merge(start, said[-1]))


def test_the_window_ends_when_it_says():
    view = m.View(jnp.array([0, 3, 4, m.NEVER, 9]), jnp.array([0, 2, 0, 0, 3]))
    assert m.members(view, jnp.int32(6), 3).tolist() == [False, True, True, False, False]
    assert m.members(view, jnp.int32(6), 6).tolist() == [True, True, True, False, False]


node = st.tuples(st.integers(0, 6), st.booleans(), st.booleans())  # few hashes, so that some are equal
first_alive = jax.jit(m.first_alive, static_argnums=3)


@given(st.lists(node, min_size=6, max_size=6), st.sampled_from([1, 2, 4, 6]))
def test_the_sample_is_what_pinging_in_order_finds(nodes, s):
    hash, members, alive = zip(*nodes, strict=True)
    got = first_alive(jnp.array(hash), jnp.array(members), jnp.array(alive), s)
    found, asked, waits = pinged(hash, members, alive, s)
    assert got.ids[got.found].tolist() == found
    assert got.found.tolist() == [k < len(found) for k in range(s)]
    assert (int(got.pings), int(got.waits)) == (asked, waits)
    assert len(set(got.ids.tolist())) == s


def test_participation_is_uniform_over_a_thousand_rounds():
    """Chi-square with the variance of draws without replacement; and no pair of rounds shares its hash."""
    n, s, count = 100, 10, 1000
    everyone = jnp.ones(n, bool)

    def ids(t):
        return m.first_alive(m.public_hash(jnp.uint32(7), t, n), everyone, everyone, s).ids

    got = np.bincount(np.asarray(jax.jit(jax.vmap(ids))(jnp.arange(count))).ravel(), minlength=n)
    expected = count * s / n
    statistic = ((got - expected) ** 2 / expected).sum() * (n - 1) / (n - s)
    assert 0.001 < stats.chi2.sf(statistic, n - 1) < 0.999
    hashes = np.asarray(jax.vmap(lambda t: m.public_hash(jnp.uint32(7), t, n))(jnp.arange(50)))
    assert len(np.unique(hashes)) > 50 * n - 10
    assert not np.array_equal(hashes[0], m.public_hash(jnp.uint32(8), jnp.int32(0), n))


def tables(n, shared):
    view = m.founders(jnp.arange(n) != 2)
    return jax.tree.map(lambda a: jnp.tile(a, (1 if shared else n, 1)), view)


def test_equal_views_derive_one_sample():
    n, ids, alive = 9, jnp.array([0, 4, 8]), jnp.arange(9) % 3 != 1
    hash = m.public_hash(jnp.uint32(1), jnp.int32(5), n)
    one, own = (m.look(tables(n, shared), ids, hash, alive, jnp.int32(5), 9, 4) for shared in (True, False))
    assert same(one, own)
    assert (np.asarray(own.ids) == np.asarray(own.ids)[0]).all()


def test_a_node_counts_itself_though_its_view_forgot_it():
    n = 4
    hash, late = jnp.array([3, 2, 1, 0]), jnp.int32(50)
    got = m.look(tables(n, False), jnp.arange(n), hash, jnp.ones(n, bool), late, 10, 2)
    assert got.ids[:, 0].tolist() == [0, 1, 2, 3]
    assert got.found.sum(1).tolist() == [1, 1, 1, 1]


def test_views_travel_along_messages_and_no_further():
    n, t = 4, jnp.int32(7)
    views = m.sign_of_life(tables(n, False), jnp.array([1, 3]), jnp.array([True, False]), t)
    assert np.argwhere(np.asarray(views.active) == 7).tolist() == [[1, 1]]
    link = jnp.array([[True, False], [False, True]])  # 0 hears 1, 2 hears 3
    after = m.informed(views, jnp.array([0, 2]), jnp.array([1, 3]), link)
    assert np.argwhere(np.asarray(after.active) == 7).tolist() == [[0, 1], [1, 1]]
    shared = m.sign_of_life(tables(n, True), jnp.array([1, 3]), jnp.array([True, False]), t)
    assert shared.active.tolist() == [[0, 7, m.NEVER, 0]]
    assert same(m.informed(shared, jnp.array([0]), jnp.array([1]), jnp.array([[True]])), shared)


def test_news_reach_a_fanout_of_those_who_are_up():
    n, key = 400, jax.random.key(0)
    views, alive = tables(n, False), jnp.arange(n) < 300
    said = m.news(jnp.diagonal(views.stamp), jnp.arange(n) == 2, jnp.arange(n) == 350, jnp.int32(4))
    speaks = jnp.isin(jnp.arange(n), jnp.array([2, 350]))
    after = m.advertise(key, views, said, speaks, alive, 100)
    changed = np.asarray(after.stamp != views.stamp)
    assert set(np.argwhere(changed)[:, 1]) == {2, 350}
    assert not changed[300:, 2].any()
    assert changed[350, 350]  # who leaves knows it
    assert changed[300:, 350].sum() == 1
    for who in (2, 350):
        assert 45 <= changed[:300, who].sum() <= 105  # binomial of mean 75
    everybody = m.advertise(key, views, said, speaks, alive, n)
    assert (np.asarray(everybody.stamp != views.stamp)[:300][:, [2, 350]]).all()
    assert (everybody.active[:300, 2] == 4).all()
    shared = m.advertise(key, tables(n, True), said, speaks, alive, 1)
    assert shared.stamp[0, jnp.array([2, 350])].tolist() == [2, 3]
