"""Who takes part in a round: processes that yield a `core.Cohort`.

Every process keeps the base weights `[n]` in `arrays["weight"]`. By default a node counts as much as it has samples:
`scenario` fills them in where its data are `Shards`; elsewhere all count 1. `weight=jnp.ones(n)` makes nodes count
alike in any world. Ids are distinct and ascending, so a slot order never depends on how they were drawn. All members
are fresh and run every local step; `clock` yields the others.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array, Cohort, Process, Strata, Tree, constant, node_keys, stream
from jaxfl.errors import InputError, require
from jaxfl.world.exponential import exponential, tail
from jaxfl.world.exponential import uniform as fraction
from jaxfl.world.process import process

BY_SIZE = "by_size"  # marks weights that nobody gave
OVERFLOW = 1e-6  # probability a round that a Poisson cohort does not fit its capacity


def base_arrays(n: int, weight: Any = None) -> dict:
    """Arrays of a process of `n` nodes: their base weights, `weight` `[n]` float32.

    Without `weight` they are 1, beside the empty mark `by_size` that lets `weighted` replace them.

    Raises:
        InputError: `n` < 1, another shape than `[n]`, a negative or non-finite weight, or no positive weight.
    """
    require("n", n, whole=True)
    if n < 1:
        raise InputError(f"n = {n}: at least one node is needed.")
    if weight is None:
        return {"weight": constant(np.ones(n, np.float32)), BY_SIZE: ()}
    weight = np.asarray(weight, np.float64)
    if weight.shape != (n,):
        raise InputError(f"weight has shape {list(weight.shape)}: one weight a node, [{n}], is needed.")
    if not np.isfinite(weight).all() or weight.min() < 0 or not weight.any():
        raise InputError(
            f"weight runs from {weight.min()} to {weight.max()}: finite weights, some positive, are needed."
        )
    return {"weight": constant(weight, np.float32)}


def base_of(process: Process) -> Array | None:
    """The base weights `[n]` of a process, or of the one that it wraps (`work`, `clock`); None where it has none."""

    def find(arrays: Tree) -> Array | None:
        if not isinstance(arrays, dict):
            return None
        if "weight" in arrays:
            return arrays["weight"]
        return next((base for part in arrays.values() if (base := find(part)) is not None), None)

    return find(process.arrays)


def weighted(process: Process, sizes: Any = None) -> Process:
    """The process, whose nodes weigh `sizes` `[n]` (None: all alike) unless weights were given when it was made."""

    def fill(arrays: Tree) -> Tree:
        if not isinstance(arrays, dict):
            return arrays
        weight = {} if sizes is None or BY_SIZE not in arrays else {"weight": constant(sizes, np.float32)}
        return {name: fill(part) for name, part in arrays.items() if name != BY_SIZE} | weight

    return process._replace(arrays=fill(process.arrays))


def thinned(cohort: Cohort, share: Array) -> Cohort:
    """The cohort whose members count a `share` `[c]`, 0 to 1, of their weight.

    Which of those present count less is chance, so a `total` loses what they lose on average: means stay unbiased.
    """
    total, present = cohort.total, cohort.weight > 0
    if total is not None:
        left = jnp.where(present, share, 0).sum() / jnp.maximum(present.sum(), 1)
        total = jnp.where(left > 0, left, 1) * total  # of nobody no mean is taken
    return cohort._replace(weight=cohort.weight * share, total=total, strata=Strata(cohort.strata.count))


def labels(name: str, n: int, groups: Any) -> np.ndarray:
    """The group `[n]` of each node, numbers from 0: those given, or `groups` blocks of successive nodes.

    Raises:
        InputError: a number outside 1..n, or labels that are not `[n]` whole numbers 0, 1, ... with none left out.
    """
    given = np.asarray(groups)
    if given.ndim == 0:
        require(name, groups, least=1, most=n, whole=True)
        return np.arange(n) * int(groups) // n
    if given.shape != (n,) or given.dtype.kind not in "iu":
        raise InputError(
            f"{name} has shape {list(given.shape)}: a number of groups, or one of each node [{n}], is needed."
        )
    if not np.array_equal(np.unique(given), np.arange(given.max() + 1)):
        raise InputError(
            f"{name} has the groups {sorted(set(given.tolist()))}: 0, 1, ... with none left out are needed."
        )
    return given.astype(np.int64)


def _members(c: int, n: int) -> int:
    require("c", c, whole=True)
    if not 1 <= c <= n:
        raise InputError(f"c = {c}: a cohort has between 1 and n = {n} members.")
    return int(c)


def _probability(name: str, p: Any, n: int, least: float = 0.0) -> np.ndarray:
    values = np.asarray(p, np.float64)
    if values.shape not in ((), (n,)) or not ((values >= least) & (values <= 1)).all():
        raise InputError(f"{name} = {p}: a probability from {least:g} to 1, or one a node [{n}], is needed.")
    return values


def _cohort(ids: Array, weight: Array, strata: int = 1, everyone: bool = False) -> Cohort:
    return Cohort(ids.astype(jnp.int32), weight, strata=Strata(strata, everyone))


def subset(key: Array, n: int, c: int) -> Array:
    """A uniformly random set of `c` distinct numbers below `n`, ascending, `[c]` int32. Exact; costs O(c log c)."""
    if 2 * c >= n:
        return jnp.sort(jax.random.permutation(key, n)[:c]).astype(jnp.int32)
    # The first c distinct values of a stream of draws. A stream too short for that is drawn again: whether it is too
    # short does not depend on which values came, so the set stays uniform.
    hit = np.arange(c) / n
    draws = math.ceil((1 / (1 - hit)).sum() + 6 * math.sqrt((hit / (1 - hit) ** 2).sum()))

    def attempt(key: Array) -> tuple[Array, Array, Array]:
        key, now = jax.random.split(key)
        value = jax.random.randint(now, (draws,), 0, n, jnp.int32)
        value, when = jax.lax.sort((value, jnp.arange(draws, dtype=jnp.int32)), num_keys=1, is_stable=True)
        first = jnp.concatenate([jnp.ones(1, bool), value[1:] != value[:-1]])
        when = jnp.where(first, when, draws)
        last = jnp.sort(when)[c - 1]
        ids = jnp.sort(jnp.where(when <= last, value, n))[:c]
        return key, ids, last < draws

    none = jnp.zeros(c, jnp.int32)
    return jax.lax.while_loop(lambda s: ~s[2], lambda s: attempt(s[0]), (key, none, jnp.array(False)))[1]


def everyone(n: int, weight: Any = None) -> Process:
    """All nodes in every round; `c = n`."""

    def step(key: Array, arrays: dict, s: tuple, t: Array) -> tuple[tuple, Cohort]:
        return s, _cohort(jnp.arange(n, dtype=jnp.int32), arrays["weight"], n, everyone=True)

    return process(step, base_arrays(n, weight))


def uniform(n: int, c: int, weight: Any = None) -> Process:
    """`c` distinct nodes, every set of that size equally likely; the cost does not grow with `n`.

    Raises:
        InputError: `c` is outside 1..n, or bad base weights.
    """
    base, c = base_arrays(n, weight), _members(c, n)

    def step(key: Array, arrays: dict, s: tuple, t: Array) -> tuple[tuple, Cohort]:
        ids = subset(stream(key, "uniform cohort"), n, c)
        return s, _cohort(ids, arrays["weight"][ids])

    return process(step, base)


def stratified(n: int, c: int, strata: int, weight: Any = None) -> Process:
    """`c / strata` distinct nodes, uniformly, of each of `strata` blocks of `n / strata` successive nodes.

    A node is in with probability `c / n`, as in `uniform`. Where the nodes live on several devices and `strata` is a
    multiple of their number, a member's row is read and written where it lives, and none crosses between devices.
    Which nodes are drawn does not depend on the devices. Proportionate stratified sampling (Neyman, 1934).

    Raises:
        InputError: `c` is outside 1..n, `strata` does not divide `n` and `c`, or bad base weights.
    """
    base, c = base_arrays(n, weight), _members(c, n)
    require("strata", strata, whole=True)
    if strata < 1 or n % strata or c % strata:
        raise InputError(f"strata = {strata}: a number that divides n = {n} and c = {c} is needed.")

    def step(key: Array, arrays: dict, s: tuple, t: Array) -> tuple[tuple, Cohort]:
        block = jnp.arange(strata, dtype=jnp.int32)
        keys = node_keys(stream(key, "stratified cohort"), block)
        within = jax.vmap(lambda k: subset(k, n // strata, c // strata))(keys)
        ids = (block[:, None] * (n // strata) + within).reshape(c)
        return s, _cohort(ids, arrays["weight"][ids], strata)

    return process(step, base)


def poisson(n: int, p: float, capacity: int | None = None, weight: Any = None) -> Process:
    """Every node independently with probability `p`: a binomial number of distinct nodes, possibly none.

    The other slots hold further distinct nodes of weight 0. A larger draw than `capacity` is cut to it; as a cohort
    cannot say so, a capacity is refused with which a round is cut with a probability of 1e-6 or more.

    Args:
        n: number of nodes.
        p: probability of taking part, above 0.
        capacity: slots `c` of the cohort; by default as few as are allowed.
        weight: base weights `[n]`.

    Raises:
        InputError: `p` is outside (0, 1], the capacity is too small or above `n`, or bad base weights.
    """
    base = base_arrays(n, weight)
    require("p", p)
    if not 0 < p <= 1:
        raise InputError(f"p = {p}: a probability above 0 and at most 1 is needed.")
    from scipy.special import bdtr, bdtrc

    most, p = np.arange(n + 1), float(p)
    below, above = bdtr(most, n, p), bdtrc(most, n, p)  # P(count <= k), P(count > k)
    least = max(1, int(np.argmax(above < OVERFLOW)))
    c = least if capacity is None else _members(capacity, n)
    if c < least:
        raise InputError(f"capacity = {capacity}: at least {least} slots are needed for n = {n}, p = {p}.")

    def step(key: Array, arrays: dict, s: tuple, t: Array) -> tuple[tuple, Cohort]:
        key = stream(key, "poisson cohort")
        how_many, who, which = jax.random.split(key, 3)
        many, u = tail(how_many)  # rare sizes, few or many, come as often as they should
        count = jnp.where(many, (arrays["above"] >= u).sum(), (arrays["below"] < u).sum())
        ids = subset(who, n, c)
        live = jax.random.permutation(which, c) < count
        return s, _cohort(ids, jnp.where(live, arrays["weight"][ids], 0))

    tails = {"below": constant(below[:c], np.float32), "above": constant(above[:c], np.float32)}
    return process(step, base | tails)


def importance(n: int, c: int, p: Any, weight: Any = None) -> Process:
    """`c` distinct nodes drawn one after the other in proportion to `p`, reweighed so that means are unbiased.

    Exponential races: node `i` arrives after `E_i / p_i`, the first `c` are in (the same as Gumbel top-k). With
    `tau` the time of the next one, node `i` was in with probability `P_i = 1 - exp(-p_i * tau)`; of a single member it
    is `p_i / sum p` (`tau` would give it an infinite variance). Its weight is `base_i / P_i`, and `total` is the sum of
    all base weights: `sum_i weight_i * v_i / total` over the cohort is unbiased for the mean of `v` by base weights
    over all nodes. Duffield, Lund and Thorup, Priority sampling, J. ACM 2007; Kool et al., Buy 4 REINFORCE samples,
    2019. The weights of one cohort do not sum to `total`. Costs O(n).

    Args:
        n: number of nodes.
        c: members.
        p: positive preferences `[n]`, of any scale and as unequal as float64 allows.
        weight: base weights `[n]`.

    Raises:
        InputError: `c` is outside 1..n, `p` is not `[n]`, finite and positive, or bad base weights.
    """
    base, c = base_arrays(n, weight), _members(c, n)
    prefer = np.asarray(p, np.float64)
    if prefer.shape != (n,) or not np.isfinite(prefer).all() or prefer.min() <= 0:
        raise InputError(f"p has shape {list(prefer.shape)}: finite positive preferences [{n}] are needed.")
    log_p = np.log(prefer)

    def step(key: Array, arrays: dict, s: tuple, t: Array) -> tuple[tuple, Cohort]:
        arrival = jnp.log(exponential(stream(key, "importance cohort"), (n,))) - arrays["log_p"]
        # Without the barrier XLA takes a full sort for the slices of top_k, 40 times slower; directly around top_k,
        # without the sign between them, it crashes XLA on several CPU devices.
        late, ids = jax.lax.top_k(-arrival, min(c + 1, n))
        first, ids = jax.lax.optimization_barrier((-late, ids))
        tau = first[c] if c < n else jnp.inf
        ids = jnp.sort(ids[:c])
        rate = arrays["log_p"][ids]
        inside = jnp.exp(rate) if c == 1 else -jnp.expm1(-jnp.exp(rate + tau))
        weight = arrays["weight"]
        return s, _cohort(ids, weight[ids] / inside)._replace(total=weight.sum())

    return process(step, {**base, "log_p": constant(log_p - np.logaddexp.reduce(log_p), np.float32)})


def cyclic(n: int, c: int, weight: Any = None) -> Process:
    """Blocks of `c` nodes in the order of their ids, wrapping round: everyone once before anyone twice.

    Raises:
        InputError: `c` is outside 1..n, or bad base weights.
    """
    base, c = base_arrays(n, weight), _members(c, n)

    def step(key: Array, arrays: dict, start: Array, t: Array) -> tuple[Array, Cohort]:
        ids = jnp.sort((start + jnp.arange(c, dtype=jnp.int32)) % n)
        return (start + c) % n, _cohort(ids, arrays["weight"][ids])

    # The place is carried, as t * c would overflow in a long run.
    return process(step, base, lambda key, arrays: jnp.zeros((), jnp.int32))


def in_turn(n: int, c: int, groups: Any, *, reshuffle: bool = False, weight: Any = None) -> Process:
    """Groups of nodes are there in turn, one a round; `c` nodes uniformly of the group whose turn it is.

    Cyclic participation: who charges at night, each time zone in its own hours. With `c` the size of a group everyone
    takes part once a cycle. Costs as much as the largest group has nodes.

    Args:
        n: number of nodes.
        c: members.
        groups: how many blocks of successive nodes there are, or the group of each node `[n]`, 0, 1, ...
        reshuffle: the groups come in another random order every cycle; else in that of their numbers.
        weight: base weights `[n]`.

    Raises:
        InputError: `c` is not between 1 and the size of the smallest group, bad groups or bad base weights.
    """
    base, group = base_arrays(n, weight), labels("groups", n, groups)
    size = np.bincount(group)
    require("c", c, least=1, whole=True)
    if c > size.min():
        raise InputError(f"c = {c}: group {int(size.argmin())} has only {size.min()} nodes to draw members from.")
    count, most = len(size), int(size.max())
    table, order = np.full((count, most), n), np.argsort(group, kind="stable")
    table[group[order], np.arange(n) - (np.cumsum(size) - size)[group[order]]] = order

    def step(key: Array, arrays: dict, turn: Array, t: Array) -> tuple[Array, Cohort]:
        if reshuffle:
            again = jax.random.permutation(stream(key, "turns"), count).astype(jnp.int32)
            turn = jnp.where(t % count == 0, again, turn)
        row = arrays["table"][turn[t % count]]
        place = fraction(stream(key, "cohort of a group"), (most,))
        place = jnp.where(row < n, -place, -jnp.inf)
        ids = row if c == most else row[jax.lax.top_k(place, c)[1]]
        ids = jnp.sort(ids)
        return turn, _cohort(ids, arrays["weight"][ids])

    return process(step, base | {"table": constant(table, np.int32)}, lambda key, arrays: jnp.arange(count))


def availability(n: int, stay_on: Any, stay_off: Any) -> Process:
    """Which nodes are on, `[n]` bool: independent two-state Markov chains, begun in their stationary law.

    Args:
        n: number of nodes.
        stay_on: probability that a node which is on is on in the next round, scalar or `[n]`.
        stay_off: the same for off. A node is on for a share `(1 - stay_off) / (2 - stay_on - stay_off)` of the time.

    Raises:
        InputError: a probability is outside 0..1, or both are 1 for a node (it would have no stationary law).
    """
    base_arrays(n)
    on, off = _probability("stay_on", stay_on, n), _probability("stay_off", stay_off, n)
    if ((on == 1) & (off == 1)).any():
        raise InputError("stay_on = stay_off = 1: one of them must be below 1 for every node.")

    def init(key: Array, arrays: dict) -> Array:
        share = arrays["arrive"] / (arrays["leave"] + arrays["arrive"])
        return fraction(stream(key, "first availability"), (n,)) <= share

    def step(key: Array, arrays: dict, s: Array, t: Array) -> tuple[Array, Array]:
        u = fraction(stream(key, "availability"), (n,))
        s = jnp.where(s, u > arrays["leave"], u <= arrays["arrive"])
        return s, s

    # what is kept is the small number: 1 - 1e-9 is 1 in float32
    return process(step, {"leave": constant(1 - on, np.float32), "arrive": constant(1 - off, np.float32)}, init)


def among(n: int, c: int, up: Process, weight: Any = None) -> Process:
    """`c` nodes uniformly among those that are `up`, a process of `[n]` bool (`world.churn`, `world.availability`).

    Where fewer are, the other slots hold nodes that are down, with weight 0. A server that knows who is there chooses
    so; as `scenario(churn=)` the same process makes members fail who were chosen. Costs O(n).

    Raises:
        InputError: `c` is outside 1..n, or bad base weights.
    """
    base, c, walk = base_arrays(n, weight), _members(c, n), up.step

    def step(key: Array, arrays: dict, s: Any, t: Array) -> tuple[Any, Cohort]:
        s, on = walk(key, arrays["up"], s, t)
        position = fraction(stream(key, "markov cohort"), (n,))  # of a million nodes no two are in one place
        ids = jnp.sort(jax.lax.top_k(jnp.where(on, -position, -1 - position), c)[1])
        return s, _cohort(ids, jnp.where(on[ids], arrays["weight"][ids], 0))

    first = up.init
    return process(step, base | {"up": up.arrays}, lambda key, arrays: first(key, arrays["up"]))


def markov(n: int, c: int, stay_on: Any, stay_off: Any, weight: Any = None) -> Process:
    """`c` nodes uniformly `among` those available, whose availability is a Markov chain (see `availability`).

    Raises:
        InputError: `c` is outside 1..n, bad probabilities or bad base weights.
    """
    return among(n, c, availability(n, stay_on, stay_off), weight)
