"""Simulated seconds of a round, from the bits it moved, the steps it ran and the world's links.

Everybody waits for the slowest who is present. Bits are shared evenly by those who moved them, unless given by member.
Without links (`Env.links` None) a log is returned as it is, and the round takes the world's own `Env.seconds`.
"""

import jax.numpy as jnp

from jaxfl.core import Array, Env
from jaxfl.mapping import rows_of


def transfer(rate: Array, latency: Array, bits: Array) -> Array:
    """Seconds to move `bits` at `rate` bits a second; nothing takes no time."""
    return jnp.where(bits > 0, latency + bits / rate, 0.0)


def _slowest(seconds: Array, present: Array) -> Array:
    return jnp.max(jnp.where(present, seconds, 0.0), initial=0.0)


def server_round(env: Env, steps: Array, log: dict, up: Array | None = None, down: Array | None = None) -> dict:
    """`log` with the `seconds` of a round in which each member downloads, runs `steps` `[c]` and uploads.

    `up` and `down` `[c]` are the bits of each member; None: an even share of `up_bits` and `down_bits` of the log.
    """
    if env.links is None:
        return log
    present = env.cohort.weight > 0
    asked = present if env.cohort.asked is None else env.cohort.asked
    mine = rows_of(env.cohort, env.links)
    up = log["up_bits"] / jnp.maximum(present.sum(), 1) if up is None else up
    down = log["down_bits"] / jnp.maximum(asked.sum(), 1) if down is None else down
    busy = transfer(mine.down, mine.latency, down) + steps * mine.step + transfer(mine.up, mine.latency, up)
    return log | {"seconds": env.seconds + _slowest(busy, present)}


def all_reduce_round(env: Env, steps: Array, log: dict, flying: Array | None = None) -> dict:
    """`log` with the `seconds` of a round in which each member runs `steps` `[c]` and all average by an all-reduce.

    An all-reduce begins when the slowest member has run its steps, and brings each member as many bits as it sends,
    both ways at once. `flying` are the bits each member has still to send of an earlier round: they travel while the
    steps run, so the round takes as long as the slower of the two. None: those of the log, after the steps.
    """
    if env.links is None:
        return log
    present = env.cohort.weight > 0
    mine = rows_of(env.cohort, env.links)
    each = log["up_bits"] / jnp.maximum(present.sum(), 1) if flying is None else flying
    both = jnp.maximum(transfer(mine.up, mine.latency, each), transfer(mine.down, mine.latency, each))
    work, moved = _slowest(steps * mine.step, present), _slowest(both, present)
    return log | {"seconds": env.seconds + (work + moved if flying is None else jnp.maximum(work, moved))}


def gossip_round(env: Env, steps: Array, log: dict) -> dict:
    """`log` with the `seconds` of a round in which every node runs `steps` `[n]`, then all exchange.

    A node sends and receives at once; its bits are in proportion to the live links it has.
    """
    if env.links is None or env.graph is None:
        return log
    g, links = env.graph, env.links
    present = jnp.ones(g.nbr.shape[0], bool) if env.alive is None else env.alive
    live = (g.weight != 0).astype(jnp.float32)
    heard = live.sum(1)
    told = jnp.zeros_like(heard).at[g.nbr].add(live)
    each = log["up_bits"] / jnp.maximum(heard.sum(), 1)
    moved = jnp.maximum(
        transfer(links.up, links.latency, told * each), transfer(links.down, links.latency, heard * each)
    )
    return log | {"seconds": env.seconds + _slowest(steps * links.step, present) + _slowest(moved, present)}
