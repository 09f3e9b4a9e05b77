"""What theory predicts, in float64 on the host: rates, fixed points and noise floors to lay over measured curves.

Quadratics are `f_i(x) = 0.5 (x - b_i)' A_i (x - b_i)`, with `A` `[n, d, d]` symmetric and `b` `[n, d]`, as
`synthetic.gaussian_quadratics` makes them. Distances are Euclidean, variances by coordinate.
"""

from typing import Any

import numpy as np

from jaxfl.core import Graph
from jaxfl.errors import InputError
from jaxfl.world.mixing import TOLERANCE, second_eigenvalue


def consensus_rate(graph: Graph) -> float:
    """The factor a round by which mixing alone shrinks the consensus distance, at most (symmetric `W`: in the limit).

    It is the second largest modulus of an eigenvalue of the mixing matrix: `rate**t` is the line to lay over
    `plots.consensus`. Xiao and Boyd, Fast linear iterations for distributed averaging, Systems and Control Letters
    2004.
    """
    return second_eigenvalue(graph)


def quadratic_optimum(A: Any, b: Any, weight: Any = None) -> np.ndarray:
    """The minimiser `[d]` of `sum_i weight_i f_i`, which solves `(sum_i weight_i A_i) x = sum_i weight_i A_i b_i`.

    Args:
        A: curvatures `[n, d, d]`.
        b: own optimum of each node `[n, d]`.
        weight: `[n]`, at least 0 (None: all the same).

    Raises:
        InputError: shapes do not fit, or there is no unique minimiser.
    """
    A, b, weight = _quadratics(A, b, weight)
    return _solve(np.einsum("n,nij->ij", weight, A), np.einsum("n,nij,nj->i", weight, A, b), "A")


def fedavg_fixed_point(A: Any, b: Any, lr: float, steps: int, weight: Any = None) -> np.ndarray:
    """Where FedAvg of all clients with `steps` exact local gradient steps stops, `[d]`: not at the optimum.

    A client returns `b_i + P_i (x - b_i)` with `P_i = (I - lr A_i)^steps`, so the fixed point solves
    `(sum_i weight_i (I - P_i)) x = sum_i weight_i (I - P_i) b_i`. One step gives the optimum. FedAvg goes there from
    anywhere if `lr` is below 2 over the largest curvature. Pathak and Wainwright, FedSplit, NeurIPS 2020,
    https://arxiv.org/abs/2005.05238 (the fixed points of FedSGD).

    Args:
        A: curvatures `[n, d, d]`.
        b: own optimum of each node `[n, d]`.
        lr: local learning rate, above 0.
        steps: local steps a round, at least 1.
        weight: `[n]`, how much a client counts in the average, at least 0 (None: all the same).

    Raises:
        InputError: shapes do not fit, a number is out of range, or there is no unique fixed point.
    """
    A, b, weight = _quadratics(A, b, weight)
    _positive("lr", lr)
    if int(steps) != steps or steps < 1:
        raise InputError(f"steps = {steps}: a whole number of at least 1 is needed.")
    eye = np.eye(b.shape[1])
    pull = weight[:, None, None] * (eye - np.linalg.matrix_power(eye - lr * A, int(steps)))
    return _solve(pull.sum(0), np.einsum("nij,nj->i", pull, b), "A")


def dsgd_bias(A: Any, b: Any, W: Any, lr: float) -> np.ndarray:
    """Where deterministic D-SGD `x_i <- sum_j W_ij (x_j - lr A_j (x_j - b_j))` stops, `[n, d]`: near the optimum.

    The distance to `quadratic_optimum` is the bias that heterogeneity and a constant rate leave, `O(lr)`. A dense
    system of `n d` unknowns is solved. D-SGD goes there from anywhere if `W` is doubly stochastic, every `A_i` positive
    definite and `lr` below 2 over the largest curvature. Yuan, Ling and Yin, On the convergence of decentralized
    gradient descent, SIAM J. Optimization 2016, https://arxiv.org/abs/1310.7063 (there combine, then adapt).

    Args:
        A: curvatures `[n, d, d]`.
        b: own optimum of each node `[n, d]`.
        W: mixing matrix `[n, n]`, `W[i, j]` = how much `i` hears `j` (`mixing.matrix(graph)`), rows summing to one.
        lr: learning rate, above 0.

    Raises:
        InputError: shapes do not fit, a number is out of range, or there is no unique fixed point.
    """
    A, b, _ = _quadratics(A, b, None)
    W = _mixing(W, len(b))
    _positive("lr", lr)
    n, d = b.shape
    step = np.einsum("ij,jab->iajb", W, np.eye(d) - lr * A).reshape(n * d, n * d)
    drift = lr * (W @ np.einsum("nij,nj->ni", A, b)).reshape(-1)
    return _solve(np.eye(n * d) - step, drift, "A").reshape(n, d)


def noise_floor(lr: float, sigma: float, a: Any, n: int = 1) -> np.ndarray:
    """Stationary variance of each coordinate of SGD on `0.5 sum_j a_j x_j^2`, exactly, in the shape of `a`.

    A step `x <- x - lr (a x + xi)`, where `xi` is the mean of `n` independent noises of standard deviation `sigma` a
    coordinate, gives `v = (1 - lr a)^2 v + lr^2 sigma^2 / n`, so

        v = lr sigma^2 / (n a (2 - lr a)).

    The mean model of FedAvg or of D-SGD with doubly stochastic mixing has the same variance when all `n` nodes share
    the curvature, whatever the number of local steps: `1 - (1 - lr a)^(2 steps)` cancels. Bottou, Curtis and Nocedal,
    Optimization methods for large-scale machine learning, SIAM Review 2018, theorem 4.6, has the bound it attains up
    to a constant. Sum over coordinates for `E |x - x*|^2`.

    Args:
        lr: learning rate, above 0.
        sigma: standard deviation of the gradient noise of one node, by coordinate.
        a: curvatures `[d]` (or one), above 0.
        n: nodes averaged, at least 1.

    Raises:
        InputError: a number is out of range, `lr a` reaching 2 included, where there is no stationary law.
    """
    a = _stable(lr, sigma, a)
    if int(n) != n or n < 1:
        raise InputError(f"n = {n}: a whole number of at least 1 is needed.")
    return lr * sigma**2 / (n * a * (2 - lr * a))


def consensus_floor(lr: float, sigma: float, a: Any, W: Any) -> np.ndarray:
    """Stationary `E mean_i (x_i - mean)^2` of D-SGD with gradient noise, by coordinate, in the shape of `a`.

    All nodes share the curvature `a`, and `W` is symmetric. In the eigenbasis of `W` the step
    `x <- W (x - lr (a x + xi))` is `n` scalar recursions `v_l = l^2 ((1 - lr a)^2 v_l + lr^2 sigma^2)`, so

        floor = 1/n sum_{l != 1} l^2 lr^2 sigma^2 / (1 - l^2 (1 - lr a)^2).

    The square root of its sum over coordinates is the level of the column `consensus` after many rounds (up to the
    fluctuation of a root). Derived here; the rates of Koloskova et al., A unified theory of decentralized SGD,
    ICML 2020, https://arxiv.org/abs/2003.10422, bound the same quantity.

    Args:
        lr: learning rate, above 0.
        sigma: standard deviation of the gradient noise of one node, by coordinate.
        a: curvatures `[d]` (or one), above 0.
        W: symmetric mixing matrix `[n, n]` whose rows sum to one and whose eigenvalues lie within -1..1, as those of
            doubly stochastic matrices do.

    Raises:
        InputError: `W` is not such a matrix, or a number is out of range.
    """
    W = _mixing(W)
    if not np.allclose(W, W.T, rtol=0, atol=TOLERANCE):
        raise InputError(f"W differs from its transpose by {np.abs(W - W.T).max():.3g}: a symmetric matrix is needed.")
    a = _stable(lr, sigma, a)
    modes = np.linalg.eigvalsh(W)
    if np.abs(modes).max() > 1 + TOLERANCE:
        raise InputError(f"W has the eigenvalue {modes[np.argmax(np.abs(modes))]:.7g}: -1 to 1 is needed.")
    square = np.delete(modes, np.argmin(np.abs(modes - 1))) ** 2
    keep = (1 - lr * a) ** 2
    return (square * (lr * sigma) ** 2 / (1 - square * keep[..., None])).sum(-1) / len(W)


def linear_speedup(sigma: float, n: int, rounds: Any, scale: float = 1.0) -> np.ndarray:
    """The reference line `scale * sigma / sqrt(n T)` in the shape of `rounds`: twice the nodes, half the rounds.

    It is the leading term of the mean squared gradient norm of (decentralized) parallel SGD with the best constant
    rate: Lian et al., NeurIPS 2017, https://arxiv.org/abs/1705.09056, corollary 2, where `scale` depends on the
    smoothness and the first objective gap alone. Choose `scale` to meet a measured point.

    Args:
        sigma: standard deviation of the gradient noise of one node.
        n: nodes, at least 1.
        rounds: `T`, above 0, any shape.
        scale: constant of the bound.

    Raises:
        InputError: a number is out of range.
    """
    rounds = np.asarray(rounds, np.float64)
    if n < 1:
        raise InputError(f"n = {n}: at least 1 is needed.")
    if not (rounds > 0).all():
        raise InputError(f"rounds has the entry {rounds.min()}: numbers above 0 are needed.")
    return scale * sigma / np.sqrt(n * rounds)


def _quadratics(A: Any, b: Any, weight: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    A, b = np.asarray(A, np.float64), np.asarray(b, np.float64)
    if b.ndim != 2 or A.shape != (*b.shape, b.shape[-1]):
        raise InputError(f"A has shape {A.shape} and b {b.shape}: [n, d, d] and [n, d] are needed.")
    if weight is None:
        return A, b, np.full(len(b), 1 / len(b))
    weight = np.asarray(weight, np.float64)
    if weight.shape != (len(b),) or not (weight >= 0).all() or not weight.sum() > 0:
        raise InputError(f"weight = {weight}: {len(b)} numbers of at least 0 are needed, not all 0.")
    return A, b, weight / weight.sum()


def _mixing(W: Any, n: int | None = None) -> np.ndarray:
    W = np.asarray(W, np.float64)
    n = len(W) if n is None and W.ndim else n
    if W.shape != (n, n) or not W.size:
        raise InputError(f"W has shape {W.shape}: a square matrix with a row a node is needed ({n} nodes).")
    sums = W.sum(1)
    off = np.where(np.isfinite(sums), np.abs(sums - 1), np.inf)
    if off.max() > TOLERANCE:
        raise InputError(f"row {np.argmax(off)} of W sums to {sums[np.argmax(off)]:.7g}: 1 is needed.")
    return W


def _positive(name: str, value: float) -> None:
    if not (np.isfinite(value) and value > 0):
        raise InputError(f"{name} = {value}: a finite number above 0 is needed.")


def _stable(lr: float, sigma: float, a: Any) -> np.ndarray:
    _positive("lr", lr)
    if not (np.isfinite(sigma) and sigma >= 0):
        raise InputError(f"sigma = {sigma}: a finite number of at least 0 is needed.")
    a = np.asarray(a, np.float64)
    if not ((a > 0) & (lr * a < 2)).all():
        raise InputError(f"a = {a} at lr = {lr}: curvatures with 0 < lr * a < 2 are needed.")
    return a


def _solve(matrix: np.ndarray, right: np.ndarray, name: str) -> np.ndarray:
    """The solution, or an InputError for a matrix that is singular to working precision."""
    try:
        found = np.linalg.solve(matrix, right)
    except np.linalg.LinAlgError:
        found = np.full(right.shape, np.nan)
    scale = np.abs(matrix).sum(1).max()
    if not np.isfinite(found).all() or np.linalg.norm(found) * scale > 1e14 * max(np.linalg.norm(right), 1e-300):
        raise InputError(f"{name} leaves the answer open: some direction has no curvature at any node.")
    return found
