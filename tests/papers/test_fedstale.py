"""FedStale, FedVARP and MIFA against their equations in float64; unbiased for every beta; which beta is best when."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import quadratics
from members import SHARE, WEIGHT, N, drawn, slope, world

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.fedstale import fedstale, fedvarp, mifa
from jaxfl.claims import fedstale as claim
from jaxfl.core import Cohort, Env, State
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange import rules
from jaxfl.exchange.network import Network
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario
from jaxfl.world.uneven import by_intervals, independent

KW: dict[str, Any] = {"lr": 0.03, "steps": 2, "batch": None}
P = np.array([1.0, 0.5, 0.9, 0.3, 0.7, 0.2])


def idle(c, t):
    """The third never answers, the first runs no step."""
    return c._replace(weight=c.weight.at[2].set(0.0), steps=jnp.array([0, 1, 2, 2]))


def small():
    """Unequal probabilities, known and estimated, for the matrix."""
    _, task, data = quadratics(n=N, d=3)
    known, plain = independent(N, P, weight=WEIGHT), independent(N, P, corrected=False, weight=WEIGHT)
    x = jnp.ones(3)
    return {
        "fedstale": (fedstale(task, **KW), scenario(data, cohort=known), x, 4),
        "estimated": (fedvarp(task, **KW), scenario(data, cohort=by_intervals(plain)), x, 4),
    }


def equations(q, c, rounds, beta, server_lr):
    """The paper's loop over lists of members: `x` and all `h_k`; `beta` None is MIFA's."""
    x, h = np.ones(3), np.zeros((N, 3))
    for t in range(rounds):
        steps = [2] * len(c.ids[t]) if c.steps is None else np.minimum(c.steps[t], 2)
        old, fresh = h.copy(), np.zeros(3)
        total = c.weight[t].sum() if c.total is None else c.total[t]
        for i, w, k in zip(c.ids[t], c.weight[t].astype(float), steps, strict=True):
            if w == 0 or k == 0:
                continue
            y = x.copy()
            for _ in range(k):
                y = y - KW["lr"] * slope(q, i, y)
            h[i] = y - x
            fresh += w / total * (h[i] - (beta or 0) * old[i])
        x = x + server_lr * (SHARE @ h if beta is None else beta * SHARE @ old + fresh)
    return x, h


@pytest.mark.parametrize("beta", [None, 0.3, 1.0])
def test_five_rounds_from_the_equations(beta):
    """Unequal weights, a partial cohort, one absent, one idle."""
    q, task, w = world(idle)
    s = run(fedstale(task, beta=beta, server_lr=0.7, **KW), w, jnp.ones(3), 5, every=5).state
    x, h = equations(q, drawn(w, 5), 5, beta, 0.7)
    np.testing.assert_allclose(s.shared["x"], x, atol=1e-5)
    np.testing.assert_allclose(s.nodes, h, atol=1e-5)
    np.testing.assert_allclose(s.shared["mean"], SHARE @ h, atol=1e-5)


@pytest.mark.parametrize("estimated", [False, True])
def test_six_rounds_of_members_of_unequal_probability(estimated):
    """Weights alpha / p, or alpha times the mean interval, over all clients and not over those there."""
    q, task, data = quadratics(n=N, d=3)
    members = independent(N, P, corrected=not estimated, weight=WEIGHT)
    w = scenario(data, cohort=by_intervals(members) if estimated else members)
    s = run(fedstale(task, beta=0.6, **KW), w, jnp.ones(3), 6, every=6).state
    x, h = equations(q, drawn(w, 6), 6, 0.6, 1.0)
    np.testing.assert_allclose(s.shared["x"], x, atol=1e-5)
    np.testing.assert_allclose(s.nodes, h, atol=1e-5)


def test_unbiased_for_every_beta_and_memory():
    """Over all 2^4 patterns of participation, by their probabilities, the step is that of all clients."""
    n, p = 4, np.array([0.9, 0.5, 0.3, 0.2])
    _, task, data = quadratics(n=n, d=3)
    alpha, h = WEIGHT[:n] / WEIGHT[:n].sum(), np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    x, everyone = jnp.ones(3), jnp.arange(n, dtype=jnp.int32)

    @jax.jit
    def move(beta, weight, total):
        f = fedstale(task, beta=beta, **KW)
        c = Cohort(everyone, weight, total=total)
        env = Env(jnp.int32(0), jnp.float32(0), data, None, c, jnp.zeros(n, bool), share=jnp.asarray(alpha))
        first = f.init(jax.random.key(0), env, x)
        state = State(first.shared | {"mean": jnp.asarray(alpha @ h, jnp.float32)}, jnp.asarray(h), first.mail)
        return f.round(jax.random.key(0), env, state)[0].shared["x"] - x

    all_there = move(0.0, alpha, 1.0)
    for beta in (0.0, 0.4, 1.0):
        mean = np.zeros(3)
        for there in itertools.product((0, 1), repeat=n):
            s = np.array(there)
            mean += np.prod(np.where(s, p, 1 - p)) * np.asarray(move(beta, s * alpha / p, 1.0))
        np.testing.assert_allclose(mean, all_there, atol=1e-5)


def test_without_old_updates_it_is_fedavg_and_with_everyone_all_are():
    _, task, w = world()
    x = jnp.ones(3)
    a, b = (run(f, w, x, 4, every=4).state.shared["x"] for f in (fedstale(task, beta=0.0, **KW), fedavg(task, **KW)))
    np.testing.assert_allclose(a, b, atol=1e-6)
    everyone = scenario(w.data, cohort=cohort.everyone(N, WEIGHT))
    first = run(fedavg(task, **KW), everyone, x, 4, every=4).state.shared["x"]
    for f in (fedstale(task, **KW), fedvarp(task, **KW), mifa(task, **KW)):
        np.testing.assert_allclose(run(f, everyone, x, 4, every=4).state.shared["x"], first, atol=1e-6)


def test_it_ends_at_the_weighted_optimum_from_partial_cohorts():
    """One local step: the optimum of sum p_i F_i whoever takes part, for every seed, also where members never idle."""
    n, weight = 12, np.linspace(1, 10, 12)
    q, task, w = world(lambda c, t: c, n=n, c=4, weight=weight)
    A, b = q.A.astype(float), q.b.astype(float)
    optimum = np.linalg.solve(np.einsum("i,iab->ab", weight, A), np.einsum("i,iab,ib->a", weight, A, b))
    for make in (fedvarp, mifa):
        f = make(task, lr=0.03, steps=1, batch=None)
        x = run(f, w, jnp.ones(3), 1500, seeds=2, every=1500).state.shared["x"]
        np.testing.assert_allclose(x, np.stack([optimum] * 2), atol=2e-4)


def test_a_round_in_which_nobody_answers_goes_on_by_what_is_remembered():
    _, task, w = world(lambda c, t: c._replace(weight=jnp.where(t == 2, 0.0, c.weight)))
    f = fedstale(task, beta=0.5, server_lr=0.8, **KW)
    two, three = (run(f, w, jnp.ones(3), rounds, every=1).state for rounds in (2, 3))
    moved = two.shared["x"] + 0.8 * 0.5 * two.shared["mean"]
    np.testing.assert_allclose(three.shared["x"], moved, rtol=1e-6)
    np.testing.assert_array_equal(three.nodes, two.nodes)


def test_bad_input_is_refused():
    _, task, _ = world()
    bads: dict[str, Any] = {"beta": 1.2, "server_lr": 0.0, "lr": -1.0}
    for word, bad in bads.items():
        with pytest.raises(InputError, match=f"^{word} is"):
            fedstale(task, **(KW | {word: bad}))
    with pytest.raises(InputError, match=r"^net\.rule is set"):
        mifa(task, Network(rule=rules.median()), **KW)


def test_the_claims_quadratics_have_the_optimum_that_is_measured():
    setting = claim.quadratics(0)[claim.named(0.5, 0.1)]
    data = setting.world.data
    (A, _), b = data.x, data.y
    A, b = np.asarray(A, float), np.asarray(b, float)
    assert A.shape[0] == claim.N * claim.SAMPLES
    optimum = np.linalg.solve(A.mean(0), np.einsum("iab,ib->a", A, b) / len(b))
    at = setting.evaluate.measure(setting.evaluate.arrays, jnp.asarray(optimum, jnp.float32))
    assert float(at["error"]) < 1e-8
    spread = np.linalg.eigvalsh(A)
    assert spread.min() + 1e-4 > 0.5
    assert spread.max() < 2 + 1e-4
