"""The claims of FedAvg, FedProx and DFedSAM at tiny size: what they compare is comparable, their parts are right."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.claims import dfedsam, fedavg, fedprox
from jaxfl.core import Cohort
from jaxfl.data.partition import label_histogram
from jaxfl.engine import keys
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.measure.metrics import consensus_distance


def cohorts(world, rounds=5):
    """The cohorts of the first rounds of seed 0, as the engine draws them."""
    state, found = world.init(keys.init_key(keys.run_key(0), "world"), world.arrays), []
    for t in range(rounds):
        state, (_, c, *_) = world.step(
            keys.round_key(keys.run_key(0), jnp.int32(t), "world"), world.arrays, state, jnp.int32(t)
        )
        found.append(c)
    return Cohort(*(np.stack(a) if a[0] is not None else None for a in zip(*found, strict=True)))


def test_fedavg_compares_on_the_same_cohorts_of_two_splits():
    _, data, worlds = fedavg.setting(nodes=20, members=5)
    iid, skewed = worlds["IID"], worlds["pathological"]
    assert iid.step is skewed.step
    assert iid.data.longest == skewed.data.longest >= int(skewed.data.size.max())
    a, b = cohorts(iid), cohorts(skewed)
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(b.weight, np.asarray(skewed.data.size)[b.ids])
    labels = (label_histogram(skewed.data, 10) > 0).sum(1)
    assert labels.max() <= 4  # two slices, each over one border at most
    assert (label_histogram(iid.data, 10) > 0).sum(1).min() > 4
    assert iid.data.size.sum() == skewed.data.size.sum() == len(data.y)


def test_fedavg_interpolation_ends_at_the_two_models():
    task, data, _ = fedavg.setting()
    mixed = fedavg.interpolate(task, data, 2, np.array([0.0, 0.5, 1.0]))
    assert mixed["loss"].shape == mixed["accuracy"].shape == (2, 2, 3)
    assert (mixed["accuracy"][:, :, [0, 2]] > 0.8).all()
    assert (mixed["loss"][0, :, 1] > mixed["loss"][1, :, 1]).all()
    np.testing.assert_allclose(mixed["loss"][0, :, 2], mixed["loss"][1, :, 2], rtol=1e-5)  # theta = 1 is w in both
    assert (mixed["loss"][0, :, 0] != mixed["loss"][1, :, 0]).all()  # theta = 0 is another w'


def test_fedprox_systems_meet_the_same_devices_and_stragglers():
    task, world = fedprox.setting(devices=8, members=5, epochs=4, seed=1)
    memory = cohorts(fedprox.with_stragglers(world, 0.6, drop=False))
    dropped = cohorts(fedprox.with_stragglers(world, 0.6, drop=True))
    whole = cohorts(fedprox.with_stragglers(world, 0.0, drop=True))
    full = 4 * -(-world.data.longest // fedprox.BATCH)
    np.testing.assert_array_equal(memory.ids, dropped.ids)
    np.testing.assert_array_equal(memory.steps, dropped.steps)
    assert (dropped.weight > 0).sum(1).tolist() == (memory.steps == full).sum(1).tolist() == [2] * 5
    np.testing.assert_array_equal(memory.weight, whole.weight)
    assert (whole.steps == full).all()
    metric = fedprox.on_training_data(task, world)
    got = metric.measure(metric.arrays, jnp.zeros(task.dim))
    assert got["train_loss"] == pytest.approx(np.log(10), rel=1e-5)
    assert metric.arrays[1].shape == world.data.order.shape


def test_dfedsam_contraction_is_that_of_the_mixing_phase():
    """Against the distance before and after a multiplication by the matrix, and below the second eigenvalue."""
    task, worlds = dfedsam.setting(seeds=2, nodes=8)
    assert worlds[0].data.longest == worlds[1].data.longest
    assert not np.array_equal(worlds[0].data.order, worlds[1].data.order)
    assert all(int(w.data.size.sum()) == len(w.data.y) for w in worlds)
    factory = dfedsam.partial(dfedsam.dfedsam_mgs, task, gossip_steps=2, steps=1, batch=4)
    hyper = {"lr": 0.1, "rho": 0.1}
    result = run(factory, worlds[1], task.init, 1, seeds=1, hyper=hyper)
    ratio = dfedsam.contraction(factory, worlds[1], result, hyper)
    ring = dfedsam.mixing.metropolis(dfedsam.graph.ring(8))
    assert 0 < ratio < dfedsam.mixing.second_eigenvalue(ring) ** 2
    links = worlds[1].arrays["topology"]
    silent = worlds[1].arrays | {"topology": dfedsam.dataclasses.replace(links, weight=jnp.zeros_like(links.weight))}
    apart = run(factory, worlds[1]._replace(arrays=silent), task.init, 2, seeds=1, hyper=hyper, carry=result.carry)
    z = np.asarray(apart.state.nodes[0], np.float64)
    W = dfedsam.mixing.matrix(ring)
    expected = consensus_distance(jnp.asarray(W @ W @ z, jnp.float32)) / consensus_distance(jnp.asarray(z, jnp.float32))
    assert ratio == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("claim", "kw", "rows", "checks"),
    [
        pytest.param(fedavg, {"rates": (0.3,), "rounds": 4}, 8, 9, marks=pytest.mark.long),
        (fedprox, {"rates": (0.01,), "rounds": 4, "epochs": 2, "data_seed": 1}, 8, 11),
        pytest.param(dfedsam, {"rates": (0.3,), "rounds": 3, "long": 6, "every": 2}, 8, 13, marks=pytest.mark.long),
    ],
)
def test_a_tiny_reproduction_gives_a_whole_table_every_check_and_a_picture(claim, kw, rows, checks):
    found = claim.reproduce(1, **kw)
    assert len(found.table) == rows
    assert (
        not found.table[[c for c in found.table if c in ("rate", "loss", "accuracy", "sharpness")]]
        .isna()
        .any(axis=None)
    )
    assert len(found.checks) == len({c.what for c in found.checks}) == checks
    assert len(found.figure.axes) == 3


def test_dfedsam_refuses_a_horizon_before_the_card_s():
    with pytest.raises(InputError, match="rounds is 5 and long 5"):
        dfedsam.reproduce(1, rounds=5, long=5)
