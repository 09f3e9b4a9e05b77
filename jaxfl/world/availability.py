"""Laws of availability, `[n]` bool a round: bursts that nodes share, day and night; and what was seen of one.

As `scenario(churn=...)` they make nodes fail, in `cohort.among` they are who a server can choose from, in
`topology.asleep` who can be met. `cohort.availability` and `churn.sessions` are the independent chains.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array, Process, constant, stream
from jaxfl.errors import InputError, require
from jaxfl.world.cohort import availability, base_arrays, labels
from jaxfl.world.exponential import tail
from jaxfl.world.exponential import uniform as fraction
from jaxfl.world.process import process


def markov(n: int, up: Any = 0.8, memory: Any = 0.0, corr: float = 0.0, groups: Any = 1) -> Process:
    """Two-state Markov chains by their share of time up and their memory, correlated within groups.

    A node that is up is up in the next round with probability `memory + (1 - memory) up`, one that is down with
    `(1 - memory) up`: the autocorrelation at lag `k` is `memory^k`. It starts in its stationary law. Each round a node
    either follows the draw of its group or its own, whichever its own coin says, so that each node alone is the chain
    just described, and two nodes of a group that are alike are correlated by `corr` at any time. With `corr` 1 they are
    one chain; nodes of other groups are independent.

    Args:
        n: number of nodes.
        up: share of time up, 0 to 1, one for all or `[n]`.
        memory: above -1 and below 1, likewise. 0: rounds are independent. Towards 1: long bursts. Below 0: nodes
            alternate; then at least `-min(up, 1 - up) / max(up, 1 - up)`.
        corr: correlation of two nodes of one group with the same `up` and `memory`, 0 to 1.
        groups: how many blocks of successive nodes there are, or the group of each node `[n]`, 0, 1, ...

    Raises:
        InputError: a number out of its range, or one of another shape.
    """
    base_arrays(n)
    share, kept = (_each(name, a, n) for name, a in (("up", up), ("memory", memory)))
    if not ((share >= 0) & (share <= 1)).all():
        raise InputError(f"up = {up}: shares of time from 0 to 1 are needed.")
    least = -np.minimum(share, 1 - share) / np.maximum(share, 1 - share)
    if not ((kept > -1) & (kept < 1) & (kept >= least)).all():
        worst = int(np.argmin(np.where(np.isnan(kept), -np.inf, np.minimum(kept - least, 1 - kept))))
        raise InputError(
            f"memory = {kept[worst]:g} of a node that is up for a share {share[worst]:g} of the time: a number below 1 "
            f"and at least {least[worst]:g} is needed."
        )
    require("corr", corr, least=0, most=1)
    group = labels("groups", n, groups)
    if isinstance(corr, int | float) and corr == 0:
        return availability(n, kept + (1 - kept) * share, 1 - (1 - kept) * share)
    # two nodes that follow the group with probability f each: corr = f^2 / (1 + |memory| (1 - f^2))
    both = corr * (1 + np.abs(kept)) / (1 + corr * np.abs(kept))
    arrays = {
        "arrive": constant((1 - kept) * share, np.float32),
        "leave": constant((1 - kept) * (1 - share), np.float32),
        "share": constant(share, np.float32),
        "follow": constant(np.sqrt(both), np.float32),
        "first": constant(np.sqrt(corr) * np.ones(n), np.float32),
        "group": constant(group, np.int32),
    }
    count = int(group.max()) + 1

    def draw(key: Array, arrays: dict, follow: Array) -> tuple[Array, Array]:
        """A uniform number `[n]`, by its distance from the nearer end of (0, 1), of the group or the node's own."""
        which, own, shared = jax.random.split(key, 3)
        follows = fraction(which, (n,)) <= follow
        pick = lambda theirs, mine: jnp.where(follows, theirs[arrays["group"]], mine)
        return jax.tree.map(pick, tail(shared, (count,)), tail(own, (n,)))

    def below(u: tuple[Array, Array], p: Array, reverse: bool = False) -> Array:
        """Whether `u <= p`, or `1 - u <= p`: exact for small p at both ends."""
        far, near = u
        return jnp.where(far != reverse, 1 - near <= p, near <= p)

    def init(key: Array, arrays: dict) -> Array:
        return below(draw(stream(key, "first availability"), arrays, arrays["first"]), arrays["share"])

    def step(key: Array, arrays: dict, s: Array, t: Array) -> tuple[Array, Array]:
        u = draw(stream(key, "availability"), arrays, arrays["follow"])
        s = jnp.where(s, ~below(u, arrays["leave"], reverse=True), below(u, arrays["arrive"]))
        return s, s

    return process(step, arrays, init)


def diurnal(n: int, up: Any = 0.5, swing: Any = 0.4, period: int = 24, zones: Any = 1, phase: Any = None) -> Process:
    """Day and night: node `i` is up in round `t` with probability `up + swing cos(2 pi (t / period - phase_i))`.

    Rounds are independent, given the hour.

    Args:
        n: number of nodes.
        up: mean share of time up, one for all or `[n]`.
        swing: by how much the hour moves it, likewise; `up` with and without it is a probability.
        period: rounds of a day, at least 2.
        zones: time zones, spread evenly over the day: how many blocks of successive nodes there are, or the zone of
            each node `[n]`, 0, 1, ...
        phase: the hour of each node's peak as a share of the day, one for all or `[n]`; None: that of its zone.

    Raises:
        InputError: a probability outside 0..1, a number out of its range, or one of another shape.
    """
    base_arrays(n)
    mean, wide = (_each(name, a, n) for name, a in (("up", up), ("swing", swing)))
    if not ((mean - np.abs(wide) >= 0) & (mean + np.abs(wide) <= 1)).all():
        raise InputError(f"up = {up}, swing = {swing}: up - |swing| must be at least 0 and up + |swing| at most 1.")
    require("period", period, least=2, below=2**31, whole=True)
    zone = labels("zones", n, zones)
    place = zone / (zone.max() + 1) if phase is None else _each("phase", phase, n)
    if not np.isfinite(place).all():
        raise InputError(f"phase = {phase}: finite shares of the day are needed.")

    def step(key: Array, arrays: dict, s: tuple, t: Array) -> tuple[tuple, Array]:
        hour = (t % arrays["period"]) / arrays["period"]
        p = arrays["up"] + arrays["swing"] * jnp.cos(2 * jnp.pi * (hour - arrays["phase"]))
        return s, fraction(stream(key, "diurnal availability"), (n,)) <= p

    numbers = {"up": mean, "swing": wide, "phase": place}
    arrays = {name: constant(a, np.float32) for name, a in numbers.items()} | {"period": constant(period, np.int32)}
    return process(step, arrays)


def _each(name: str, value: Any, n: int) -> np.ndarray:
    a = np.asarray(value, np.float64)
    if a.shape not in ((), (n,)):
        raise InputError(f"{name} has shape {list(a.shape)}: one number, or one a node [{n}], is needed.")
    return np.broadcast_to(a, (n,))


class Seen(NamedTuple):
    """What was seen of the availability of `n` nodes. All fields `[n]`, but for `looks`."""

    looks: Array  # int32 [], rounds looked at
    on: Array  # int32, in how many of them a node was up
    stays: Array  # int32, how often it was up in two in a row
    rests: Array  # int32, how often it was down in two in a row
    last: Array  # bool, whether it was up in the last


def nothing_seen(n: int) -> Seen:
    """Before the first look."""
    zero = jnp.zeros(n, jnp.int32)
    return Seen(jnp.int32(0), zero, zero, zero, jnp.zeros(n, bool))


def look(seen: Seen, up: Array) -> Seen:
    """After a round in which `up` `[n]` bool were there."""
    again = (seen.looks > 0) & (up == seen.last)
    return Seen(seen.looks + 1, seen.on + up, seen.stays + (again & up), seen.rests + (again & ~up), up)


def running_share(seen: Seen, prior: Array | float = 0.5, strength: Array | float = 1.0) -> Array:
    """The share of time up `[n]` as seen, where `strength` looks at `prior` count as seen before the first."""
    return (seen.on + strength * prior) / (seen.looks + strength)


def chain_seen(
    seen: Seen, prior: Array | float = 0.5, memory: Array | float = 0.0, strength: Array | float = 1.0
) -> tuple[Array, Array]:
    """The share of time up and the memory of each node's Markov chain (see `markov`) as seen, both `[n]`.

    The memory is `P(up | up) + P(down | down) - 1`, each a mean over what was seen and over `strength` transitions of
    a chain with share `prior` and this `memory`, so that before the first look both are as the prior says. The
    estimator of CA-Fed's authors (Rodio et al., INFOCOM 2023), whose strength is 100.
    """
    from_on = seen.on - (seen.last & (seen.looks > 0))  # the last look leads nowhere yet
    from_off = jnp.maximum(seen.looks - 1, 0) - from_on
    stays = (seen.stays + strength * (memory + (1 - memory) * prior)) / (from_on + strength)
    rests = (seen.rests + strength * (1 - (1 - memory) * prior)) / (from_off + strength)
    return running_share(seen, prior, strength), stays + rests - 1
