"""Max-min fair shares of links: what flows get that cross them at once, and when each is through.

Progressive filling (Bertsekas and Gallager, Data Networks, 6.5.2): the rates of all flows rise alike; where a link is
full, or a flow at its own bound, the flows concerned stay as they are and the others go on rising.
"""

import jax
import jax.numpy as jnp

from jaxfl.core import Array


def shares(bound: Array, path: Array, capacity: Array, active: Array) -> Array:
    """The max-min fair rates `[f]` of flows; 0 of those that are not active.

    Args:
        bound: what a flow takes at most, `[f]`, above 0.
        path: the links that each flow crosses, `[f, p]` int32; one it crosses twice counts twice.
        capacity: of each link `[l]`, above 0.
        active: `[f]` bool.
    """
    hops = path.shape[1]
    spread = lambda of_flows: jnp.zeros(capacity.shape).at[path].add(jnp.repeat(of_flows[:, None], hops, 1))

    def rise(s: tuple) -> tuple:
        rate, free, last = s
        load, count = spread(jnp.where(free, 0.0, rate)), spread(free.astype(jnp.float32))
        full = jnp.where(count > 0, jnp.maximum(capacity - load, 0) / jnp.maximum(count, 1), jnp.inf)
        most = jnp.minimum(bound, full[path].min(1, initial=jnp.inf))  # of each flow, if all rose alike
        level = jnp.maximum(jnp.where(free, most, jnp.inf).min(), last)  # rounding alone makes it fall
        stays = free & (most <= level)
        return jnp.where(stays, level, rate), free & ~stays, level

    first = jnp.zeros(bound.shape), active, jnp.float32(0)
    return jax.lax.while_loop(lambda s: s[1].any(), rise, first)[0]


def finish(start: Array, bits: Array, bound: Array, path: Array, capacity: Array) -> Array:
    """When each flow `[f]` is through that begins at `start` with so many `bits`; shares are renewed at every event.

    An event is the begin or the end of a flow. A flow without bits ends when it begins, and takes nothing from others.
    Arguments as in `shares`; at most `2 f` events.
    """

    def event(s: tuple) -> tuple:
        now, left, end = s
        active = (start <= now) & (left > 0)
        rate = shares(bound, path, capacity, active)
        need = jnp.where(active, left / jnp.where(active, rate, 1), jnp.inf)
        begins = jnp.where((start > now) & (left > 0), start, jnp.inf).min()
        ends = now + need.min()
        done = active & (now + need <= jnp.minimum(ends, begins))
        then = jnp.minimum(ends, begins)
        less = jnp.where(active, left - rate * (then - now), left)
        left = jnp.where(done, 0, jnp.where(active, jnp.maximum(less, jnp.finfo(jnp.float32).tiny), left))
        return then, left, jnp.where(done, then, end)

    first = jnp.float32(-jnp.inf) if not start.shape[0] else start.min(), jnp.asarray(bits, jnp.float32), start
    return jax.lax.while_loop(lambda s: (s[1] > 0).any(), event, first)[2]
