"""Cutting a data set into one shard a node: IID, by label, by size, by natural key, by shifted inputs, resampled.

Every partitioner runs once on the host in NumPy, decides the owner of each train sample and hands over to `shards`.
The same seed gives the same shards. All raise InputError for an argument out of range, and where some node would stay
without a sample. What goes by label takes a regression's targets by `bins` of equally many samples, and a multilabel
sample by its rarest label (`holdings.strata`).
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxfl.core import Shards, constant
from jaxfl.data.cut import cut, on_device
from jaxfl.data.cut import shards as shards
from jaxfl.data.hold_out import hold_out as hold_out
from jaxfl.data.hold_out import own_tests as own_tests
from jaxfl.data.holdings import label_discrepancy as label_discrepancy
from jaxfl.data.holdings import label_histogram as label_histogram
from jaxfl.data.holdings import labels_per_sample as labels_per_sample
from jaxfl.data.holdings import strata
from jaxfl.data.holdings import value_histogram as value_histogram
from jaxfl.data.sets import Dataset, generator
from jaxfl.errors import InputError, require

BLOCK = 50_000  # nodes drawn at once


def _check(data: Dataset, n: int, each: int = 1, name: str = "min_size") -> None:
    if not isinstance(n, int | np.integer) or n < 1:
        raise InputError(f"n={n!r} must be an integer of at least 1.")
    if not isinstance(each, int | np.integer) or each < 1:
        raise InputError(f"{name}={each!r} must be an integer of at least 1.")
    if n * each > len(data.y):
        asks = f" with {name}={each} asks for {n * each} samples" if each > 1 else f" nodes need {n} samples"
        raise InputError(f"n={n}{asks}, the data set has {len(data.y)}: `resampled` deals any number of nodes.")


def _even(total: int, parts: int) -> np.ndarray:
    """`parts` sizes that add up to `total`, the first ones larger by one."""
    return total // parts + (np.arange(parts) < total % parts)


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def iid(data: Dataset, n: int, seed: int = 0) -> Shards:
    """Shards of equal size (up to one sample), drawn at random."""
    _check(data, n)
    return shards(data, _iid_owner(len(data.y), n, seed), n)


def _iid_owner(count: int, n: int, seed: int) -> np.ndarray:
    owner = np.empty(count, np.int32)
    owner[generator(seed).permutation(count)] = np.repeat(np.arange(n, dtype=np.int32), _even(count, n))
    return owner


def dirichlet(data: Dataset, n: int, alpha: float, seed: int = 0, min_size: int = 1, bins: int | None = None) -> Shards:
    """Label skew: each class is spread over the nodes in proportions Dirichlet(alpha) (Yurochkin et al., ICML 2019).

    A small `alpha` gives few labels a node and very unequal sizes, a large one comes near to IID. The proportions are
    rounded by systematic sampling with a random start, so a node's expected count is exact even below one sample.
    Nodes below `min_size` then receive single samples of whichever node is largest: nothing is redrawn.

    Args:
        data: has labels.
        n: nodes.
        alpha: concentration, above 0.
        seed: of the draw.
        min_size: fewest samples of a node, at least 1.
        bins: classes of a regression's targets.
    """
    _check(data, n, min_size)
    require("alpha", alpha, most=np.inf)
    if not 0 < alpha < np.inf:
        raise InputError(f"alpha={alpha} must be above 0 and finite.")
    labels, rng = strata(data, bins), generator(seed)
    owner = np.empty(len(labels), np.int32)
    shuffled = rng.permutation(len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    for samples in np.split(by_label, np.cumsum(np.bincount(labels))[:-1]):
        # Gamma(alpha) = Gamma(alpha + 1) U^(1 / alpha), in logarithms: does not underflow for a small alpha
        gamma = np.log(rng.gamma(alpha + 1, size=n)) + np.log1p(-rng.random(n)) / max(alpha, 1e-300)
        bounds = np.minimum(np.cumsum(_softmax(gamma)), 1.0)
        bounds[-1] = 1.0
        ends = np.minimum(np.floor(bounds * len(samples) + rng.random()).astype(int), len(samples))
        owner[samples] = np.repeat(np.arange(n), np.diff(ends, prepend=0))
    return shards(data, _repair(owner, n, min_size, shuffled), n)


def _repair(owner: np.ndarray, n: int, min_size: int, order: np.ndarray) -> np.ndarray:
    """Fill nodes up to `min_size` with one sample after another of the then largest node (of equals the first).

    Taking from the largest again and again is cutting all sizes down to one level, so no loop is needed. A donor gives
    those of its samples that come last in `order` `[N]`, a random one.
    """
    size = np.bincount(owner, minlength=n)
    missing = np.maximum(min_size - size, 0)
    need = missing.sum()
    if not need:
        return owner
    low, high = min_size, int(size.max())  # the lowest level at which no more than `need` samples are cut off
    while low < high:
        level = (low + high) // 2
        low, high = (low, level) if np.maximum(size - level, 0).sum() <= need else (level + 1, high)
    give = np.maximum(size - low, 0)
    give[np.flatnonzero(size >= low)[: need - give.sum()]] += 1
    owner = owner.copy()
    grouped = order[np.argsort(owner[order], kind="stable")]
    rank_from_end = np.repeat(np.cumsum(size), size) - np.arange(len(owner))
    moved = grouped[rank_from_end <= np.repeat(give, size)]
    owner[moved] = np.repeat(np.arange(n), missing)
    return owner


def primary_labels(
    data: Dataset,
    n: int,
    primary: int = 4,
    skew: float = 100.0,
    seed: int = 0,
    min_size: int = 1,
    bins: int | None = None,
) -> Shards:
    """Label skew: every node draws `primary` labels, and a sample of one is `1 + skew` times as likely to come to it.

    Each sample goes to one node, in proportion to `1 + skew` for those that have its label as a primary one and to 1
    for the others (Zhmoginov et al., CVPR 2023, arXiv 2211.15774); a label that is nobody's is spread evenly. Skew 0
    is IID in distribution, a large one leaves hardly any label but the primary ones. Sizes vary; nodes below `min_size`
    then receive single samples of whichever node is largest.

    Args:
        data: has labels.
        n: nodes.
        primary: labels a node draws, 1 to all.
        skew: at least 0.
        seed: of labels and samples.
        min_size: fewest samples of a node, at least 1.
        bins: classes of a regression's targets.
    """
    _check(data, n, min_size)
    labels, rng = strata(data, bins), generator(seed)
    classes = max(data.classes or 0, int(labels.max()) + 1)
    require("primary", primary, least=1, most=classes, whole=True)
    require("skew", skew, most=np.inf)
    if not 0 <= skew < np.inf:
        raise InputError(f"skew={skew} must be finite and at least 0.")
    rank = rng.permuted(np.tile(np.arange(classes), (n, 1)), axis=1)
    ends = np.cumsum(1 + skew * (rank < primary), axis=0)  # [n, classes]
    u, owner = rng.random(len(labels)), np.empty(len(labels), np.int32)
    for label in range(classes):
        which = labels == label
        owner[which] = np.searchsorted(ends[:-1, label] / ends[-1, label], u[which], side="right")
    return shards(data, _repair(owner, n, min_size, rng.permutation(len(labels))), n)


def resampled(
    data: Dataset, n: int, alpha: float | None = None, seed: int = 0, size: int = 20, bins: int | None = None
) -> Shards:
    """Populations larger than the data set: every node draws `size` samples with replacement.

    Samples may be held by several nodes, so `n` has no bound. With `alpha`, each node first draws its own label shares
    `q` from Dirichlet(alpha * p), `p` the shares of the labels in the data set (Hsu, Qi and Brown, 2019,
    https://arxiv.org/abs/1909.06335): `q_k` has mean `p_k` and variance `p_k (1 - p_k) / (1 + alpha)`, whatever the
    number of labels. None draws from the whole data set.

    Args:
        data: has labels where `alpha` is given.
        n: nodes.
        alpha: concentration, above 0, or None.
        seed: of the draw.
        size: samples of every node, at least 1.
        bins: classes of a regression's targets, where `alpha` is given.
    """
    require("n", n, least=1, whole=True)
    require("size", size, least=1, whole=True)
    rng = generator(seed)
    if alpha is None:
        order = rng.integers(0, len(data.y), n * size)
    else:
        require("alpha", alpha, above=0)
        labels = strata(data, bins)
        by_label, count = np.argsort(labels, kind="stable"), np.bincount(labels)
        first, prior = np.cumsum(count) - count, alpha * count / count.sum()
        parts = []
        for rows in np.array_split(np.arange(n), -(-n // BLOCK)):  # bounds the memory of the draw
            shares = np.log(rng.gamma(prior + 1, size=(len(rows), len(count))))
            shares += np.log1p(-rng.random(shares.shape)) / np.maximum(prior, 1e-300)
            bounds = np.cumsum(np.exp(shares - shares.max(1, keepdims=True)), 1)
            u = rng.random((len(rows), size, 1)) * bounds[:, None, -1:]
            label = np.minimum((u >= bounds[:, None]).sum(2), len(count) - 1)
            parts.append(by_label[first[label] + (rng.random(label.shape) * count[label]).astype(int)].ravel())
        order = np.concatenate(parts)
    return cut(on_device(data.x), constant(data.y), order, np.full(n, size))


def pathological(data: Dataset, n: int, k: int = 2, seed: int = 0, bins: int | None = None) -> Shards:
    """Few labels a node: samples sorted by label, cut into `n * k` slices, `k` random slices a node.

    The split of McMahan et al. (AISTATS 2017, arXiv 1602.05629). A slice that crosses the border of two labels holds
    both. Slices are equal up to one sample; `k` is at least 1.
    """
    _check(data, n, k, "k")
    labels, rng = strata(data, bins), generator(seed)
    shuffled = rng.permutation(len(labels))
    owner = np.empty(len(labels), np.int32)
    dealt = rng.permutation(n * k) // k
    owner[shuffled[np.argsort(labels[shuffled], kind="stable")]] = np.repeat(dealt, _even(len(labels), n * k))
    return shards(data, owner, n)


def biased(
    data: Dataset,
    n: int,
    count: int,
    k: int = 2,
    seed: int = 0,
    *,
    size: int | None = None,
    bins: int | None = None,
) -> Shards:
    """Nodes of equal size, of which the first `count` have samples of `k` labels alone, the others of all.

    The j-th of the `count` has labels `k j, ..., k j + k - 1`, modulo their number, and of each the same number of
    samples up to one (the split "noniid-2" of Ye et al., ICML 2023, arXiv 2305.19229). The others draw first, from the
    whole data set. What is left is left out.

    Args:
        data: has labels.
        n: nodes.
        count: biased nodes, 0 to n.
        k: labels of a biased node, 1 to all.
        seed: of the draw.
        size: samples a node; by default the most that the data set has for all of them.
        bins: classes of a regression's targets.
    """
    _check(data, n)
    labels, rng = strata(data, bins), generator(seed)
    classes = max(data.classes or 0, int(labels.max()) + 1)
    require("count", count, least=0, most=n, whole=True)
    require("k", k, least=1, most=classes, whole=True)
    require("size", size, least=1, most=len(labels) // n, whole=True, none=True)
    order = rng.permutation(len(labels))
    wanted = (k * np.arange(count)[:, None] + np.arange(k)) % classes

    def deal(size: int) -> np.ndarray | None:
        """The owners, or None where a label has too few samples."""
        owner, mixed = np.full(len(labels), -1), (n - count) * size
        owner[order[:mixed]] = np.repeat(np.arange(count, n), size)
        left = [order[mixed:][labels[order[mixed:]] == label] for label in range(classes)]
        for node, mine in enumerate(wanted):
            for label, some in zip(mine, _even(size, k), strict=True):
                if some > len(left[label]):
                    return None
                owner[left[label][:some]], left[label] = node, left[label][some:]
        return owner

    sizes = [size] if size else range(len(labels) // n, 0, -1)
    owner = next((owner for s in sizes if (owner := deal(s)) is not None), None)
    if owner is None:
        raise InputError(f"size={size} is too large: some label has too few samples for the {count} biased nodes.")
    return shards(data, owner, n)


def quantity_skew(
    data: Dataset,
    n: int,
    law: str = "lognormal",
    seed: int = 0,
    *,
    sigma: float = 1.0,
    exponent: float = 2.0,
    min_size: int = 1,
) -> Shards:
    """Unequal sizes, labels IID: `min_size` samples each, the rest in proportion to random weights.

    Args:
        data: any data set.
        n: nodes.
        law: "lognormal", weights `exp(sigma N(0, 1))`, or "power", weights of density `w^-exponent` on w >= 1.
        seed: of sizes and samples.
        sigma: of "lognormal", at least 0; 0 gives equal sizes.
        exponent: of "power", above 1; the nearer to 1, the heavier the tail.
        min_size: fewest samples of a node, at least 1.
    """
    _check(data, n, min_size)
    rng = generator(seed)
    if law == "lognormal":
        require("sigma", sigma, most=np.inf)
        if not 0 <= sigma < np.inf:
            raise InputError(f"sigma={sigma} must be finite and at least 0.")
        logits = sigma * rng.normal(size=n)
    elif law == "power":
        require("exponent", exponent, most=np.inf)
        if not 1 < exponent < np.inf:
            raise InputError(f"exponent={exponent} must be finite and above 1.")
        logits = -np.log1p(-rng.random(n)) / (exponent - 1)
    else:
        raise InputError(f"law={law!r} must be 'lognormal' or 'power'.")
    share = _softmax(logits) * (len(data.y) - n * min_size)
    size = np.floor(share).astype(int)
    size[np.argsort(size - share, kind="stable")[: len(data.y) - n * min_size - size.sum()]] += 1
    owner = np.empty(len(data.y), np.int32)
    owner[rng.permutation(len(data.y))] = np.repeat(np.arange(n), size + min_size)
    return shards(data, owner, n)


def by_client(data: Dataset, min_size: int = 1) -> Shards:
    """One node a natural key (`data.clients`), in the order of the keys.

    Keys with fewer than `min_size` train samples (at least 1) are left out with their samples, and `order` is shorter
    by those. Node i stands for key `data.clients[order[start[i]]]`.
    """
    if data.clients is None:
        raise InputError(f"data={data.name!r} has clients=None, by_client needs a natural key a sample.")
    if min_size < 1:
        raise InputError(f"min_size={min_size} must be at least 1.")
    size = np.bincount(data.clients)
    large = size >= min_size
    if not large.any():
        raise InputError(f"min_size={min_size} leaves no group, the largest has {size.max()} samples.")
    mine = shards(data, np.where(large, np.cumsum(large) - 1, -1)[data.clients], int(large.sum()))
    return dataclasses.replace(mine, longest=int(size.max()))  # there is no other seed


def feature_shift(
    data: Dataset, n: int, kind: str = "rotation", seed: int = 0, *, turns: int = 4, noise: float = 0.5
) -> Shards:
    """IID shards whose inputs each node sees differently; the test set stays as it is (see `rotate`).

    Args:
        data: with "rotation" square images, `[N, s, s]`, `[N, s, s, channels]` or flat `[N, s * s]`; with "noise"
            float inputs.
        n: nodes.
        kind: "rotation" turns the images of node i by `i % turns` quarter turns counter-clockwise; "noise" adds
            Gaussian noise of standard deviation `noise * (i + 1) / n` (Li et al., ICDE 2022, arXiv 2102.02079).
        seed: of shards and noise.
        turns: 1 to 4, how many different rotations there are.
        noise: standard deviation at the last node, at least 0.
    """
    _check(data, n)
    owner = _iid_owner(len(data.y), n, seed)
    if kind == "rotation":
        if turns not in (1, 2, 3, 4):
            raise InputError(f"turns={turns} must be 1, 2, 3 or 4.")
        x = rotate(data.x, owner % turns)
    elif kind == "noise":
        require("noise", noise, most=np.inf)
        if not 0 <= noise < np.inf:
            raise InputError(f"noise={noise} must be finite and at least 0.")
        if data.x.dtype != np.float32:
            raise InputError(f"data.x has dtype {data.x.dtype}, noise needs float32 inputs.")
        level = (noise * (owner + 1) / n).astype(np.float32).reshape(-1, *[1] * (data.x.ndim - 1))
        x = data.x + level * np.random.default_rng([seed, 1]).standard_normal(data.x.shape, np.float32)
    else:
        raise InputError(f"kind={kind!r} must be 'rotation' or 'noise'.")
    return shards(data._replace(x=x), owner, n)


def rotate(x: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Square images `[N, s, s]`, `[N, s, s, channels]` or `[N, s * s]`, the i-th by `turns[i]` quarter turns.

    Counter-clockwise. Raises InputError for images that are not square.
    """
    side = int(np.sqrt(x[0].size)) if x.ndim == 2 else x.shape[1]
    if x.ndim not in (2, 3, 4) or (x.shape[1] != side * side if x.ndim == 2 else x.shape[2] != side):
        raise InputError(f"x has shape {x.shape}, rotation needs square images [N, s, s], [N, s, s, c] or [N, s * s].")
    images, out = x.reshape(-1, side, side, *x.shape[3:]), np.empty_like(x)
    for quarter in range(4):
        which = np.flatnonzero(np.asarray(turns) % 4 == quarter)
        out[which] = np.rot90(images[which], quarter, (1, 2)).reshape(-1, *x.shape[1:])
    return out


def pooled(data: Shards) -> Shards:
    """All samples that some node owns as the one shard of one node. May be traced."""
    count = (data.start + data.size).max(keepdims=True)  # `order` may be longer
    return dataclasses.replace(data, start=jnp.zeros(1, jnp.int32), size=count, longest=data.order.shape[0])
