"""FAVANO and QuAFL against their equations in float64; where they stop on quadratics; what they are at equal speeds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from common import one_sample_each, quadratics, rounds
from members import N, cohorts, idle, slope, world

from jaxfl.algorithms.asynchronous.favano import favano, quafl
from jaxfl.algorithms.server.fedopt import fedopt
from jaxfl.claims import favano as claim
from jaxfl.core import Metric
from jaxfl.engine.rollout import rollout_from
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange import codecs
from jaxfl.exchange.network import Network
from jaxfl.learn import task as tasks
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario
from jaxfl.world.slices import slices

KW = {"lr": 0.03, "steps": 2, "batch": None}


def equations(q, rounds, reweight, averages):
    """The papers' loops over lists of members: x, the clients' models, contacts, contacts with steps, steps."""
    x, rows, contacts, worked, total = np.ones(3), np.ones((N, 3)), np.zeros(N), np.zeros(N), np.zeros(N)
    for members in rounds:
        came, weight, m = np.zeros(3), sum(p for _, p, _ in members), len(members)
        new = {}
        for i, p, E in members:
            y = rows[i].copy()
            for _ in range(E):
                y = y - KW["lr"] * slope(q, i, y)
            contacts[i], worked[i], total[i] = contacts[i] + 1, worked[i] + (E > 0), total[i] + E
            alpha = {"stochastic": worked[i] / contacts[i] * E, "deterministic": total[i] / contacts[i], "none": 1}
            by = alpha[reweight]
            came += p / weight * (rows[i] + ((y - rows[i]) / by if by else 0))
            new[i] = (x + m * y) / (m + 1)
        x = (x + m * came) / (m + 1)
        for i in new:
            rows[i] = new[i] if averages else x
    return x, rows, contacts, worked, total


@pytest.mark.parametrize("reweight", ["stochastic", "deterministic", "none", "quafl"])
def test_five_rounds_from_the_equations_in_float64(reweight):
    """Unequal weights, a partial cohort, members of none, one and two steps, one absent."""
    q, task, w = world(idle)
    system = quafl(task, **KW) if reweight == "quafl" else favano(task, reweight=reweight, **KW)
    state = run(system, w, jnp.ones(3), 5, every=1).state
    averages = reweight == "quafl"
    x, rows, *counts = equations(q, cohorts(w, 5), "none" if averages else reweight, averages)
    np.testing.assert_allclose(state.shared, x, atol=1e-5)
    np.testing.assert_allclose(state.nodes["model"], rows, atol=1e-5)
    if reweight in ("stochastic", "deterministic"):
        for name, exact in zip(("contacts", "worked", "steps"), counts, strict=True):
            np.testing.assert_array_equal(state.nodes[name], exact)
    else:
        assert set(state.nodes) == {"model"}


CENTRE = np.array([[3.0, 0.0]] * 2 + [[-1.0, 1.0]] * 4)
FAST = np.array([1.0] * 2 + [0.1] * 4)


def stops(system, members, slots=2, cap=4):
    """The mean of the server's model over the last three quarters of 2400 rounds on `|x - c_i|^2 / 2`."""
    data = one_sample_each(np.tile(np.eye(2, dtype=np.float32), (6, 1, 1)), CENTRE.astype(np.float32))
    w = scenario(data, cohort=slices(members, FAST, slots, cap=cap))
    metric = Metric(lambda a, x: {"first": x[0], "second": x[1]})
    h = run(system, w, jnp.zeros(2), 2400, every=20, evaluate=metric, progress=False).history
    return h.dropna(subset="first").query("round > 600")[["first", "second"]].mean().to_numpy()


def test_the_reweighted_stop_at_the_optimum_and_the_others_where_the_fast_pull_them():
    members, task = cohort.uniform(6, 2, np.ones(6)), tasks.quadratic(2)
    true = CENTRE.mean(0)
    steps = claim.expected_steps(FAST, 2, 4, 2 / 6)
    pulled = steps @ CENTRE / steps.sum()
    far = np.linalg.norm(pulled - true)
    c, _ = rounds(slices(members, FAST, 2, cap=4), 4000)
    seen = [np.asarray(c.steps)[np.asarray(c.ids) == i].mean() for i in range(6)]
    np.testing.assert_allclose(seen, steps, rtol=0.1)  # of so many contacts
    kw = {"lr": 0.02, "steps": 4, "batch": None}
    for reweight in ("stochastic", "deterministic"):
        assert np.linalg.norm(stops(favano(task, reweight=reweight, **kw), members) - true) < 0.1 * far, reweight
    none = stops(favano(task, reweight="none", **kw), members)
    assert np.linalg.norm(none - pulled) < 0.1 * far
    assert np.linalg.norm(none - true) > 0.85 * far


def test_at_equal_speeds_it_is_fedavg_whose_server_counts_itself():
    """Everybody is contacted after every whole job: bit for bit."""
    _, task, data = quadratics(n=5, d=3)
    everyone = cohort.everyone(5, np.arange(1.0, 6))
    kw = {"steps": 3, "batch": 1}
    sync = fedopt(task, local=optax.sgd(0.05), server=optax.sgd(np.float32(5) / np.float32(6)), **kw)
    one = run(sync, scenario(data, cohort=everyone), jnp.ones(3), 6, every=1)
    sliced = scenario(data, cohort=slices(everyone, 1.0, 3, cap=3))
    two = run(favano(task, lr=0.05, reweight="none", **kw), sliced, jnp.ones(3), 6, every=1)
    np.testing.assert_array_equal(one.state.shared["x"], two.state.shared)
    np.testing.assert_array_equal(two.state.nodes["model"], np.tile(two.state.shared, (5, 1)))


def test_quafl_neither_makes_nor_loses_anything_where_nobody_works():
    """Server and clients mix: with equal weights the sum of all their models stays."""
    _, task, data = quadratics(n=6, d=3)
    members = cohort.uniform(6, 3, np.ones(6))
    busy = scenario(data, cohort=slices(members, 0.6, 3))
    still = scenario(data, cohort=slices(members, 0.0, 3))
    system = quafl(task, lr=0.05, steps=3, batch=1)
    total = lambda s: s.shared + s.nodes["model"].sum(0)
    start = run(system, busy, jnp.ones(3), 8, every=1)
    _, (_, before) = start.carry[:2]
    rested = still.init(jax.random.key(0), still.arrays)  # where no step is left over
    (_, (_, after)), _ = rollout_from(system, still, (8, (rested, before)), 60)
    assert np.ptp(np.asarray(before.nodes["model"]), 0).max() > 0.1
    np.testing.assert_allclose(total(after), total(before), rtol=1e-5)
    assert np.ptp(np.asarray(after.nodes["model"]), 0).max() < 0.05  # and they agree in the end


def test_messages_are_coded_and_what_a_client_cannot_have_is_refused():
    _, task, w = world(idle)
    plain, coded = favano(task, **KW), favano(task, Network(codec=codecs.quantize(8)), **KW)
    one, two = (run(s, w, jnp.ones(3), 3, every=1) for s in (plain, coded))
    assert two.history["up_bits"].sum() < one.history["up_bits"].sum()
    np.testing.assert_allclose(two.state.shared, one.state.shared, atol=0.05)
    with pytest.raises(InputError, match="reweight is 'random'"):
        favano(task, reweight="random")
    with pytest.raises(InputError, match=r"net\.submodel is set"):
        favano(task, Network(submodel=lambda *given: None))


def test_the_worlds_of_the_claim_are_what_they_say():
    steps = claim.expected_steps(np.array([1.0, 0.0, 0.5]), 4, 20, 0.2)
    assert steps[1] == 0
    many = np.random.default_rng(0).geometric(0.2, 200_000)
    for i, p in ((0, 1.0), (2, 0.5)):
        drawn = np.minimum(np.random.default_rng(1).binomial(4 * many, p), 20)
        assert abs(drawn.mean() - steps[i]) < 0.05
