"""Several runs in one program: each is the run alone, and what a seed decides is worked out once."""

from functools import partial

import jax
import numpy as np
import pytest
from common import digits_world, quadratics

from jaxfl.algorithms.server.fedprox import fedprox
from jaxfl.engine import run as engine
from jaxfl.engine.run import run
from jaxfl.engine.runs import grid, side_by_side
from jaxfl.errors import InputError
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario

KW = {"steps": 2, "batch": 8}


def test_a_sweep_is_its_points_run_one_by_one(tmp_path):
    _, task, data = quadratics(n=12)
    world, x = scenario(data, cohort=cohort.uniform(12, 5)), lambda key: jax.random.normal(key, (3,))
    factory = partial(fedprox, task, steps=2, batch=1)
    points = grid(lr=(0.1, 0.3), mu=(0.0, 1.0))
    assert points == {"lr": [0.1, 0.1, 0.3, 0.3], "mu": [0.0, 1.0, 0.0, 1.0]}
    swept = run(factory, world, x, 4, hyper=points, seeds=2, every=2, out=tmp_path)
    assert len(swept.history) == 4 * 2 * 5
    assert swept.state.shared["x"].shape == (8, 3)
    for i, (lr, mu) in enumerate(zip(*points.values(), strict=True)):
        alone = run(factory, world, x, 4, hyper={"lr": lr, "mu": mu}, seeds=2, every=2)
        np.testing.assert_allclose(swept.state.shared["x"][2 * i : 2 * i + 2], alone.state.shared["x"], atol=1e-6)
        mine = swept.history.query("lr == @lr and mu == @mu").drop(columns=["lr", "mu"]).reset_index(drop=True)
        np.testing.assert_allclose(mine["loss"], alone.history["loss"], rtol=1e-5)
        np.testing.assert_array_equal(mine["total_up_bits"], alone.history["total_up_bits"])
    again = run(factory, world, x, 4, hyper={"lr": [0.1], "mu": 1.0}, every=2)
    assert list(again.history["lr"]) == [0.1] * 5
    for bad in ({"lr": [0.1, 0.2], "mu": [1.0]}, {"lr": []}, {"lr": [[0.1]]}):
        with pytest.raises(InputError, match="equally long lists"):
            run(factory, world, x, 4, hyper=bad)


def _random_numbers(jaxpr):
    """How many elements the random operations of a traced program make."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("threefry2x32", "random_bits", "sort"):
            total += sum(v.aval.size for v in eqn.outvars)
        inner = [v for p in eqn.params.values() for v in (p if isinstance(p, tuple | list) else [p])]
        times = eqn.params.get("length", 1)
        total += times * sum(_random_numbers(getattr(v, "jaxpr", v)) for v in inner if hasattr(v, "eqns"))
    return total


def test_points_share_the_cohort_and_the_batches_of_their_seed():
    task, world = digits_world(c=5)
    factory = partial(fedprox, task, mu=0.1, **KW)

    def drawn(points):
        _, _, runs, draw, x, fixed = engine.inputs(world, task.init, 0, 2, {"lr": [0.1] * points}, None)
        carry = jax.eval_shape(lambda *a: engine._start(factory, world[:2], draw, runs, *a), x, *fixed)
        runs = side_by_side(runs, carry[1])
        return _random_numbers(
            engine._chunk.trace(factory, world.step, 1, runs, None, np.int32(0), carry, *fixed).jaxpr
        )

    assert drawn(30) == drawn(3) > 0
