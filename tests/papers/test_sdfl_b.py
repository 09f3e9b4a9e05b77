"""SDFL-B against its rules in float64: trust, stakes, heads, cluster models; who lies is shut out, nobody else."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from common import one_sample_each, quadratics
from members import WEIGHT, N, absent, changed, drawn, slope

from jaxfl.algorithms.asynchronous.sdfl_b import sdfl_b
from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange.attacks import gaussian, sign_flip
from jaxfl.exchange.membership import public_hash
from jaxfl.exchange.network import Network
from jaxfl.learn import task as tasks
from jaxfl.world import cohort
from jaxfl.world.delivery import quorum
from jaxfl.world.durations import lognormal
from jaxfl.world.scenario import scenario
from jaxfl.world.work import delayed

KW: dict[str, Any] = {"lr": 0.03, "steps": 2, "batch": None, "probe": None}
LIARS, FLIP, LONGEST = np.arange(N) == 1, 200.0, 2


def world():
    """Five of six of unlike weights, one of the five absent, from models up to three versions old; the second lies."""
    q, task, data = quadratics(n=N, d=3)
    members = changed(cohort.uniform(N, 5, weight=WEIGHT), absent)
    return q, task, scenario(data, cohort=delayed(members, 3), byz=LIARS)


def small():
    """A clock of its own, liars and judges, for the matrix."""
    _, task, data = quadratics(n=8, d=3)
    w = scenario(data, cohort=quorum(8, 5, lognormal()), byz=2)
    f = sdfl_b(task, Network(attack=gaussian(3.0)), judges=2, longest=3, **KW)
    return {"sdfl_b": (f, w, jnp.ones(3), 4)}


def rules(q, c, rounds, salt, terms):
    """The rules of the docstring over lists of members, from a full history of models."""
    models, past = np.ones((2, 3)), []
    trust, stake, last, pool = np.ones(N), np.ones(N), np.full(N, -3), 0.0
    for t in range(rounds):
        past.append(models.copy())
        order = np.asarray(public_hash(salt, jnp.int32(t), N))
        heads = [min(range(k, N, 2), key=lambda i: (t - last[i] <= 2, -trust[i], order[i])) for k in (0, 1)]
        came = {}
        for i, w, a in zip(c.ids[t], c.weight[t].astype(float), c.age[t], strict=True):
            if w == 0 or a > LONGEST:
                continue
            y = past[max(t - a, 0)][i % 2].copy()
            for _ in range(2):
                y = y - KW["lr"] * slope(q, i, y)
            said = (-FLIP if LIARS[i] else 1) * (y - models[i % 2])
            e = models[i % 2] + said - q.b[heads[i % 2]]
            came[int(i)] = said, w / (1 + a), a, 0.5 * e @ q.A[heads[i % 2]].astype(float) @ e
        good, bad = [], []
        for i, (_, _, _, score) in came.items():
            middle = np.median([v[3] for j, v in came.items() if j % 2 == i % 2])
            (bad if score > 1.5 * middle else good).append(i)
        for i in came:
            step = terms["gain"] if i in good else -terms["loss"]
            trust[i] = np.clip(trust[i] + step - terms["late"] * (came[i][2] > 0), 0, 1)
        paid = np.array([0.1 * stake[i] if i in bad else 0 for i in range(N)])
        pool += paid.sum() + 1
        due = np.array([trust[i] if i in good and trust[i] >= 0.5 else 0 for i in range(N)])
        pay = pool * due / due.sum() if due.sum() else 0 * due
        stake, pool = stake - paid + pay, pool - pay.sum()
        for k in (0, 1):
            a = {i: v[1] * trust[i] for i, v in came.items() if i % 2 == k and trust[i] >= 0.5}
            if a:
                models[k] += sum(w * came[i][0] for i, w in a.items()) / sum(a.values())
        among = np.array([trust[0::2].sum(), trust[1::2].sum()])
        if (t + 1) % 3 == 0:
            models[:] = among @ models / among.sum()
        last[heads] = t
    return models, trust, stake, pool, last


def test_seven_rounds_from_the_rules():
    q, task, w = world()
    terms: dict[str, Any] = {"gain": 0.05, "loss": 0.3, "late": 0.02}
    f = sdfl_b(task, Network(attack=sign_flip(FLIP)), factor=1.5, longest=LONGEST, **(KW | terms))
    s = run(f, w, jnp.ones(3), 7, every=7).state.shared
    models, trust, stake, pool, last = rules(q, drawn(w, 7), 7, s["salt"], terms)
    assert trust.min() < 0.5
    for name, wanted in (("trust", trust), ("stake", stake), ("last", last), ("pool", pool), ("models", models)):
        np.testing.assert_allclose(s[name], wanted, rtol=2e-4, atol=2e-5, err_msg=name)
    np.testing.assert_allclose(s["stake"].sum() + s["pool"], N + 7, rtol=1e-6)


def test_one_cluster_without_penalties_is_fedavg():
    _, task, data = quadratics(n=N, d=3)
    w = scenario(data, cohort=changed(cohort.uniform(N, 4, weight=WEIGHT), absent))
    free = {"clusters": 1, "gain": 0.0, "loss": 0.0, "late": 0.0}
    a = run(sdfl_b(task, **(KW | free)), w, jnp.ones(3), 4, every=4)
    local = {name: KW[name] for name in ("lr", "steps", "batch")}
    b = run(fedavg(task, **local), w, jnp.ones(3), 4, every=4)
    np.testing.assert_allclose(a.state.shared["models"][0], b.state.shared["x"], atol=1e-6)
    assert a.history["up_bits"].sum() == b.history["up_bits"].sum()  # one head has nobody to tell


def test_liars_are_shut_out_and_nobody_else():
    """Five of 20 send noise, two honest ones are ten times slower; in the end the model is near the honest optimum."""
    n, d, rng = 20, 10, np.random.default_rng(1)
    b = (0.3 * rng.normal(size=(n, d))).astype(np.float32)
    data = one_sample_each(np.broadcast_to(np.eye(d, dtype=np.float32), (n, d, d)), b)
    speed = np.where(np.arange(n) >= n - 2, 10, np.exp(0.7 * rng.normal(size=n)))
    w = scenario(data, cohort=quorum(n, 14, lognormal(speed, 0.1)), byz=5)
    f = lambda **more: sdfl_b(tasks.quadratic(d), Network(attack=gaussian(3.0)), lr=0.2, steps=5, batch=None, **more)
    away = {}
    for loss in (0.2, 0.0):
        result = run(lambda loss: f(loss=loss), w, jnp.zeros(d), 60, every=12, hyper={"loss": loss})
        read = np.asarray(f().read(result.state))
        away[loss] = np.linalg.norm(read - b[5:].mean(0))
        if loss:
            assert result.history["trusted_liars"].iloc[30:].max() == 0
            assert result.history["trusted"].iloc[-1] == 1
    assert away[0.2] < 0.3 * away[0.0]


def test_bad_input_is_refused():
    _, task, w = world()
    bads: dict[str, Any] = {"clusters": 0, "judges": 0, "factor": 0.5, "gain": 1.5, "fine": 2.0, "reward": -1.0}
    for word, bad in bads.items():
        with pytest.raises(InputError, match=f"^{word} is"):
            sdfl_b(task, **(KW | {word: bad}))
    with pytest.raises(InputError, match=r"^clusters is 4, but 6 nodes"):
        run(sdfl_b(task, clusters=4, judges=2, **KW), w, jnp.ones(3), 1)
