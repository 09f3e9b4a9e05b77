"""Personal parts, against float64 NumPy with unequal weights, a partial cohort and an absent member."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxfl.algorithms import dsgd, fedavg, fedbuff, scaffold
from jaxfl.algorithms.server.diloco import all_reduce
from jaxfl.algorithms.server.fedopt import fedopt
from jaxfl.algorithms.server.modest import modest
from jaxfl.algorithms.server.robust_sgd import robust_sgd
from jaxfl.core import Cohort, Env, Process, Shards
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange import attacks, codecs, rules
from jaxfl.exchange.network import Network
from jaxfl.learn.hooks import part_first
from jaxfl.learn.layers import Part, layers, part, statistics
from jaxfl.learn.task import from_functions, logistic_regression
from jaxfl.measure.metrics import Metric, shared_test
from jaxfl.world.graph import ring
from jaxfl.world.mixing import metropolis
from jaxfl.world.scenario import scenario

N, B, H, O = 5, 3, 4, 2  # nodes, inputs, hidden, outputs
RATE = 0.1
RNG = np.random.default_rng(0)
SIZE = np.array([2, 3, 4, 2, 5])
X, Y = RNG.normal(size=(16, B)).astype(np.float32), RNG.normal(size=(16, O)).astype(np.float32)
START = np.cumsum(SIZE) - SIZE
INDEX = (jnp.asarray(a, jnp.int32) for a in (np.arange(16), START, SIZE))
DATA = Shards(jnp.asarray(X), jnp.asarray(Y), *INDEX, 5)
LABELS = jnp.asarray(Y[:, 0] > 0, jnp.int32)
WORK = {"lr": RATE, "steps": 2, "batch": None}


def two_layers():
    """`y = (x body) head`, half the squared error: a body and a head without biases."""
    predict = lambda p, x: x @ p["body"] @ p["head"]
    loss = lambda p, x, y: 0.5 * ((predict(p, x) - y) ** 2).sum(1)
    draw = lambda key: {"body": jax.random.normal(key, (B, H)), "head": jax.random.normal(key, (H, O))}
    return from_functions(draw, loss, predict)


TASK = two_layers()
HEAD = part(TASK, "head")
FIRST = TASK.init(jax.random.key(3))


def asked(t):
    """Three of five in round `t`, the second of them absent, with unequal weights."""
    ids = jnp.array([[0, 2, 3], [4, 1, 0], [2, 3, 4], [1, 0, 2]], jnp.int32)[t]
    return Cohort(ids, jnp.array([1.0, 0.0, 2.5]))


def world(**more):
    who = Process(lambda key, arrays: (), lambda key, arrays, s, t: (s, asked(t)))
    return scenario(DATA, cohort=who, **more)


def by_hand(x0, rounds, steps, head_steps=None):
    """FedPer, or FedRep with `head_steps`, in float64: the server's body and the heads of all nodes."""
    body, first = (np.asarray(a, np.float64) for a in (x0["body"], x0["head"]))
    heads = np.tile(first, (N, 1, 1))
    ids, weight = np.array([[0, 2, 3], [4, 1, 0], [2, 3, 4], [1, 0, 2]]), np.array([1.0, 0.0, 2.5])
    for t in range(rounds):
        move = np.zeros_like(body)
        for i, p in zip(ids[t], weight / weight.sum(), strict=True):
            if p == 0:
                continue
            x, y = (np.asarray(a[START[i] : START[i] + SIZE[i]], np.float64) for a in (X, Y))
            b, h = body.copy(), heads[i].copy()
            for k in range(steps):
                error = (x @ b @ h - y) / len(x)
                gb, gh = x.T @ error @ h.T, (x @ b).T @ error
                if head_steps is None or k >= head_steps:
                    b -= RATE * gb
                if head_steps is None or k < head_steps:
                    h -= RATE * gh
            move, heads[i] = move + p * (b - body), h
        body = body + move
    return body, heads


def rows_of(result):
    """Every node's own model, as the engine hands it to a metric."""
    return result.nodes["body"][0, -1], result.nodes["head"][0, -1]


def models(arrays, rows):
    each = jax.vmap(TASK.unravel)(rows)
    return {name: a.reshape(N, -1).sum(1) for name, a in each.items()}


@pytest.mark.parametrize("head_steps", [None, 2])
@pytest.mark.parametrize("slots", [{}, {"rule": lambda own, heard, w: w @ heard, "codec": codecs.quantize(24)}])
def test_fedper_and_fedrep_equal_numpy(head_steps, slots):
    local = optax.sgd(RATE) if head_steps is None else optax.chain(optax.sgd(RATE), part_first(TASK, HEAD, head_steps))
    system = fedopt(TASK, Network(personal=HEAD, **slots), local=local, steps=4, batch=None)
    result = run(system, world(), FIRST, 4, every=4, evaluate=Metric(models), progress=False)
    x0 = TASK.unravel(FIRST)
    body, heads = by_hand(x0, 4, 4, head_steps)
    own = result.state.mail.nodes[-1]
    got = TASK.unravel(result.state.shared["x"])
    close = {"rtol": 2e-4, "atol": 2e-5}
    np.testing.assert_allclose(got["body"], body, **close)
    np.testing.assert_array_equal(got["head"], x0["head"])  # the server never hears of a head
    np.testing.assert_allclose(own.columns.reshape(N, H, O), heads, **close)
    np.testing.assert_allclose(result.nodes["head"][0, -1], heads.reshape(N, -1).sum(1), rtol=1e-3, atol=1e-4)
    if not slots:
        members = 2  # present; the absent one is handed the model and sends nothing
        np.testing.assert_array_equal(result.history["up_bits"].dropna(), 32 * B * H * members)


def test_where_all_is_personal_nothing_crosses():
    result = run(fedavg(TASK, Network(personal=part(TASK, "*")), **WORK), world(), FIRST, 3, progress=False)
    assert result.history[["up_bits", "down_bits"]].fillna(0).to_numpy().sum() == 0
    np.testing.assert_array_equal(result.state.shared["x"], FIRST)


@pytest.mark.parametrize("make", [scaffold, fedbuff])
def test_what_is_personal_never_moves_at_the_server(make):
    result = run(make(TASK, Network(personal=HEAD), **WORK), world(), FIRST, 4, progress=False)
    first = TASK.unravel(FIRST)
    got = TASK.unravel(result.state.shared["x"])
    np.testing.assert_array_equal(got["head"], first["head"])
    assert np.abs(np.asarray(got["body"] - first["body"])).max() > 1e-3
    if "c" in result.state.shared:
        np.testing.assert_array_equal(TASK.unravel(result.state.shared["c"])["head"], 0)
        np.testing.assert_array_equal(result.state.nodes[:, HEAD.columns], 0)
        plain = run(make(TASK, **WORK), world(), FIRST, 4, progress=False)
        share = result.history[["up_bits", "down_bits"]].sum() / plain.history[["up_bits", "down_bits"]].sum()
        np.testing.assert_allclose(share, B * H / TASK.dim)


def test_gossip_counts_what_is_sent():
    graph = metropolis(ring(N))
    here = scenario(DATA, topology=graph)
    personal = run(dsgd(TASK, Network(personal=HEAD), **WORK), here, FIRST, 3, progress=False)
    plain = run(dsgd(TASK, **WORK), here, FIRST, 3, progress=False)
    bits = personal.history["up_bits"].dropna() / plain.history["up_bits"].dropna()
    np.testing.assert_allclose(bits, B * H / TASK.dim)


def test_one_round_of_gossip_mixes_what_is_sent_and_nothing_else():
    graph, half = metropolis(ring(N)), Part(4, ((1, 3),))
    env = Env(jnp.int32(0), jnp.float32(0), (), graph, None, jnp.zeros(N, bool))  # type: ignore[arg-type]
    x = RNG.normal(size=(N, 8)).astype(np.float32)  # two vectors of 4
    net = Network(personal=half)
    got, _, log = net.gossip(jax.random.key(0), env, net.init(env, jnp.zeros(8)), jnp.asarray(x))
    w = np.zeros((N, N))
    for i in range(N):
        w[i, np.asarray(graph.nbr)[i]] += np.asarray(graph.weight)[i]
        w[i, i] += 1 - np.asarray(graph.weight)[i].sum()
    want = w @ x
    want[:, [1, 2, 5, 6]] = x[:, [1, 2, 5, 6]]
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert log["up_bits"] == 2 * N * 32 * 4


def test_an_answer_is_every_nodes_own_model():
    task = logistic_regression(B, O)
    system = fedavg(task, Network(personal=part(task, "bias")))
    here = scenario(dataclasses.replace(DATA, y=LABELS))
    result = run(system, here, task.init, 2, evaluate=shared_test(task, jnp.asarray(X), LABELS), progress=False)
    assert result.history["consensus"].iloc[-1] > 0  # a server's one model would have none


def test_parts_name_layers():
    found = {a.path: (a.start, a.stop) for a in layers(TASK)}
    assert HEAD.spans == (found["head"],)
    assert part(TASK, "*").spans == ((0, TASK.dim),)
    assert part(TASK, "b*", "head").spans == ((0, TASK.dim),)
    assert HEAD.mask.sum() == len(HEAD.columns) == H * O
    assert statistics(TASK) is None
    with pytest.raises(InputError, match="tail matches no part of the model, its parts are body, head"):
        part(TASK, "tail")
    with pytest.raises(InputError, match="matches no part"):
        part(TASK)


def refused(system):
    return lambda: run(system, world(), FIRST, 2, progress=False)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Network(personal="head").check(), "personal is 'head', but must be a Part"),  # type: ignore[arg-type]
        (refused(fedavg(TASK, Network(personal=Part(99, ((0, 1),))))), "row of 99, but"),
        (refused(modest(TASK, Network(personal=HEAD), sample=3, aggregators=1)), "whole models"),
        (lambda: all_reduce(TASK, Network(personal=HEAD)), "sends gradients"),
        (refused(robust_sgd(TASK, Network(personal=HEAD))), "sends gradients"),
    ],
)
def test_a_system_that_cannot_keep_a_part_says_so(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_liars_do_not_reach_what_is_personal():
    net = Network(personal=HEAD, rule=rules.median(), attack=attacks.sign_flip())
    result = run(fedavg(TASK, net, lr=RATE, steps=1, batch=None), world(byz=2), FIRST, 3, progress=False)
    assert np.isfinite(np.asarray(result.state.shared["x"])).all()
