"""InCo against its equations in float64: unequal weights, a partial cohort, an absent member."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from nets import CLASSES, DATA, FEATURES, N, X, cohorts, depth_of, own, residual, tree, world

from jaxfl.algorithms.server.feddyn import feddyn
from jaxfl.algorithms.server.fedprox import fedprox
from jaxfl.algorithms.server.inco import heteroavg, inco, mixing, prefixes
from jaxfl.algorithms.server.scaffold import scaffold
from jaxfl.claims import inco as claim
from jaxfl.core import Scenario
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange.network import Network
from jaxfl.learn.cross_layer import cross_layer, mixed, references
from jaxfl.learn.layers import layers
from jaxfl.learn.submodels import stages
from jaxfl.learn.task import classification
from jaxfl.models.networks import ResNet
from jaxfl.models.residual import ResidualMLP

BLOCKS, DEPTHS = 3, (2, 1, 3)
TASK = classification(partial(ResidualMLP, FEATURES, 4, BLOCKS, CLASSES, 3), X[:1])
LEVEL = depth_of(TASK)
FIRST = TASK.init(jax.random.key(0))
KW = {"lr": 0.2, "steps": 2, "batch": None}
RNG = np.random.default_rng(0)


def by_hand(g, r, most=5.0, clip=0.1):
    """The rule of one array in float64."""
    g, r = np.asarray(g, float), np.asarray(r, float)
    a, b = np.linalg.norm(g), np.linalg.norm(r)
    theta = min(abs((g * r).sum()) / (b**2 + 1e-7), most)
    return np.clip((g / (a + 1e-7) + theta * r / (b + 1e-7)) * (a + b) / 2, -clip, clip)


def by_layer(row):
    """InCo's rule of a whole update."""
    g = tree(TASK, row)
    new = dict(g)
    for e in range(1, BLOCKS):
        for name in ("up/kernel", "down/kernel"):
            new[f"blocks/{e}/{name}"] = by_hand(g[f"blocks/{e}/{name}"], g[f"blocks/0/{name}"])
    return np.concatenate([new[a.path].ravel() for a in layers(TASK)])


def mean_update(x, members, steps=2, controls=None, lr=0.2):
    """HeteroAvg of one round, and with `controls` `(c, c_i)` SCAFFOLD's new ones."""
    total, owners = np.zeros(TASK.dim), np.zeros(TASK.dim)
    for i, p, _ in members:
        has = DEPTHS[i % len(DEPTHS)] > LEVEL
        y = np.where(has, x, 0)
        for _ in range(steps):
            y = y - lr * np.where(has, residual(TASK, y, *own(i)), 0)
        total, owners = total + p * np.where(has, y - x, 0), owners + p * has
    return np.where(owners > 0, total / np.maximum(owners, 1e-9), 0)


def test_three_rounds_from_the_equations():
    w, x, plain = world(), np.asarray(FIRST, float), np.asarray(FIRST, float)
    for members in cohorts(w, 3):
        x = x + by_layer(mean_update(x, members))
        plain = plain + mean_update(plain, members)
    got = run(inco(TASK, depths=DEPTHS, **KW), w, FIRST, 3, every=1).state.shared["x"]
    np.testing.assert_allclose(got, x, atol=5e-6)
    avg = run(heteroavg(TASK, depths=DEPTHS, **KW), w, FIRST, 3, every=1).state.shared["x"]
    np.testing.assert_allclose(avg, plain, atol=3e-6)
    assert np.abs(got - avg).max() > 1e-3


def test_it_goes_with_other_clients_by_their_servers_slot():
    """FedProx without a proximal term is InCo bit for bit; SCAFFOLD's first round too, whose controls start at 0."""
    w, net = world(), Network(submodel=prefixes(TASK, DEPTHS))
    ours = run(inco(TASK, depths=DEPTHS, **KW), w, FIRST, 1).state.shared["x"]
    prox = fedprox(TASK, net, mu=0.0, server=optax.chain(mixing(TASK), optax.sgd(1.0)), **KW)
    np.testing.assert_allclose(run(prox, w, FIRST, 1).state.shared["x"], ours, atol=1e-7)
    controlled = scaffold(TASK, net, transform=mixing(TASK), **KW)
    two = run(controlled, w, FIRST, 2, every=1)
    np.testing.assert_allclose(run(controlled, w, FIRST, 1).state.shared["x"], ours, atol=1e-6)
    plain = run(scaffold(TASK, net, **KW), w, FIRST, 2, every=1)
    assert np.abs(two.state.shared["x"] - plain.state.shared["x"]).max() > 1e-3
    assert np.isfinite(two.state.shared["x"]).all()


def test_feddyn_mixes_the_mean_move_and_keeps_its_dual_exact():
    """Of its first round, whose duals start at 0: h is of the mean as it came, x of the mixed one."""
    w, net, kw = world(), Network(submodel=prefixes(TASK, DEPTHS)), {"alpha": 0.5, **KW}
    plain, ours = (
        run(feddyn(TASK, net, **kw, **more), w, FIRST, 1).state for more in ({}, {"transform": mixing(TASK)})
    )
    np.testing.assert_allclose(plain.shared["h"], ours.shared["h"], atol=1e-7)
    move = np.asarray(plain.shared["x"] - FIRST + plain.shared["h"] / 0.5, float)
    np.testing.assert_allclose(ours.shared["x"], FIRST + by_layer(move) - ours.shared["h"] / 0.5, atol=3e-6)


@pytest.mark.parametrize("make", [scaffold, feddyn])
def test_a_round_in_which_nobody_answers_moves_no_state_of_a_transformation(make):
    w = world(change=lambda c, t: c._replace(weight=jnp.where(t == 1, 0.0, c.weight)))
    net, tx = Network(submodel=prefixes(TASK, DEPTHS)), mixing(TASK, control=True)
    one, two = (run(make(TASK, net, transform=tx, **KW), w, FIRST, k, every=1).state for k in (1, 2))
    jax.tree.map(np.testing.assert_array_equal, *(jax.random.key_data(s.shared["transform"].key) for s in (one, two)))
    np.testing.assert_array_equal(one.shared["x"], two.shared["x"])


def test_the_mechanism_in_its_inequalities_and_limits():
    g, r = RNG.normal(size=(2, 6, 5))
    rule = lambda g, r: np.asarray(mixed(jnp.asarray(g), jnp.asarray(r), np.inf, np.inf), float)
    for size in (0.01, 1.0, 100.0):
        G, a, b = size * g, np.linalg.norm(size * g), np.linalg.norm(r)
        theta, new = abs((G * r).sum()) / b**2, rule(G, r)
        assert (new * r).sum() >= (G * r).sum() * (a + b) / (2 * a) * (1 - 1e-5) - 1e-6, "more along the shallow one"
        assert np.linalg.norm(new) <= (1 + theta) * (a + b) / 2 * (1 + 1e-5)
        np.testing.assert_allclose(new, by_hand(G, r, np.inf, np.inf), rtol=1e-4, atol=1e-4 * a)
    half = np.linalg.norm(rule(1e-4 * g, r)) / np.linalg.norm(r)
    np.testing.assert_allclose(half, 0.5, rtol=2e-2)  # a starved deep update is brought to half the shallow norm
    noisy = np.linalg.norm(np.asarray(mixed(jnp.asarray(1e4 * g), jnp.asarray(r), 5.0, np.inf), float))
    assert noisy <= 3.01 * 1e4 * np.linalg.norm(g)
    np.testing.assert_allclose(rule(g, g), 2 * g, rtol=1e-5)  # mixed with itself: theta is 1
    assert (np.asarray(mixed(jnp.zeros((3, 2)), jnp.ones((3, 2)))) == 0).all(), "what nobody trained stays"


def test_convolutions_are_mixed_filter_by_filter_with_the_last_of_their_shape():
    net = partial(ResNet, (4, 4, 1), 3, widths=(2, 4), groups=2)
    task, small = (classification(partial(net, blocks=k), np.zeros((1, 16), np.float32)) for k in (2, 1))
    pairs = dict(references(task, stages(task, 2)))
    assert pairs["blocks/3/conv1/kernel"] == pairs["blocks/3/conv2/kernel"] == "blocks/2/conv2/kernel"
    assert set(pairs) == {f"blocks/{b}/conv{c}/kernel" for b in (1, 3) for c in (1, 2)}
    g = RNG.normal(size=task.dim).astype(np.float32)
    tx = cross_layer(task, tuple(pairs.items()))
    got, was = tree(task, tx.update(jnp.asarray(g), tx.init(g))[0]), tree(task, g)
    for path in was:
        want = was[path].copy()
        if path in pairs:
            for a, b in np.ndindex(want.shape[2:]):
                want[:, :, a, b] = by_hand(was[path][:, :, a, b], was[pairs[path]][:, :, a, b])
        np.testing.assert_allclose(got[path], want, atol=1e-6, err_msg=path)
    minus, _ = tx.update(-jnp.asarray(g), tx.init(g))
    np.testing.assert_array_equal(-minus, tx.update(jnp.asarray(g), tx.init(g))[0])
    x = task.init(jax.random.key(0))  # a later block of zeros hands on what comes in
    held = prefixes(task, (1,), 2)(jax.random.key(0), jnp.int32(0), jnp.int32(0), x).held
    images = RNG.normal(size=(3, 16)).astype(np.float32)
    cut = task.predict(task.unravel(jnp.where(held, x, 0)), images)
    np.testing.assert_allclose(cut, small.predict(small.unravel(x[held]), images), atol=1e-6)


def test_the_control_is_as_strong_in_a_direction_of_its_own():
    tx, g = mixing(TASK, control=True), jnp.asarray(RNG.normal(size=TASK.dim), jnp.float32) / 100
    one, state = tx.update(g, tx.init(g))
    two, _ = tx.update(g, state)
    plain = tree(TASK, mixing(TASK).update(g, None)[0])
    for path, a in tree(TASK, one).items():
        if path in dict(references(TASK, stages(TASK))):
            assert not np.array_equal(a, tree(TASK, two)[path])
            assert not np.array_equal(a, plain[path])
        else:
            np.testing.assert_array_equal(a, plain[path])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: cross_layer(TASK, [("blocks/1/up/kernel", "blocks/7/up/kernel")]), "pairs has 'blocks/7/up/kernel'"),
        (lambda: cross_layer(TASK, [("blocks/1/up/kernel", "stem/kernel")]), "shapes must be equal"),
        (lambda: inco(TASK, stages=2), "3 blocks called blocks/.*, which are not 2 stages"),
        (lambda: cross_layer(TASK, references(TASK, [["blocks/0"]])), "no kernel has one of its shape"),
        (lambda: inco(TASK, depths=(4,)), "profile is 4"),
    ],
)
def test_what_does_not_fit_is_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()


def test_the_claims_world_and_what_is_measured_there():
    setting = claim.settings(0, n=10, c=4)[claim.WORLD]
    assert isinstance(setting.world, Scenario)
    x = claim.TASK.init(jax.random.key(0))
    found = jax.jit(setting.evaluate.measure)(setting.evaluate.arrays, x)
    assert {f"cka_{e}" for e in range(1, 6)} < set(found)
    assert all(0 < float(found[f"cka_{e}"]) <= 1 + 1e-6 for e in range(1, 6))
    assert len(DATA.size) == N
