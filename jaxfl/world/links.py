"""How fast nodes and their links are.

By node: `links`. What lies between nodes, by region or by edge, is `world.regions`. How long a round takes on them is
`exchange.timing`.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array, Graph, Links, Trunk, constant
from jaxfl.errors import InputError, require


def links(
    n: int,
    *,
    up: Any = math.inf,
    down: Any = None,
    latency: Any = 0.0,
    step: Any = 0.0,
    group: Any = None,
    trunk: Any = math.inf,
) -> Links:
    """Links of `n` nodes; each argument is one number for all or one a node `[n]`.

    Args:
        n: number of nodes.
        up: bits a second a node can send; infinite by default.
        down: bits a second a node can receive; None: as `up`.
        latency: seconds until a message's first bit arrives.
        step: seconds of one local step.
        group: which nodes share an uplink, whole numbers from 0 `[n]`; one number: all share one; None: nobody does.
        trunk: bits a second of a shared uplink, by group `[g]` or one for all. Uploads to a server share it by max-min
            fairness (`exchange.fair_share`), as it is when one begins or ends.

    Raises:
        InputError: another shape, a rate that is not above 0, or a time that is negative or infinite.
    """
    down = up if down is None else down
    return Links(
        number("up", up, (n,), rate=True),
        number("down", down, (n,), rate=True),
        number("latency", latency, (n,)),
        number("step", step, (n,)),
        trunk=None if group is None else _trunk(n, group, trunk),
    )


def _trunk(n: int, group: Any, rate: Any) -> Trunk:
    groups = whole("group", group, (n,))
    return Trunk(groups, number("trunk", rate, (int(np.max(groups)) + 1,), rate=True))


def number(name: str, value: Any, shape: tuple[int, ...], rate: bool = False) -> Array:
    """Rates above 0, or finite times of at least 0, float32 of `shape`; one number stands for all.

    Raises:
        InputError: another shape or another number.
    """
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, or 0
        values = np.asarray(value, np.float64).astype(np.float32)
    sound = values > 0 if rate else (values >= 0) & np.isfinite(values)
    if values.shape not in ((), shape) or not sound.all():
        kind = "a rate above 0" if rate else "a finite time of at least 0"
        each = "one a node" if len(shape) == 1 and name != "trunk" else "one each"
        raise InputError(f"{name} = {value}: {kind}, as float32, or {each} {list(shape)}, is needed.")
    return constant(np.broadcast_to(values, shape))


def whole(name: str, value: Any, shape: tuple[int, ...]) -> Array:
    """Whole numbers from 0, int32 of `shape`; one number stands for all.

    Raises:
        InputError: another shape or another number.
    """
    require(name, np.asarray(value), least=0, whole=True)
    if np.shape(value) not in ((), shape):
        raise InputError(f"{name} has shape {list(np.shape(value))}, but must be one number, or {list(shape)}.")
    return constant(np.broadcast_to(np.asarray(value), shape), np.int32)


def by_node(links: Links, system: str = "") -> tuple[Array, Array, Array, Array]:
    """`up`, `down`, `latency` and `step`, each `[n]`; for a `system` named here, which times nodes alone, that is all.

    Raises:
        InputError: a system is named, and the links have more.
    """
    if system and (links.between is not None or links.trunk is not None):
        raise InputError(f"links differ by edge or are shared, but {system} knows links by node alone.")
    return links[:4]  # type: ignore[return-value]


def to_server(links: Links) -> Links:
    """How the nodes reach a server in its region, by node alone; a latency is the mean of both ways, `[n]`."""
    far = links.between
    if far is not None:
        there, back = (far.region, far.server), (far.server, far.region)
        links = links._replace(
            up=jnp.minimum(links.up, far.rate[there]),
            down=jnp.minimum(links.down, far.rate[back]),
            latency=links.latency + (far.latency[there] + far.latency[back]) / 2,
        )
    return links._replace(between=None, trunk=None)


def ways(links: Links, tables: Sequence[tuple[Array, Graph, Array]]) -> list[Array]:
    """Seconds `[r, k]` each message is under way where all are sent at once; tables as in `timing.over_edges`.

    `b` bits from `j` to `i` take what lies between their regions (`world.regions`) and the longest of what the sender
    needs for all it sends, the receiver for all it hears, the way between them for `b`, and, if it leaves a group whose
    nodes share an uplink, that for all that leaves the group. In slots without bits 0.
    """
    n = links.up.shape[0]
    sent, received = moved(n, tables)
    out, into = links.latency + sent / links.up, links.latency + received / links.down
    far, trunk, left = links.between, links.trunk, jnp.zeros(n)
    if trunk is not None:
        away = jnp.zeros(trunk.rate.shape)
        for ids, graph, bits in tables:
            group = trunk.group[graph.nbr]
            away = away.at[group].add(jnp.where(group != trunk.group[ids][:, None], bits, 0))
        left = (away / trunk.rate)[trunk.group]
    found = []
    for ids, graph, bits in tables:
        way = jnp.maximum(out[graph.nbr], into[ids][:, None])
        if trunk is not None:
            leaves = trunk.group[graph.nbr] != trunk.group[ids][:, None]
            way = jnp.where(leaves, jnp.maximum(way, (links.latency + left)[graph.nbr]), way)
        if far is not None:
            pair = far.region[graph.nbr], far.region[ids][:, None]
            way = far.latency[pair] + jnp.maximum(way, bits / far.rate[pair])
        found.append(jnp.where(bits > 0, way, 0.0))
    return found


def moved(n: int, tables: Sequence[tuple[Array, Graph, Array]]) -> tuple[Array, Array]:
    """Bits that each node sends and receives, `[n]`."""
    sent, received = jnp.zeros(n), jnp.zeros(n)
    for ids, graph, bits in tables:
        sent, received = sent.at[graph.nbr].add(bits), received.at[ids].add(bits.sum(1))
    return sent, received
