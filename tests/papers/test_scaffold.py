"""SCAFFOLD against its equations in float64: unequal weights, a partial cohort, an absent member."""

import jax.numpy as jnp
import numpy as np
import pytest
from common import quadratics

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.momentum_fl import fedavg_m, scaffold_m
from jaxfl.algorithms.server.scaffold import scaffold
from jaxfl.engine.keys import init_key, round_key, run_key
from jaxfl.engine.run import run
from jaxfl.world import cohort, work
from jaxfl.world.scenario import scenario

N, WEIGHT = 6, np.array([1.0, 2, 4, 8, 3, 5])
SHARE = WEIGHT / WEIGHT.sum()
KW = {"lr": 0.03, "steps": 2, "batch": None}


def changed(members, change):
    """The process `members` whose cohorts are `change(cohort, round)`."""

    def step(key, arrays, s, t):
        s, c = members.step(key, arrays, s, t)
        return s, change(c, t)

    return members._replace(step=step)


def absent(c, t):
    return c._replace(weight=c.weight.at[2].set(0.0))


def world(change=absent, n=N, c=3, weight=WEIGHT, seed=0):
    """By default three of six members, unlike weights, the third of the three absent."""
    q, task, data = quadratics(n=n, d=3, seed=seed)
    return q, task, scenario(data, cohort=changed(cohort.uniform(n, c, weight=weight), change))


def cohorts(w, rounds):
    s = w.init(init_key(run_key(0), "world"), w.arrays)
    for t in range(rounds):
        s, now = w.step(round_key(run_key(0), jnp.int32(t), "world"), w.arrays, s, jnp.int32(t))
        c = now.cohort
        steps = [2] * len(c.ids) if c.steps is None else np.minimum(c.steps, 2).tolist()
        yield [(int(i), float(p), k) for i, p, k in zip(c.ids, c.weight, steps, strict=True) if p > 0]


def equations(q, w, rounds, beta=None):
    """The paper's loop; with `beta` that of SCAFFOLD-M, server rate 0.05."""
    x, c, ci, g = np.ones(3), np.zeros(3), np.zeros((N, 3)), np.zeros(3)
    for members in cohorts(w, rounds):
        total, change, weight = np.zeros(3), np.zeros(3), sum(p for _, p, _ in members)
        for i, p, steps in members:
            y, seen = x.copy(), []
            for _ in range(steps):
                G = q.A[i].astype(float) @ (y - q.b[i])
                seen.append(G)
                d = G - ci[i] + c
                y -= 0.03 * (d if beta is None else beta * d + (1 - beta) * g)
            total += p * ((y - x) if beta is None else (x - y) / (0.03 * max(steps, 1)))
            if seen:
                change += SHARE[i] * (np.mean(seen, 0) - ci[i])
                ci[i] = np.mean(seen, 0)
        c = c + change
        if beta is None:
            x = x + total / weight
        else:
            g = total / weight
            x = x - 0.05 * g
    return x, c, ci


def idle(c, t):
    """The first member of every cohort may run no step, the second only one."""
    return absent(c, t)._replace(steps=jnp.array([0, 1, 2]))


@pytest.mark.parametrize("change", [absent, idle])
@pytest.mark.parametrize("beta", [None, 0.3])
def test_four_rounds_from_the_equations(change, beta):
    q, task, w = world(change)
    system = scaffold(task, **KW) if beta is None else scaffold_m(task, beta=beta, server_lr=0.05, **KW)
    s = run(system, w, jnp.ones(3), 4).state
    for got, want in zip((s.shared["x"], s.shared["c"], s.nodes), equations(q, w, 4, beta), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("make", [scaffold, scaffold_m])
@pytest.mark.parametrize("weight", [WEIGHT, np.ones(N)])
def test_the_servers_control_is_the_mean_of_all_clients_controls(make, weight):
    _, task, w = world(weight=weight)
    s = run(make(task, **KW), w, jnp.ones(3), 40).state
    np.testing.assert_allclose(s.shared["c"], weight / weight.sum() @ np.asarray(s.nodes), atol=1e-5)


def test_it_stays_the_mean_under_importance_sampling():
    _, task, data = quadratics(n=N, d=3)
    w = scenario(data, cohort=cohort.importance(N, 3, np.arange(1.0, N + 1), weight=WEIGHT))
    s = run(scaffold(task, **KW), w, jnp.ones(3), 20).state
    np.testing.assert_allclose(s.shared["c"], SHARE @ np.asarray(s.nodes), atol=1e-4)


@pytest.mark.parametrize("make", [scaffold, scaffold_m])
def test_it_ends_at_the_weighted_optimum_from_partial_cohorts(make):
    """6 of 20 clients of weights 1 to 10, one of them absent: the optimum of sum p_i F_i, for every seed."""
    n, weight = 20, np.linspace(1, 10, 20)
    q, task, w = world(n=n, c=6, weight=weight)
    A, b = q.A.astype(float), q.b.astype(float)
    optimum = np.linalg.solve(np.einsum("i,iab->ab", weight, A), np.einsum("i,iab,ib->a", weight, A, b))
    system = make(task, lr=0.02, steps=5, batch=None, **({"beta": 0.5} if make is scaffold_m else {}))
    x = run(system, w, jnp.ones(3), 800, seeds=2, every=800).state.shared["x"]
    np.testing.assert_allclose(x, np.stack([optimum] * 2), atol=2e-4)


def test_its_first_round_is_fedavg():
    _, task, w = world()
    a, b = (run(f(task, **KW), w, jnp.ones(3), 1).state.shared["x"] for f in (scaffold, fedavg))
    np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("make", [scaffold, scaffold_m, fedavg_m])
def test_a_round_in_which_nobody_answers_changes_nothing(make):
    """In the third of three rounds all are absent: state as after the second, momentum direction included."""
    nobody = lambda c, t: c._replace(weight=jnp.where(t == 2, 0.0, c.weight))
    _, task, w = world(nobody)
    two, three = (run(make(task, **KW), w, jnp.ones(3), rounds) for rounds in (2, 3))
    for name, value in two.state.shared.items():
        if name != "previous":
            np.testing.assert_array_equal(three.state.shared[name], value, err_msg=name)
    np.testing.assert_array_equal(three.state.nodes, two.state.nodes)
    assert np.isnan(three.history["loss"].iloc[-1])
    assert float(three.history["up_bits"].iloc[-1]) == 0


def test_epochs_are_taken_by_all_four():
    _, task, data = quadratics(n=N, d=3)
    everyone = scenario(data)
    whole = run(scaffold(task, lr=0.03, epochs=2, batch=1), everyone, jnp.ones(3), 2)
    steps = run(scaffold(task, lr=0.03, steps=2, batch=1), everyone, jnp.ones(3), 2)
    np.testing.assert_allclose(whole.state.shared["x"], steps.state.shared["x"], atol=1e-6)  # one sample a node
    kw = {"lr": 0.03, "batch": 1}
    a = run(scaffold_m(task, epochs=2, **kw), everyone, jnp.ones(3), 2).state.shared["x"]
    np.testing.assert_allclose(
        a, run(scaffold_m(task, steps=2, **kw), everyone, jnp.ones(3), 2).state.shared["x"], atol=1e-6
    )


def test_stragglers_change_it():
    _, task, data = quadratics(n=N, d=3)
    slow = scenario(data, cohort=work.straggling(cohort.everyone(N), 0.5, 2))
    kw = {"lr": 0.03, "steps": 2, "batch": None}
    full = run(scaffold(task, **kw), scenario(data), jnp.ones(3), 2).state.shared["x"]
    assert not np.allclose(run(scaffold(task, **kw), slow, jnp.ones(3), 2).state.shared["x"], full, atol=1e-4)
