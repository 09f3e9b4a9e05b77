"""FedAMD against its equations in float64, its costs, where it ends, and when it is gradient descent."""

import jax
import jax.numpy as jnp
import numpy as np
from common import quadratics
from members import SHARE, WEIGHT, N, absent, cohorts, idle, slope, world

from jaxfl.algorithms.server.fedamd import fedamd
from jaxfl.algorithms.server.fedavg import fedsgd
from jaxfl.core import Shards, node_keys, stream
from jaxfl.engine.keys import round_key, run_key
from jaxfl.engine.run import run
from jaxfl.learn.local import local_gradient
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario

LR, RATE, P = 0.03, 0.8, 0.5


def anchors(rounds, p):
    """Who of all would be an anchor, `[rounds, n]`."""
    coins = lambda t: jax.vmap(jax.random.uniform)(
        node_keys(stream(round_key(run_key(0), t, "algorithm"), "roles"), jnp.arange(N))
    )
    return np.asarray(jax.vmap(coins)(jnp.arange(rounds))) < p


def equations(q, rounds, roles):
    """The paper's loop over lists of members: x, v, the table; and of each round its gradients."""
    x, spent = np.ones(3), []
    table = np.stack([slope(q, i, x) for i in range(N)])
    v = SHARE @ table
    for members, anchor in zip(rounds, roles, strict=True):
        moves, weights, new, work = [], [], table.copy(), 0
        for i, p, steps in members:
            if anchor[i]:
                if steps:
                    new[i], work = slope(q, i, x), work + 1
                continue
            y, before, g = x, x, v
            for _ in range(steps):
                g = g - slope(q, i, before) + slope(q, i, y)
                before, y = y, y - LR * g
            moves, weights, work = [*moves, y - x], [*weights, p], work + 2 * steps
        if moves:
            x = x + RATE * np.average(moves, axis=0, weights=weights)
        table, v, spent = new, SHARE @ new, [*spent, work]
    return x, v, table, spent


def test_five_rounds_from_the_equations_and_what_they_cost():
    """Unequal weights, members of none, one and two steps, one absent; round 1 pays for the anchors of all at first."""
    q, task, w = world(idle)
    found = run(fedamd(task, lr=LR, server_rate=RATE, p=P, steps=2, batch=None), w, jnp.ones(3), 5, every=1)
    members, roles = list(cohorts(w, 5)), anchors(5, P)
    here = [[bool(roles[t][i]) for i, _, _ in members[t]] for t in range(5)]
    assert {True, False} <= {mine for h in here for mine in h}
    x, v, table, spent = equations(q, members, roles)
    for got, want in ((found.state.shared["x"], x), (found.state.shared["v"], v), (found.state.nodes, table)):
        np.testing.assert_allclose(got, want, atol=1e-5)
    first = np.eye(5)[0] * N
    log = found.history.iloc[1:]
    np.testing.assert_array_equal(log["gradients"], spent + first)
    count = np.array([len(h) for h in here])
    np.testing.assert_array_equal(log["up_bits"], 96 * (count + first))
    np.testing.assert_array_equal(log["down_bits"], 96 * (2 * count + first))
    later = run(fedamd(task, lr=LR, p=P, steps=2, batch=None), w, jnp.ones(3), 60, every=60).state
    np.testing.assert_allclose(later.shared["v"], SHARE @ np.asarray(later.nodes), atol=1e-5)


def test_a_large_gradient_costs_the_small_ones_it_is_made_of():
    """Of shards of 5 and 2 samples, in mini-batches of 2."""
    _, task, _ = quadratics(n=7, d=3)
    eye = jnp.broadcast_to(jnp.eye(3), (7, 3, 3))
    start, size = jnp.array([0, 5]), jnp.array([5, 2])
    data = Shards(eye, jnp.zeros((7, 3)), jnp.arange(7), start, size, 5)
    costs = lambda **kw: [
        float(local_gradient(task, **kw)(jax.random.key(0), data, i, jnp.ones(3))[1]["gradients"]) for i in (0, 1)
    ]
    assert costs() == [1, 1]
    assert costs(unit=2) == [3, 1]
    assert costs(batch=7, unit=2) == [4, 4]


def test_in_turns_of_one_step_and_all_clients_it_is_gradient_descent():
    """Every second round all are anchors; five rounds are three steps."""
    _, task, data = quadratics(n=N, d=3)
    everyone = scenario(data, cohort=cohort.everyone(N, WEIGHT))
    a = run(fedamd(task, lr=0.1, period=2, steps=1, batch=None), everyone, jnp.ones(3), 5, every=5).state
    b = run(fedsgd(task, lr=0.1), everyone, jnp.ones(3), 3, every=3).state
    np.testing.assert_allclose(a.shared["x"], b.shared["x"], atol=1e-5)


def test_it_ends_at_the_weighted_optimum_from_partial_cohorts():
    """6 of 20 clients of weights 1 to 10, one of them absent: the optimum of sum p_i F_i, for every seed."""
    n, weight = 20, np.linspace(1, 10, 20)
    q, task, w = world(absent, n=n, c=6, weight=weight)
    A, b = q.A.astype(float), q.b.astype(float)
    optimum = np.linalg.solve(np.einsum("i,iab->ab", weight, A), np.einsum("i,iab,ib->a", weight, A, b))
    f = fedamd(task, lr=0.01, p=0.4, steps=5, batch=None)
    x = run(f, w, jnp.ones(3), 1000, seeds=2, every=1000).state.shared["x"]
    np.testing.assert_allclose(x, np.stack([optimum] * 2), atol=2e-4)
