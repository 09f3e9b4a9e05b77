"""W2 of the bound: the gradient of a CNN on 28 x 28 images by sub-lattices, written by hand.

Every fourth row and column make one of 16 images of 7 x 7 pixels, stored `[channels, 7, 7 * batch]`. The four pixels of
a pool then lie in four arrays, so that it and its gradient are elementwise; a convolution reads shifted images and is
one matmul for each of them; bias and ReLU come after the pool, which changes nothing as both are monotone.
"""

import jax
import jax.numpy as jnp


def init(key):
    """Convolutions 3 x 3 x 16 and 3 x 3 x 32, each pooled, and a dense layer."""
    a, b, c = jax.random.split(key, 3)
    return {
        "k1": jax.random.normal(a, (9, 16)) / 3,
        "b1": jnp.zeros(16),
        "k2": jax.random.normal(b, (144, 32)) / 12,
        "b2": jnp.zeros(32),
        "w": jax.random.normal(c, (1568, 10)) / 40,
        "b": jnp.zeros(10),
    }


def _larger(a, b):
    return jnp.where(a >= b, a, b)


def _layer(planes, kernel, bias):
    """`s * s` sub-lattices `[c, 7, 7 b]` by row and column to `s / 2 * s / 2` of the pooled images."""
    s, (c, u, wide) = len(planes), planes[0][0].shape
    b = wide // u
    whole = jax.lax.optimization_barrier(jnp.concatenate([plane for row in planes for plane in row]))

    def padded(p, q):  # zeros where a shift leaves the image
        plane = whole[(p * s + q) * c : (p * s + q + 1) * c]
        return jnp.pad(plane, ((0, 0), (p == s - 1, p == 0), ((q == s - 1) * b, (q == 0) * b)))

    lattice = [[padded(p, q) for q in range(s)] for p in range(s)]

    def shifted(d, e):  # the pixels `d` rows and `e` columns from each of lattice 0, 0
        (i, p), (j, q) = divmod(d, s), divmod(e, s)
        i, j = i + (p == s - 1), (j + (q == s - 1)) * b
        return jax.lax.slice(lattice[p][q], (0, i, j), (c, i + u, j + wide))

    shift = {(d, e): shifted(d, e) for d in range(-1, s + 1) for e in range(-1, s + 1)}

    def convolved(p, q):
        windows = jnp.concatenate([shift[p + i, q + j] for i in (-1, 0, 1) for j in (-1, 0, 1)])
        return jax.lax.dot_general(kernel, windows.reshape(9 * c, -1), (((0,), (0,)), ((), ())))

    def pooled(p, q):
        one, two, three, four = (convolved(2 * p + i, 2 * q + j) for i in (0, 1) for j in (0, 1))
        top = _larger(_larger(one, two), _larger(three, four))
        return jax.nn.relu(top + bias[:, None]).reshape(-1, u, wide)

    return [[pooled(p, q) for q in range(s // 2)] for p in range(s // 2)]


def predict(p, x):
    """Logits of a batch of flat images."""
    b = x.shape[0]
    x = x.reshape(b, 7, 4, 7, 4).transpose(2, 4, 1, 3, 0).reshape(4, 4, 1, 7, 7 * b)
    planes = [[x[i, j] for j in range(4)] for i in range(4)]
    for kernel, bias in ((p["k1"], p["b1"]), (p["k2"], p["b2"])):
        planes = _layer(planes, kernel, bias)
    w = p["w"].reshape(49, 32, 10).transpose(1, 0, 2).reshape(-1, 10)  # fewer weights than pixels to put in order
    return planes[0][0].reshape(-1, b).T @ w + p["b"]
