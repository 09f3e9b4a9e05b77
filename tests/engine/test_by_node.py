"""What a metric measures by node is kept at evaluated rounds, however a run is cut, seeded, swept or taken up again."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from common import quadratics, ring

from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.core import Metric
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.world.scenario import scenario

N = 12


def measure(absent, x):
    """The norm of every model, but of those that are `absent`; whether it is above 1."""
    norm = jnp.where(absent, jnp.nan, jnp.linalg.norm(x, axis=1))
    return {"size": norm, "large": norm > 1, "total": jnp.nansum(norm)}


@pytest.fixture(scope="module")
def go():
    _, task, data = quadratics(n=N)
    world, metric = scenario(data, topology=ring(N)), Metric(measure, jnp.arange(N) % 5 == 2)
    return partial(run, partial(dsgd, task, steps=1, batch=1), world, jnp.ones(3), evaluate=metric)


def same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name])


def test_nodes_and_their_distribution(go):
    """Seeds and swept values are rows as in the history; NaN is left out."""
    result = go(5, every=2, seeds=2, hyper={"lr": [0.1, 0.2, 0.3]})
    assert {name: a.shape for name, a in result.nodes.items()} == {
        "size": (6, 4, N), "large": (6, 4, N), "evaluated": (6, 4)}  # fmt: skip
    assert result.nodes["large"].dtype == bool
    np.testing.assert_array_equal(result.nodes["evaluated"], [[0, 2, 4, 5]] * 6)
    there = np.arange(N) % 5 != 2
    np.testing.assert_allclose(
        result.nodes["size"][:, -1, there], np.linalg.norm(result.state.nodes, axis=2)[:, there], rtol=1e-6
    )
    assert np.isnan(result.nodes["size"][:, :, ~there]).all()
    table = result.history[result.history["size"].notna()]
    size = result.nodes["size"][:, :, there].astype(np.float64)
    want = {"size": size.mean(2), "size_spread": size.std(2), "size_worst_decile": size.min(2), "total": size.sum(2)}
    want["large"] = result.nodes["large"].mean(2)  # bools have no NaN
    for name, value in want.items():
        np.testing.assert_allclose(table[name].to_numpy().reshape(6, 4), value, rtol=1e-5, atol=1e-6, err_msg=name)
    alone = go(5, every=2, seed=1, hyper={"lr": 0.2})
    np.testing.assert_allclose(alone.nodes["size"][0], result.nodes["size"][3], rtol=1e-5)


@pytest.mark.parametrize("seeds", [None, 2])
def test_cut_and_resumed_it_is_the_whole(go, tmp_path, seeds):
    go = partial(go, every=2, seeds=seeds, hyper={"lr": 0.1})
    whole = go(6, out=tmp_path / "whole")
    first = go(2)
    rest = go(6, carry=first.carry)
    joined = {name: np.concatenate([a, rest.nodes[name]], 1) for name, a in first.nodes.items()}
    same(joined, whole.nodes)
    cut = tmp_path / "cut"
    go(4, out=cut, checkpoints=True)
    resumed = go(6, out=cut, resume=True)
    same(resumed.nodes, whole.nodes)
    assert sorted(p.name for p in (cut / "nodes").iterdir()) == ["0-0.npz", "0-2.npz", "2-4.npz", "4-6.npz"]
    np.testing.assert_array_equal(resumed.history, whole.history)


def test_what_is_no_measurement_is_refused(go):
    for bad, words in (
        ({"a": jnp.ones((2, 2))}, r"evaluate measures a as float32\[2, 2\], but must measure one number"),
        ({"a": jnp.ones(0)}, "one a node"),
        ({"evaluated": jnp.ones(N)}, "evaluate measures 'evaluated'"),
        ({"loss": jnp.ones(N)}, "evaluate measures 'loss', but this is the name of a log"),
    ):
        with pytest.raises(InputError, match=words):
            go(1, hyper={"lr": 0.1}, evaluate=Metric(lambda _, x, bad=bad: bad))


def test_a_metric_says_itself_what_its_worst_nodes_are(go):
    own = Metric(lambda _, x: {"a": jnp.arange(N), "a_worst_decile": jnp.float32(7)})
    last = go(1, hyper={"lr": 0.1}, evaluate=own).history.iloc[-1]
    assert (last["a"], last["a_worst_decile"]) == (5.5, 7)
