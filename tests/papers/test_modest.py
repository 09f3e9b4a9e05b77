"""MoDeST: its special cases, the views, crashes, joins and leaves, bytes by node and seconds, checked by hand."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from common import digits_world, quadratics, rounds
from pinging import pinged
from scipy.stats import chi2

from jaxfl.algorithms.server.fedopt import fedopt
from jaxfl.algorithms.server.modest import VIEW_BITS, modest
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange import codecs
from jaxfl.exchange.membership import first_alive, public_hash
from jaxfl.exchange.network import Network
from jaxfl.learn.task import logistic_regression
from jaxfl.world import churn
from jaxfl.world.links import links
from jaxfl.world.scenario import scenario

ONE = {"lr": 0.05, "steps": 2, "batch": 1}
MESSAGE = 32 * 3 + VIEW_BITS * 8  # a model of three numbers and a view of eight members


def small():
    """Tiny instances: one shared view, and private ones with a codec that remembers, under sessions and links."""
    task, world = digits_world(n=16, churn=churn.sessions(16, 6.0, 3.0), links=links(16, up=1e6, latency=0.1, step=0.2))
    kw = {"lr": 0.12, "steps": 2, "batch": 8, "sample": 3, "announced": 0.5}
    net = Network(codec=codecs.half())
    return {
        "modest": (modest(task, **kw), world, task.init, 6),
        "modest private": (modest(task, net, private=True, aggregators=2, **kw), world, task.init, 6),
    }


Q, TASK, DATA = quadratics(n=8, d=3)


def script(n, **pairs):
    """`churn.events` with room for three sessions a node: all scripts share a program."""
    first, last = (np.asarray(a) for a in churn.events(n, **pairs).arrays)
    more = ((0, 0), (0, 3 - first.shape[1]))
    return churn.intervals(np.pad(first, more), np.pad(last, more))


def restless(n, seed=0):
    """Up, down, up, down, up at random."""
    ends = np.sort(np.random.default_rng(seed).integers(1, 40, (n, 4)), 1)
    return churn.intervals(np.c_[np.zeros(n, int), ends[:, [1, 3]]], np.c_[ends[:, [0, 2]], np.full(n, 99)])


@functools.cache
def system(**kw):
    """One object, hence one compilation, for all tests with these arguments; `announced` is traced unless given."""
    return functools.partial(modest, TASK, **ONE | kw)


def quadratic_run(rounds, *, up=None, carry=None, announced=1.0, liveness=True, data=DATA, world=None, **kw):
    n = data.size.shape[0]
    here = scenario(data, churn=script(n) if up is None else up, **world or {})
    hyper = {"announced": announced, "liveness": liveness}
    return run(system(**kw), here, jnp.ones(3), rounds, every=1, carry=carry, hyper=hyper)


def locally(i, x):
    """Two steps of node `i` in float64."""
    for _ in range(2):
        x = x - 0.05 * Q.A[i].astype(np.float64) @ (x - Q.b[i])
    return x


def model(result):
    held = result.state.shared["held"]
    return np.asarray(held.models[int(np.argmax(held.on))])


def trained(result):
    work = result.state.shared["work"]
    return np.asarray(work.ids)[np.asarray(work.on)]


def column(result, name):
    return result.history[name][result.history["seconds"].notna()].to_numpy()  # no row of the start


EVERYBODY = {"sample": 8, "epochs": 2, "momentum": 0.5}


def test_everybody_sampled_is_fedavg_with_equal_weights():
    ours = quadratic_run(4, **EVERYBODY)
    local = optax.sgd(0.05, 0.5)
    theirs = run(fedopt(TASK, local=local, epochs=2, batch=1), scenario(DATA), jnp.ones(3), 4, every=1)
    np.testing.assert_allclose(model(ours), theirs.state.shared["x"], atol=1e-6)
    np.testing.assert_allclose(column(ours, "loss"), column(theirs, "loss"), rtol=1e-5)
    np.testing.assert_array_equal(column(ours, "gradients"), column(theirs, "gradients"))


def test_a_join_is_parked_for_a_round_and_a_leave_is_not():
    up = script(8, joins=[(3, 7)], leaves=[(6, [0])])
    result = quadratic_run(9, up=up, **EVERYBODY)
    assert column(result, "participants").tolist() == [7, 7, 7, 7, 8, 8, 7, 7, 7]


def test_a_round_trains_the_sample_and_takes_the_plain_mean():
    before = quadratic_run(3, sample=4)
    after = quadratic_run(4, sample=4, carry=before.carry)
    assert len(trained(after)) == 4
    want = np.mean([locally(i, model(before).astype(np.float64)) for i in trained(after)], 0)
    np.testing.assert_allclose(model(after), want, atol=1e-6)


def test_messages_of_a_round_with_everybody_up():
    """The aggregator is the first of the sample it looks for: it sends s - 1, and hears s, or s - 1 with its own."""
    result = quadratic_run(60, sample=4)
    count = column(result, "up_bits") / MESSAGE
    assert set(count) == {6.0, 7.0}
    assert count.mean() == pytest.approx(7 - 4 / 8, abs=0.2)
    np.testing.assert_array_equal(column(result, "pings"), np.full(60, 4 + 4))


def test_participants_hand_over_again_when_the_aggregator_crashes():
    before = quadratic_run(2, sample=4, announced=0.0)
    held, work = before.state.shared["held"], before.state.shared["work"]
    holder, sender = int(held.ids[0]), int(trained(before)[1])
    down = sorted({holder, sender})
    after = quadratic_run(3, sample=4, up=script(8, leaves=[(2, down)]), announced=0.0, carry=before.carry)
    rest = [k for k, i in enumerate(np.asarray(work.ids)) if i not in down]
    x = np.asarray(work.rows, np.float64)[rest].mean(0)
    want = np.mean([locally(i, x) for i in trained(after)], 0)
    np.testing.assert_allclose(model(after), want, atol=1e-6)
    assert column(after, "resent").tolist() == [1]
    assert column(after, "participants").tolist() == [4]
    more = column(after, "up_bits")[0] / MESSAGE - len(rest)  # a round has 6 or 7; the new one may be of the rest
    assert 5 <= more <= 7


def test_training_stops_while_nobody_who_is_up_has_the_model():
    before = quadratic_run(2, sample=4)
    held = before.state.shared["held"]
    down = sorted({int(held.ids[0]), *trained(before).tolist()})
    up = script(8, leaves=[(2, down)], joins=[(5, down)])
    still = quadratic_run(5, sample=4, up=up, carry=before.carry)
    np.testing.assert_array_equal(model(still), model(before))
    assert column(still, "participants").tolist() == [0, 0, 0]
    assert column(still, "up_bits").tolist() == [0, 0, 0]
    on = quadratic_run(7, sample=4, up=up, carry=still.carry)
    assert (model(on) != model(still)).any()
    assert column(on, "participants")[-1:].tolist() == [4]


SHARED: dict[str, Any] = {"sample": 3, "aggregators": 2, "window": 99}
PRIVATE: dict[str, Any] = {**SHARED, "private": True, "room": 1}


def test_private_views_that_agree_are_the_shared_view_bit_for_bit():
    """Nobody comes or goes; every window is open."""
    shared, own = (quadratic_run(6, **kw) for kw in (SHARED, PRIVATE))
    np.testing.assert_array_equal(model(own), model(shared))
    for name in ("participants", "pings", "up_bits", "loss"):
        np.testing.assert_array_equal(column(own, name), column(shared, name))
    np.testing.assert_array_equal(own.nodes["sent_bits"], shared.nodes["sent_bits"])
    assert column(own, "overflow").sum() == 0
    np.testing.assert_array_equal(trained(own), trained(shared))


@pytest.mark.parametrize("private", [False, True])
def test_bytes_by_node_sum_to_the_total_and_what_is_sent_is_received(private):
    """Also: aggregators that disagree take more than s participants, but never overrun their slots."""
    n = 24 if private else 8
    kw = {"sample": 1, "aggregators": 2, "private": True, "room": 2, "window": 8} if private else SHARED
    up = restless(n)
    result = quadratic_run(40, data=quadratics(n=n, d=3)[2], up=up, announced=0.5, **kw)
    sent, received = (result.nodes[name][0] for name in ("sent_bits", "received_bits"))  # [rounds, n]
    np.testing.assert_array_equal(sent.sum(1), column(result, "up_bits"))
    np.testing.assert_array_equal(received.sum(1), column(result, "down_bits"))
    np.testing.assert_array_equal(sent.sum(1), received.sum(1))
    assert (sent % (32 * 3 + VIEW_BITS * n) == 0).all()
    down = ~np.asarray(rounds(up, 40))
    assert (sent[down] == 0).all()
    assert (received[down] == 0).all()
    assert down.sum() > 40
    assert sent.sum() > 0
    assert column(result, "participants").max() == (2 if private else 3)
    if private:
        assert (column(result, "overflow") >= 0).all()


def test_all_are_sampled_equally_often():
    """Chi-square of 1,000 rounds of draws without replacement."""
    n, s, count = 100, 10, 1000
    everyone = jnp.ones(n, bool)
    draw = jax.vmap(lambda t: first_alive(public_hash(jnp.uint32(0), t, n), everyone, everyone, s).ids)
    often, expected = np.bincount(np.asarray(jax.jit(draw)(jnp.arange(count))).ravel(), minlength=n), count * s / n
    statistic = ((often - expected) ** 2 / expected).sum() * (n - 1) / (n - s)
    assert chi2.sf(statistic, n - 1) > 0.01


N, S, AT = 40, 4, 10
BIG = quadratics(n=N, d=3)[2]


def test_after_a_crash_exactly_s_train_and_without_pings_fewer():
    first, last = (np.asarray(a) for a in churn.crash(N, 0.8, AT, seed=1).arrays)
    up = churn.intervals(np.pad(first, ((0, 0), (0, 2))), np.pad(last, ((0, 0), (0, 2))))
    live, blind = (
        quadratic_run(60, data=BIG, sample=S, up=up, announced=0.0, **kw) for kw in ({}, {"liveness": False})
    )
    assert (column(live, "participants") == S).all()
    position = (N + 1) / (0.2 * N + 1)  # expected place of the first of 8 among 40; that of the s-th is s times as far
    assert column(live, "pings")[AT + 1 :].mean() == pytest.approx(2 * S * position, rel=0.15)
    few = column(blind, "participants")
    assert (few[:AT] == S).all()
    assert few[AT:].mean() == pytest.approx(0.2 * S, abs=0.4)
    assert (few[AT:] == 0).any()
    assert np.isnan(column(blind, "loss")[few == 0]).all()


def test_leaves_are_heeded_at_once_and_crashes_after_the_window():
    """Without silent members a round takes 2 s pings; the window is 10 n / s = 100 rounds."""
    up = script(N, leaves=[(AT, np.arange(32))])
    go = lambda announced, rounds: column(
        quadratic_run(rounds, data=BIG, sample=S, up=up, announced=announced), "pings"
    )
    told, mute = go(1.0, 30), go(0.0, AT + 130)
    assert (told[AT + 1 :] == 2 * S).all()
    assert mute[AT : AT + 50].mean() > 6 * S
    assert (mute[AT + 101 :] == 2 * S).all()


def test_who_announces_may_depend_on_the_node_and_the_round():
    up = script(8, leaves=[(1, [0, 1, 2]), (2, [3, 4])])
    announced = lambda t: jnp.where((t == 1) & (jnp.arange(8) < 2), 1.0, 0.0)
    algorithm = modest(TASK, sample=4, announced=announced, **ONE)
    views = run(algorithm, scenario(DATA, churn=up), jnp.ones(3), 3).state.nodes
    assert views.stamp[0].tolist() == [3, 3, 0, 0, 0, 0, 0, 0]


def test_a_codec_is_counted_and_heard():
    net = Network(codec=codecs.half())
    algorithm = modest(TASK, net, sample=8, aggregators=2, **ONE)
    result = run(algorithm, scenario(DATA), jnp.ones(3), 1)
    up, down = 16 * 3 + VIEW_BITS * 8, 32 * 3 + VIEW_BITS * 8
    assert column(result, "up_bits")[0] == 2 * 7 * (up + down)
    coded = [np.asarray(jnp.float32(locally(i, np.ones(3))).astype(jnp.bfloat16), np.float64) for i in range(8)]
    np.testing.assert_allclose(model(result), np.mean(coded, 0), atol=1e-6)


TIMED = {"sample": 8, "success": 0.7, "ping_timeout": 7.0, "aggregation_timeout": 100.0}


def test_an_aggregator_goes_on_with_the_fastest():
    """Links of unequal speed: the mean is over the floor(sf s) members that finish first."""
    speed = np.array([9.0, 2, 7, 1, 5, 3, 8, 4])
    world = {"links": links(8, up=1e6, step=speed), "round_seconds": 0.25}
    result = quadratic_run(1, world=world, **TIMED)
    early = np.argsort(speed)[:5]
    np.testing.assert_allclose(model(result), np.mean([locally(i, np.ones(3)) for i in early], 0), atol=1e-6)
    message, heard = MESSAGE / 1e6, float(result.nodes["received_bits"].max()) / 1e6
    # out to seven others, two steps of the fifth, its upload, and what the aggregator receives
    assert column(result, "seconds")[0] == pytest.approx(0.25 + 7 * message + 2 * 5 + message + heard, rel=1e-4)


def test_seconds_of_a_round_with_silent_nodes():
    """All but the aggregator crash: it asks the seven others in vain, and waits for those it misses."""
    world = {"links": links(8, up=1e3, latency=0.5, step=1.5), "round_seconds": 0.25}
    kw = {"announced": 0.0, "world": world} | TIMED
    before = quadratic_run(1, **kw)
    holder = int(before.state.shared["held"].ids[0])
    rest = [i for i in range(8) if i != holder]
    after = quadratic_run(2, up=script(8, leaves=[(1, rest)]), carry=before.carry, **kw)
    hash = lambda t: np.asarray(public_hash(before.state.shared["salt"], jnp.int32(t), 8))
    alone, known = np.arange(8) == holder, np.ones(8, bool)
    waits = pinged(hash(1), known, alone, 8)[2] + pinged(hash(2), known, alone, 1)[2]
    assert column(after, "participants").tolist() == [1]
    assert column(after, "up_bits").tolist() == [0]
    upload = 0.5 + MESSAGE / 1e3  # though to itself
    assert column(after, "seconds")[0] == pytest.approx(0.25 + 7 * waits + 2 * 1.5 + upload + 100, rel=1e-5)


@pytest.mark.parametrize(
    ("kw", "says"),
    [
        ({"sample": 0}, "sample is 0"),
        ({"aggregators": 0}, "aggregators is 0"),
        ({"room": 0}, "room is 0"),
        ({"window": 0}, "window is 0"),
        ({"lr": 0.0}, "lr is 0"),
        ({"momentum": 1.0}, "momentum is 1"),
        ({"success": 0.0}, "success is 0"),
        ({"announced": 1.5}, "announced is 1.5"),
        ({"ping_timeout": 0.0}, "ping_timeout is 0"),
        ({"aggregation_timeout": -1.0}, "aggregation_timeout is -1"),
    ],
)
def test_bad_input_gets_a_sentence(kw, says):
    with pytest.raises(InputError, match=says):
        modest(logistic_regression(2, 2), **kw)


def test_a_sample_larger_than_the_world_is_refused():
    with pytest.raises(InputError, match="sample is 9 and aggregators 1, but the world has 8 nodes"):
        quadratic_run(1, sample=9)
