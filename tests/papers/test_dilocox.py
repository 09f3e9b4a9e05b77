"""DiLoCoX and CocktailSGD: what they become when a part is switched off, their pace, and what they cost."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from common import one_sample_each, quadratics
from members import WEIGHT, N, absent, changed, cohorts

from jaxfl.algorithms.server.diloco import all_reduce, diloco
from jaxfl.algorithms.server.dilocox import adaptive, cocktail_sgd, dilocox, gentle
from jaxfl.engine.rollout import rollout
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange.codecs import error_feedback, top_k
from jaxfl.exchange.network import Network
from jaxfl.learn import task as tasks
from jaxfl.world import cohort
from jaxfl.world.links import links
from jaxfl.world.scenario import scenario

SIDE = 32


def matrices(n=8, side=SIDE):
    """Node `i` pulls a matrix to its own centre."""
    loss = lambda p, x, y: 0.5 * ((p - y) ** 2).sum((1, 2))
    t = tasks.from_functions(lambda key: jnp.ones((side, side)), loss)
    centres = np.random.default_rng(0).normal(size=(n, side, side)).astype(np.float32)
    return t, one_sample_each(np.zeros((n, 1), np.float32), centres)


def integers(x):
    """Four bits and a scale."""
    scale = np.abs(x).max() / 7
    return np.round(x / scale) * scale


def test_rounds_from_the_papers_equations_in_float64():
    """Unequal weights, four of six, one of them absent: rank 1 in four bits, memories, a delay of one, Nesterov."""
    a, b, count = 5, 4, 4
    centres = np.random.default_rng(0).normal(size=(N, a, b))
    t = tasks.from_functions(lambda key: jnp.ones((a, b)), lambda p, x, y: 0.5 * ((p - y) ** 2).sum((1, 2)))
    data = one_sample_each(np.zeros((N, 1), np.float32), centres.astype(np.float32))
    w = scenario(data, cohort=changed(cohort.uniform(N, 4, weight=WEIGHT), absent))
    system = dilocox(t, rank=1, window=None, local=optax.sgd(0.2), steps=2, batch=1)
    state = run(system, w, t.init, count, every=1).state
    basis = np.asarray(jax.random.normal(jax.random.split(jax.random.key(0), 1)[0], (1, b, 1)), float)[0, :, 0]
    x, e, m, line = np.ones((a, b)), np.zeros((N, a, b)), np.zeros((a, b)), [np.zeros((a, b))]
    for members in cohorts(w, count):
        total = sum(p for _, p, _ in members)
        whole = {i: (x - centres[i]) * (1 - 0.8**2) + e[i] for i, _, _ in members}
        left = sum(p / total * integers(whole[i] @ (basis / np.linalg.norm(basis))) for i, p, _ in members)
        left /= np.linalg.norm(left)
        right = {i: integers(d.T @ left) for i, d in whole.items()}
        basis = sum(p / total * right[i] for i, p, _ in members)
        for i, d in whole.items():
            e[i] = d - np.outer(left, right[i])
        late = line[-1]
        line.append(np.outer(left, basis))
        if len(line) > 2:
            m = 0.6 * m + late
            x = x - 0.3 * (late + 0.6 * m)
    np.testing.assert_allclose(state.shared["x"], x.ravel(), atol=1e-5)
    np.testing.assert_allclose(state.shared["outer"][0].trace, m.ravel(), atol=1e-5)
    np.testing.assert_allclose(state.shared["flying"].delta[0], line[-1].ravel(), atol=1e-5)
    memory = [leaf for leaf in jax.tree.leaves(state.mail) if leaf.shape == (N, x.size)]
    np.testing.assert_allclose(memory[0], e.reshape(N, -1), atol=1e-5)


def test_a_delay_needs_a_gentler_outer_step():
    """With DiLoCo's own rate 0.7 and momentum 0.9 the delayed system diverges, DiLoCo does not."""
    _, t, data = quadratics(n=4, d=3)
    go = lambda delay: run(
        diloco(t, local=optax.sgd(0.2), steps=20, batch=1, delay=delay), scenario(data), jnp.ones(3), 40
    )
    now, late = (float(jnp.abs(go(delay).state.shared["x"]).max()) for delay in (0, 1))
    assert now < 10
    assert not late < 100


def traced(algorithm, data, d):
    """What a round computes, as text: equal for two systems that are the same."""
    program = jax.make_jaxpr(lambda x: rollout(algorithm, scenario(data), x, 1))(jnp.ones(d))
    return re.sub("0x[0-9a-f]+", "", str(program))


def test_without_compression_it_is_diloco():
    t, data = matrices(side=4)
    sgd = dict[str, Any](local=optax.sgd(0.1), steps=3, batch=1)
    plain: dict[str, Any] = {"rank": 4, "bits": None, "window": None, "server": optax.sgd(0.5)}
    arms = diloco(t, server=optax.sgd(0.5), delay=1, **sgd), dilocox(t, delay=1, **plain, **sgd)
    a, b = (run(f, scenario(data), jnp.ones(16), 4, every=2).state.shared["x"] for f in arms)
    np.testing.assert_allclose(b, a, atol=2e-6)
    assert traced(dilocox(t, **sgd), data, 16) == traced(dilocox(t, server=gentle(), delay=1, **sgd), data, 16)


def test_bits_and_seconds_of_the_card():
    """Rank 8 in four bits is a 16th of a dense 32 x 32 matrix, and 20 steps of AllReduce are 320 times as many bits."""
    t, data = matrices()
    world = scenario(data, links=links(8, up=32 * SIDE**2 / 100, step=1.0), round_seconds=0.0)
    sgd: dict[str, Any] = {"local": optax.sgd(0.05), "steps": 20, "batch": 1}
    whole: dict[str, Any] = {"rank": 8, "window": None, **sgd}
    arms = {
        "every": (all_reduce(t, optimizer=optax.sgd(0.05), batch=1), 40),
        "dense": (diloco(t, **sgd), 2),
        "factors": (dilocox(t, scale_bits=0, **whole), 2),
        "scales": (dilocox(t, **whole), 2),
    }
    logs = {k: run(f, world, t.init, rounds, every=2).history for k, (f, rounds) in arms.items()}
    bits, time = ({k: h[c].sum() for k, h in logs.items()} for c in ("up_bits", "seconds"))
    assert bits["dense"] == 2 * 8 * 32 * SIDE**2
    assert bits["dense"] / bits["factors"] == 16
    assert bits["every"] / bits["factors"] == 320
    assert bits["scales"] - bits["factors"] == 2 * 8 * 2 * 32
    assert time["dense"] / time["factors"] == 6
    assert time["every"] / time["factors"] == 101
    assert time["scales"] == 40
    assert logs["scales"]["gradients"].iloc[-1] == 8 * 20


def test_cocktail_sgd_is_a_composition():
    _, t, data = quadratics(n=4, d=8)
    codec = error_feedback(top_k(0.3))
    want = all_reduce(t, Network(codec=codec), optimizer=optax.sgd(0.2), batch=8, delay=2)
    got = cocktail_sgd(t, keep=0.3, bits=None, optimizer=optax.sgd(0.2), batch=8, delay=2)
    assert traced(got, data, 8) == traced(want, data, 8)
    go = lambda f: run(f, scenario(data), jnp.ones(8), 4, every=2)
    dense = go(all_reduce(t, lr=0.01, batch=1, delay=1)).state.shared["x"]
    whole = go(cocktail_sgd(t, keep=1.0, bits=None, lr=0.01, batch=1)).state.shared["x"]
    np.testing.assert_allclose(whole, dense, atol=1e-5)
    few = go(cocktail_sgd(t, keep=0.25, bits=3, batch=1)).history["up_bits"]
    np.testing.assert_array_equal(few.iloc[2:], [4 * (2 * (3 + 3) + 32)] * 3)  # two numbers, their places, a scale


def test_rank_and_steps_follow_the_effective_rank_down():
    """All nodes move along one direction: after a window of two rounds rank 1 is known to be enough."""
    t = matrices()[0]
    one = np.outer(np.arange(1.0, SIDE + 1), np.ones(SIDE)).astype(np.float32)
    world = scenario(one_sample_each(np.zeros((8, 1), np.float32), np.tile(one, (8, 1, 1))))
    system = dilocox(t, rank=8, window=2, share=0.8, least_steps=3, local=optax.sgd(0.01), steps=16, batch=1, bits=8)
    h = run(system, world, jnp.zeros(SIDE**2), 4, every=2).history.iloc[1:]
    assert h["rank"].tolist() == [8, 4, 1, 1]  # round(4.5) is even
    assert h["local_steps"].tolist() == [16, 8, 3, 3]
    assert h["gradients"].tolist() == [8 * 16, 8 * 8, 8 * 3, 8 * 3]
    assert h["up_bits"].tolist() == [8 * (8 * 2 * SIDE * r + 64) for r in (8, 4, 1, 1)]


def test_the_rank_never_grows():
    t, _ = matrices()
    pace = adaptive(t, 6, 12, 2, 0.9, 1)
    memory = pace.see(pace.see(pace.init(), jnp.ones(SIDE**2)), jnp.ones(SIDE**2))
    assert float(memory[1]) == 1
    memory = pace.see(memory, jnp.eye(SIDE).ravel())
    assert float(memory[1]) == 1
    assert memory[0].tolist() == [1, 29]


def test_steps_are_bounded_by_the_cohort_and_by_the_pace():
    t, data = matrices(side=4)
    who = cohort.everyone(8)

    def slower(key, arrays, s, at):
        s, c = who.step(key, arrays, s, at)
        return s, c._replace(steps=jnp.arange(8))

    world = scenario(data, cohort=who._replace(step=slower))
    system = dilocox(t, rank=2, window=1, share=1.0, local=optax.sgd(0.01), steps=5, batch=1)
    assert run(system, world, t.init, 1).history["gradients"].iloc[-1] == sum(min(5, k) for k in range(8))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda t: dilocox(t, window=0), "window is 0"),
        (lambda t: dilocox(t, rank=0), "rank is 0"),
        (lambda t: dilocox(t, least_steps=30), "least_steps is 30"),
        (lambda t: cocktail_sgd(t, keep=1.5), "keep is 1.5"),
    ],
)
def test_bad_numbers(make, words):
    with pytest.raises(InputError, match=words):
        make(quadratics(n=1, d=3)[1])
