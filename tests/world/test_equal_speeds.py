"""Every asynchronous system at equal speeds: everybody delivers at every tick, fresh, and it is the synchronous run."""

import jax.numpy as jnp
import numpy as np
import pytest
from common import quadratics, same

from jaxfl import zoo
from jaxfl.engine.run import run
from jaxfl.world import cohort
from jaxfl.world.delivery import ticks
from jaxfl.world.durations import fixed
from jaxfl.world.scenario import scenario

N, WEIGHT = 4, np.array([1.0, 2, 4, 3])
BESIDE = {"favano", "quafl"}  # whose clock interrupts: tests/papers/test_favano.py
NAMES = sorted(name for name, entry in zoo.entries().items() if entry.kind == "asynchronous" and name not in BESIDE)


@pytest.mark.parametrize("name", NAMES)
def test_at_equal_speeds_it_is_the_synchronous_run_bit_for_bit(name):
    _, task, data = quadratics(n=N, d=3)
    system = zoo.find(name).make(task, lr=0.05, steps=2, batch=1)
    worlds = [ticks(N, 1.0, fixed(1.0), weight=WEIGHT), cohort.everyone(N, WEIGHT)]
    late, plain = (run(system, scenario(data, cohort=who), jnp.ones(3), 3, every=3) for who in worlds)
    assert same(late.state, plain.state)
    assert late.history["time"].iloc[-1] == 3
