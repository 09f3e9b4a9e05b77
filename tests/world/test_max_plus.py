"""Clocks of nodes that wait for their neighbours, exactly as an event simulation on a heap has them."""

import heapq

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import quadratics

from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.core import Graph, node_keys, stream
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.world import churn, graph, max_plus, mixing, topology
from jaxfl.world.clock import buffered
from jaxfl.world.durations import Seconds, fixed
from jaxfl.world.links import links, ways
from jaxfl.world.scenario import scenario

N, ROUNDS = 11, 300
DYADIC = Seconds(lambda key, arrays, i: jax.random.randint(key, (), 0, 9) / 4 + i / 16, ())  # exact, many tied


def tables(seed, always=False):
    """A neighbour table `[N, 3]` of random others, and who is heard in each round `[ROUNDS, N, 3]`."""
    rng = np.random.default_rng(seed)
    nbr = np.stack([rng.choice(np.delete(np.arange(N), i), 3, replace=False) for i in range(N)])
    live = rng.random((ROUNDS, N, 3)) < 0.6
    live[0] = True
    return nbr, live | always, rng.integers(0, 12, (N, N)) / 4


def run_clocks(clocks, nbr=None, live=None, alive=None):
    """Seconds `[ROUNDS]` and lags `[ROUNDS, N]`."""
    at = lambda live: None if nbr is None else Graph(jnp.asarray(nbr, jnp.int32), live.astype(jnp.float32) / 4)

    def body(s, given):
        t, live, alive = given
        s, seconds = clocks.step(jax.random.fold_in(jax.random.key(3), t), clocks.arrays, s, t, at(live), alive)
        return s, (seconds, s.lag)

    live = jnp.ones((ROUNDS, 1, 1)) if live is None else jnp.asarray(live)
    first = clocks.init(N, at(live[0]))
    given = jnp.arange(ROUNDS), live, None if alive is None else jnp.asarray(alive)
    seconds, lag = jax.jit(lambda s: jax.lax.scan(body, s, given))(first)[1]
    return np.asarray(seconds, np.float64), np.asarray(lag, np.float64)


def works(law=DYADIC):
    """The draws of local work `[ROUNDS, N]`, from the keys of the rounds."""
    keys = jax.vmap(lambda t: node_keys(stream(jax.random.fold_in(jax.random.key(3), t), "work"), jnp.arange(N)))
    draw = lambda key, i: law.draw(key, law.arrays, i)
    each = jax.vmap(jax.vmap(draw, (0, 0)), (0, None))(keys(jnp.arange(ROUNDS)), jnp.arange(N))
    return np.asarray(each, np.float64)


def heap_simulation(work, needs, way, overlap=False):
    """Ends `[ROUNDS, N]` of rounds. `needs(i, k)`: messages `(j, round sent)` that node `i` waits for in round `k`."""
    queue, ends, came = [], np.full((ROUNDS, N), np.nan), set()
    round_of, trained = [0] * N, [False] * N
    listeners = {}
    for i in range(N):
        for k in range(ROUNDS):
            for j, sent in needs(i, k):
                listeners.setdefault((j, sent), set()).add(i)

    def push(at, *event):
        heapq.heappush(queue, (at, *event))

    def send(j, k, now):
        for i in listeners.get((j, k), ()):
            push(now + way[j, i], "came", i, j, k)

    def begin(i, now):
        trained[i] = False
        push(now + work[round_of[i], i], "trained", i, 0, round_of[i])
        if overlap:
            send(i, round_of[i], now)

    for i in range(N):
        begin(i, 0.0)
    while queue:
        now, what, i, j, k = heapq.heappop(queue)
        if what == "came":
            came.add((i, j, k))
        else:
            trained[i] = True
            if not overlap:
                send(i, k, now)
        k = round_of[i]
        if k < ROUNDS and trained[i] and all((i, j, sent) in came for j, sent in needs(i, k)):
            ends[k, i] = now
            round_of[i] += 1
            if k + 1 < ROUNDS:
                begin(i, now)
            else:
                trained[i] = False
    return ends


def check(got, ends):
    seconds, lag = got
    assert (seconds >= 0).all()
    np.testing.assert_array_equal(seconds.cumsum()[:, None] + lag, ends)


@pytest.mark.parametrize("overlap", [False, True])
def test_who_waits_for_neighbours_ends_as_events_do(overlap):
    nbr, live, way = tables(1)
    needs = lambda i, k: [(int(nbr[i, s]), k) for s in np.flatnonzero(live[k, i])]
    got = run_clocks(max_plus.neighbours(DYADIC, way, overlap=overlap), nbr, live)
    check(got, heap_simulation(works(), needs, way, overlap))


@pytest.mark.parametrize("overlap", [False, True])
def test_messages_in_the_background_were_sent_in_the_first_round_away(overlap):
    nbr, live, way = tables(2)

    def needs(i, k):
        out = []
        for s in np.flatnonzero(live[k, i]):
            sent = k
            while sent and not live[sent - 1, i, s]:  # weak before: from the first weak round on it is under way
                sent -= 1
            out.append((int(nbr[i, s]), sent))
        return out

    got = run_clocks(max_plus.neighbours(DYADIC, 8 * way, overlap=overlap, background=True), nbr, live)
    check(got, heap_simulation(works(), needs, 8 * way, overlap))


@pytest.mark.parametrize("overlap", [False, True])
def test_groups_wait_for_their_own(overlap):
    rng = np.random.default_rng(0)
    labels, cost = rng.integers(0, 4, (5, N)), rng.integers(0, 8, (5, labels_most := 4)) / 4
    f, work, ends = np.zeros(N), works(), []
    for k in range(ROUNDS):
        mine, done = labels[k % 5], f + work[k]
        ready = f if overlap else done
        f = np.array([max(done[i], ready[mine == mine[i]].max() + cost[k % 5, mine[i]]) for i in range(N)])
        ends.append(f)
    assert labels.max() + 1 == labels_most
    check(run_clocks(max_plus.grouped(DYADIC, labels, cost, overlap=overlap)), np.array(ends))


def test_one_group_of_all_is_a_barrier():
    got = run_clocks(max_plus.grouped(DYADIC, np.zeros(N, int), 0.5, overlap=False))
    np.testing.assert_array_equal(got[0], works().max(1) + 0.5)
    assert not got[1].any()


def test_who_is_down_neither_works_nor_keeps_others_waiting():
    nbr, live, way = tables(3, always=True)
    alive = np.random.default_rng(1).random((ROUNDS, N)) < 0.8
    live = live & alive[:, :, None] & alive[np.arange(ROUNDS)[:, None, None], nbr]
    seconds, lag = run_clocks(max_plus.neighbours(DYADIC, way), nbr, live, alive)
    f, work = np.zeros(N), works()
    for k in range(ROUNDS):
        done = np.where(alive[k], f + work[k], f)
        ends = np.array([max([done[i], *(done[nbr[i, s]] + way[nbr[i, s], i] for s in range(3) if live[k, i, s])])
                         for i in range(N)])  # fmt: skip
        f = np.where(alive[k], ends, ends.max())
        np.testing.assert_array_equal(seconds[: k + 1].sum() + lag[k], f)


def test_a_ring_turns_at_the_mean_of_its_ways():
    """The cycle time of a directed ring is its mean delay (theory of event graphs), not its largest, a barrier's."""
    way = np.random.default_rng(0).integers(0, 64, (N, N)) / 8
    nbr = (np.arange(N)[:, None] - 1) % N
    seconds, _ = run_clocks(max_plus.neighbours(fixed(0.125), way), nbr, np.ones((ROUNDS, N, 1)))
    each = way[nbr[:, 0], np.arange(N)]
    assert seconds[100 : 100 + 10 * N].mean() == pytest.approx(0.125 + each.mean())
    assert seconds[100:].max() > 0.125 + each.mean()


def test_a_world_with_clocks():
    speed = links(N, up=[8.0 * (1 + i) for i in range(N)], latency=0.25)
    _, model, shards = quadratics(N)
    g = mixing.metropolis(graph.star(N))
    kw = {"topology": g, "churn": churn.crash(N, 0.2, 2)}
    worlds = [scenario(shards, **kw, clocks=max_plus.neighbours(fixed(1.0), way, bits=bits)) for way, bits in
              ((speed, 96.0), (0.5, 0.0))]  # fmt: skip
    for world, way in zip(worlds, (speed, 0.5), strict=True):
        made = run(dsgd(model, batch=None), world, model.init, 4, every=1, progress=False)
        lags = max_plus.lags(made.carry)
        assert lags.shape == (N,)
        assert lags.max() == 0
        half = run(dsgd(model, batch=None), world, model.init, 2, every=1, progress=False)
        whole = run(dsgd(model, batch=None), world, model.init, 4, every=1, progress=False, carry=half.carry)
        np.testing.assert_array_equal(whole.history["time"].iloc[-1], made.history["time"].iloc[-1])
        np.testing.assert_array_equal(max_plus.lags(whole.carry), lags)
        first = 1.5
        if way is speed:
            took = ways(speed, [(jnp.arange(N), g, jnp.where(g.weight != 0, 96.0, 0))])[0]
            first = 1 + float(took.max())
        assert made.history["seconds"].iloc[1] == pytest.approx(first)
    with pytest.raises(InputError, match="without clocks"):
        max_plus.lags(run(dsgd(model, batch=None), scenario(shards, topology=g), model.init, 1, progress=False).carry)


def test_lost_messages_keep_rows_whole():
    g = mixing.metropolis(graph.complete(8))
    by_edge = np.where(np.arange(8)[:, None] == 0, 1.0, 0.3) * np.ones((8, 8))
    for loss, share in ((0.3, 0.3), (np.linspace(0, 1, 8), None), (by_edge, None)):
        walk = topology.lossy(g, loss)
        drawn = lambda k, walk=walk: walk.step(k, walk.arrays, walk.init(k, walk.arrays), 0)[1].weight
        many = jax.vmap(drawn)(jax.random.split(jax.random.key(0), 400))
        lost = np.asarray((many == 0).mean(0))  # [listener, slot]
        want = np.broadcast_to(loss, (8, 8)).T if np.ndim(loss) < 2 else np.asarray(loss)
        expected = want[np.asarray(g.nbr), np.arange(8)[:, None]]
        np.testing.assert_allclose(lost, expected, atol=0.12)
        assert share is None or abs(lost.mean() - share) < 0.01
    both = np.asarray((many == 0)[:, 0, 0] & (many == 0)[:, 1, np.flatnonzero(np.asarray(g.nbr)[1] == 0)[0]])
    assert both.mean() < 0.5  # one direction is lost without the other


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: max_plus.neighbours(DYADIC, -1.0), "way = -1.0: a finite time"),
        (lambda: max_plus.neighbours(DYADIC, np.zeros((2, 3))), "way has shape"),
        (lambda: max_plus.neighbours(DYADIC, links(3)), "bits = 0.0"),
        (lambda: max_plus.neighbours(DYADIC, 1.0, bits=3.0), "bits = 3.0"),
        (lambda: max_plus.grouped(DYADIC, [[[0]]]), "labels have shape"),
        (lambda: max_plus.grouped(DYADIC, [0, -1]), "labels is -1"),
        (lambda: max_plus.grouped(DYADIC, [0, 1], [1.0, 2]), r"cost = \[1.0, 2\]"),
        (lambda: there(clocks=max_plus.grouped(DYADIC, [0, 1])), "groups of 2 nodes, but the world has 4"),
        (lambda: there(topology=None), "topology is None, but clocks"),
        (lambda: there(links=links(4)), "links and clocks"),
        (lambda: there(cohort=buffered(4, 2, 1, fixed())), "cohort or topology has a clock of its own"),
        (lambda: there(clocks=3), "clocks is a builtins.int, but must be Clocks"),
        (lambda: topology.lossy(mixing.metropolis(graph.ring(4)), 1.5), "loss = 1.5"),
        (lambda: topology.lossy(mixing.metropolis(graph.ring(4)), [0.1]), "loss ="),
    ],
)
def test_bad_clocks(make, words):
    with pytest.raises(InputError, match=words):
        make()


def there(**kw):
    return scenario(
        np.zeros((4, 1)),
        nodes=4,
        **({"topology": mixing.metropolis(graph.ring(4)), "clocks": max_plus.neighbours(DYADIC)} | kw),
    )


def test_everyone_alike_is_a_barrier():
    """Equal works and ways: waiting for neighbours is waiting for all."""
    seconds, lag = run_clocks(max_plus.neighbours(fixed(1.5), 0.25), *tables(4, always=True)[:2])
    assert (seconds == 1.75).all()
    assert not lag.any()
