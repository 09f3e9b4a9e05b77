"""Sub-models in the exchange, against float64 NumPy with unequal weights, a partial cohort and an absent member."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_personal import DATA, FIRST, HEAD, RATE, SIZE, START, TASK, WORK, B, H, N, O, X, Y, world

from jaxfl.algorithms import dsgd, fedamd, fedavg, feddyn, fedprox, scaffold
from jaxfl.algorithms.server.fedopt import fedopt
from jaxfl.algorithms.server.modest import modest
from jaxfl.core import Links
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange import attacks, codecs, rules
from jaxfl.exchange.network import Network
from jaxfl.learn.submodels import Sub
from jaxfl.world.graph import ring
from jaxfl.world.mixing import metropolis
from jaxfl.world.scenario import scenario

D = TASK.dim
MASKS = np.random.default_rng(1).random((4, N, D)) < 0.6
MASKS[:, :, 3] = False  # nobody trains it
IDS, WEIGHT = np.array([[0, 2, 3], [4, 1, 0], [2, 3, 4], [1, 0, 2]]), np.array([1.0, 0.0, 2.5])


def drawn(key, i, t, x):
    return Sub(jnp.asarray(MASKS)[t, i])


def sends_all(key, i, t, x):
    return Sub(jnp.asarray(MASKS)[t, i], sent=jnp.ones(D, bool))


def whole(key, i, t, x):
    return Sub(jnp.ones(D, bool))


def gradient(row, i):
    body, head = row[: B * H].reshape(B, H), row[B * H :].reshape(H, O)
    x, y = (np.asarray(a[START[i] : START[i] + SIZE[i]], np.float64) for a in (X, Y))
    error = (x @ body @ head - y) / len(x)
    return np.concatenate([(x.T @ error @ head.T).ravel(), ((x @ body).T @ error).ravel()])


def by_hand(x, rounds, send=None, fill=0.0, codec=lambda message: message):
    """Algorithm 1 of the paper in float64; `send` `[d]` is what is sent where that is more than is held."""
    x = np.asarray(x, np.float64)
    for t in range(rounds):
        total, covers = np.zeros(D), np.zeros(D)
        for i, p in zip(IDS[t], WEIGHT, strict=True):
            if p == 0:
                continue
            held = MASKS[t, i]
            y = np.where(held, x, fill)
            for _ in range(WORK["steps"]):
                y = y - RATE * np.where(held, gradient(y, i), 0)
            said = held if send is None else send
            total += p * np.where(said, codec(np.where(said, y - x, 0)), 0)
            covers += p * said
        x = x + np.where(covers > 0, total / np.where(covers > 0, covers, 1), 0)
    return x


def end(system, rounds=3, **more):
    return run(system, world(**more), FIRST, rounds, progress=False)


def test_each_number_is_the_mean_of_those_who_trained_it():
    got = end(fedavg(TASK, Network(submodel=drawn), **WORK))
    x = got.state.shared["x"]
    np.testing.assert_allclose(x, by_hand(FIRST, 3), rtol=2e-5, atol=1e-6)
    assert x[3] == FIRST[3], "what nobody trains stays as it was, to the last bit"
    assert not np.array_equal(x, FIRST)


def test_whole_models_are_fedavg_to_the_last_bit():
    for make, more in ((fedavg, {}), (fedprox, {"mu": 0.3}), (scaffold, {})):
        plain, cut = (end(make(TASK, net, **WORK, **more)) for net in (Network(), Network(submodel=whole)))
        jax.tree.map(np.testing.assert_array_equal, plain.state, cut.state)
        both = plain.history[["loss", "gradients", "up_bits", "down_bits"]], cut.history
        np.testing.assert_array_equal(both[0], both[1][list(both[0])])
        assert (cut.history["coverage_index"][1:] == 2).all()
        assert (cut.history["reduction_noise"][1:] == 0).all()


def test_what_is_not_held_may_be_filled_and_sent():
    """FedADP's identity layers: a member sends what stands in for what it does not hold."""
    fill = np.random.default_rng(2).normal(size=D).astype(np.float32)
    everything = jnp.ones(D, bool)
    policy = lambda key, i, t, x: Sub(jnp.asarray(MASKS)[t, i], sent=everything, fill=jnp.asarray(fill))
    got = end(fedavg(TASK, Network(submodel=policy), **WORK))
    np.testing.assert_allclose(got.state.shared["x"], by_hand(FIRST, 3, np.ones(D, bool), fill), rtol=2e-5, atol=1e-6)
    sent = [MASKS[t, i].sum() for t in range(3) for i in IDS[t][WEIGHT > 0]]
    assert got.history["up_bits"].sum() == 32 * sum(sent), "what stands in is known at the server"
    half = jnp.arange(D) < D // 2
    part = lambda key, i, t, x: Sub(jnp.asarray(MASKS)[t, i], sent=half & jnp.asarray(MASKS)[t, i])
    got = end(fedavg(TASK, Network(submodel=part), **WORK))
    np.testing.assert_array_equal(got.state.shared["x"][D // 2 :], FIRST[D // 2 :])
    assert got.history["up_bits"].sum() == 32 * sum(
        MASKS[t, i][: D // 2].sum() for t in range(3) for i in IDS[t][WEIGHT > 0]
    )


def test_who_counts_without_sending_holds_a_number_back():
    """In half of the numbers all members count, and those who do not hold one as unmoved."""
    half = np.arange(D) < D // 2
    policy = lambda key, i, t, x: Sub(jnp.asarray(MASKS)[t, i], counted=jnp.asarray(half))
    got, x = end(fedavg(TASK, Network(submodel=policy), **WORK)), np.asarray(FIRST, np.float64)
    for t in range(3):
        total, covers = np.zeros(D), np.zeros(D)
        for i, p in zip(IDS[t], WEIGHT, strict=True):
            held = MASKS[t, i]
            y = np.where(held, x, 0)
            for _ in range(WORK["steps"]):
                y = y - RATE * np.where(held, gradient(y, i), 0)
            total, covers = total + p * np.where(held, y - x, 0), covers + p * (held | half)
        x = x + np.where(covers > 0, total / np.where(covers > 0, covers, 1), 0)
    np.testing.assert_allclose(got.state.shared["x"], x, rtol=2e-5, atol=1e-6)
    plain = end(fedavg(TASK, Network(submodel=drawn), **WORK))
    np.testing.assert_array_equal(got.history["up_bits"], plain.history["up_bits"])


def test_costs_are_those_of_what_is_held():
    links = Links(*(jnp.full(N, v) for v in (100.0, 200.0, 0.0, 3.0)))
    got = end(fedavg(TASK, Network(submodel=drawn), **WORK), links=links)
    held = np.array([[MASKS[t, i].sum() for i in IDS[t][WEIGHT > 0]] for t in range(3)])
    log = got.history.iloc[1:]
    assert got.history["up_bits"].sum() == got.history["down_bits"].sum() == 32 * held.sum()
    each = 32 * held / 200 + WORK["steps"] * 3.0 * held / D + 32 * held / 100
    np.testing.assert_allclose(got.history["seconds"].sum(), each.max(1).sum(), rtol=1e-6)
    np.testing.assert_allclose(log["work"], (WORK["steps"] * held.sum(1) / D)[-len(log) :], rtol=1e-6)
    covered = [np.stack([MASKS[t, i] for i in IDS[t][WEIGHT > 0]]) for t in range(3)]
    assert (log["coverage_index"] == 0).all(), "column 3 is nobody's"
    x = by_hand(FIRST, 2)
    noise = np.mean([((~m) * x**2).sum() / (x**2).sum() for m in covered[2]])
    np.testing.assert_allclose(log["reduction_noise"].iloc[-1], noise, rtol=1e-4)


def test_codecs_and_attacks_see_what_is_sent():
    half = lambda a: np.asarray(jnp.float32(a).astype(jnp.bfloat16).astype(jnp.float32), np.float64)
    got = end(fedavg(TASK, Network(submodel=drawn, codec=codecs.half()), **WORK))
    np.testing.assert_allclose(got.state.shared["x"], by_hand(FIRST, 3, codec=half), rtol=1e-2, atol=1e-4)
    plain = end(fedavg(TASK, Network(submodel=drawn), **WORK))
    assert got.history["up_bits"].sum() == plain.history["up_bits"].sum() / 2
    lies = end(fedavg(TASK, Network(submodel=drawn, attack=attacks.gaussian(5.0)), **WORK), byz=jnp.arange(N) == 3)
    x = lies.state.shared["x"]
    assert x[3] == FIRST[3], "nobody hears of a number that is not the liar's"
    assert np.abs(x - plain.state.shared["x"]).max() > 0.5


def test_what_a_node_keeps_of_what_it_does_not_hold_stays():
    got = end(scaffold(TASK, Network(submodel=drawn), **WORK))
    controls, met = np.asarray(got.state.nodes), np.zeros((N, D), bool)
    for t in range(3):
        for i in IDS[t][WEIGHT > 0]:
            met[i] |= MASKS[t, i]
    assert (controls[~met] == 0).all()
    assert (controls[met] != 0).mean() > 0.9
    assert got.state.shared["x"][3] == FIRST[3]
    assert got.state.shared["c"][3] == 0


def test_sums_over_clients_stay_sums():
    """A server's control, h or anchor is the mean over all clients' rows, also where some hold only a part."""
    got = end(scaffold(TASK, Network(submodel=drawn), **WORK), 4).state
    np.testing.assert_allclose(got.shared["c"], np.asarray(got.nodes).mean(0), atol=1e-6)
    got = end(feddyn(TASK, Network(submodel=drawn), alpha=0.2, **WORK), 4).state
    np.testing.assert_allclose(got.shared["h"], np.asarray(got.nodes).mean(0), atol=1e-6)
    assert np.abs(got.shared["h"]).max() > 1e-3
    got = end(fedamd(TASK, Network(submodel=drawn), lr=RATE, p=0.5, steps=2, batch=None), 4).state
    np.testing.assert_allclose(got.shared["v"], np.asarray(got.nodes).mean(0), atol=1e-5)


def test_members_of_stale_versions_and_servers_with_memory():
    adam = fedopt(TASK, Network(submodel=drawn), local=optax.sgd(RATE), server=optax.adam(0.1), steps=2, batch=None)
    assert end(adam).state.shared["x"][3] == FIRST[3]
    keeps = fedopt(TASK, Network(submodel=drawn), local=optax.adam(RATE), steps=2, batch=None, keep_state=True)
    got = end(keeps).state
    assert got.shared["x"][3] == FIRST[3]
    assert (np.asarray(got.nodes[0].mu["head"]) != 0).any(), "what an optimizer remembers is a tree"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: fedavg(TASK, Network(submodel=0.5), **WORK), "submodel is 0.5, but must be a policy"),
        (lambda: fedavg(TASK, Network(submodel=drawn, rule=rules.median()), **WORK), "net.rule"),
        (lambda: fedavg(TASK, Network(submodel=drawn, codec=codecs.top_k(3)), **WORK), "chooses or remembers"),
        (
            lambda: fedavg(TASK, Network(submodel=drawn, codec=codecs.error_feedback(codecs.half())), **WORK),
            "chooses or",
        ),
        (lambda: fedavg(TASK, Network(submodel=drawn, personal=HEAD), **WORK), "beside net.personal"),
        (lambda: fedavg(TASK, Network(submodel=lambda key, i, t, x: x > 0), **WORK), "must give a learn.submodels.Sub"),
        (lambda: scaffold(TASK, Network(submodel=sends_all), **WORK), "leave `sent` out"),
        (lambda: modest(TASK, Network(submodel=drawn), sample=3, aggregators=1), "whole models"),
        (lambda: dsgd(TASK, Network(submodel=drawn), **WORK), "gossip has none"),
    ],
)
def test_what_does_not_go_with_parts_of_a_model_is_refused(make, said):
    here = scenario(DATA, topology=metropolis(ring(N))) if "gossip" in said else world()
    with pytest.raises(InputError, match=said):
        run(make(), here, FIRST, 1, progress=False)
