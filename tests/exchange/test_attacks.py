"""Attacks against their formulas; whatever they do, what honest senders said stays as it was."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import same
from scipy.stats import norm

from jaxfl.core import Cohort, Env
from jaxfl.errors import InputError
from jaxfl.exchange import attacks, rules
from jaxfl.exchange.network import Network
from jaxfl.world import graph, mixing

RNG = np.random.default_rng(0)
C, M = 9, 5
KEY = jax.random.key(3)
ATTACKS = {
    "sign_flip": attacks.sign_flip(3.0),
    "gaussian": attacks.gaussian(2.0),
    "alie": attacks.alie(1.2),
    "alie, local": attacks.alie(1.2, local=True),
    "ipm": attacks.ipm(0.4),
    "ipm, local": attacks.ipm(0.4, local=True),
    "mimic": attacks.mimic(3),
}
each_attack = pytest.mark.parametrize("name", ATTACKS)


@functools.partial(jax.jit, static_argnames="attack")
def _heard(attack, key, memory, sent, weight, bad):
    memory, known = attack.plan(key, memory, sent, weight, bad)
    return attack.lie(key, known, jnp.zeros(sent.shape[1]), sent, weight, bad), memory


def heard(attack, sent, weight, bad, memory=None, key=KEY):
    """What a server hears, and the attack's memory."""
    sent = jnp.float32(sent)
    memory = attack.init(sent[0]) if memory is None else memory
    out, memory = _heard(attack, key, memory, sent, jnp.float32(weight), jnp.asarray(bad))
    return np.asarray(out), memory


@each_attack
def test_honest_messages_pass_and_liars_lie(name):
    sent, bad = RNG.normal(size=(C, M)).astype(np.float32), np.arange(C) % 4 == 1
    got, _ = heard(ATTACKS[name], sent, np.ones(C), bad)
    np.testing.assert_array_equal(got[~bad], sent[~bad])
    assert (np.abs(got[bad] - sent[bad]).max(1) > 0).all()
    same_for_all, _ = heard(ATTACKS[name], sent, np.ones(C), np.zeros(C, bool))
    np.testing.assert_array_equal(same_for_all, sent)


@pytest.mark.parametrize(
    ("name", "lie"),
    [
        ("sign_flip", lambda own, honest: -3 * own),
        ("alie", lambda own, honest: honest.mean(0) - 1.2 * honest.std(0)),
        ("alie, local", lambda own, honest: honest.mean(0) - 1.2 * honest.std(0)),
        ("ipm", lambda own, honest: -0.4 * honest.mean(0)),
        ("ipm, local", lambda own, honest: -0.4 * honest.mean(0)),
    ],
)
def test_lies_against_their_formula_with_absent_and_diverged_senders(name, lie):
    sent, bad, weight = RNG.normal(size=(C, M)), np.arange(C) % 4 == 1, np.ones(C)
    weight[[0, 5]] = 0  # one honest, one liar
    sent[0], sent[7] = 1e3, np.nan
    got, _ = heard(ATTACKS[name], sent, weight, bad)
    honest = sent[[i for i in range(C) if not bad[i] and i not in (0, 7)]]
    for i in np.flatnonzero(bad):
        np.testing.assert_allclose(got[i], lie(sent[i], honest), atol=1e-5)


@pytest.mark.parametrize("name", ["alie", "alie, local", "ipm", "mimic", "sign_flip"])
@pytest.mark.parametrize("size", [1e-33, 1e-25, 1e20, 1e35])
def test_lies_scale_with_the_messages_to_both_ends_of_float32(name, size):
    """Squares of 1e20 are infinite, those of 1e-23 are 0: `alie` sent NaN and the mean."""
    sent, bad = np.random.default_rng(1).normal(size=(C, M)).astype(np.float32), np.arange(C) % 4 == 1
    got, _ = heard(ATTACKS[name], sent * np.float32(size), np.ones(C), bad)
    want, _ = heard(ATTACKS[name], sent, np.ones(C), bad)
    np.testing.assert_allclose(got / np.float64(size), want, rtol=1e-5, atol=1e-5)


def test_gaussian_lies_are_gaussian_and_change_with_the_key():
    sent, bad = np.zeros((2, 4000)), np.array([False, True])
    a, _ = heard(ATTACKS["gaussian"], sent, np.ones(2), bad)
    b, _ = heard(ATTACKS["gaussian"], sent, np.ones(2), bad, key=jax.random.key(4))
    assert abs(a[1].std() - 2) < 0.1
    assert abs(a[1].mean()) < 0.15
    assert not np.array_equal(a[1], b[1])


def test_alie_z_leaves_the_liars_a_majority():
    """Of n = 25 with 11 liars: 2 supporters are needed, so 12 of 14 honest ones lie on the near side."""
    assert attacks.alie_z(25, 11) == pytest.approx(norm.ppf(12 / 14))
    assert attacks.alie_z(50, 24) == pytest.approx(norm.ppf((50 - 24 - 2) / 26))
    with pytest.raises(InputError, match="f is 13"):
        attacks.alie_z(25, 13)


def test_mimic_against_the_authors_code_in_float64():
    """`MimicVariantAttacker` of epfml/byzantine-robust-noniid-optimizer, written again, from the same first draw."""
    attack, bad = attacks.mimic(4), np.arange(C) >= 7
    rounds, memory = RNG.normal(size=(7, C, M)), None
    rounds[:, :, 2] *= 4
    v, chosen = np.asarray(jax.random.normal(KEY, (M,)), np.float64), None
    mean = np.zeros(M)
    for t, sent in enumerate(rounds):
        honest = sent[~bad]
        if t < 4:
            mean = t / (1 + t) * mean + honest.mean(0) / (1 + t)
            u = sum((g - mean) @ v * (g - mean) for g in honest)
            v = (t > 0) * t / (1 + t) * v + u / np.linalg.norm(u) / (1 + t)
            v /= np.linalg.norm(v)
            chosen = int(np.argmax(honest @ v))
        got, memory = heard(attack, sent, np.ones(C), bad, memory)
        np.testing.assert_allclose(got[bad], np.tile(sent[chosen], (2, 1)), atol=1e-5)
        np.testing.assert_allclose(memory[2], v, atol=1e-4)
    assert int(memory[0]) == 7
    absent = np.ones(C)
    absent[chosen] = 0
    got, _ = heard(attack, rounds[-1], absent, bad, memory)
    others = np.where(np.arange(C) == chosen, -np.inf, np.where(bad, -np.inf, rounds[-1] @ v))
    np.testing.assert_allclose(got[8], rounds[-1][np.argmax(others)], atol=1e-5)


def test_mimic_finds_the_worker_that_stands_apart_in_the_direction_of_largest_variance():
    attack, bad, memory = attacks.mimic(30), np.arange(C) >= 7, None
    centre = np.zeros((C, M))
    centre[:, 1] = [3, -3, 3, -3, 5, -3, -3, 0, 0]
    for _ in range(40):
        got, memory = heard(attack, centre + 0.1 * RNG.normal(size=(C, M)), np.ones(C), bad, memory)
    assert abs(float(memory[2][1])) > 0.98
    assert int(memory[3]) == (4 if float(memory[2][1]) > 0 else int(memory[3]))
    assert abs(got[7][1] - centre[int(memory[3]), 1]) < 0.5


def test_one_of_several_attacks_by_a_traced_number_keeps_its_own_memory_only():
    several = (attacks.mimic(2), attacks.honesty(), attacks.alie(1.2), attacks.sign_flip(3.0))
    sent, bad = RNG.normal(size=(C, M)), np.arange(C) >= 7

    @jax.jit
    def both(i, sent):
        attack = attacks.one_of(i, *several)
        memory, known = attack.plan(KEY, attack.init(sent[0]), sent, jnp.ones(C), jnp.asarray(bad))
        return attack.lie(KEY, known, sent[0], sent, jnp.ones(C), jnp.asarray(bad)), memory

    for i, one in enumerate(several):
        got, memory = both(float(i), jnp.float32(sent))
        np.testing.assert_allclose(got, heard(one, sent, np.ones(C), bad)[0], atol=1e-6)
        assert int(memory[0][0]) == (i == 0)
    np.testing.assert_array_equal(both(1.0, jnp.float32(sent))[0], jnp.float32(sent))


def env_of(g, byz, alive=None):
    n = g.nbr.shape[0]
    who = Cohort(jnp.arange(n), jnp.ones(n))
    return Env(jnp.int32(0), jnp.float32(0), (), g, who, jnp.asarray(byz), alive)


@pytest.mark.parametrize("local", [False, True])
def test_on_a_graph_statistics_are_of_everyone_or_of_the_neighbourhood(local):
    g = mixing.metropolis(graph.barabasi_albert(12, 2, seed=2))
    W, x, byz = mixing.matrix(g), RNG.normal(size=(12, 4)), np.arange(12) == 3
    alive = np.arange(12) != 6
    net = Network(rules.mean, attack=attacks.ipm(0.5, local=local))
    env = env_of(g, byz, jnp.asarray(alive))
    got, _, _ = jax.jit(net.gossip)(KEY, env, net.init(env, jnp.zeros(4)), jnp.float32(x))
    for i in range(12):
        near = (W[i] > 0) & ~byz if local else ~byz & alive  # W[i, i] > 0: a receiver hears itself
        told = x.copy()
        if i != 3:
            told[3] = -0.5 * x[near].mean(0)
        np.testing.assert_allclose(got[i], W[i] @ told, atol=1e-5)


@pytest.mark.filterwarnings("ignore:krum with")  # of few messages
@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if attack.alike])
def test_what_liars_say_alike_to_all_is_asked_once_and_heard_by_each(name):
    """As if every receiver asked anew, whatever the rule; liars keep their own model, a node is down, one diverged."""
    g, byz = mixing.metropolis(graph.barabasi_albert(12, 3, seed=2)), np.arange(12) % 5 == 3
    x = RNG.normal(size=(12, 4)).astype("f")
    x[7, 2] = np.nan
    env = env_of(g, byz, jnp.asarray(np.arange(12) != 6))
    for rule in (rules.mean, rules.median(), rules.krum(1), rules.centered_clipping(1.0)):
        once, anew = (Network(rule, attack=ATTACKS[name]._replace(alike=alike)) for alike in (True, False))
        (got, mail, _), (want, other, _) = (
            jax.jit(net.gossip)(KEY, env, net.init(env, x[0]), x) for net in (once, anew)
        )
        np.testing.assert_allclose(got, want, atol=1e-6)
        assert same(mail, other)


def test_who_says_something_else_to_each_is_asked_by_each():
    assert [name for name, attack in ATTACKS.items() if not attack.alike] == ["gaussian", "alie, local", "ipm, local"]
    assert not attacks.one_of(0, attacks.sign_flip(), attacks.gaussian()).alike
    assert attacks.one_of(0, attacks.sign_flip(), attacks.honesty()).alike


@pytest.mark.filterwarnings("ignore:krum with")  # of three messages
def test_a_liar_that_sends_nothing_finite_is_not_heard_and_a_dead_link_tells_nothing():
    g = mixing.metropolis(graph.ring(8))
    cut = g.weight.at[5, :].set(0.0)
    g = type(g)(g.nbr, cut, g.rev)
    x, byz = jnp.float32(RNG.normal(size=(8, 4))), np.arange(8) == 4
    nothing = attacks.attack(lambda key, known, own, heard, weight, bad: jnp.where(bad[:, None], jnp.nan, heard))
    for rule in (rules.median(), rules.krum(1), rules.geometric_median(), rules.centered_clipping(1.0)):
        env = env_of(g, byz)
        net = Network(rule, attack=nothing)
        got, _, _ = jax.jit(net.gossip)(KEY, env, net.init(env, x[0]), x)
        assert np.isfinite(got).all()
    net = Network(rules.mean, attack=nothing)
    got, _, _ = jax.jit(net.gossip)(KEY, env, net.init(env, x[0]), x)
    assert np.isfinite(got).all(1).tolist() == [True, True, True, False, True, True, True, True]


def test_the_memory_of_colluders_lives_in_the_mail():
    net = Network(rules.median(), attack=attacks.mimic(2))
    env = env_of(graph.ring(6), np.arange(6) < 2)
    x = jnp.float32(RNG.normal(size=(6, 3)))
    mail = net.init(env, x[0])
    _, after, _ = jax.jit(net.aggregate)(KEY, env, mail, x)
    assert int(after.shared[0][0]) == 1
    _, last, _ = jax.jit(net.aggregate)(KEY, env, after, x)
    assert int(last.shared[0][0]) == 2
    assert not same(after.shared, mail.shared)
