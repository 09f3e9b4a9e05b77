"""The rules of `exchange/rules.py` from their definitions, in NumPy: `rule(own, heard, weight)`."""

import numpy as np


def median(own, x, w):
    return np.median(x, axis=0)


def trimmed(f):
    def rule(own, x, w):
        cut = min(f, (len(x) - 1) // 2)
        return np.sort(x, axis=0)[cut : len(x) - cut].mean(0)

    return rule


def multi_krum(f, keep=None):
    def rule(own, x, w):
        c = len(x)
        apart = ((x[:, None] - x) ** 2).sum(-1)
        near = [np.sort(np.delete(apart[i], i))[: min(max(c - f - 2, 1), c - 1)].sum() for i in range(c)]
        best = np.argsort(near, kind="stable")
        return x[best[: max(1, min(c, c - f if keep is None else keep))]].mean(0)

    return rule


def weiszfeld(steps, nu):
    def rule(own, x, w):
        z = w @ x
        for _ in range(steps):
            b = w / np.maximum(nu, np.linalg.norm(z - x, axis=1))
            z = b @ x / b.sum()
        return z

    return rule


def clipping(tau, steps):
    def rule(own, x, w):
        v = own
        for _ in range(steps):
            move = x - v
            size = np.maximum(np.linalg.norm(move, axis=1), 1e-300)
            r = radius(tau, size, w) if isinstance(tau, str) else tau
            v = v + (w * np.minimum(1, r / size)) @ move
        return v

    return rule


def radius(delta, distance, w):
    total, memory = 0.0, np.ones(len(w), bool)
    for j in np.argsort(-distance, kind="stable"):  # the farthest first
        total += w[j]
        memory[j] = total > float(delta) * (1 + 1e-6)
    return np.sqrt((w * distance**2)[memory].sum() / float(delta))
