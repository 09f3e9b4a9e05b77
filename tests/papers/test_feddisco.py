"""FedDisco against its equations in float64: unequal weights, a partial cohort, an absent member; and its worlds."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from common import quadratics
from members import SHARE, WEIGHT, N, absent, changed, drawn, slope, world
from scipy.special import rel_entr

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.feddisco import feddisco
from jaxfl.algorithms.server.scaffold import scaffold
from jaxfl.claims import feddisco as claim
from jaxfl.data import partition
from jaxfl.data.sets import digits
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.options.build import build, prepare
from jaxfl.options.config import Setup
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario
from jaxfl.world.weights import disco

KW = {"lr": 0.03, "steps": 2, "batch": None}
D = np.array([3.0, 0.5, 1, 2, 0, 4])
FOUR = changed(cohort.uniform(N, 4, weight=WEIGHT), absent)


def there(a=0.7, b=0.05):
    """The world of `members` with weights by discrepancy."""
    q, task, data = quadratics(n=N, d=3)
    return q, task, scenario(data, cohort=FOUR, weights=disco(D, a, b))


def equations(q, ids, a=0.7, b=0.05):
    """FedAvg's loop and SCAFFOLD's (server rate 1), each with the paper's weights."""
    x, z, c, ci = np.ones(3), np.ones(3), np.zeros(3), np.zeros((N, 3))
    for members in ids:
        here = np.delete(members, 2)
        n, d = WEIGHT[here] / WEIGHT[here].sum(), D[here] / D[here].sum()
        p = np.maximum(0, n - a * d + b)
        new, move, change = np.zeros(3), np.zeros(3), np.zeros(3)
        for i, share in zip(here, p / p.sum(), strict=True):
            y, u, seen = x.copy(), z.copy(), []
            for _ in range(2):
                y -= 0.03 * slope(q, i, y)
                seen.append(slope(q, i, u))
                u -= 0.03 * (seen[-1] - ci[i] + c)
            new += share * y
            if share > 0:  # who counts nothing is not asked
                move += share * (u - z)
                change += SHARE[i] * (np.mean(seen, 0) - ci[i])
                ci[i] = np.mean(seen, 0)
        x, z, c = new, z + move, c + change
    return x, z, c, ci


def test_three_rounds_from_the_equations_alone_and_under_scaffold():
    q, task, w = there()
    x, z, c, ci = equations(q, drawn(w, 3).ids)
    got = run(feddisco(task, **KW), w, jnp.ones(3), 3, every=1).state.shared["x"]
    np.testing.assert_allclose(got, x, atol=1e-5)
    state = run(scaffold(task, **KW), w, jnp.ones(3), 3, every=1).state
    for have, want in zip((state.shared["x"], state.shared["c"], state.nodes), (z, c, ci), strict=True):
        np.testing.assert_allclose(have, want, atol=1e-5)
    plain = run(fedavg(task, **KW), world()[2], jnp.ones(3), 3, every=1).state.shared["x"]
    assert np.abs(plain - x).max() > 0.01
    same = run(feddisco(task, **KW), there(0.0, 0.0)[2], jnp.ones(3), 3, every=1).state.shared["x"]
    np.testing.assert_allclose(same, plain, atol=1e-6)


def test_scaffolds_control_stays_the_mean_of_all():
    _, task, w = there()
    s = run(scaffold(task, **KW), w, jnp.ones(3), 40, every=40).state
    np.testing.assert_allclose(s.shared["c"], SHARE @ np.asarray(s.nodes), atol=1e-5)


def test_the_option_and_the_system_that_brings_the_rule():
    setup = Setup(nodes=8, data="digits", model="logistic", cohort=4)
    arm = lambda name, rule: build(prepare(replace(setup, weights=rule), [name]), name, {}).scenario.arrays["weights"]
    assert float(arm("fedavg", "disco:a=0.25,measure=l1")["a"]) == 0.25
    assert float(arm("feddisco", "size")["a"]) == float(arm("fedavg", "disco")["a"]) == 0.5
    assert float(arm("feddisco", "disco:b=0.3")["b"]) == np.float32(0.3)
    np.testing.assert_array_equal(arm("feddisco", "size")["discrepancy"], arm("fedprox", "disco")["discrepancy"])
    with pytest.raises(InputError, match="weights is uniform, but feddisco brings its own rule, disco"):
        arm("feddisco", "uniform")
    world = prepare(replace(setup, weights="disco"), ["fedavg"])
    numbers = world._replace(dataset=world.dataset._replace(classes=None))
    with pytest.raises(InputError, match="weights is disco, but data digits has no labels by node"):
        build(numbers, "fedavg", {})


def test_the_claim_s_worlds():
    """Equal sizes; weights by size, by discrepancy and by that of others are permutations of what they should be."""
    task = claim.perceptron(64, 50)
    setting = claim.clients(task, digits(), 3, 6, 5, 6, 200)
    assert (np.asarray(setting.world.data.size) == 200).all()
    weights = []
    for w in (setting.world, claim.counted(setting.world), claim.counted(setting.world, shuffled=True)):
        p = drawn(w, 1).weight[0]
        weights.append(p / p.sum())
    size, ours, others = weights
    np.testing.assert_allclose(size, 1 / 6, rtol=1e-6)
    np.testing.assert_allclose(ours, [*[0.1518] * 5, 0.241], atol=3e-3)
    np.testing.assert_allclose(np.sort(others), np.sort(ours), rtol=1e-6)
    assert others[5] < 0.16


def test_biased_nodes_have_their_labels_alone():
    data = digits()
    shards = partition.biased(data, 8, 6, 2, size=100, seed=1)
    table = partition.label_histogram(shards, 10)
    for node in range(6):
        want = np.zeros(10)
        want[[2 * node % 10, (2 * node + 1) % 10]] = 50
        np.testing.assert_array_equal(table[node], want)
    assert (table[6:] > 0).all()
    assert len(np.unique(shards.order)) == 800
    most = partition.biased(data, 6, 5)
    assert (np.asarray(most.size) == most.size[0]).all()
    with pytest.raises(InputError, match=f"size={most.size[0] + 1} is too large"):
        partition.biased(data, 6, 5, size=int(most.size[0]) + 1)


ONE_LABEL = {"kl": np.log(10), "l1": 1.8, "l2": np.sqrt(0.9), "cosine": 1 - 1 / np.sqrt(10)}


@pytest.mark.parametrize("measure", ONE_LABEL)
def test_discrepancies_of_one_label_and_of_all(measure):
    data = digits()
    even = np.concatenate([np.flatnonzero(data.y == label)[:50] for label in range(10)])
    owner = np.full(len(data.y), -1)
    owner[even] = 1
    owner[np.flatnonzero(data.y == 3)[50:80]] = 0
    owner[np.flatnonzero(data.y == 4)[50:60]] = 2
    owner[np.flatnonzero(data.y == 5)[50:80]] = 2
    shards = partition.shards(data, owner, 3)
    got = partition.label_discrepancy(shards, 10, measure)
    np.testing.assert_allclose(got[:2], [ONE_LABEL[measure], 0], atol=1e-12)
    if measure == "kl":
        target = np.arange(1.0, 11)
        p = np.eye(10)[4] / 4 + np.eye(10)[5] * 3 / 4
        want = rel_entr(p, target / target.sum()).sum()
        np.testing.assert_allclose(partition.label_discrepancy(shards, 10, measure, target)[2], want)


def test_bad_targets_and_measures_are_refused():
    shards = partition.iid(digits(), 4)
    for bad, says in (({"measure": "k"}, "measure is 'k'"), ({"target": np.zeros(10)}, "target has shape")):
        with pytest.raises(InputError, match=says):
            partition.label_discrepancy(shards, 10, **bad)
