"""FedPAGE against its equations in float64, and when it is gradient descent."""

import jax.numpy as jnp
import numpy as np
from members import SHARE, WEIGHT, N, cohorts, idle, slope, world

from jaxfl.algorithms.server.fedavg import fedsgd
from jaxfl.algorithms.server.fedpage import fedpage
from jaxfl.engine.run import run
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario


def test_four_rounds_from_the_equations_and_what_they_cost():
    """A round of all, then unequal weights, members of none, one and two steps, one absent."""
    q, task, w = world(idle)
    found = run(fedpage(task, lr=0.03, server_lr=0.05, p=0.0, steps=2, batch=None), w, jnp.ones(3), 4, every=1)
    x, past, spent, bits = np.ones(3), np.ones(3), [], []
    for t, members in enumerate(cohorts(w, 4)):
        if t == 0:
            g, work = SHARE @ np.stack([slope(q, i, x) for i in range(N)]), N
            bits.append((N, N))
        else:
            ends, work = [], 0
            for i, _, steps in members:
                y, before, d = x, x, g - slope(q, i, past) + slope(q, i, x)
                for _ in range(steps):
                    d = d - slope(q, i, before) + slope(q, i, y)
                    before, y = y, y - 0.03 * d
                work += 2 + 2 * steps if steps else 0
                ends.append((x - y) / (0.03 * max(steps, 1)))
            g = np.average(ends, axis=0, weights=[p for _, p, _ in members])
            bits.append((len(members), 3 * len(members)))
        past, x, spent = x, x - 0.05 * g, [*spent, work]
    for name, want in (("x", x), ("g", g), ("previous", past)):
        np.testing.assert_allclose(found.state.shared[name], want, atol=1e-5)
    log = found.history.iloc[1:]
    np.testing.assert_array_equal(log["gradients"], spent)
    np.testing.assert_array_equal(log[["up_bits", "down_bits"]], 96 * np.array(bits))


def test_where_all_send_their_gradients_in_every_round_it_is_gradient_descent():
    _, task, w = world()
    everyone = scenario(w.data, cohort=cohort.everyone(N, WEIGHT))
    a = run(fedpage(task, server_lr=0.1, p=1.0, steps=2, batch=None), w, jnp.ones(3), 3, every=3).state
    b = run(fedsgd(task, lr=0.1), everyone, jnp.ones(3), 3, every=3).state
    np.testing.assert_allclose(a.shared["x"], b.shared["x"], atol=1e-5)
