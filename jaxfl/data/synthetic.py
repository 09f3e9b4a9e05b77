"""Synthetic data sets with known heterogeneity: the generators on which papers of the field check their claims."""

from typing import NamedTuple

import numpy as np

from jaxfl.data.sets import Dataset, from_arrays, generator
from jaxfl.errors import InputError, require


class Quadratics(NamedTuple):
    """Objectives `f_i(p) = 0.5 (p - b_i)' A_i (p - b_i)` of `n` nodes, the data of `task.quadratic`."""

    A: np.ndarray  # [n, d, d] float32, symmetric, eigenvalues in [mu, L]
    b: np.ndarray  # [n, d] float32, the own optimum of each node
    optimum: np.ndarray  # [d] float64, minimiser of the mean of the f_i as stored in A and b


def _check(**at_least: tuple[float, float]) -> None:
    for name, (value, least) in at_least.items():
        require(name, value, most=np.inf, whole=name not in ("alpha", "beta", "spread", "noise"))
        if not (np.isfinite(value) and value >= least):
            raise InputError(f"{name}={value} must be finite and at least {least}.")


def gaussian_quadratics(
    n: int, d: int, *, mu: float = 0.5, L: float = 5.0, spread: float = 3.0, seed: int = 0
) -> Quadratics:
    """Heterogeneous quadratics: eigenvalues uniform in `[mu, L]`, bases uniform, own optima `spread * N(0, I)`.

    Args:
        n: nodes.
        d: dimension.
        mu: smallest curvature, above 0.
        L: largest curvature, at least `mu`.
        spread: standard deviation of each coordinate of a node's own optimum; 0 gives all the same optimum 0.
        seed: of the generator.
    """
    _check(n=(n, 1), d=(d, 1), spread=(spread, 0))
    if not 0 < mu <= L < np.inf:
        raise InputError(f"mu={mu} and L={L} must satisfy 0 < mu <= L.")
    rng = generator(seed)
    basis, upper = np.linalg.qr(rng.normal(size=(n, d, d)))
    basis *= np.sign(np.diagonal(upper, axis1=1, axis2=2))[:, None]  # without the signs QR is not uniform
    A = (basis * rng.uniform(mu, L, (n, 1, d))) @ basis.transpose(0, 2, 1)
    A = ((A + A.transpose(0, 2, 1)) / 2).astype(np.float32)
    b = (spread * rng.normal(size=(n, d))).astype(np.float32)
    pull = np.einsum("nij,nj->i", A, b, dtype=np.float64) / n
    return Quadratics(A, b, np.linalg.solve(A.mean(0, dtype=np.float64), pull))


def _by_node(x, y, node, test, **known) -> Dataset:
    """The data set of stacked samples, `test` `[N]` bool marks those held out, `node` `[N]` is the natural key."""
    names = list(range(int(node.max()) + 1))
    return from_arrays(
        x[~test], y[~test], x[test], y[test], clients=node[~test], test_clients=node[test], client_names=names, **known
    )


def synthetic_fedprox(
    alpha: float = 1.0,
    beta: float = 1.0,
    nodes: int = 30,
    seed: int = 0,
    *,
    iid: bool = False,
    cap: int | None = None,
    dim: int = 60,
    classes: int = 10,
    test_fraction: float = 0.1,
) -> Dataset:
    """Synthetic(alpha, beta) of FedProx (Li et al., MLSys 2020, arXiv 1812.06127), the natural key is the node.

    Node k draws `u_k ~ N(0, alpha)`, `B_k ~ N(0, beta)` (standard deviations, as in the authors' code), a model with
    entries `N(u_k, 1)`, a mean `v_k` with entries `N(B_k, 1)` and `int(lognormal(4, 2)) + 50` samples
    `x ~ N(v_k, diag(j^-1.2))`, labelled `argmax(x W_k + b_k)`. As `u_k` shifts the logits of all classes alike it
    changes no label: in this generator, as published, only `beta` and the unit variances make nodes differ.

    Args:
        alpha: standard deviation of `u_k`, at least 0.
        beta: standard deviation of `B_k`, at least 0.
        nodes: number of nodes.
        seed: of the generator; the standard normals behind it do not depend on `alpha` and `beta`.
        iid: one shared model and inputs of mean 0 instead (Synthetic-IID).
        cap: largest number of samples of a node, train and test together.
        dim: features.
        classes: labels.
        test_fraction: share of each node's samples held out, rounded down, in [0, 1).
    """
    _check(alpha=(alpha, 0), beta=(beta, 0), nodes=(nodes, 1), dim=(dim, 1), classes=(classes, 1))
    if cap is not None and cap < 1:
        raise InputError(f"cap={cap} must be at least 1.")
    if not 0 <= test_fraction < 1:
        raise InputError(f"test_fraction={test_fraction} must be in [0, 1).")
    rng = generator(seed)
    size = np.minimum(rng.lognormal(4, 2, nodes).astype(int) + 50, cap or np.iinfo(int).max)
    u, B = alpha * rng.normal(size=nodes), beta * rng.normal(size=nodes)
    model = rng.normal(size=(nodes, dim + 1, classes))  # the last row is the bias
    mean = rng.normal(size=(nodes, dim))
    model, mean = (np.repeat(model[:1], nodes, 0), 0 * mean) if iid else (model + u[:, None, None], mean + B[:, None])
    node = np.repeat(np.arange(nodes), size)
    x = mean[node] + rng.normal(size=(size.sum(), dim)) * np.arange(1, dim + 1) ** -0.6
    parts = zip(np.split(x, np.cumsum(size)[:-1]), model, strict=True)
    y = np.concatenate([(own @ w[:-1] + w[-1]).argmax(1) for own, w in parts])
    rank = np.arange(len(y)) - np.repeat(np.cumsum(size) - size, size)
    test = rank >= np.repeat(size - (size * test_fraction).astype(int), size)
    return _by_node(x, y, node, test, classes=classes, name=f"synthetic({alpha:g}, {beta:g}{', iid' if iid else ''})")


def sparse_features(
    n: int = 100,
    samples: int = 30,
    test_samples: int = 10,
    seed: int = 0,
    *,
    dense: bool = True,
    features: int = 200,
    classes: int = 5,
    topics: int = 8,
) -> Dataset:
    """Softmax regression on features of unlike scale and frequency, where adaptive servers win (Reddi et al., ICLR
    2021, arXiv 2003.00295); the natural key is the node.

    10 dense features `2 N(0, 1)`, then binary features, the j-th of frequency `min(1, 4 j^-1.2)` times the mean of
    the node's topics: shares Dirichlet(0.3), weights of topic and feature Gamma(0.5) scaled to mean 1. A binary row is
    divided by the root of its number of ones. Labels are drawn from softmax(2 x W), W is `0.3 N(0, 1)` on dense rows
    and `3 N(0, 1)` on binary ones.

    Args:
        n: nodes.
        samples: train samples of a node.
        test_samples: test samples of a node.
        seed: of the generator.
        dense: False leaves the dense features out, the control in which plain FedAvg keeps up.
        features: number of binary features.
        classes: labels.
        topics: topics.
    """
    _check(n=(n, 1), samples=(samples, 1), test_samples=(test_samples, 0))
    _check(features=(features, 1), classes=(classes, 1), topics=(topics, 1))
    rng, each = generator(seed), samples + test_samples
    frequency = np.minimum(1, 4 * np.arange(1, features + 1) ** -1.2)
    topic = rng.dirichlet(np.full(topics, 0.3), n) @ rng.gamma(0.5, 2.0, (topics, features))
    node = np.repeat(np.arange(n), each)
    ones = rng.random((n * each, features)) < np.minimum(1, frequency * topic)[node]
    x = ones / np.sqrt(np.maximum(ones.sum(1, keepdims=True), 1))
    model = 3 * rng.normal(size=(features, classes))
    if dense:
        x = np.concatenate([2 * rng.normal(size=(n * each, 10)), x], 1)
        model = np.concatenate([0.3 * rng.normal(size=(10, classes)), model])
    y = (2 * x @ model + rng.gumbel(size=(n * each, classes))).argmax(1)  # Gumbel-max draws from the softmax
    test = np.tile(np.arange(each) >= samples, n)
    return _by_node(x, y, node, test, classes=classes, name="sparse_features" if dense else "sparse_features, no dense")


def linear_regression_clients(
    n: int = 40,
    samples: int = 60,
    d: int = 10,
    spread: float = 1.5,
    noise: float = 0.5,
    seed: int = 0,
    *,
    test_samples: int = 10,
) -> Dataset:
    """Least squares with a model of its own in each node, the natural key.

    `x ~ N(0, I)`, `y = x'w_i + noise N(0, 1)`, `w_i = w + spread N(0, I)`, `w ~ N(0, I)`.

    Args:
        n: nodes.
        samples: train samples of a node.
        d: features.
        spread: how far the nodes' models lie apart; 0 gives all the same model.
        noise: standard deviation of the targets' noise.
        seed: of the generator.
        test_samples: test samples of a node.
    """
    _check(n=(n, 1), samples=(samples, 1), d=(d, 1), test_samples=(test_samples, 0))
    _check(spread=(spread, 0), noise=(noise, 0))
    rng, each = generator(seed), samples + test_samples
    w = rng.normal(size=d) + spread * rng.normal(size=(n, d))
    x, node = rng.normal(size=(n * each, d)), np.repeat(np.arange(n), each)
    y = np.einsum("sj,sj->s", x, w[node]) + noise * rng.normal(size=n * each)
    return _by_node(x, y, node, np.tile(np.arange(each) >= samples, n), name="linear_regression_clients")
