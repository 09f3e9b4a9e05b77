"""The mean of a range of ranks, coordinate by coordinate: what a median, a trimmed mean and Krum's scores ask for.

Few rows are sorted by Batcher's odd-even network written out, row by row: nothing but the mean is read, so XLA makes
one loop of it all and no row leaves the registers and the first cache. More rows are sorted by merging, pass by pass,
since a network of so many comparisons takes long to compile; on an accelerator by XLA's own sort. For 64 x 100,000 on a
GPU a network takes 0.1 ms, that sort 0.4 and passes 1, but to compile 68, 1 and 2 seconds. `a < b ? a : b` is one
instruction where `jnp.minimum`, which must pass NaN on, is four.

Tried at 512 rows, and no faster on a CPU: bisection on the bits of the ordered floats, on their bit planes (32 rows to
a word), on counts in 16 bits, and with comparisons written out in halves of 16 bits (2.8 ms against 2.9 at 100 x 7,919,
12 against 8 at 193, 61 against 47 at 512 x 20,000: XLA does not vectorise a loop that reads more than some 190 rows);
three layers to a pass; passes that write the rows of a comparison side by side.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxfl.core import Array

GROUP = 8  # rows sorted at once where the network is not written out


def written_out(k: int, m: int) -> bool:
    """Whether the network for `k` rows of `m` is written out: twice the 64 rows take five times as long to compile."""
    return k <= 16 or (k <= 64 and m >= 16 * k and jax.default_backend() == "cpu")


@jax.custom_jvp
def mean_of_ranks(x: Array, low: Array, high: Array) -> Array:
    """Of each column of `x` `[k, m]` the mean of its values of ranks `low` to `high`, `[m]`; no NaN.

    Ranks count from 0, the least; `0 <= low <= high < k` may be traced. Values of other ranks may be infinite.
    """
    rank = jnp.arange(x.shape[0])
    asked, share = (rank >= low) & (rank <= high), 1 / (high - low + 1).astype(x.dtype)
    if not written_out(*x.shape):
        return jnp.where(asked[:, None], share * ascend(x), 0).sum(0)
    rows = _sorted([lax.index_in_dim(x, i, 0, keepdims=False) for i in range(x.shape[0])])
    return sum((jnp.where(asked[i], share * row, 0) for i, row in enumerate(rows)), jnp.zeros(x.shape[1], x.dtype))


@mean_of_ranks.defjvp
def _mean_of_ranks_jvp(at: tuple, by: tuple) -> tuple:
    """A value counts by its rank, and equal ones by their mean."""
    (x, low, high), asked = at, at[2] - at[1] + 1
    least, most = mean_of_ranks(x, low, low), mean_of_ranks(x, high, high)
    of_least, of_most = x == least, (x == most) & (most > least)
    part = lambda equal, count: equal * (count / jnp.maximum(equal.sum(0), 1))
    at_least = jnp.minimum((x <= least).sum(0) - low, asked)
    share = ((x > least) & (x < most)) + part(of_least, at_least) + part(of_most, high + 1 - (x < most).sum(0))
    return mean_of_ranks(*at), (share / asked * by[0]).sum(0).astype(x.dtype)


def ascend(x: Array) -> Array:
    """`x` `[k, m]` with each column ascending; no NaN. On a CPU groups of rows are sorted, then merged two by two."""
    (k, m), size = x.shape, GROUP
    if not x.size:
        return x
    if jax.default_backend() != "cpu":
        return lax.sort(x, dimension=0, is_stable=False)
    rows = max(GROUP, 1 << (k - 1).bit_length())
    x = jnp.concatenate([x, jnp.full((rows - k, m), jnp.inf, x.dtype)]).reshape(-1, size, m)
    x = jnp.stack(_sorted([x[:, i] for i in range(size)]), 1)
    while size < rows:
        size *= 2
        x = _merged(x.reshape(rows // size, size, m))
    return x.reshape(rows, m)[:k]


def _merged(x: Array) -> Array:
    """`x` `[g, s, m]`, of which both halves of the middle axis ascend, with all of it ascending; two layers a pass."""
    shape, block = x.shape, x.shape[1] // 4
    a, b, c, d = _parts(x, 4)
    back = lambda v: lax.rev(v, (1,))  # the second half is read backwards, so that its least meet the others' greatest
    x = _halves((_lower(a, back(d)), _lower(b, back(c))), (_upper(c, back(b)), _upper(d, back(a))))
    while block > 1:
        if block == 2:
            a, b = _parts(x.reshape(-1, 2, shape[2]), 2)
            x, block = jnp.stack([_lower(a, b), _upper(a, b)], 1), 1
        else:
            a, b, c, d = _parts(x.reshape(-1, block, shape[2]), 4)
            x, block = _halves((_lower(a, c), _lower(b, d)), (_upper(a, c), _upper(b, d))), block // 4
    return x.reshape(shape)


def _parts(x: Array, count: int) -> list[Array]:
    """`count` equal parts of the middle axis of `x`."""
    groups, size, m = x.shape
    x = x.reshape(groups, count, size // count, m)
    return [x[:, i] for i in range(count)]


def _halves(*pairs: tuple[Array, Array]) -> Array:
    return jnp.stack([f(*pair) for pair in pairs for f in (_lower, _upper)], 1)


def _sorted(rows: list[Array]) -> list[Array]:
    """Arrays of one shape, compared number by number: the least of each place first (Batcher's odd-even merges)."""
    rows, count, size = list(rows), len(rows), 1
    while size < count:
        stride = size
        while stride:
            for start in range(stride % size, count - stride, 2 * stride):
                for i in range(start, min(start + stride, count - stride)):
                    if i // (2 * size) == (i + stride) // (2 * size):
                        a, b = rows[i], rows[i + stride]
                        rows[i], rows[i + stride] = _lower(a, b), _upper(a, b)
            stride //= 2
        size *= 2
    return rows


def _lower(a: Array, b: Array) -> Array:
    return lax.select(lax.lt(a, b), a, b)


def _upper(a: Array, b: Array) -> Array:
    return lax.select(lax.lt(a, b), b, a)
