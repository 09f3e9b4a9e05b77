"""Programs of one node against rounds worked by hand: silence, phases, what is still under way, what is counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.core import Outbox, Program
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange.program import program
from jaxfl.programs.gossip_averaging import gossip_averaging
from jaxfl.programs.push_sum import push_sum
from jaxfl.world import graph, mixing
from jaxfl.world.scenario import scenario
from jaxfl.world.temporal import Room, temporal

FAR = 99
PATH = np.array([[0, 1], [1, 2], [2, 3], [3, 4]])
RING = np.concatenate([PATH, [[4, 0]]])


def distances(**kw):
    """Hops to node 0 in a growing graph: who learns of a shorter way says so, and to a new neighbour in any case."""

    def init(key, data, i, link):
        return (jnp.where(i == 0, 0, FAR), jnp.zeros_like(link)), Outbox(jnp.full(1, FAR), False)

    def begin(key, s, inbox):
        hops, link = s
        return (hops, inbox.link), Outbox(hops[None], (inbox.link & ~link).any() & (hops < FAR))

    def step(key, s, inbox):
        hops, link = s
        best = jnp.minimum(hops, jnp.where(inbox.came, inbox.message[:, 0] + 1, FAR).min(initial=FAR))
        return (best, link), Outbox(best[None], best < hops)

    return program(Program(init, step, lambda s: s[0], begin), **kw)


def history(algorithm, world, rounds, columns):
    result = run(algorithm, world, jnp.zeros(0), rounds, every=rounds)
    return result, result.history.iloc[1:][list(columns)].astype(int).values.tolist()


@pytest.mark.parametrize("tiers", [False, True])
def test_a_round_lasts_until_all_are_silent(tiers):
    """A path, then a chord from end to end, then nothing new."""
    where = temporal(5, [PATH, RING, RING], room=Room(((2, 3), (3, 2)) if tiers else ((5, 2),), 5), tiers=tiers)
    world = scenario((), nodes=5, topology=where)
    columns = ("messages", "waves", "active", "up_bits", "down_bits", "unfinished")
    result, got = history(distances(most=50, answer="hops"), world, 3, columns)
    # 0 .. 4 speak in turn, heard by 1, 2, 2, 2, 1; then 0 and 4 greet, 4 knows better and then 3; then silence
    assert got == [[5, 5, 5, 8 * 32, 8 * 32, 0], [4, 3, 3, 8 * 32, 8 * 32, 0], [0, 0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(result.nodes["hops"][0], [[0, 1, 2, 3, 4], [0, 1, 2, 2, 1], [0, 1, 2, 2, 1]])
    assert result.nodes["hops"].dtype == np.int32


def test_a_round_that_is_cut_off_says_so_and_goes_on():
    world = scenario((), nodes=5, topology=temporal(5, [PATH, RING, RING, RING]))
    result, got = history(distances(most=2, answer="hops"), world, 4, ("messages", "waves", "unfinished"))
    # node 2 is about to speak when the first round is cut off, and does so beside the greetings of 0 and 4
    assert got == [[2, 2, 1], [2 + 2, 2, 1], [1, 1, 0], [0, 0, 0]]
    np.testing.assert_array_equal(result.nodes["hops"][0][:2], [[0, 1, 2, FAR, FAR], [0, 1, 2, 2, 1]])


def test_without_most_a_round_is_one_exchange():
    world = scenario((), nodes=5, topology=temporal(5, [PATH, RING]))
    result, got = history(distances(), world, 4, ("messages", "up_bits"))
    assert "waves" not in result.history
    assert got == [[1, 32], [2, 4 * 32], [2, 4 * 32], [1, 2 * 32]]  # 0; 0 and 1; 2 and 4; 3


def test_messages_by_slot_until_silence():
    """A token goes round a circle: each node hands it to its neighbour in slot 0 and says nothing to slot 1."""

    def init(key, data, i, link):
        speaks = (jnp.arange(2) == 0) & (i == 0)
        return jnp.int32(0), Outbox(jnp.full((2, 1), 7), speaks)

    def step(key, s, inbox):
        left = jnp.where(inbox.came[1], inbox.message[1, 0] - 1, 0)
        return s + inbox.came.sum(), Outbox(jnp.full((2, 1), left), (jnp.arange(2) == 0) & (left > 0))

    world = scenario((), nodes=5, topology=mixing.metropolis(graph.ring(5)))
    visits = program(Program(init, step, lambda s: s), most=50, answer="visits")
    result, got = history(visits, world, 2, ("messages", "waves", "active", "up_bits", "unfinished"))
    assert got == [[7, 7, 5, 7 * 32, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(result.nodes["visits"][0, -1], [1, 2, 2, 1, 1])
    with pytest.raises(InputError, match="one message a slot"):
        run(visits, scenario((), nodes=5, topology=temporal(5, [RING], room=Room(((5, 2),), 5))), jnp.zeros(0), 1)


def phased(**kw):
    """In phase `p` node `p` speaks; each hears whom it hears a step later than it could, being busy."""

    def init(key, data, i, link):
        return (i, jnp.int32(0), jnp.int32(0)), Outbox(jnp.zeros(1), False)

    def step(key, s, inbox):
        i, phase, heard = s
        first = inbox.came.any()
        return (i, phase, heard + inbox.came.sum()), Outbox(jnp.zeros(1), False, first)

    def rest(key, s, inbox):
        i, phase, heard = s
        assert inbox.came.shape == inbox.link.shape
        return (i, phase + 1, heard + inbox.came.sum()), Outbox(jnp.zeros(1), phase == i)

    return program(Program(init, step, lambda s: s[2], rest=rest), **kw)


def test_phases_follow_one_another_until_nobody_speaks_after_a_rest():
    world = scenario((), nodes=5, topology=temporal(5, [RING]))
    columns = ("messages", "waves", "phases", "active", "unfinished")
    result, got = history(phased(most=50, answer="heard"), world, 2, columns)
    assert got == [[5, 10, 6, 5, 0], [0, 0, 1, 0, 0]]  # a busy step after each message
    np.testing.assert_array_equal(result.nodes["heard"][0], np.full((2, 5), 2))
    _, got = history(phased(most=3), world, 4, columns)
    assert got == [[2, 3, 2, 2, 2], [1, 3, 2, 1, 1], [2, 3, 1, 2, 2], [0, 1, 1, 0, 0]]
    with pytest.raises(InputError, match="most is None"):
        phased()
    with pytest.raises(InputError, match="most is 0"):
        phased(most=0)


def test_keys_differ_by_node_round_and_exchange():
    def init(key, data, i, link):
        return (jnp.zeros(6), jnp.int32(0)), Outbox(jnp.zeros(1))

    def step(key, s, inbox):
        drawn, count = s
        return (drawn.at[count].set(jax.random.normal(key)), count + 1), Outbox(jnp.zeros(1))

    world = scenario((), nodes=4, topology=mixing.metropolis(graph.ring(4)))
    result, got = history(program(Program(init, step, lambda s: s[1]), most=3), world, 2, ("waves", "unfinished"))
    assert got == [[3, 4]] * 2  # nobody ever falls silent
    assert np.unique(result.state.nodes[0][0]).size == 4 * 2 * 3


def test_averaging_and_push_sum_run_in_tiers():
    """One exchange over unit weights is the matrix I - L, whichever way the table is laid out."""
    n = 12
    edges = np.stack([np.zeros(n - 1, int), np.arange(1, n)], 1)
    x = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    adjacency = np.zeros((n, n))
    adjacency[edges[:, 0], edges[:, 1]] = adjacency[edges[:, 1], edges[:, 0]] = 1
    step = np.eye(n) - np.diag(adjacency.sum(1)) + adjacency
    for tiers in (False, True):
        world = scenario(jnp.asarray(x), nodes=n, topology=temporal(n, [edges], tiers=tiers))
        result = run(gossip_averaging(), world, jnp.zeros(0), 2)
        got = gossip_averaging().read(result.state)
        np.testing.assert_allclose(got, step @ step @ x, rtol=1e-5, atol=1e-4)
        assert result.history["up_bits"].iloc[-1] == 2 * (n - 1) * 32 * 3
        assert push_sum().read(run(push_sum(), world, jnp.zeros(0), 1).state).shape == (n, 3)
    with pytest.raises(InputError, match="topology is None"):
        run(gossip_averaging(), scenario(jnp.asarray(x), nodes=n), jnp.zeros(0), 1)
