"""Who is up: scripts, crashes, sessions, traces, and what a world makes of them."""

import jax.numpy as jnp
import numpy as np
import pytest
from common import quadratics, ring, rounds
from hypothesis import given
from hypothesis import strategies as st

from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.world import churn, cohort
from jaxfl.world.scenario import scenario


def test_a_script_is_read_as_written():
    up = np.asarray(rounds(churn.events(4, leaves=[(2, [0, 1]), (6, 0)], joins=[(4, 0), (3, 2), (5, [1])]), 8))
    want = np.ones((8, 4), bool)
    want[2:4, 0] = want[6:, 0] = want[2:5, 1] = want[:3, 2] = False
    np.testing.assert_array_equal(up, want)
    np.testing.assert_array_equal(rounds(churn.always(3), 2), np.ones((2, 3), bool))
    assert not rounds(churn.events(2, leaves=[(0, 1)]), 3)[:, 1].any()


@given(st.lists(st.lists(st.integers(0, 9), max_size=4, unique=True), min_size=1, max_size=4), st.booleans())
def test_intervals_are_unions(ends, first):
    """Ends toggle a node: up in a round if an odd (even) number of them has passed."""
    pairs = [sorted(e) if first else [0, *sorted(e)] for e in ends]
    pairs = [p if len(p) % 2 == 0 else [*p, churn.FOREVER] for p in pairs]
    table = np.array([p + [0] * (6 - len(p)) for p in pairs]).reshape(len(ends), 3, 2)
    up = churn.intervals(table[:, :, 0], table[:, :, 1])
    for t in range(10):
        want = [(sum(e <= t for e in node) + (not first)) % 2 == 1 for node in ends]
        np.testing.assert_array_equal(up.step(None, up.arrays, (), jnp.int32(t))[1], want)


def test_a_crash_takes_its_share_for_good():
    up = np.asarray(rounds(churn.crash(20, 0.8, 3, seed=1), 6))
    assert up[:3].all()
    np.testing.assert_array_equal(up[3:].sum(1), [4, 4, 4])
    assert (up[3:] == up[3]).all()
    other = np.asarray(rounds(churn.crash(20, 0.8, 3, seed=2), 6))
    assert (other[3] != up[3]).any()


def test_sessions_have_the_lengths_asked_for():
    """Share of time up, and how often a session that is on at one look is on at the next, over 2 * 10^5 looks."""
    on, off = 4.0, 2.0
    up = np.asarray(rounds(churn.sessions(1000, on, off), 200))
    share, memory = on / (on + off), np.exp(-1 / on - 1 / off)
    assert up.mean() == pytest.approx(share, abs=0.01)
    assert up[0].mean() == pytest.approx(share, abs=0.05)  # stationary from the start
    assert up[1:][up[:-1]].mean() == pytest.approx(share + (1 - share) * memory, abs=0.01)
    assert up[1:][~up[:-1]].mean() == pytest.approx(share * (1 - memory), abs=0.01)
    each = np.asarray(rounds(churn.sessions(2, [1e6, 1e-3], [1e-3, 1e6]), 20))
    assert each[:, 0].all()
    assert not each[:, 1].any()


def test_a_trace_repeats_and_both_is_and():
    table = np.random.default_rng(0).random((3, 5)) < 0.5
    up = np.asarray(rounds(churn.trace(table), 7))
    np.testing.assert_array_equal(up, table[np.arange(7) % 3])
    pair = churn.both(churn.trace(table), churn.sessions(5, 3.0, 3.0))
    both = np.asarray(rounds(pair, 7))
    assert (both <= up).all()
    np.testing.assert_array_equal(rounds(churn.both(churn.trace(table), churn.always(5)), 7), up)
    assert (both != up).any()


def test_dsgd_freezes_who_is_down_and_mixes_the_others_as_if_alone():
    """Three nodes of a ring of six are down: the others are a path with the ring's weights."""
    q, task, data = quadratics(n=6, d=3)
    world = scenario(data, topology=ring(6), churn=churn.events(6, leaves=[(2, [3, 4, 5])], joins=[(5, 3)]))
    go = lambda t: np.asarray(run(dsgd(task, lr=0.05, steps=2, batch=1), world, jnp.ones(3), t, every=1).state.nodes)
    x = [go(t) for t in (2, 3, 5, 6)]
    for later in x[1:3]:
        np.testing.assert_array_equal(later[3:], x[0][3:])
    np.testing.assert_array_equal(x[3][4:], x[0][4:])
    assert (x[3][3] != x[0][3]).any()
    z = x[0].astype(np.float64)
    for _ in range(2):
        z = z - 0.05 * np.einsum("nij,nj->ni", q.A.astype(np.float64), z - q.b)
    third = np.array([[2, 1, 0], [1, 1, 1], [0, 1, 2]]) / 3
    np.testing.assert_allclose(x[1][:3], third @ z[:3], atol=1e-6)


def test_a_server_hears_only_who_is_up():
    q, task, data = quadratics(n=5, d=2)
    world = scenario(data, cohort=cohort.everyone(5), churn=churn.events(5, leaves=[(0, [1, 4])]))
    result = run(fedavg(task, lr=0.1, steps=1, batch=1), world, jnp.ones(2), 1)
    here = [0, 2, 3]
    want = 1 - 0.1 * np.mean([q.A[i].astype(np.float64) @ (1 - q.b[i]) for i in here], 0)
    np.testing.assert_allclose(result.state.shared["x"], want, atol=1e-6)
    assert result.history["up_bits"].iloc[1] == 3 * 64
    assert result.history["gradients"].iloc[1] == 3


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: churn.events(3, leaves=[(1, 3)]), "node 3 in round 1"),
        (lambda: churn.events(3, joins=[(-1, 0)]), "node 0 in round -1"),
        (lambda: churn.events(3, leaves=[(1, 0), (2, 0)]), "node 0 leaves in round 2, but is down"),
        (lambda: churn.events(3, joins=[(1, 0), (2, 0)]), "node 0 joins in round 2, but is up"),
        (lambda: churn.events(3, leaves=[(1, 0)], joins=[(1, 0)]), "node 0 leaves and joins in the same round"),
        (lambda: churn.events(0), "n = 0"),
        (lambda: churn.crash(3, 1.5, 0), "share is 1.5"),
        (lambda: churn.crash(3, 0.5, 0, seed=-1), "seed is -1"),
        (lambda: churn.sessions(3, 0.0, 1.0), "up = 0.0"),
        (lambda: churn.sessions(3, 1.0, [1.0, 2.0]), "down = "),
        (lambda: churn.trace(np.ones((2, 3))), "up has shape"),
        (lambda: churn.intervals([[0]], [[1, 2]]), "up_from has shape"),
        (lambda: churn.intervals([[-1]], [[2]]), "up_from runs from -1"),
    ],
)
def test_bad_input_gets_a_sentence(call, says):
    with pytest.raises(InputError, match=says):
        call()
