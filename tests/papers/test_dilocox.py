"""DiLoCoX and CocktailSGD: what they become when a part is switched off, their pace, and what they cost."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from common import one_sample_each, quadratics

from jaxfl.algorithms.server.diloco import all_reduce, diloco
from jaxfl.algorithms.server.dilocox import adaptive, cocktail_sgd, dilocox, gentle
from jaxfl.engine.run import rollout, run
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
