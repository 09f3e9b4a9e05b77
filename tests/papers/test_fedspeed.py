"""FedSpeed against its equations in float64, in both forms of its server; what it is without its ascent."""

import jax.numpy as jnp
import numpy as np
import pytest
from members import SHARE, N, cohorts, idle, slope, world

from jaxfl.algorithms.server.feddyn import feddyn
from jaxfl.algorithms.server.fedspeed import fedspeed
from jaxfl.claims import fedspeed as claim
from jaxfl.engine.run import run

KW = {"lr": 0.03, "steps": 2, "batch": None}
LAM, RHO, ALPHA = 2.0, 0.2, 0.7


def equations(q, rounds, normalised, present_alone):
    """The paper's loop over lists of members: x and all c_i; the mean over all clients is computed anew each round."""
    x, c = np.ones(3), np.zeros((N, 3))
    for members in rounds:
        ends = []
        for i, _, steps in members:
            y, lam = x.copy(), LAM * N * SHARE[i]
            for _ in range(steps):
                g1 = slope(q, i, y)
                g2 = slope(q, i, y + RHO * g1 / (np.linalg.norm(g1) if normalised else 1))
                y = y - KW["lr"] * ((1 - ALPHA) * g1 + ALPHA * g2 - c[i] + (y - x) / lam)
            c[i] -= (y - x) / lam
            ends.append(y - lam * c[i] if present_alone else y)
        x = np.mean(ends, 0) - (0 if present_alone else LAM * SHARE @ c)
    return x, c


@pytest.mark.parametrize(("normalised", "present_alone"), [(True, False), (False, True)])
def test_four_rounds_from_the_equations(normalised, present_alone):
    """Unequal weights, members of none, one and two steps, one absent; two gradients a step are counted."""
    q, task, w = world(idle)
    kw = KW | {"lam": LAM, "rho": RHO, "alpha": ALPHA, "normalised": normalised, "present_alone": present_alone}
    found = run(fedspeed(task, **kw), w, jnp.ones(3), 4, every=1)
    members = list(cohorts(w, 4))
    x, c = equations(q, members, normalised, present_alone)
    np.testing.assert_allclose(found.state.shared["x"], x, atol=1e-5)
    np.testing.assert_allclose(found.state.nodes, c, atol=1e-5)
    if not present_alone:
        np.testing.assert_allclose(found.state.shared["h"], SHARE @ c, atol=1e-5)
    steps = [2 * sum(k for _, _, k in here) for here in members]
    np.testing.assert_array_equal(found.history["gradients"].iloc[1:], steps)


def test_without_its_ascent_it_is_feddyn_bit_for_bit():
    _, task, w = world()
    a = run(fedspeed(task, lam=2.0, rho=0.2, alpha=0.0, **KW), w, jnp.ones(3), 4).state
    b = run(feddyn(task, alpha=0.5, **KW), w, jnp.ones(3), 4).state
    for name in ("x", "h"):
        np.testing.assert_array_equal(a.shared[name], b.shared[name])
    np.testing.assert_array_equal(a.nodes, b.nodes)


def test_the_claims_worlds_differ_in_the_steps_of_their_members_alone():
    short, long = claim.bowls(0).values()
    assert [int(w.world.arrays["cohort"]["steps"]) for w in (short, long)] == [5, 20]
    assert int(claim.doubled(long.world).arrays["cohort"]["steps"]) == 40
    assert short.world.step is long.world.step
