"""ProWD against its equations in float64: unequal weights, a partial cohort, an absent member."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from members import WEIGHT, N, absent, changed, cohorts

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.prowd import prowd
from jaxfl.core import Links, Shards
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange import agreement, attacks, codecs, rules
from jaxfl.exchange.network import Network
from jaxfl.learn.task import from_functions
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario

B, O, LR = 3, 2, 0.1
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(4 * N, B)).astype(np.float32), RNG.normal(size=(4 * N, O)).astype(np.float32)
DATA = Shards(*(jnp.asarray(a) for a in (X, Y)), jnp.arange(4 * N), 4 * jnp.arange(N), jnp.full(N, 4), 4)
TASK = from_functions(
    lambda key: {"b": jnp.zeros(O), "w": jax.random.normal(key, (B, O))},
    lambda p, x, y: 0.5 * ((x @ p["w"] + p["b"] - y) ** 2).sum(1),
)
FIRST = TASK.init(jax.random.key(2))
KW = {"lr": LR, "steps": 2, "batch": None, "bits": (2, 32)}
D, BITS = TASK.dim, (2, 32)


def world(change=absent, **more):
    return scenario(DATA, cohort=changed(cohort.uniform(N, 4, weight=WEIGHT), change), **more)


def rounded(row, bits):
    if bits == 32:
        return row
    w, out = row[O:], row.copy()
    kept = np.abs(w) > 0.7 * np.abs(w).mean()
    out[O:] = np.abs(w[kept]).mean() * np.sign(w) * kept
    return out


def equations(rounds, take):
    """Models of many bits and of everyone after rounds over lists of members; `take(move, trusted)` of the few."""
    x = np.asarray(FIRST, np.float64)
    v = x.copy()
    for members in rounds:
        moves = {}
        for i, p, _ in members:
            bits = BITS[i % 2]
            y = x.copy() if bits == 32 else rounded(v, bits)
            a, b = (np.asarray(m[4 * i : 4 * i + 4], np.float64) for m in (X, Y))
            for _ in range(2):
                q = rounded(y, bits)
                error = (a @ q[O:].reshape(B, O) + q[:O] - b) / 4
                y = y - LR * np.concatenate([error.sum(0), (a.T @ error).ravel()])
            moves[i] = p, rounded(y, bits) - x
        many = [(p, m) for i, (p, m) in moves.items() if i % 2]
        trusted = sum(p * m for p, m in many) / sum(p for p, _ in many) if many else np.zeros(D)
        top, bottom = np.zeros(D), np.zeros(D)
        for i, (p, m) in moves.items():
            taken = np.ones(D, bool) if i % 2 else take(m, trusted)
            top, bottom = top + p * m * taken, bottom + p * taken
        v = x + sum(p * m for p, m in moves.values()) / sum(p for p, _ in moves.values())
        x = x + np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1), 0)
    return x, v


@pytest.mark.parametrize(
    ("choose", "take"),
    [
        (agreement.same_sign, lambda m, h: np.sign(m) == np.sign(h)),
        (agreement.nothing, lambda m, h: np.zeros(D, bool)),
    ],
)
def test_rounds_from_the_equations(choose, take):
    w = world()
    got = run(prowd(TASK, choose=choose, fits=0, **KW), w, FIRST, 4, every=4)
    for value, want in zip(
        (got.state.shared["x"], got.state.shared["everyone"]), equations(cohorts(w, 4), take), strict=True
    ):
        np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-5)
    low = prowd(TASK, choose=choose, fits=0, **KW).read(got.state)["low"]
    np.testing.assert_allclose(low, rounded(np.asarray(got.state.shared["everyone"], float), 2), rtol=1e-5)


def test_floats_alone_are_fedavg():
    w = world()
    ours = run(prowd(TASK, fits=0, **KW | {"bits": (32,)}), w, FIRST, 3, every=3).state.shared["x"]
    plain = run(fedavg(TASK, lr=LR, steps=2, batch=None), w, FIRST, 3, every=3).state.shared["x"]
    np.testing.assert_allclose(ours, plain, rtol=1e-6)


def test_a_round_in_which_nobody_answers_changes_no_model():
    w = world(lambda c, t: absent(c, t)._replace(weight=jnp.where(t == 2, 0.0, c.weight)))
    two, three = (run(prowd(TASK, fits=2, **KW), w, FIRST, rounds, every=1) for rounds in (2, 3))
    for name in ("x", "everyone"):
        np.testing.assert_array_equal(two.state.shared[name], three.state.shared[name])
    assert not np.array_equal(two.state.shared["phi"]["out"], three.state.shared["phi"]["out"]), "phi needs no clients"


def test_bits_and_seconds_are_those_of_each_members_width():
    links = Links(*(jnp.full(N, v) for v in (100.0, 100.0, 0.0, 0.0)))
    w = world(links=links)
    got = run(prowd(TASK, fits=0, **KW), w, FIRST, 3, every=1).history
    few, many = 2 * B * O + 32 + 32 * O, 32 * D
    each = [[many if i % 2 else few for i, *_ in members] for members in cohorts(w, 3)]
    np.testing.assert_allclose(got["up_bits"].sum(), sum(map(sum, each)), rtol=1e-6)
    np.testing.assert_allclose(got["down_bits"].sum(), sum(map(sum, each)), rtol=1e-6)
    np.testing.assert_allclose(got["seconds"].sum(), sum(2 * max(e) / 100 for e in each), rtol=1e-6)


def test_codecs_and_liars_and_what_is_refused():
    w = world(byz=jnp.arange(N) == 1)
    plain, coded, lied = (run(prowd(TASK, net, fits=0, **KW), w, FIRST, 3, every=3).state.shared["x"] for net in
                          (Network(), Network(codec=codecs.half()), Network(attack=attacks.sign_flip())))  # fmt: skip
    assert 0 < np.abs(coded - plain).max() < 0.05 < np.abs(lied - plain).max()
    with pytest.raises(InputError, match=r"net\.rule is set, but prowd brings its own rule"):
        prowd(TASK, Network(rule=rules.median()))
    for wrong, said in (({"bits": (1, 32)}, "bits is 1"), ({"fits": -1}, "fits is -1"), ({"lr": 0.0}, "lr is 0")):
        with pytest.raises(InputError, match=said):
            prowd(TASK, **wrong)
