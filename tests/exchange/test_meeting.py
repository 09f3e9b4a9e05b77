"""An exchange among a few nodes, against loops in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.core import Cohort, Env, Links
from jaxfl.exchange.meeting import meeting
from jaxfl.world import regions
from jaxfl.world.links import links

N, D = 6, 5
UP, DOWN, LATENCY = (
    np.array(v) for v in ([100.0, 50, 10, 200, 80, 60], [200.0, 200, 20, 100, 40, 70], [0, 1, 0, 0.5, 2, 0])
)
ROWS = np.random.default_rng(0).normal(size=(3, D))
WEIGHT = np.array([1.0, 0.0, 3.0])


def env(speed: Links | None):
    who = Cohort(jnp.arange(N), jnp.ones(N))
    return Env(jnp.int32(0), jnp.float32(0), (), None, who, jnp.zeros(N, bool), None, speed)


@pytest.mark.parametrize("ids", [[4, 0, 3], [2, 5, 1]])
def test_all_take_the_mean_and_each_sends_its_row_to_all_the_others(ids):
    rows, log = meeting(
        env(links(N, up=UP, down=DOWN, latency=LATENCY)),
        jnp.array(ids),
        jnp.asarray(ROWS, jnp.float32),
        jnp.asarray(WEIGHT),
    )
    np.testing.assert_allclose(rows, np.tile(WEIGHT / WEIGHT.sum() @ ROWS, (3, 1)), rtol=1e-6)
    bits = 2 * 32.0 * D  # that each sends, and receives
    assert float(log["up_bits"]) == float(log["down_bits"]) == 3 * bits
    slowest = max(LATENCY[i] + bits / min(UP[i], DOWN[i]) for i in ids)
    assert float(log["seconds"]) == pytest.approx(slowest, rel=1e-6)


def test_far_apart_it_takes_longer_by_what_lies_between():
    """Nodes 0 to 2 are near each other, 3 to 5 too, and between the two it is far."""
    near, far = 0.25, 8.0
    speed = regions.regions(N, [[near, far], [far, near]], up=100.0)
    one = 2 * 32 * D / 100.0
    for ids, latency in (([0, 1, 2], near), ([0, 1, 4], far)):
        log = meeting(env(speed), jnp.array(ids), jnp.asarray(ROWS, jnp.float32), jnp.asarray(WEIGHT))[1]
        assert float(log["seconds"]) == pytest.approx(latency + one, rel=1e-6)


def test_who_does_not_meet_sends_nothing_and_one_alone_neither():
    speed = links(N, up=UP, down=DOWN, latency=LATENCY)
    rows, log = meeting(env(speed), jnp.array([4, 0, 3]), jnp.asarray(ROWS), jnp.asarray(WEIGHT), jnp.bool_(False))
    np.testing.assert_array_equal(rows, jnp.asarray(ROWS))
    assert {name: float(v) for name, v in log.items()} == {"up_bits": 0, "down_bits": 0, "seconds": 0}
    alone, log = meeting(env(speed), jnp.array([4]), jnp.asarray(ROWS[:1]), jnp.ones(1))
    np.testing.assert_array_equal(alone, jnp.asarray(ROWS[:1]))
    assert {name: float(v) for name, v in log.items()} == {"up_bits": 0, "down_bits": 0, "seconds": 0}
    assert "seconds" not in meeting(env(None), jnp.array([4, 0, 3]), jnp.asarray(ROWS), jnp.asarray(WEIGHT))[1]
