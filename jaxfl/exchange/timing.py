"""Simulated seconds of a round, from the bits that moved, the steps that ran and the world's links.

Everybody waits for the slowest who is present. Without links (`Env.links` None) nothing takes time and no `seconds` are
logged; what the world itself takes (`Env.seconds`) comes on top. A server is as far as its region (`links.to_server`);
who uploads over a shared uplink has its max-min fair share of it while others do.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp

from jaxfl.core import Array, Env, Graph, Links, Log, n_nodes
from jaxfl.exchange import fair_share
from jaxfl.mapping.at import slowest
from jaxfl.mapping.nodes import rows_of
from jaxfl.mapping.sums import count
from jaxfl.world.links import moved, to_server, ways


def transfer(rate: Array, latency: Array, bits: Array) -> Array:
    """Seconds to move `bits` at `rate` bits a second; nothing takes no time."""
    return jnp.where(bits > 0, latency + bits / rate, 0.0)


def both_ways(links: Links, sent: Array, received: Array) -> Array:
    """Seconds in which each sends and receives at once."""
    return jnp.maximum(transfer(links.up, links.latency, sent), transfer(links.down, links.latency, received))


def through_server(env: Env, steps: Array, handed: float | Array, up: Array) -> Log:
    """What a round costs in which each member downloads `handed` bits, runs `steps` `[c]` and uploads `up` `[c]` bits.

    `handed` is one number for all or `[c]`; a step of a part of the model counts as a part of a step.

    Who was asked downloads; who is absent (weight 0) sends nothing and keeps nobody waiting.
    """
    present = env.cohort.weight > 0
    selected = present if env.cohort.selected is None else env.cohort.selected
    handed = jnp.asarray(handed, jnp.float32)
    down = count(selected) * handed if handed.ndim == 0 else jnp.where(selected, handed, 0.0).sum()
    log = Log(up_bits=jnp.where(present, up, 0).sum(), down_bits=down)
    if env.links is not None:
        mine = rows_of(env.cohort, to_server(env.links))
        ready = transfer(mine.down, mine.latency, handed) + steps * mine.step
        log["seconds"] = slowest(_uploaded(env, mine, ready, up, present), present)
    return log


def _uploaded(env: Env, mine: Links, ready: Array, bits: Array, present: Array) -> Array:
    """When each member `[c]` has its `bits` through to the server, of those who are `ready` then."""
    trunk = env.links.trunk  # type: ignore[union-attr]
    if trunk is None:
        return ready + transfer(mine.up, mine.latency, bits)
    sent, group = jnp.where(present, bits, 0.0), rows_of(env.cohort, trunk.group)
    there = fair_share.finish(ready + mine.latency, sent, mine.up, group[:, None], trunk.rate)
    return jnp.where(sent > 0, there, ready)


def all_reduce(flying: Array | None = None) -> Callable:
    """Costs like `through_server`, of a round in which members run `steps` and average by an all-reduce.

    An all-reduce begins when the slowest member has run its steps, and brings each as many bits as it sends, both ways
    at once; nothing is handed down. `flying` are the bits each member has still to send of an earlier round: they
    travel while the steps run, so the round takes as long as the slower of the two. None: this round's, after them.
    """

    def cost(env: Env, steps: Array, handed: float | Array, up: Array) -> Log:
        del handed
        present = env.cohort.weight > 0
        moved = jnp.where(present, up, 0).sum()
        log = Log(up_bits=moved, down_bits=moved)
        if env.links is not None:
            mine = rows_of(env.cohort, _among(env))
            bits = up if flying is None else flying
            work, way = slowest(steps * mine.step, present), slowest(both_ways(mine, bits, bits), present)
            log["seconds"] = work + way if flying is None else jnp.maximum(work, way)
        return log

    return cost


def at_once(*logs: Log) -> Log:
    """The logs of what runs at the same time: costs add up, but it takes only as long as the longest."""
    timed, whole = [log["seconds"] for log in logs if "seconds" in log], Log()
    for log in logs:
        whole |= log
    return whole if not timed else Log({**whole, "seconds": jnp.stack(timed).max()})


def _among(env: Env) -> Links:
    """How the members of an all-reduce reach each other, by node: over the worst way from or to another of them."""
    links = env.links
    assert links is not None
    if links.between is None:
        return links._replace(trunk=None)
    far, r = links.between, links.between.latency.shape[0]
    there = jnp.zeros(r, jnp.int32).at[rows_of(env.cohort, far.region)].add(env.cohort.weight > 0)
    others = (there - jnp.eye(r, dtype=jnp.int32) > 0)[far.region]  # [n, r], somebody else is in that region
    both = lambda m, worst: worst(m[far.region], m[:, far.region].T)
    latency = jnp.where(others, both(far.latency, jnp.maximum), 0.0).max(1)
    rate = jnp.where(others, both(far.rate, jnp.minimum), jnp.inf).min(1)
    up, down = jnp.minimum(links.up, rate), jnp.minimum(links.down, rate)
    return Links(up, down, links.latency + latency, links.step)


def over_edges(env: Env, tables: Sequence[tuple[Array, Graph, Array]]) -> Array:
    """Seconds in which all nodes send and receive at once, everything that came over the edges of a graph.

    Args:
        env: the round, whose links are known.
        tables: rows of a neighbour table: the nodes `[r]` they belong to, their part of the graph, and the bits
            `[r, k]` that came in each slot.
    """
    links = env.links
    assert links is not None
    if links.between is None and links.trunk is None:
        sent, received = moved(n_nodes(env), tables)
        return slowest(both_ways(links, sent, received), jnp.ones(sent.shape, bool))
    return jnp.stack([jnp.max(way, initial=0.0) for way in ways(links, tables)]).max()
