"""AFA-CD and AFA-CS against their equations in float64, and where they stop when some clients come more often."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import one_sample_each, quadratics, same
from members import SHARE, WEIGHT, N, absent, changed, drawn, slope

from jaxfl.algorithms.asynchronous.anarchic import afa_cd, afa_cs
from jaxfl.algorithms.asynchronous.fedbuff import fedbuff
from jaxfl.engine.rollout import rollout
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange import codecs, rules
from jaxfl.exchange.network import Network
from jaxfl.learn import task as tasks
from jaxfl.world import cohort
from jaxfl.world.clock import buffered
from jaxfl.world.durations import lognormal
from jaxfl.world.scenario import scenario
from jaxfl.world.uneven import successive
from jaxfl.world.work import delayed, random_steps

KW: dict[str, Any] = {"lr": 0.03, "server_lr": 2.0, "steps": 3, "batch": None}
LONGEST = 2  # of delays up to 3


def world(least=0):
    """Four of six of unlike weights, one absent, none to three steps, from models up to three versions old."""
    q, task, data = quadratics(n=N, d=3)
    members = changed(cohort.uniform(N, 4, weight=WEIGHT), absent)
    return q, task, scenario(data, cohort=delayed(random_steps(members, 3, least), 3))


def small():
    """Delays and numbers of steps that a clock does not draw, for the matrix."""
    _, task, w = world()
    late = random_steps(buffered(N, 4, 2, lognormal()), 3)
    return {
        "afa_cd": (afa_cd(task, longest=LONGEST, **KW), w, jnp.ones(3), 4),
        "afa_cs": (afa_cs(task, longest=LONGEST, **KW), scenario(w.data, cohort=late), jnp.ones(3), 4),
    }


def equations(q, c, rounds, silo):
    """The paper's loop from a full history of models: `x`, the table `G` and its mean, in moves."""
    x, past, G = np.ones(3), [], np.zeros((N, 3))
    for t in range(rounds):
        past.append(x)
        total, weights = np.zeros(3), 0.0
        for i, w, a, K in zip(c.ids[t], c.weight[t], c.age[t], c.steps[t], strict=True):
            if w == 0 or a > LONGEST:
                continue
            start = past[max(t - a, 0)]
            y = start.copy()
            for _ in range(K):
                y = y - KW["lr"] * slope(q, i, y)
            move = (y - start) / max(K, 1)
            total, weights = total + w * move, weights + w
            if K:
                G[i] = move
        if weights:
            x = x + KW["server_lr"] * (SHARE @ G if silo else total / weights)
    return x, G


@pytest.mark.parametrize("silo", [False, True])
def test_five_rounds_from_the_equations(silo):
    q, task, w = world()
    c = drawn(w, 5)
    assert {0, 1, 3} <= set(c.steps.ravel())
    assert c.age.max() > LONGEST
    state = run((afa_cs if silo else afa_cd)(task, longest=LONGEST, **KW), w, jnp.ones(3), 5, every=1).state
    x, G = equations(q, c, 5, silo)
    np.testing.assert_allclose(state.shared["x"], x, atol=1e-5)
    if silo:
        np.testing.assert_allclose(state.nodes, G, atol=1e-5)
        np.testing.assert_allclose(state.shared["mean"], SHARE @ G, atol=1e-5)


def test_from_the_newest_model_and_as_many_steps_it_is_fedavg_with_a_server_rate():
    """One step each and no delay: FedBuff without a discount, bit for bit; in the first round of all also AFA-CS."""
    _, task, data = quadratics(n=N, d=3)
    w = scenario(data, cohort=changed(cohort.uniform(N, 4, weight=WEIGHT), absent))
    kw: dict[str, Any] = KW | {"steps": 1, "longest": 1}
    a, b = (run(f(task, **kw), w, jnp.ones(3), 3, every=1) for f in (afa_cd, fedbuff))
    assert same(a.state.shared["x"], b.state.shared["x"])
    everyone = scenario(data, cohort=cohort.everyone(N, WEIGHT))
    a, b = (run(f(task, **kw), everyone, jnp.ones(3), 3, every=1).state.shared["x"] for f in (afa_cd, afa_cs))
    np.testing.assert_allclose(a, b, atol=1e-6)


def path(f):
    """A system that logs where its model is."""

    def round(key, env, s):
        s, log = f.round(key, env, s)
        return s, log | {"path": f.read(s)}

    return f._replace(round=round)


def test_uneven_arrivals_bias_afa_cd_and_not_afa_cs():
    """Quadratics of curvature 1 whose optima are ordered as their frequencies: 5 of 20, delays to 5, 1 to 10 steps."""
    n, d, rounds = 20, 5, 2000
    b = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
    b[:, 0] = np.linspace(-2, 2, n)
    data, task = one_sample_each(np.broadcast_to(np.eye(d, dtype=np.float32), (n, d, d)), b), tasks.quadratic(d)
    ends = {}
    world = lambda p: scenario(data, cohort=delayed(random_steps(successive(n, 5, p), 10), 5))
    uneven, even, late = world(np.linspace(1, 8, n)), world(np.ones(n)), rounds // 2
    often = np.bincount(drawn(uneven, rounds).ids[late:].ravel(), minlength=n) / (5 * (rounds - late))
    biased, true = often @ b, b.mean(0)
    gap = np.linalg.norm(biased - true)
    for make, worlds in ((afa_cd, (uneven, even)), (afa_cs, (uneven,))):
        f = path(make(task, lr=0.01, server_lr=5.0, longest=5, steps=10, batch=None))
        go = jax.jit(lambda arrays, f=f: rollout(f, uneven._replace(arrays=arrays), jnp.zeros(d), rounds)[1]["path"])
        for w in worlds:
            ends[make, w is uneven] = np.asarray(go(w.arrays))[late:].mean(0)
    far = lambda make, where, skewed=True: np.linalg.norm(ends[make, skewed] - where) / gap
    assert far(afa_cd, biased) < 0.08
    assert far(afa_cd, true) > 0.9
    assert far(afa_cs, true) < 0.02
    assert far(afa_cd, true, skewed=False) < 0.08


def test_the_mean_is_that_of_the_table_under_a_codec():
    _, task, w = world()
    s = run(afa_cs(task, Network(codec=codecs.half()), longest=3, **KW), w, jnp.ones(3), 8, every=8).state
    np.testing.assert_allclose(s.shared["mean"], SHARE @ np.asarray(s.nodes), atol=1e-5)


def test_bad_input_is_refused():
    _, task, _ = world()
    bads: dict[str, Any] = {"longest": -1, "server_lr": 0.0, "lr": -1.0}
    for word, bad in bads.items():
        with pytest.raises(InputError, match=f"^{word} is"):
            afa_cd(task, **(KW | {word: bad}))
    with pytest.raises(InputError, match=r"^net\.rule is set"):
        afa_cs(task, Network(rule=rules.median()), **KW)
