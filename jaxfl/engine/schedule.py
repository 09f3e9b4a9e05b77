"""What a world decides, without any training: who is in which round, how stale, how long it takes, who is up."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array, Cohort, Now, Scenario, Tree
from jaxfl.engine import keys
from jaxfl.errors import InputError, require


class Schedule(NamedTuple):
    """The first `T` rounds of a world."""

    cohort: Cohort  # leaves [T, c]
    seconds: np.ndarray  # [T] float32, how long each round takes, without the transfers and steps of a system
    alive: np.ndarray | None = None  # [T, n] bool, who is up; None: everyone
    nodes: int = 0


def schedule(scenario: Scenario, rounds: int, seed: int = 0) -> Schedule:
    """What `run` with this seed would find in its first rounds; nothing is learned. `report.timeline` draws it.

    Raises:
        InputError: `rounds` is no whole number of at least 1, or `scenario` no world.
    """
    require("rounds", rounds, least=1, whole=True)
    if not isinstance(scenario, Scenario):
        raise InputError(f"scenario is a {type(scenario).__name__}, but must be a Scenario, as `scenario(...)` makes.")
    cohort, seconds, alive = jax.device_get(
        _rolled(scenario.init, scenario.step, int(rounds), keys.run_key(seed), scenario.arrays)
    )
    return Schedule(cohort, seconds, alive, scenario.byz.shape[0])


@partial(jax.jit, static_argnums=(0, 1, 2))
def _rolled(init, step, rounds: int, key: Array, arrays: Tree) -> tuple:
    def advance(s: Tree, t: Array) -> tuple[Tree, tuple]:
        s, now = step(keys.round_key(key, t, "world"), arrays, s, t)
        return s, _shown(now)

    first = init(keys.init_key(key, "world"), arrays)
    return jax.lax.scan(advance, first, jnp.arange(rounds, dtype=jnp.int32))[1]


def _shown(now: Now) -> tuple:
    return now.cohort, jnp.float32(now.seconds), now.alive
