"""FedAsync with 256 jobs in flight: jobs that do not depend on each other in one batch, against one job at a time.

The same schedule, on which both end with the same model but for rounding (`apart`). How many jobs a wave has depends on
how unlike their lengths are: all 256 if they are equal, about 20 if they are exponential. A "round" of a row is a
thousand jobs, each of 400 steps of a perceptron of four layers of four on one sample: what one job costs beside its
arithmetic is measured, which is all that a batch saves on a CPU.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import timing

from jaxfl import data
from jaxfl.algorithms.asynchronous.fedasync import fedasync
from jaxfl.data import partition
from jaxfl.engine.run import run
from jaxfl.world import clock, durations
from jaxfl.world.scenario import scenario
from jaxfl.world.waves import waves
from workloads import work
from workloads.work import Side

SIZES = (4, 4, 4, 4, 4, 2)
LAWS = {
    "lognormal, 30%": (durations.lognormal(1.0, 0.3), 128),
    "equal": (durations.fixed(), 256),
    "exponential": (durations.exponential(), 32),
}


def rows(turns: int, tiny: bool) -> Iterator[dict]:
    """One row a law of durations."""
    n, flying, steps, jobs = (40, 8, 2, 20) if tiny else (1000, 256, 400, 2560)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((n + 10, SIZES[0]), np.float32), rng.integers(0, 2, n + 10)
    known = data.from_arrays(x[:-10], y[:-10], x[-10:], y[-10:], classes=2, name="random numbers")
    shards, task = partition.iid(known, n), work.mlp(SIZES)
    system = fedasync(task, lr=0.05, steps=steps, batch=None, longest=4 * flying - 1)
    for name, (law, most) in LAWS.items():
        in_flight, most = clock.buffered(n, flying, 1, law), min(most, flying)
        count = max(1, jobs // most)
        together = partial(_go, system, scenario(shards, cohort=waves(in_flight, most)), task.init, count)
        made = round(float(together().history["updates"].mean()) * count)
        single = partial(_go, system, scenario(shards, cohort=waves(in_flight, 1)), task.init, made)
        row = {"workload": f"waves, {name}", "nodes": n, "flying": flying, "jobs": made, "waves": count}
        row |= timing.race({"": Side(together), "bound_": Side(single)}, made / 1000, turns)
        models = [run().state.shared["x"] for run in (together, single)]
        yield row | {"apart": float(jnp.abs(models[0] - models[1]).max()), "peak_mb": timing.memory()[1]}


def _go(system: Any, world: Any, model: Any, rounds: int) -> Any:
    return run(system, world, model, rounds, every=rounds, progress=False)
