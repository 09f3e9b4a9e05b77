"""A million meetings of random gossip, 4,096 nodes with 1,000 numbers, random 8-regular graph: waves and one by one.

A "round" of the row is a thousand meetings. The bound is a loop over the same meetings in the order of time, which
updates the two rows in place.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import machine
import numpy as np
import timing

from jaxfl.core import Array
from jaxfl.engine.keys import init_key, round_key, run_key
from jaxfl.engine.run import run
from jaxfl.programs.random_gossip import random_gossip
from jaxfl.world.events import poisson
from jaxfl.world.scenario import scenario
from workloads.gossip import regular
from workloads.work import Cost, Side, Stream

SIZES = 4096, 1000, 1_000_000  # nodes, numbers, meetings
TINY = 32, 8, 200


def meetings(world, waves: int) -> np.ndarray:
    """The pairs `[e, 2]` of the first waves of seed 0; of a wave in any order, as they do not conflict."""

    @jax.jit
    def drawn(arrays: dict, key: Array) -> Array:
        def step(s, t):
            s, now = world.step(round_key(key, t, "world"), arrays, s, t)
            return s, now.graph.nbr[:, 0]

        return jax.lax.scan(step, world.init(init_key(key, "world"), arrays), jnp.arange(waves))[1]

    partner = np.asarray(drawn(world.arrays, run_key(0)))
    wave, i = np.nonzero(partner > np.arange(partner.shape[1]))
    return np.stack([i, partner[wave, i]], 1)


@jax.jit
def one_by_one(x: Array, pairs: Array) -> Array:
    """All meetings of `pairs` `[e, 2]`, one after the other."""

    def meet(x: Array, pair: Array) -> tuple[Array, None]:
        both = x[pair]
        return x.at[pair].set(jnp.broadcast_to(0.5 * both[0] + 0.5 * both[1], both.shape)), None  # in place

    return jax.lax.scan(meet, x, pairs)[0]


def rows(turns: int, tiny: bool) -> Iterator[dict]:
    """Turns of a tenth of the meetings each, then all of them once."""
    n, m, count = TINY if tiny else SIZES
    x = jnp.asarray(np.random.default_rng(0).standard_normal((n, m), np.float32))
    world = scenario(x, nodes=n, topology=poisson(regular(n)))
    part = max(1, count // 10 // (n // 7))  # a seventh of the nodes meet in a wave, about
    pairs = meetings(world, part)
    whole = -(-count * part * 21 // (20 * len(pairs)))  # a little more than all
    go = lambda waves: run(random_gossip(), world, jnp.zeros(1), waves, every=waves, progress=False)
    sides = {"": Side(lambda: go(part)), "bound_": Side(lambda: one_by_one(x, jnp.asarray(pairs)).block_until_ready())}
    row = {"workload": "events", "nodes": n, "numbers": m, "waves": part, "meetings": len(pairs)}
    row |= timing.race(sides, len(pairs) / 1000, turns)
    row |= machine.floor(Cost((), (Stream(16e3 * m, 8.0 * n * m),)))
    row["apart"] = float(jnp.abs(random_gossip().read(go(part).state) - one_by_one(x, jnp.asarray(pairs))).max())
    go(whole)
    wall, cpu, done = timing.clocked(lambda: go(whole))
    log = done.history
    row |= {"whole_seconds": wall, "whole_cpu_seconds": cpu, "whole": float(log["up_bits"].sum() / (64 * m))}
    yield row | {"peak_mb": timing.memory()[1]}
