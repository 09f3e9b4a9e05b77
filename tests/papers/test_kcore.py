"""Coreness: equal to networkx after every batch, and to the rules of the card run one message at a time."""

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from common import same
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange.reducers import h_index
from jaxfl.programs.kcore import kcore_exact, kcore_incremental, kcore_restart
from jaxfl.world import graph, mixing
from jaxfl.world.scenario import scenario
from jaxfl.world.temporal import Room, chung_lu, churned, temporal

SYSTEMS = {
    "kcore_restart": kcore_restart(),
    "kcore_incremental": kcore_incremental(),
    "kcore_hasty": kcore_incremental(paused=False),
    "kcore_exact": kcore_exact(),
}
EXACT = ("kcore_restart", "kcore_exact")
N, ROOM = 80, Room(((8, 79), (24, 50), (48, 30)), 1000)  # tests that share shapes share compiled programs


def small():
    snapshots = churned(24, chung_lu(24, 6, 0.6, 0), 8, 0.1, 0)
    world = scenario((), nodes=24, topology=temporal(24, snapshots))
    return {name: (algorithm, world, jnp.zeros(0), 8) for name, algorithm in SYSTEMS.items()}


def truth(n, snapshots):
    """Coreness by networkx, [rounds, n]."""
    out = []
    for edges in snapshots:
        g = nx.Graph()
        g.add_nodes_from(range(n))
        g.add_edges_from((a, b) for a, b in np.asarray(edges).reshape(-1, 2).tolist() if a != b)
        core = nx.core_number(g)
        out.append([core[i] for i in range(n)])
    return np.array(out)


def cores(algorithm, n, snapshots, **kw):
    world = scenario((), nodes=n, topology=temporal(n, snapshots, **kw))
    result = run(algorithm, world, jnp.zeros(0), len(snapshots), every=len(snapshots))
    log = result.history.iloc[1:]
    assert (log["unfinished"] == 0).all()
    np.testing.assert_array_equal(result.nodes["core"][0, -1], algorithm.read(result.state))
    return result.nodes["core"][0], log


@pytest.mark.parametrize("k", [1, 2, 3, 7, 8, 9, 31, 64])
def test_h_index_is_the_definition(k):
    rng = np.random.default_rng(k)
    values, present = rng.integers(0, 2 * k, (200, k)), rng.random((200, k)) < 0.8
    values[:4], present[:4] = np.array([0, k - 1, k, 2**30])[:, None], True
    present[4] = False
    got = jax.jit(jax.vmap(h_index))(jnp.asarray(values), jnp.asarray(present))
    heard = [v[p] for v, p in zip(values, present, strict=True)]
    np.testing.assert_array_equal(got, [max(h for h in range(k + 1) if (v >= h).sum() >= h) for v in heard])
    assert got[:5].tolist() == [0, k - 1, k, k, 0]


def test_messages_by_hand():
    """A triangle 0 1 2 with a tail 2 - 3; then node 3 is tied to the triangle; then the edge 0 - 1 goes."""
    first = np.array([[0, 1], [0, 2], [1, 2], [2, 3]])
    last = np.array([[0, 2], [1, 2], [2, 3], [3, 0]])
    snapshots = [first, np.concatenate([first, [[3, 0]]]), last, last, last, last]
    want = np.zeros((6, N), int)
    want[:, :4] = [[2, 2, 2, 1], [2, 2, 2, 2]] + 4 * [[2, 1, 2, 2]]
    counts = {}
    for name, algorithm in SYSTEMS.items():
        got, log = cores(algorithm, N, snapshots, room=ROOM)
        np.testing.assert_array_equal(got, want)
        counts[name] = log[["messages", "waves"]].astype(int).values.tolist()
    # restart: all four say their degrees, then who falls: node 2; then 0 and 2; then 2; over and over
    assert counts["kcore_restart"] == [[5, 2], [6, 2], [5, 2], [5, 2], [5, 2], [5, 2]]
    # incremental: as restart at first; then 0 and 3 say their degrees 3 and 2, and 0 falls to 2; then 1 says 1
    assert counts["kcore_hasty"] == [[5, 2], [3, 2], [1, 1], [0, 0], [0, 0], [0, 0]]
    # the same, an exchange later for each pause that follows a fall
    assert counts["kcore_incremental"] == [[5, 3], [3, 3], [1, 1], [0, 0], [0, 0], [0, 0]]
    # exact: 0 and 3 greet; 3, with a new neighbour of at least its own core, tries 2, waits two exchanges and holds
    assert counts["kcore_exact"] == [[5, 2], [3, 3], [1, 1], [0, 0], [0, 0], [0, 0]]


class Peer:
    """One node of the card, with lists and dictionaries."""

    def __init__(self):
        self.core, self.est, self.links = 0, {}, set()
        self.changed = self.paused = False

    def compute(self):
        known = [self.est[v][0] for v in self.links]
        if any(v == np.inf for v in known):
            return min(self.core, len(self.links))
        return max(h for h in range(len(known) + 1) if sum(v >= h for v in known) >= h)

    def begin(self, links, t):
        gained, lost = links - self.links, self.links - links
        self.links = links
        self.est = {v: self.est[v] if v not in gained else (np.inf, t) for v in links}
        old = self.core
        if gained:
            self.core, self.changed = len(links), True
        elif lost:
            self.core = self.compute()
            self.changed |= self.core != old

    def hear(self, heard, pausing):
        taken = False
        for v, c, t in heard:
            value, stamp = self.est[v]
            if t > stamp or (t == stamp and c < value):
                self.est[v], taken = (c, t), True
        old = self.core
        if taken:
            self.core = self.compute()
            self.changed |= self.core != old
            self.paused |= pausing and self.core < old


def by_messages(n, snapshots, pausing):
    """The paper's algorithm: cores [rounds, n], messages and exchanges of each round."""
    peers, out, counts = [Peer() for _ in range(n)], [], []
    for t, edges in enumerate(snapshots, start=1):
        links = [set() for _ in range(n)]
        for a, b in edges.tolist():
            links[a].add(b)
            links[b].add(a)
        for peer, mine in zip(peers, links, strict=True):
            peer.begin(mine, t)
        messages = waves = 0
        while any(p.changed for p in peers):
            said = {i: (p.core, t) for i, p in enumerate(peers) if p.changed and not p.paused}
            for i, p in enumerate(peers):
                p.changed, p.paused = p.changed and i not in said, False
            for i, p in enumerate(peers):
                p.hear([(v, *said[v]) for v in links[i] if v in said], pausing)
            messages, waves = messages + len(said), waves + 1
        out.append([p.core for p in peers])
        counts.append([messages, waves])
    return np.array(out), counts


def changes(churn):
    return churned(N, chung_lu(N, 7, 0.5, 5), 6, churn, 2)


@pytest.mark.parametrize("pausing", [True, False])
@pytest.mark.parametrize("churn", [0.01, 0.3])
def test_the_incremental_program_is_the_card_message_by_message(pausing, churn):
    n, snapshots = 80, changes(churn)
    got, log = cores(SYSTEMS["kcore_incremental" if pausing else "kcore_hasty"], n, snapshots, room=ROOM)
    want, counts = by_messages(n, snapshots, pausing)
    np.testing.assert_array_equal(got, want)
    assert log[["messages", "waves"]].astype(int).values.tolist() == counts


@pytest.mark.parametrize("name", SYSTEMS)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_random_graphs_that_change_at_random(name, seed):
    """Edges of eleven nodes, the others alone, full turnover: exact where it should be, never too high elsewhere."""
    rng = np.random.default_rng(seed)
    n = 11
    snapshots = []
    for _ in range(6):
        a, b = np.triu_indices(n, 1)
        keep = rng.random(a.size) < rng.choice([0.05, 0.3, 0.7])
        snapshots.append(np.stack([a[keep], b[keep]], 1))
        if rng.random() < 0.5:  # a small step from there
            more = rng.integers(0, n, (2, 2))
            snapshots.append(
                np.concatenate([snapshots[-1][rng.random(keep.sum()) < 0.9], more[more[:, 0] != more[:, 1]]])
            )
    snapshots = snapshots[:6]
    got, _ = cores(SYSTEMS[name], N, snapshots, room=ROOM)
    want = truth(N, snapshots)
    if name in EXACT:
        np.testing.assert_array_equal(got, want)
    else:
        np.testing.assert_array_equal(got[0], want[0])
        assert (got <= want).all()


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_price_of_few_and_of_many_changes(name):
    n, messages = 80, []
    for churn in (0.01, 0.2):
        snapshots = changes(churn)
        got, log = cores(SYSTEMS[name], n, snapshots, room=ROOM)
        error = got - truth(n, snapshots)
        if name in EXACT:
            assert not error.any()
        else:
            assert error.max() == 0
            assert (error != 0).mean() < 0.1
        messages.append(log["messages"].iloc[1:].mean())
    if name == "kcore_restart":
        assert min(messages) > 2 * n
    else:
        assert messages[0] < n < messages[1]


def test_two_thousand_nodes_after_every_batch():
    n = 2000
    snapshots = churned(n, chung_lu(n, 10, 0.6, 0), 3, 0.01, 1)
    got, _ = cores(SYSTEMS["kcore_restart"], n, snapshots)
    np.testing.assert_array_equal(got, truth(n, snapshots))


@pytest.mark.parametrize("name", SYSTEMS)
def test_names_and_tables_do_not_matter(name):
    n, snapshots = 80, changes(0.1)
    order = np.random.default_rng(0).permutation(n)
    plain, log = cores(SYSTEMS[name], n, snapshots, room=ROOM)
    moved, again = cores(SYSTEMS[name], n, [order[s] for s in snapshots], room=ROOM)
    np.testing.assert_array_equal(moved[:, order], plain)
    assert same(log.to_dict("list"), again.to_dict("list"))
    if name == "kcore_exact":
        table, again = cores(SYSTEMS[name], n, snapshots, tiers=False)
        np.testing.assert_array_equal(table, plain)
        assert same(log.to_dict("list"), again.to_dict("list"))


def test_a_fixed_graph_is_a_temporal_graph_too():
    g = mixing.metropolis(graph.barabasi_albert(40, 3, 0))
    algorithm = SYSTEMS["kcore_incremental"]
    result = run(algorithm, scenario((), nodes=40, topology=g), jnp.zeros(0), 2)
    core = nx.core_number(graph.to_networkx(g))
    np.testing.assert_array_equal(algorithm.read(result.state), [core[i] for i in range(40)])
    assert result.history["messages"].iloc[-1] == 0


def test_most_bounds_the_exchanges_and_what_is_left_shows():
    world = scenario((), nodes=N, topology=temporal(N, changes(0.2), room=ROOM))
    log = run(kcore_restart(most=2), world, jnp.zeros(0), 6, every=6).history.iloc[1:]
    assert log["waves"].max() == 2
    assert log["unfinished"].iloc[0] > 0
    for make in (kcore_restart, kcore_incremental, kcore_exact):
        with pytest.raises(InputError, match="most is 0"):
            make(most=0)
