"""Asynchronous secure aggregation with a trusted enclave: the server learns sums, never one member's message.

Papaya: Practical, Private, and Scalable Federated Learning; Huba et al.; MLSys 2022; https://arxiv.org/abs/2111.04877.
A member writes its message in fixed point as integers `q` modulo 2^32, draws a seed and sends

    u = q + PRG(seed)  (mod 2^32)

to the untrusted server, and the seed, encrypted, to an enclave. The server keeps `sum v u` of integer weights `v` of
its choice as messages arrive, with no cohort to agree on beforehand; after the buffer is full the enclave releases
`sum v PRG(seed)`, once, and the difference is `sum v q` exactly. Attestation, key agreement and encryption of the seed
are not simulated; their bits are not counted but for the seed's.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array, Tree
from jaxfl.errors import require
from jaxfl.exchange.codecs import Collective

SEED_BITS = 128.0


def to_fixed(x: Array, resolution: float | Array, largest: int = 2**31 - 1) -> Array:
    """`x` in units of `resolution`, rounded and clipped to `+-largest`, as two's complement uint32."""
    bound = np.float32(largest)
    bound = np.nextafter(bound, np.float32(0)) if int(bound) > largest else bound
    return jax.lax.bitcast_convert_type(
        jnp.clip(jnp.round(x / resolution), -bound, bound).astype(jnp.int32), jnp.uint32
    )


def from_fixed(q: Array, resolution: float | Array) -> Array:
    """The float32 numbers that `to_fixed` wrote, to the nearest float32 of a larger sum."""
    return jax.lax.bitcast_convert_type(q, jnp.int32).astype(jnp.float32) * resolution


def mask(seed: Array, m: int) -> Array:
    """`[m]` uniform uint32 from a random key: the pseudo-random generator of member and enclave."""
    return jax.random.bits(seed, (m,), jnp.uint32)


def masked_sums(seeds: Array, q: Array, v: Array) -> tuple[Array, Array]:
    """What the server and what the enclave add up, member by member: `sum v (q + PRG)`, `sum v PRG`, uint32 `[m]`.

    Args:
        seeds: one random key a member `[c]`.
        q: messages in fixed point `[c, m]` uint32.
        v: integer weights `[c]` uint32.
    """

    def add(sums: tuple, member: tuple) -> tuple:
        seed, q, v = member
        own = mask(seed, q.shape[0])
        return (sums[0] + v * (q + own), sums[1] + v * own), None

    zero = jnp.zeros(q.shape[1], jnp.uint32)
    return jax.lax.scan(add, (zero, zero), (seeds, q, v))[0]


def enclave(resolution: float | Array = 2.0**-16, levels: int = 1) -> Collective:
    """A weighted mean in which the server sees only masked messages and their unmasked sum (`Network.collective`).

    A number of a message is clipped to `(2^31 - 1) / (c * levels)` units of `resolution`, so that no sum of `c` members
    overflows: what is unmasked is the plain integer sum.

    Args:
        resolution: the unit of the fixed point, above 0.
        levels: weights are rounded to whole multiples of `1 / levels` of the largest, 1 being present or absent.

    Raises:
        InputError: a number out of range.
    """
    require("resolution", resolution, above=0)
    require("levels", levels, least=1, whole=True)

    def reduce(key: Array, nodes: Tree, shared: Tree, messages: Array, weight: Array) -> tuple:
        c, m = messages.shape
        v = jnp.round(levels * weight / jnp.maximum(weight.max(), 1e-12)).astype(jnp.uint32)
        messages = jnp.where((weight > 0)[:, None], messages, 0)
        q = to_fixed(messages, resolution, (2**31 - 1) // (c * levels))
        server, released = masked_sums(jax.random.split(key, c), q, v)
        out = from_fixed(server - released, resolution) / jnp.maximum(v.sum(), 1)
        return out, nodes, shared, jnp.full(c, 32.0 * m + SEED_BITS)

    return Collective(lambda message: ((), ()), reduce)
