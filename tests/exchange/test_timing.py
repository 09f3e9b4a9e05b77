"""Simulated seconds, by hand: links, and rounds with a server, on a graph, by an all-reduce."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.core import Cohort, Env, Links, Log
from jaxfl.errors import InputError
from jaxfl.exchange import timing
from jaxfl.world import graph, mixing, regions
from jaxfl.world.links import links, ways

SPEED = links(
    4, up=[100.0, 50.0, 10.0, 200.0], down=[200.0, 200.0, 20.0, 100.0], latency=[0, 1, 0, 0.5], step=[1, 2, 3, 4]
)


def env_of(ids=(0, 1, 2, 3), weight=None, selected=None, speed: Links | None = SPEED, g=None, alive=None, seconds=0.0):
    weight = jnp.ones(len(ids)) if weight is None else jnp.asarray(weight, jnp.float32)
    selected = None if selected is None else jnp.asarray(selected)
    who = Cohort(jnp.asarray(ids), weight, selected=selected)
    alive = None if alive is None else jnp.asarray(alive)
    return Env(jnp.int32(0), jnp.float32(seconds), (), g, who, jnp.zeros(4, bool), alive, speed)


def test_links_are_one_number_or_one_a_node():
    got = links(3, up=[1, 2, 3], latency=0.5, step=2)
    np.testing.assert_array_equal(got.up, [1, 2, 3])
    np.testing.assert_array_equal(got.down, got.up)
    np.testing.assert_array_equal(got.latency, [0.5] * 3)
    np.testing.assert_array_equal(got.step, [2] * 3)
    free = links(2)
    assert np.isinf(free.up).all()
    assert not np.asarray(free.step).any()
    assert links(2, up=1.0, down=[2, 3]).down.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("kw", "words"),
    [
        ({"up": 0}, "up = 0: a rate above 0"),
        ({"down": [1, 2]}, "down"),
        ({"latency": -1}, "latency = -1: a finite time"),
        ({"step": math.inf}, "step = inf"),
        ({"up": math.nan}, "up = nan"),
    ],
)
def test_bad_links(kw, words):
    with pytest.raises(InputError, match=words):
        links(3, **kw)


def test_nothing_takes_no_time_and_infinite_rates_only_latency():
    got = timing.transfer(jnp.asarray([10.0, 10.0, math.inf]), jnp.float32(2), jnp.asarray([0.0, 50.0, 50.0]))
    np.testing.assert_array_equal(got, [0, 7, 2])


def test_without_links_nothing_takes_time():
    env = env_of(speed=None)
    for cost in (timing.through_server, timing.all_reduce()):
        assert set(cost(env, jnp.ones(4), 7.0, jnp.ones(4))) == {"up_bits", "down_bits"}


def test_a_server_round_lasts_as_long_as_its_slowest_member():
    # member 0: 200 / 200 + 2 + 100 / 100 = 4;  member 1: 1 + 1 + 2 * 2 + 1 + 2 = 9
    hundred = jnp.full(2, 100.0)
    out = timing.through_server(env_of(ids=(0, 1)), jnp.asarray([2, 2]), 200.0, hundred)
    assert {k: float(v) for k, v in out.items()} == {"seconds": 9, "up_bits": 200, "down_bits": 400}
    # who is absent keeps nobody waiting and sends nothing; who was asked has downloaded
    late = env_of(ids=(0, 1), weight=[1, 0], selected=[True, True])
    out = timing.through_server(late, jnp.asarray([2, 2]), 200.0, hundred)
    assert {k: float(v) for k, v in out.items()} == {"seconds": 4, "up_bits": 100, "down_bits": 400}
    own = timing.through_server(env_of(ids=(2, 3)), jnp.asarray([1, 1]), 0.0, jnp.asarray([10.0, 20]))
    assert float(own["seconds"]) == pytest.approx(max(3 + 1, 4 + 0.5 + 0.1))


def test_over_edges_all_send_and_hear_at_once():
    g = mixing.metropolis(graph.star(4))  # node 0 in the middle
    live = np.asarray(g.weight) != 0
    # 100 bits over each of 6 edges; the middle moves 300 at 100 up; leaves 100 each: node 1 in 3, node 2 in 10 seconds
    tables = [(jnp.arange(4), g, jnp.where(live, 100.0, 0))]
    assert float(timing.over_edges(env_of(), tables)) == 10
    fast = env_of(speed=SPEED._replace(up=SPEED.up.at[2].set(1e6), down=SPEED.down.at[2].set(1e6)))
    assert float(timing.over_edges(fast, tables)) == 3
    rows = [
        (jnp.array([i]), jax.tree.map(lambda a, i=i: a[i : i + 1], g), t[2][i : i + 1])
        for i in range(4)
        for t in tables
    ]
    assert float(timing.over_edges(env_of(), rows)) == 10  # row by row, as tiers are


def test_an_all_reduce_starts_with_the_slowest_and_runs_both_ways_at_once():
    # 100 bits each: node 0 in 1, node 1 in 3, node 2 in 10, node 3 in 0.5 + 1 (its way down); steps 4, 2, 3, 4
    each = jnp.full(4, 100.0)
    out = timing.all_reduce()(env_of(), jnp.asarray([4, 1, 1, 1]), 1e9, each)
    assert {k: float(v) for k, v in out.items()} == {"seconds": 4 + 10, "up_bits": 400, "down_bits": 400}
    without = timing.all_reduce()(env_of(weight=[1, 0, 0, 1]), jnp.asarray([4, 9, 9, 1]), 0.0, each)
    assert float(without["seconds"]) == 4 + 1.5
    assert float(without["up_bits"]) == 200


@pytest.mark.parametrize(("flying", "seconds"), [(0.0, 4.0), (30.0, 4.0), (100.0, 10.0)])
def test_what_is_flying_hides_behind_the_steps(flying, seconds):
    cost = timing.all_reduce(jnp.float32(flying))
    assert float(cost(env_of(), jnp.asarray([4, 1, 1, 1]), 0.0, jnp.full(4, 1e9))["seconds"]) == seconds


def test_logs_add_costs_and_refuse_what_stands_twice():
    a, b = Log(seconds=1.0, loss=2.0), Log(seconds=2.0, up_bits=3.0)
    assert a | b == {"seconds": 3.0, "loss": 2.0, "up_bits": 3.0}
    assert {"seconds": 1.0} | b == {"seconds": 3.0, "up_bits": 3.0}
    a |= {"rank": 1}
    assert (type(a), a["rank"]) == (Log, 1)
    with pytest.raises(InputError, match="loss twice"):
        a | {"loss": 1.0}
    assert jax.tree.map(lambda v: v + 1, b) == Log(seconds=3.0, up_bits=4.0)


RATE = np.array([[80.0, 20], [30, 90]])
LATENCY = np.array([[1.0, 4], [6, 2]])
REGION = np.array([0, 0, 1, 1])
FAR = regions.regions(
    4, LATENCY, RATE, assignment=REGION, server=1, access=SPEED.latency, step=SPEED.step, up=SPEED.up, down=SPEED.down
)


def by_hand(nbr, bits, speed, latency, rate, region):
    """What the docstring of `world.regions` says, in float64."""
    up, down, own = (np.asarray(v, np.float64) for v in speed[:3])
    sent, received, way = np.zeros(4), bits.sum(1), np.zeros(nbr.shape)
    for i, s in np.ndindex(*nbr.shape):
        sent[nbr[i, s]] += bits[i, s]
    for i, s in np.ndindex(*nbr.shape):
        j = nbr[i, s]
        if bits[i, s]:
            least = max(
                own[j] + sent[j] / up[j], own[i] + received[i] / down[i], bits[i, s] / rate[region[j], region[i]]
            )
            way[i, s] = latency[region[j], region[i]] + least
    return way


def test_over_regions_each_message_has_its_way():
    nbr, bits = np.array([[1, 2], [2, 1], [3, 0], [0, 1]]), np.array([[100.0, 10], [0, 0], [50, 70], [0, 30]])
    g = graph.Graph(jnp.asarray(nbr), jnp.asarray(bits, jnp.float32))
    tables, want = [(jnp.arange(4), g, g.weight)], by_hand(nbr, bits, SPEED, LATENCY, RATE, REGION)
    np.testing.assert_allclose(ways(FAR, tables)[0], want, rtol=1e-6)
    assert float(timing.over_edges(env_of(speed=FAR), tables)) == pytest.approx(want.max())
    near = regions.regions(4, np.zeros((2, 2)), assignment=REGION, access=SPEED.latency, up=SPEED.up, down=SPEED.down)
    plain = timing.over_edges(env_of(speed=SPEED), tables)
    assert float(timing.over_edges(env_of(speed=near), tables)) == float(plain)  # nothing in between is no region


def test_a_server_is_in_its_region():
    # member 0: down at 30, 6 + 4 over the regions and back, half each way
    out = timing.through_server(env_of(ids=(0,), speed=FAR), jnp.asarray([2]), 60.0, jnp.full(1, 40.0))
    assert float(out["seconds"]) == 5 + 60 / 30 + 2 * 1 + 5 + 40 / 20


def test_an_all_reduce_crosses_the_worst_way_of_each():
    each = jnp.full(2, 100.0)
    for ids, want in ((0, 1), max(1 + 1 + 100 / 50, 0 + 1 + 100 / 80)), ((0, 2), 6 + 100 / 10), ((2, 3), 0):
        out = timing.all_reduce()(env_of(ids=ids, speed=FAR), jnp.zeros(2), 0.0, each)
        want = want or max(2 + 100 / 10, 2.5 + 100 / 90)
        assert float(out["seconds"]) == pytest.approx(want)


def test_uploads_share_an_uplink():
    # nodes 0 and 1 share 60: ready at 2 and 4 with 120 bits each; up alone they would be at 100 and 50
    shared = links(4, up=[100.0, 50, 10, 200], step=[1, 2, 3, 4], group=[0, 0, 1, 1], trunk=[60.0, 1e9])
    up = jnp.asarray([120.0, 120.0])
    out = timing.through_server(env_of(ids=(0, 1), speed=shared), jnp.asarray([2, 2]), 0.0, up)
    assert float(out["seconds"]) == pytest.approx(6.4)  # the first alone at 60 is through at 4; the second then has 50
    out = timing.through_server(env_of(ids=(0, 1), speed=shared), jnp.asarray([2, 1]), 0.0, up)
    assert float(out["seconds"]) == 6  # both at 30
    absent = env_of(ids=(0, 1), weight=[1, 0], speed=shared)
    assert float(timing.through_server(absent, jnp.asarray([2, 1]), 0.0, up)["seconds"]) == 4
    g = mixing.metropolis(graph.ring(4))
    tables = [(jnp.arange(4), g, jnp.full((4, 2), 90.0))]
    # 0 -> 3 and 1 -> 2 leave the first group, 180 bits over 60; 2 moves 180 up at 10
    np.testing.assert_allclose(ways(shared, tables)[0][3, 0], 180 / 60)
    assert float(timing.over_edges(env_of(speed=shared), tables)) == 18
