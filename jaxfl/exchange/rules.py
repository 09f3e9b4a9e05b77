"""Aggregation rules: how ONE receiver combines what it heard.

A rule is `(own [m], heard [k, m], weight [k]) -> [m]` with weights that sum to one (weight 0: nothing came). At a
server `k` is the cohort and `own` the server's reference; on a graph the receiver's own message is `own` and the first
of those heard. Neighbourhoods may be ragged: how many came is data, and counts, ranks and bounds follow it.

Robust rules come in two families. A weight rule is a weighted mean whose weights depend on the messages' inner
products only (Krum, geometric median); a coordinate rule weighs ranks, coordinate by coordinate (median, trimmed
mean). Both, and centered clipping, work on chunks of coordinates: beside `heard` they need memory for one chunk.

In every rule but the mean a message that is not finite counts as not arrived, in weight rules and clipping also one
whose square is not (in weight rules, above `4e37 / k`); if nothing arrived, the receiver keeps `own`. Distances below
1e-19 count as 0. `weight` says how much a message counts in the mean, the geometric median and centered clipping; to
the others only who came matters, as in their papers.
"""

import math
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import PartitionSpec as P

from jaxfl.core import Array, Tree
from jaxfl.errors import require
from jaxfl.exchange.ranks import mean_of_ranks, written_out
from jaxfl.mapping.blocks import CACHE_BYTES
from jaxfl.mapping.shards import AXIS, node_shards

HIGHEST = jax.lax.Precision.HIGHEST
LARGEST = 4e37  # of the sum of squares of which four may still be added
CHUNK_BYTES = 2**28  # of the messages on an accelerator; on a CPU a core's cache


def mean(own: Array, heard: Array, weight: Array) -> Array:
    """The weighted mean, `weight @ heard`. Written as a dot: XLA's sum over a leading axis is a scalar loop on CPU."""
    del own
    return jnp.matmul(weight, heard, precision=jax.lax.Precision.HIGHEST)


def mean_of(rows: Array, weight: Array) -> Array:
    """The mean `[m]` of `rows` `[k, m]` by weights of any sum; 0 where nobody counts."""
    return mean(rows[0], rows, weight) / total_or_one(weight.sum())


def total_or_one(weight: Array) -> Array:
    """What a sum by weight is divided by: the total `weight`, 1 where that is 0."""
    return jnp.where(weight > 0, weight, 1)


def median() -> Callable:
    """The median of each coordinate, the mean of the two middle values of an even number (Yin et al., ICML 2018)."""
    return _by_rank(lambda count, _: ((count - 1) // 2, count // 2))


def trimmed_mean(f: int | Array) -> Callable:
    """The mean of each coordinate without its `f` lowest and `f` highest values (Yin et al., ICML 2018).

    Where no more than `2 f` came, as many are cut as leave one or two. Where no more can come, a warning says so.
    """
    require("f", f, least=0, whole=True)

    def kept(count: Array, places: int) -> tuple[Array, Array]:
        _need("trimmed_mean", f, 1, places)
        cut = jnp.minimum(f, (count - 1) // 2).astype(count.dtype)
        return cut, count - cut - 1

    return _by_rank(kept)


def krum(f: int | Array) -> Callable:
    """The message nearest to its `c - f - 2` nearest others, of `c` that came (Blanchard et al., NeurIPS 2017).

    `f` is how many may lie; the guarantee needs `c >= 2 f + 3`, and where fewer came at least one other is looked at.
    Where so many cannot come, a warning says that the guarantee is void.
    """
    return multi_krum(f, 1)


def multi_krum(f: int | Array, keep: int | Array | None = None) -> Callable:
    """The plain mean of the `keep` messages of least Krum score; None keeps `c - f` of the `c` that came."""
    require("f", f, least=0, whole=True)
    require("keep", keep, least=1, whole=True, none=True)

    def weights(gram: Array, came: Array, weight: Array) -> Array:
        _need("krum", f, 3, came.size)
        count, position = came.sum(), jnp.arange(came.size)
        looked_at = jnp.clip(count - f - 2, 1, jnp.maximum(count - 1, 1)).astype(count.dtype)
        score = mean_of_ranks(_apart(gram, came), jnp.zeros_like(count), looked_at - 1)
        score = jnp.where(came, jnp.where(count > 1, score, 0), jnp.inf)
        better = (score < score[:, None]) | ((score == score[:, None]) & (position < position[:, None]))
        most = jnp.clip(count - f if keep is None else keep, 1, jnp.maximum(count, 1))
        chosen = (better.sum(1) < most) & came
        return chosen / jnp.maximum(chosen.sum(), 1)

    return _by_gram(weights)


def geometric_median(iterations: int = 8, nu: float | Array = 1e-6) -> Callable:
    """The point of least weighted distance to all, by smoothed Weiszfeld steps (RFA, Pillutla et al., IEEE TSP 2022).

    `z <- sum_i b_i x_i / sum_i b_i` with `b_i = w_i / max(nu, |z - x_i|)`, from the weighted mean. `nu` is in the units
    of the messages. Distances are taken from inner products around one of the messages, see `_gram`, and are blind
    below about 3e-4 of the distances between them.
    """
    require("iterations", iterations, least=0, whole=True)
    require("nu", nu, above=0)

    def weights(gram: Array, came: Array, weight: Array) -> Array:
        gram = jnp.where(came[:, None] & came, gram, 0)
        square = jnp.diagonal(gram)

        def step(a: Array, _) -> tuple[Array, None]:
            along = jnp.matmul(gram, a, precision=HIGHEST)
            b = weight / jnp.maximum(nu, _root(square - 2 * along + jnp.vdot(a, along, precision=HIGHEST)))
            return b / jnp.maximum(b.sum(), 1e-30), None

        return jax.lax.scan(step, weight, None, length=iterations)[0]

    return _by_gram(weights)


def centered_clipping(tau: float | Array | Callable, iterations: int = 1) -> Callable:
    """`v <- v + sum_i w_i (x_i - v) min(1, tau / |x_i - v|)`, from `v = own` (Karimireddy et al., ICML 2021).

    At a server `own` is what it aggregated before; on a graph it is the receiver's own message, and one iteration is
    ClippedGossip (He, Karimireddy, Jaggi, 2022). Work and memory are linear in the messages: no pairs, no sorting. A
    receiver whose `own` is not finite stays so.

    Args:
        tau: radius in the units of the messages, or `(distance [k], weight [k]) -> radius`, such as
            `adaptive_radius(delta)`; what did not come has weight 0.
        iterations: how often, 1 to about 5.
    """
    require("tau", tau, least=0, most=math.inf)
    require("iterations", iterations, least=1, whole=True)

    def rule(own: Array, heard: Array, weight: Array) -> Array:
        def step(v: Array, _) -> tuple[Array, None]:
            square = sum_columns(lambda x, v: ((x - v) ** 2).sum(1), heard, v)
            w, came = _arrived(weight, square)
            distance = _root(jnp.where(came, square, 0))
            radius = tau(distance, w) if callable(tau) else tau
            a = w * jnp.where(distance > radius, radius / jnp.where(distance > 0, distance, 1), 1)
            move = lambda x, v: v + jnp.matmul(a, jnp.where(came[:, None], x - v, 0), precision=HIGHEST)
            return by_columns(move, heard, v), None

        return jax.lax.scan(step, own, None, length=iterations)[0]

    return rule


def adaptive_radius(delta: float | Array) -> Callable:
    """ClippedGossip's radius for `centered_clipping` without knowing the noise (He, Karimireddy, Jaggi, 2022).

    `tau^2 = 1 / delta * sum_j w_j |x_j - own|^2` without the farthest messages, as many as weigh at most `delta`
    together. Where liars weigh at most `delta`, each that is left lies no farther than some honest message.
    """
    require("delta", delta, above=0, below=1)

    def radius(distance: Array, weight: Array) -> Array:
        position = jnp.arange(distance.size)
        ties = (distance == distance[:, None]) & (position >= position[:, None])
        farther = (distance > distance[:, None]) | ties  # [j, l]: l is as far as j, or farther
        far = jnp.matmul(farther.astype(weight.dtype), weight, precision=HIGHEST) > delta * (1 + 1e-6)
        most = jnp.where(far, distance, 0).max(initial=0)  # of 1, squares neither overflow nor vanish
        part = jnp.where(far, distance, 0) / jnp.where(most > 0, most, 1)
        return most * _root((weight * part**2).sum() / delta)

    return radius


def one_of(index: int | Array, *rules: Callable) -> Callable:
    """The `index`-th of `rules`. A traced index lets one compiled program serve all of them."""

    def rule(own: Array, heard: Array, weight: Array) -> Array:
        return jax.lax.switch(jnp.asarray(index, jnp.int32), rules, own, heard, weight)

    return rule


def _columns_apart(x: Array) -> Array:
    """`x` `[k, m]` with its columns, not its rows, on the devices of an ambient mesh: rows are to be compared."""
    mesh = jax.sharding.get_abstract_mesh()
    if node_shards() == 1 or AXIS in mesh.manual_axes:
        return x
    return jax.lax.with_sharding_constraint(x, P(None, AXIS))


def by_columns(f: Callable, *arrays: Array, needs: int = 1) -> Array:
    """`f(*arrays)` `[m]` on chunks of the arrays' last axis, `m`, narrower by how much more memory `f` `needs`."""
    count, width, cut = _chunks(arrays, needs)
    if count == 1:
        return f(*arrays)
    parts = jax.lax.map(lambda i: f(*cut(i)[0]), jnp.arange(count))
    again = count * width - arrays[0].shape[-1]  # what the last chunk has in common with the one before
    return jnp.concatenate([parts[:-1].reshape(-1), parts[-1, again:]])


def sum_columns(f: Callable, *arrays: Array) -> Tree:
    """`f(*arrays)` of an `f` that adds up over coordinates and is 0 at zeros, as a sum over chunks of the last axis."""
    count, width, cut = _chunks(arrays)
    if count == 1:
        return f(*arrays)

    def part(i: Array | int) -> Tree:
        arrays, start = cut(i)
        new = start + jnp.arange(width) >= i * width
        return f(*(jnp.where(new, a, 0) for a in arrays))

    shapes = jax.eval_shape(part, 0)
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    return jax.lax.fori_loop(0, count, lambda i, total: jax.tree.map(jnp.add, total, part(i)), zero)


def all_finite(x: Array) -> Array:
    """Whether all numbers of each row of `x` `[k, m]` are finite, `[k]`: zero times others is not 0.

    A dot reads the rows as fast as memory gives them, three to six times faster on a CPU than counting does.
    """
    nothing = jax.lax.optimization_barrier(jnp.zeros(x.shape[1], x.dtype))  # or XLA would take the result for zeros
    return jnp.matmul(jax.lax.stop_gradient(x), nothing) == 0


def _chunks(arrays: tuple[Array, ...], needs: int = 1) -> tuple[int, int, Callable]:
    """How many chunks, their width, and `cut(i)`: the i-th chunk and its start. The last may overlap the one before."""
    m = arrays[0].shape[-1]
    rows = max(math.prod(a.shape[:-1]) for a in arrays)
    budget = CACHE_BYTES if jax.default_backend() == "cpu" else CHUNK_BYTES
    count = max(1, -(-m // max(128, budget // (4 * needs * max(rows, 1)))))
    width = -(-m // count)

    def cut(i: Array | int) -> tuple[list[Array], Array]:
        start = jnp.minimum(i * width, m - width)
        return [jax.lax.dynamic_slice_in_dim(a, start, width, a.ndim - 1) for a in arrays], start

    return count, width, cut


def _need(name: str, f: int | Array, more: int, places: int) -> None:
    """Warn, while tracing, where a receiver has fewer `places` for messages than the `2 f + more` of a proof."""
    if not isinstance(f, Tracer) and places < 2 * f + more:
        warnings.warn(
            f"{name} with f = {f} needs 2 f + {more} = {2 * f + more} messages, but at most {places} are heard: "
            "its guarantee is void.",
            stacklevel=2,
        )


def _by_rank(kept: Callable) -> Callable:
    """The mean of ranks `low` to `high` of each coordinate, `kept(how many came, of how many) -> (low, high)`."""

    def rule(own: Array, heard: Array, weight: Array) -> Array:
        came = (weight > 0) & all_finite(heard)
        low, high = kept(jnp.maximum(came.sum(), 1), came.size)
        part = lambda x: mean_of_ranks(_columns_apart(jnp.where(came[:, None], x, jnp.inf)), low, high)
        out = part(heard) if written_out(*heard.shape) else by_columns(part, heard, needs=8)
        return jnp.where(came.any(), out, own)

    def everywhere(own: Array, weight: Array, nbr: Array, sent: Array) -> Array:
        """The rule of all receivers in one loop: `own` `[n, m]`, heard `sent[nbr]`, `weight` `[n, 1 + k]`."""
        came = (weight > 0) & jnp.concatenate([all_finite(own)[:, None], all_finite(sent)[nbr]], 1)
        low, high = kept(jnp.maximum(came.sum(1), 1), came.shape[1])
        rows = [own, *(sent[nbr[:, slot]] for slot in range(nbr.shape[1]))]
        x = jnp.stack([jnp.where(came[:, i, None], row, jnp.inf) for i, row in enumerate(rows)], 1)
        return jnp.where(came.any(1)[:, None], jax.vmap(mean_of_ranks)(x, low, high), own)

    rule.everywhere = everywhere
    return rule


def _by_gram(weights: Callable) -> Callable:
    """The rule that weighs messages by `weights(gram [k, k], came [k], weight [k]) -> [k]`.

    The rows of `gram` of those who did not come are undefined, and their `weight` is 0.
    """

    def rule(own: Array, heard: Array, weight: Array) -> Array:
        gram, _ = _gram(heard, own, weight)
        w, came = _arrived(weight, jnp.diagonal(gram), LARGEST / weight.size)
        a = weights(gram, came, w)
        out = by_columns(lambda x: jnp.matmul(a, jnp.where(came[:, None], x, 0), precision=HIGHEST), heard)
        return jnp.where(came.any(), out, own)

    return rule


@jax.custom_jvp
def _gram(heard: Array, own: Array, weight: Array) -> tuple[Array, Array]:
    """Inner products `[k, k]` of the messages less a centre, and the centre `[m]`.

    Rounding errs by some 1e-7 of the squared distances from the centre. The first is `own` (its numbers beyond 1e12
    as 0). Where the message in the middle, of least median distance to the others, lies more than 8 such distances
    from the centre, it is the next; where its own distances were rounding, there may be another. Liars that are fewer
    than the others, however far away, move none of this. All rows of a `vmap` pass on only if one needs to.
    """

    def look(tries: Array, centre: Array) -> tuple[Array, Array, Array, Array, Array]:
        gram = sum_columns(_own_products, heard, centre)
        square = jnp.diagonal(gram)
        _, came = _arrived(weight, square, LARGEST / weight.size)
        row = jnp.maximum(came.sum() // 2 - 1, 0)
        middle = jnp.where(came, mean_of_ranks(_apart(gram, came), row, row), jnp.inf)
        best = jnp.argmin(middle)
        return tries + 1, best, square[best] > 64 * middle[best], gram, centre

    start = look(jnp.int32(0), jnp.where(jnp.abs(own) < 1e12, own, 0))
    go_on = lambda state: state[2] & (state[0] < 4)
    return jax.lax.while_loop(go_on, lambda state: look(state[0], heard[state[1]]), start)[3:]


@_gram.defjvp
def _gram_jvp(at: tuple, by: tuple) -> tuple:
    """Distances do not depend on the centre, and so has it no derivative."""
    gram, centre = _gram(*at)
    half = sum_columns(lambda y, x, centre: jnp.matmul(y, (x - centre).T, precision=HIGHEST), by[0], at[0], centre)
    return (gram, centre), (half + half.T, jnp.zeros_like(centre))


def _own_products(x: Array, centre: Array) -> Array:
    x = x - centre
    return jnp.matmul(x, x.T, precision=HIGHEST)


def _apart(gram: Array, came: Array) -> Array:
    """The squared distances `[k, k]` between messages that came; inf for others and from a message to itself."""
    square, position = jnp.diagonal(gram), jnp.arange(came.size)
    others = came[:, None] & came & (position[:, None] != position)
    return jnp.where(others, jnp.maximum(square[:, None] + square - 2 * gram, 0), jnp.inf)


def _arrived(weight: Array, square: Array, most: float = math.inf) -> tuple[Array, Array]:
    """The weights `[k]` of what came, summing to one again, and what came `[k]`, from the messages' squares `[k]`."""
    came = (weight > 0) & jnp.isfinite(square) & (square <= most)
    w = jnp.where(came, weight, 0)
    return w / jnp.maximum(w.sum(), 1e-30), came


def _root(square: Array) -> Array:
    """The root of what rounding may have made negative, with a derivative of 0 at 0."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)
