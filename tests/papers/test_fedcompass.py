"""FedCompass against its equations in float64, and against FedAvg and FedBuff."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import quadratics, same
from members import WEIGHT, N, changed, drawn, slope

from jaxfl import zoo
from jaxfl.algorithms.asynchronous.fedbuff import fedbuff
from jaxfl.algorithms.asynchronous.fedcompass import fedcompass, grouped
from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.claims import fedcompass as claim
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.options.build import build, prepare
from jaxfl.options.config import Setup
from jaxfl.paper import Workers
from jaxfl.world import cohort
from jaxfl.world.compass import compass
from jaxfl.world.durations import fixed, lognormal
from jaxfl.world.scenario import scenario

KW = {"lr": 0.03, "steps": 6, "batch": None}
LATE = {"longest": 4, "server_momentum": 0.5} | KW
PACE = lognormal(np.linspace(0.5, 3, N), 0.6)


def away(both, t):
    """The third client is never heard."""
    c, seconds = both
    return c._replace(weight=c.weight.at[2].set(0.0)), seconds


def world(seconds=PACE, change=True):
    q, task, data = quadratics(n=N, d=3)
    clock = compass(N, seconds, least=2, most=6, patience=1.1, weight=WEIGHT)
    return q, task, scenario(data, cohort=changed(clock, away) if change else clock)


def test_forty_versions_from_the_equations():
    """Unlike steps, ages and weights; a version moves the model by the share of who made it, among all clients."""
    q, task, w = world()
    got = run(fedcompass(task, alpha=0.7, **LATE), w, jnp.ones(3), 40, every=1)
    c, x, v, past, dropped = drawn(w, 40), np.ones(3), np.zeros(3), [], 0
    for t in range(40):
        past.append(x)
        move, heard = np.zeros(3), False
        for i, p, a, steps in zip(c.ids[t], c.weight[t].astype(float), c.age[t], c.steps[t], strict=True):
            if p == 0:
                continue
            if a > 4:
                dropped += 1
                continue
            y, heard = past[t - a].copy(), True
            for _ in range(steps):
                y -= 0.03 * slope(q, i, y)
            move += (1 + a) ** -0.5 * p / WEIGHT.sum() * (y - past[t - a])
        if heard:  # else nothing changes
            v = 0.5 * v + move
            x = x + 0.7 * v
    np.testing.assert_allclose(got.state.shared["x"], x, atol=1e-5)
    (trace,) = [a for a in jax.tree.leaves(got.state.shared["server"]) if a.shape == (3,)]
    np.testing.assert_allclose(trace, -v, atol=1e-5)
    past = [*past, x]
    ring, newest = np.asarray(got.state.shared["past"].rows), int(got.state.shared["past"].newest)
    np.testing.assert_allclose(ring[(newest - np.arange(5)) % 5], past[:-6:-1], atol=1e-5)
    assert dropped == got.history["dropped"].sum() > 0
    assert (c.weight > 0).sum(1).max() > 2
    np.testing.assert_array_equal(got.history["gradients"][1:], np.where(c.weight > 0, c.steps, 0).sum(1))


def test_clients_of_one_speed_run_fedavg():
    """Once the first group is formed: everybody, fresh, all steps, and the shares sum to one."""
    _, task, w = world(fixed(0.5), False)
    begun = run(fedcompass(task, alpha=1.0, **KW), w, jnp.ones(3), N + 1, every=1)
    later = run(fedcompass(task, alpha=1.0, **KW), w, jnp.ones(3), N + 6, every=1, carry=begun.carry)
    plain = scenario(w.data, cohort=cohort.everyone(N, WEIGHT))
    mean = run(fedavg(task, **KW), plain, begun.state.shared["x"], 5, every=1)
    np.testing.assert_allclose(later.state.shared["x"], mean.state.shared["x"], rtol=1e-6)
    assert not later.history["age"].any()
    np.testing.assert_allclose(later.history["seconds"], 3.0, rtol=1e-6)


def test_it_is_fedbuff_with_groups_for_a_buffer():
    """The clock is all that is new; and a version made by one client moves by that client's share alone."""
    _, task, w = world()
    a, b = (f(task, **LATE) for f in (partial(fedcompass, alpha=0.7), partial(fedbuff, server_lr=0.7)))
    a, b = (run(f, w, jnp.ones(3), 8, every=1).state for f in (a, b))
    assert same(a, b)


def test_options_give_the_clock_its_steps():
    clock = grouped(Workers(8, 4, 2, lognormal(), 10))
    assert (int(clock.arrays["most"]), int(clock.arrays["least"])) == (10, 2)
    clock = grouped(Workers(2, 1, 1, fixed(), np.array([3, 4])))
    assert (int(clock.arrays["most"]), int(clock.arrays["least"])) == (4, 1)
    setup = Setup(nodes=8, data="digits", model="logistic", rounds=2, steps=7)
    arm = build(prepare(setup, ["fedcompass"]), "fedcompass", {})
    own = arm.scenario.arrays["cohort"]
    assert int(own["most"]) == 7
    np.testing.assert_allclose(own["seconds"]["by"], 1 / 7)
    with pytest.raises(InputError, match="weights"):
        build(prepare(Setup(nodes=8, data="digits", weights="uniform"), ["fedcompass"]), "fedcompass", {})
    assert zoo.find("fedcompass").kind == "asynchronous"


def test_the_worlds_of_its_claim():
    """One second for all steps of the slowest, in every world; equal steps where the ablation has them."""
    (setting,) = claim.quadratics(0).values()
    w = setting.world
    speed = np.asarray(w.arrays["cohort"]["seconds"]["median"])
    np.testing.assert_allclose(100 * speed.max(), 1, rtol=1e-6)
    for there in (claim.rounds(100, w), claim.arrivals(100, 8, 3, w)):
        np.testing.assert_allclose(there.arrays["cohort"]["seconds"]["median"], 100 * speed, rtol=1e-6)
    c = drawn(claim.alike(100, w), 40)
    assert set(c.steps[c.weight > 0].tolist()) == {100}
    np.testing.assert_allclose(w.data.y.reshape(10, 200, 10).mean(1).mean(0), w.data.y.mean(0), atol=1e-5)
