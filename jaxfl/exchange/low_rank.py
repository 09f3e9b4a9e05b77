"""Low-rank compression inside an all-reduce: one warm-started power iteration a message.

PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization; Vogels, Karimireddy, Jaggi; NeurIPS
2019; https://arxiv.org/abs/1905.13727; with factors of few bits, as DiLoCoX sends them (arXiv 2506.21263). For each
weight matrix `D_i = message_i + e_i` `[a, b]`, with q the quantiser and Q `[b, r]` that all nodes share,

    P = orth(mean_i q(D_i orth(Q))),   Q <- mean_i q(D_i^T P),   aggregate = P Q^T,   e_i <- D_i - P q(D_i^T P)^T.

A node sends `r (a + b)` integers in place of `a b` floats. Orthonormal Q leaves the span of P as it is and evens out
its columns before they share a scale. A node remembers what its own share of the aggregate lost (PowerSGD's Algorithm
2), not `D_i - aggregate` (its code): the mean over nodes is the same, but what a node's messages always differ in from
the mean would add up in its memory without bound, and with it the quantiser's scale.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxfl.core import Array
from jaxfl.errors import InputError, require
from jaxfl.exchange.codecs import FLOAT, Collective, symmetric
from jaxfl.mapping import linalg

HIGHEST = jax.lax.Precision.HIGHEST
Shapes = Sequence[tuple[int, ...]]
Groups = dict[tuple[int, int], list[int]]


def groups_of(shapes: Shapes) -> Groups:
    """Where in the row the arrays of each size `(a, b)` start; the last axis of an array are its columns."""
    groups, start = {}, 0
    for shape in shapes:
        groups.setdefault((math.prod(shape[:-1]), shape[-1] if shape else 1), []).append(start)
        start += math.prod(shape)
    return groups


def _take(rows: Array, starts: list[int], a: int, b: int) -> Array:
    """The `g` arrays of one size: `[..., m]` to `[..., g, a, b]`."""
    parts = [jax.lax.slice_in_dim(rows, s, s + a * b, axis=-1) for s in starts]
    return jnp.stack(parts, -2).reshape(*rows.shape[:-1], len(starts), a, b)


def _row(blocks: dict[tuple[int, int], Array], groups: Groups) -> Array:
    """The inverse of `_take`, over all sizes."""
    parts = [
        (start, blocks[size][..., j, :, :].reshape(*blocks[size].shape[:-3], -1))
        for size, starts in groups.items()
        for j, start in enumerate(starts)
    ]
    return jnp.concatenate([part for _, part in sorted(parts, key=lambda p: p[0])], -1)


def _orthonormal(x: Array) -> Array:
    """Orthonormal columns, the first k of which span the first k of `x` `[..., a, r]`; a zero becomes any other."""
    return linalg.qr(x)[0]


def low_rank(
    shapes: Shapes,
    rank: int | Array,
    *,
    most: int | None = None,
    bits: int | Array | None = 4,
    scale_bits: float = FLOAT,
    feedback: bool = True,
    least_saving: float = 1.0,
) -> Collective:
    """The compressor above, for messages that hold arrays of `shapes` one after the other (`learn.layers.layers`).

    An array takes `r (a + b)` integers and two scales, or where that does not save, `a b` integers and one scale.
    Arrays of more axes count as matrices of their last one, vectors are always sent whole. An absent member (weight 0)
    keeps its memory.

    Args:
        shapes: of the arrays of a message, in order.
        rank: rank of the aggregate, cut to the sides of each matrix; may be traced, up to `most`.
        most: static bound of the rank (None: `rank`).
        bits: of an integer, scaled to the largest of its array or factor; None sends floats.
        scale_bits: what a scale is counted as.
        feedback: whether nodes remember what was lost.
        least_saving: numbers of a matrix over numbers of its factors, at rank `most`, from which it is factored.

    Raises:
        InputError: a number out of range, `rank` traced without `most`, or messages that are not of `shapes`.
    """
    require("rank", rank, least=1, most=most, whole=True)
    require("bits", bits, least=2, whole=True, none=True)
    require("scale_bits", scale_bits, least=0)
    require("least_saving", least_saving, least=0)
    if most is None and not isinstance(rank, int):
        raise InputError(f"most is None, but a rank of type {type(rank).__name__} needs a static bound.")
    bound = int(rank) if most is None else most
    groups, size = groups_of(shapes), sum(map(math.prod, shapes))
    factored = {ab for ab in groups if ab[0] * ab[1] > least_saving * min(bound, *ab) * sum(ab) and min(ab) > 1}
    width, scale = (FLOAT, 0.0) if bits is None else (bits, scale_bits)

    def coded(x: Array) -> Array:
        return x if bits is None else symmetric(x, bits, (-2, -1))

    def init(message):
        if message.size != size:
            raise InputError(f"shapes hold {size} numbers, but a message has {message.size}.")
        keys = jax.random.split(jax.random.key(0), len(groups))
        start = {
            (a, b): jax.random.normal(k, (len(at), b, min(bound, a, b)))
            for k, ((a, b), at) in zip(keys, groups.items(), strict=True)
        }
        return jnp.zeros_like(message) if feedback else (), {ab: q for ab, q in start.items() if ab in factored}

    def factors(d: Array, q: Array, mean) -> tuple:
        """Aggregate `[g, a, b]`, own shares `[c, g, a, b]`, new basis and rank, of matrices `d` `[c, g, a, b]`."""
        r = jnp.minimum(rank, q.shape[-1])
        used = jnp.arange(q.shape[-1]) < r
        p = mean(coded(jnp.matmul(d, _orthonormal(q) * used, precision=HIGHEST)))
        p = _orthonormal(p) * used
        each = coded(jnp.einsum("cgab,gar->cgbr", d, p, precision=HIGHEST))
        new = mean(each)
        product = lambda right: jnp.einsum("gar,...gbr->...gab", p, right, precision=HIGHEST)
        return product(new), product(each), jnp.where(used, new, q), r

    def reduce(key, nodes, shared, messages, weight):
        del key
        there = (weight > 0)[:, None]
        whole = jnp.where(there, messages + nodes if feedback else messages, 0.0)  # the absent may not be finite
        mean = lambda x: jnp.einsum("c,c...->...", weight, x, precision=HIGHEST)
        out, own, basis, spent = {}, {}, {}, jnp.float32(0)
        for (a, b), starts in groups.items():
            d = _take(whole, starts, a, b)
            if (a, b) in factored:
                out[a, b], own[a, b], basis[a, b], r = factors(d, shared[a, b], mean)
                spent += len(starts) * (width * r * (a + b) + 2 * scale)
            else:
                own[a, b] = coded(d)
                out[a, b] = mean(own[a, b])
                spent += len(starts) * (width * float(a * b) + scale)
        if feedback:
            nodes = jnp.where(there, whole - _row(own, groups), nodes)
        return _row(out, groups), nodes, basis, jnp.full(weight.shape, spent)

    return Collective(init, reduce)


def effective_rank(shapes: Shapes, message: Array, share: float = 0.9) -> Array:
    """How many singular values keep `share` of a matrix's energy, mean over the matrices in `message` `[m]`.

    `share` of the squared Frobenius norm; a matrix of zeros has rank 1, as has one that is not finite.
    Vectors are left out.

    Raises:
        InputError: `share` outside (0, 1], or no array of `shapes` has two sides above 1.
    """
    require("share", share, above=0, most=1)
    found = []
    for (a, b), starts in groups_of(shapes).items():
        if min(a, b) > 1:
            d = _take(message, starts, a, b)
            d = d if a <= b else d.swapaxes(-1, -2)
            gram = jnp.matmul(d, d.swapaxes(-1, -2), precision=HIGHEST)
            energy = jnp.maximum(linalg.eigvalsh(gram)[..., ::-1], 0.0)
            short = jnp.cumsum(energy, -1) < (share - 1e-6) * energy.sum(-1, keepdims=True)
            found.append(jnp.minimum(1 + short.sum(-1), min(a, b)))
    if not found:
        raise InputError(f"shapes are {list(shapes)}, but an effective rank needs a matrix.")
    return jnp.concatenate(found).mean()
