"""Convolution, bias, ReLU and 2 x 2 max pool, one layer after another: the body of a small image network.

On a CPU, where arithmetic costs as much as moving pixels, the images are cut into sub-lattices: with `s = 2 ** layers`,
every s-th row and every s-th column make one of `s * s` small images. The four pixels of a pool then lie in four
arrays at the same place, so a pool and its gradient are elementwise; a convolution reads shifted sub-lattices, whose
rows (columns and batch together) are contiguous, and is one matmul a sub-lattice on channels x pixels, the faster way
round; and bias and ReLU come after the pool, on a quarter of the pixels, which changes nothing as both are monotone.
One local step of `CNN` takes half the time of the plain form, and three quarters of that are its matmuls.

Tried: Winograd's F(2 x 2, 3 x 3), whose tile is the pool's window, does with 4 / 9 of the products and won another 7 %
for twice the compile time; gradients by hand (`custom_vjp`) were no faster than those that JAX derives from this form.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxfl.core import Array
from jaxfl.errors import InputError
from jaxfl.models import convolution


class ConvPool(NamedTuple):
    """One layer: `kernel [k, k, channels, features]`, `bias [features]`, `padding` "SAME" or "VALID"."""

    kernel: Array
    bias: Array
    padding: str = "SAME"


def conv_pool(x: Array, layers: Sequence[ConvPool], dense: Array) -> Array:
    """Images `[b, h, w, channels]` to `[b, outputs]`: each layer convolves, adds its bias, cuts at 0 and pools.

    A layer is `convolution.max_pool(relu(convolution.conv(x, kernel, 1, padding) + bias))`, and the last images are
    flattened and multiplied by `dense`. The result is that of this formula up to rounding, and by this formula where
    the backend is no CPU or a layer's images are not made of whole sub-lattices.

    Args:
        x: images.
        layers: at least one; an odd last line of an image is dropped by its pool.
        dense: `[h' * w' * features, outputs]`, in the order of flattened images `[h', w', features]`.

    Raises:
        InputError: no layer, another `padding`, or shapes of `x`, a kernel or `dense` that do not fit together.
    """
    if not layers or x.ndim != 4:
        raise InputError(
            f"x has shape {x.shape} with {len(layers)} layers, must be [b, h, w, channels] with 1 or more."
        )
    for layer, channels in zip(layers, (x.shape[3], *(kernel.shape[-1] for kernel, _, _ in layers)), strict=False):
        convolution.check_kernel(layer.kernel, channels)
    rows, columns = (_convolved(n, layers) for n in x.shape[1:3])
    if min(rows + columns) < 2:
        raise InputError(f"x has shape {x.shape}, too small for {len(layers)} convolutions and pools: images vanish.")
    flat = (rows[-1] // 2) * (columns[-1] // 2) * layers[-1].kernel.shape[-1]
    if dense.ndim != 2 or len(dense) != flat:
        raise InputError(f"dense has shape {dense.shape}, must be [{flat}, outputs] for this x and these layers.")
    if jax.default_backend() == "cpu" and all(
        _divides(n, after) for n, after in zip(x.shape[1:3], (rows, columns), strict=True)
    ):
        return _on_lattices(x, layers, dense)
    for kernel, bias, padding in layers:
        x = convolution.max_pool(jax.nn.relu(convolution.conv(x, kernel, 1, padding) + bias))
    return x.reshape(x.shape[0], -1) @ dense


def _convolved(length: int, layers: Sequence[ConvPool]) -> list[int]:
    """Pixels of a line after the convolution of each layer, before its pool."""
    found = []
    for kernel, _, padding in layers:
        found.append(convolution.windows(length, kernel.shape[0], 1, padding))
        length = found[-1] // 2
    return found


def _divides(length: int, convolved: Sequence[int]) -> bool:
    """Whether images of `length` pixels a side, and those after each convolution, are made of whole sub-lattices."""
    scale = 2 ** len(convolved)
    return length % scale == 0 and all(n % (scale >> i) == 0 for i, n in enumerate(convolved))


def _on_lattices(x: Array, layers: Sequence[ConvPool], dense: Array) -> Array:
    b, h, w, channels = x.shape
    s = 2 ** len(layers)
    x = x.reshape(b, h // s, s, w // s, s, channels).transpose(2, 4, 5, 1, 3, 0)
    planes = [[x[p, q].reshape(channels, h // s, w // s * b) for q in range(s)] for p in range(s)]
    for layer in layers:
        planes = _layer(planes, layer, b)
    last = planes[0][0].reshape(*planes[0][0].shape[:2], -1, b)
    # the weights are put in the order of the images: there are fewer of them in a batch
    features, rows, columns, _ = last.shape
    dense = dense.reshape(rows, columns, features, -1).transpose(2, 0, 1, 3).reshape(-1, dense.shape[-1])
    return last.reshape(-1, b).T @ dense


class _Axis(NamedTuple):
    """Rows, or columns, of sub-lattices under a convolution: offset `d` from a window's corner is in lattice `d % s`
    at `d // s`."""

    scale: int  # s
    kernel: int
    low: int  # padding before the first pixel
    before: int  # pixels of a sub-lattice
    after: int  # the same of the result

    def pad(self, p: int) -> tuple[int, int]:
        """Zeros in front of and behind lattice `p`, so that all its shifts are slices."""
        at = [d // self.scale for d in self.offsets() if d % self.scale == p]
        return max(0, -min(at)), max(0, max(at) + self.after - self.before)

    def offsets(self) -> range:
        return range(-self.low, self.scale + self.kernel - 1 - self.low)

    def start(self, d: int) -> int:
        """Where the slice at offset `d` starts in its padded lattice."""
        return d // self.scale + self.pad(d % self.scale)[0]


def _axis(layer: ConvPool, scale: int, before: int) -> _Axis:
    line = before * scale, layer.kernel.shape[0], 1, layer.padding
    return _Axis(scale, line[1], convolution.pads(*line)[0], before, convolution.windows(*line) // scale)


def _layer(planes: list[list[Array]], layer: ConvPool, b: int) -> list[list[Array]]:
    """`s * s` sub-lattices `[channels, u, v * b]` to `s / 2 * s / 2` of `[features, u', v' * b]`."""
    s, (channels, u, wide) = len(planes), planes[0][0].shape
    k, features = layer.kernel.shape[0], layer.kernel.shape[-1]
    rows, columns = _axis(layer, s, u), _axis(layer, s, wide // b)
    # joined behind a barrier, or XLA would compute the layer before again in each of its shifts
    whole = lax.optimization_barrier(jnp.concatenate([plane for row in planes for plane in row]))

    def padded(p: int, q: int) -> Array:
        plane = lax.slice_in_dim(whole, (p * s + q) * channels, (p * s + q + 1) * channels)
        front, back = columns.pad(q)
        return jnp.pad(plane, ((0, 0), rows.pad(p), (front * b, back * b)))

    lattice = [[padded(p, q) for q in range(s)] for p in range(s)]

    def shifted(d: int, e: int) -> Array:
        i, j = rows.start(d), columns.start(e) * b
        return lax.slice(lattice[d % s][e % s], (0, i, j), (channels, i + rows.after, j + columns.after * b))

    shift = {(d, e): shifted(d, e) for d in rows.offsets() for e in columns.offsets()}
    matrix = layer.kernel.reshape(-1, features)

    def convolved(p: int, q: int) -> Array:
        corner = p - rows.low, q - columns.low
        windows = jnp.concatenate([shift[corner[0] + i, corner[1] + j] for i in range(k) for j in range(k)])
        # contracted over the first axes of both: the gradient is then windows @ result.T, faster than its transpose
        return lax.dot_general(matrix, windows.reshape(k * k * channels, -1), (((0,), (0,)), ((), ())))

    def pooled(p: int, q: int) -> Array:
        top = convolution.largest([convolved(2 * p + i, 2 * q + j) for i in (0, 1) for j in (0, 1)])
        return jax.nn.relu(top + layer.bias[:, None]).reshape(features, rows.after, -1)

    return [[pooled(p, q) for q in range(s // 2)] for p in range(s // 2)]
