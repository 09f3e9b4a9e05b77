"""Codecs: what a message becomes on the wire, and how many bits it takes.

Lossy codecs are here, those that work inside an all-reduce are `Collective`s (`exchange.low_rank`). A random choice
that follows from a round's key and the sender's id (which entries, which rotation) is known to both ends and costs
no bits; everything else a receiver needs, scales and indices included, is counted.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxfl.core import Array, Tree
from jaxfl.errors import InputError, require

FLOAT = 32.0  # bits of an uncoded number


class Codec(NamedTuple):
    """How ONE sender encodes its messages. Memory and bits may be traced: bits may depend on the message."""

    init: Callable  # (message [m]) -> memory
    send: Callable  # (key, memory, message [m]) -> (what arrives [m], memory, bits)
    by_number: bool = False  # each number takes its bits, whatever it and the others are, and nothing is remembered


class Collective(NamedTuple):
    """A compressor that works inside an all-reduce, on what all members send, in place of codec and rule."""

    init: Callable  # (message [m]) -> (memory of one node, memory all nodes share)
    reduce: Callable  # (key, nodes [c, ...], shared, messages [c, m], weight [c]) -> ([m], nodes, shared, bits [c])


def memoryless(message: Array) -> tuple:
    """The `init` of a codec that remembers nothing."""
    del message
    return ()


def _plain(key: Array, memory: Tree, message: Array) -> tuple:
    del key
    return message, memory, FLOAT * message.size


PLAIN = Codec(memoryless, _plain, by_number=True)


def plain() -> Codec:
    """Every number as a 32-bit float."""
    return PLAIN


def half() -> Codec:
    """Every number rounded to a 16-bit bfloat."""

    def send(key, memory, message):
        del key
        return message.astype(jnp.bfloat16).astype(jnp.float32), memory, 16.0 * message.size

    return Codec(memoryless, send, by_number=True)


def symmetric(x: Array, bits: int | Array, axis: int | tuple[int, ...] = -1, key: Array | None = None) -> Array:
    """`x` rounded to the `2^bits - 1` integers from `-L` to `L = 2^(bits - 1) - 1` times a scale, `max |x| / L`.

    The maximum runs over `axis`. Without a key to the nearest integer, else up or down at random, without bias.
    """
    levels = 2.0 ** (bits - 1) - 1
    most, part = _scaled(x, axis)
    position = levels * part
    position = jnp.round(position) if key is None else jnp.floor(position + jax.random.uniform(key, x.shape))
    return jnp.clip(position, -levels, levels) / levels * most


def _scaled(x: Array, axis: int | tuple[int, ...] = -1) -> tuple[Array, Array]:
    """`max |x|` over `axis`, kept as 1, and `x` over it: squares and sums of that neither overflow nor vanish."""
    most = jnp.max(jnp.abs(x), axis, keepdims=True)
    return most, x / jnp.where(most == 0, 1.0, most)


def _blocks(message: Array, block: int | None) -> Array:
    """`[m]` to `[ceil(m / block), block]`, the last one filled up with zeros; None: one block."""
    m = message.size
    size = m if block is None else min(block, m)
    return jnp.pad(message, (0, -m % size)).reshape(-1, size)


def quantize(
    bits: int | Array, *, block: int | None = None, stochastic: bool = False, scale_bits: float = FLOAT
) -> Codec:
    """Symmetric integers of `bits` bits times one scale a block of `block` numbers (None: a message).

    Takes `bits * m + scale_bits * ceil(m / block)` bits.

    Args:
        bits: of an integer, at least 2; may be traced.
        block: numbers that share a scale, `max |x| / (2^(bits - 1) - 1)`.
        stochastic: round up or down at random, so that the mean of what arrives is the message; else to the nearest.
        scale_bits: what a scale is counted as; papers that count integers only have 0.

    Raises:
        InputError: `bits` below 2, `block` below 1, `scale_bits` negative.
    """
    require("bits", bits, least=2, whole=True)
    require("block", block, least=1, whole=True, none=True)
    require("scale_bits", scale_bits, least=0)

    def send(key, memory, message):
        x = _blocks(message, block)
        sent = symmetric(x, bits, key=key if stochastic else None)
        return sent.reshape(-1)[: message.size], memory, bits * float(message.size) + scale_bits * x.shape[0]

    return Codec(memoryless, send, by_number=True)


def elias_bits(number: Array) -> Array:
    """Bits of Elias' omega code of integers from 1 to 2^31 - 1, elementwise int32."""
    number = jnp.asarray(number, jnp.int32)
    total = jnp.ones_like(number)
    for _ in range(5):  # 2^31 -> 30 -> 4 -> 2 -> 1
        length = 31 - jax.lax.clz(number)
        total += jnp.where(number > 1, length + 1, 0)
        number = jnp.maximum(length, 1)
    return total


def qsgd(levels: int, *, block: int | None = None) -> Codec:
    """QSGD: `|x|` of each block times sign times a random one of `0, 1 / s, ..., 1`, unbiased, `s = levels`.

    Alistarh, Grubic, Li, Tomioka, Vojnovic; NeurIPS 2017; https://arxiv.org/abs/1610.02132. For each number the bits
    are those of the paper's dense code: Elias' omega code of one plus its level, and a sign where that is not 0; and
    32 for the norm of each block. The variance is at most `min(b / s^2, sqrt(b) / s) |x|^2`, `b` numbers a block.

    Raises:
        InputError: `levels` or `block` below 1.
    """
    require("levels", levels, least=1, whole=True)
    require("block", block, least=1, whole=True, none=True)

    def send(key, memory, message):
        x = _blocks(message, block)
        most, part = _scaled(x)
        norm = jnp.linalg.norm(part, axis=1, keepdims=True)
        position = levels * jnp.abs(part) / jnp.where(norm == 0, 1.0, norm)
        level = jnp.minimum(jnp.floor(position + jax.random.uniform(key, x.shape)), levels)
        code = (elias_bits(1 + level) + (level > 0)).reshape(-1)[: message.size].sum()
        sent = most * (norm * jnp.sign(x) * level / levels)
        return sent.reshape(-1)[: message.size], memory, code + FLOAT * x.shape[0]

    return Codec(memoryless, send)


def sign(*, scaled: bool = True) -> Codec:
    """One bit a number, its sign (that of 0 is +); `scaled` by the mean of `|x|`, 32 bits more.

    Unscaled is signSGD (Bernstein et al., ICML 2018); scaled, with `error_feedback`, EF-signSGD (Karimireddy et al.,
    ICML 2019), for which it contracts: `|x - sent|^2 = (1 - |x|_1^2 / (m |x|_2^2)) |x|_2^2`.
    """

    def send(key, memory, message):
        del key
        most, part = _scaled(message)
        scale = most * jnp.abs(part).mean() if scaled else 1.0
        return scale * jnp.where(message < 0, -1.0, 1.0), memory, message.size + FLOAT * scaled

    return Codec(memoryless, send, by_number=not scaled)


def _count(k: int | float, m: int) -> int:
    count = max(1, round(k * m)) if isinstance(k, float) else k
    if not 1 <= count <= m:
        raise InputError(f"k is {k}, but a message has {m} numbers: from 1 to all of them may be kept.")
    return count


def _chosen(which: Callable, values: Codec, k: int | float, indexed: bool) -> Codec:
    """Keep the entries `which(key, message, count)`, scaled, their values sent by another codec."""

    def init(message):
        return values.init(message[: _count(k, message.size)])

    def send(key, memory, message):
        m = message.size
        index, scale = which(key, message, _count(k, m))
        sent, memory, bits = values.send(jax.random.fold_in(key, 1), memory, message[index])
        position = index.size * float((m - 1).bit_length()) if indexed else 0.0
        return jnp.zeros_like(message).at[index].set(scale * sent), memory, bits + position

    return Codec(init, send)


def top_k(k: int | float, values: Codec = PLAIN) -> Codec:
    """The `k` entries of largest magnitude and their places, `ceil(log2 m)` bits each; all others arrive as 0.

    Args:
        k: how many, or the share of a message as a float (at least one entry).
        values: codec of the `k` values, largest first: `top_k(0.01, quantize(4))`.

    Raises:
        InputError: while tracing, `k` outside 1..m.
    """
    require("k", k, above=0)
    return _chosen(lambda key, x, count: (jax.lax.top_k(jnp.abs(x), count)[1], 1.0), values, k, True)


def random_k(k: int | float, values: Codec = PLAIN, *, unbiased: bool = True) -> Codec:
    """`k` entries drawn without replacement, whose places follow from the key: no bits for them.

    `unbiased` multiplies by `m / k`, so that the mean of what arrives is the message; under `error_feedback` it must
    be off, as only then sending contracts. Other arguments and errors are those of `top_k`.
    """
    require("k", k, above=0)

    def which(key, x, count):
        places = jax.lax.top_k(jax.random.uniform(key, x.shape), count)[1]
        return places, x.size / count if unbiased else 1.0

    return _chosen(which, values, k, False)


def error_feedback(codec: Codec) -> Codec:
    """What `codec` lost is added to the next message: `sent = C(x + e)`, `e <- x + e - sent`, from `e = 0`.

    So what arrives and what is remembered sum to what was given. Stich, Cordonnier, Jaggi; NeurIPS 2018;
    https://arxiv.org/abs/1809.07599; Karimireddy et al.; ICML 2019. `codec` should contract.
    """

    def init(message):
        return jnp.zeros_like(message), codec.init(message)

    def send(key, memory, message):
        error, inner = memory
        whole = message + error
        sent, inner, bits = codec.send(key, inner, whole)
        return sent, (whole - sent, inner), bits

    return Codec(init, send)
