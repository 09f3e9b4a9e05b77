"""Convolution as one matmul, and pooling whose gradient is elementwise.

On a CPU XLA runs a convolution inside a loop (`scan`, `map`) about ten times slower than the same sum written as
shifted copies and a matmul ("im2col": Chellapilla, Puri and Simard, 2006), and a kernel per node makes it a grouped
convolution. A simulator is loops over clients and steps with a kernel per node, so its models use this form.
The patches cost `k * k` times the memory of the input while a gradient is taken. Images are `[b, h, w, channels]`.
"""

import jax.numpy as jnp

from jaxfl.core import Array
from jaxfl.errors import InputError


def pads(length: int, kernel: int, stride: int, padding: str) -> tuple[int, int]:
    """Zeros in front of and behind a line of `length` pixels; "SAME" makes `ceil(length / stride)` windows.

    Raises:
        InputError: another `padding` than "SAME" or "VALID".
    """
    if padding not in ("SAME", "VALID"):
        raise InputError(f"padding is {padding!r}, allowed are 'SAME' and 'VALID'.")
    if padding == "VALID":
        return 0, 0
    total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
    return total // 2, total - total // 2


def windows(length: int, kernel: int, stride: int, padding: str) -> int:
    """How many windows of `kernel` pixels a padded line of `length` pixels has."""
    return (length + sum(pads(length, kernel, stride, padding)) - kernel) // stride + 1


def patches(x: Array, kernel: int, stride: int = 1, padding: str = "SAME") -> Array:
    """Every `kernel` x `kernel` window of the images, as a vector ordered (row, column, channel).

    Args:
        x: `[b, h, w, channels]`.
        kernel: side of the square window.
        stride: pixels between windows, in both directions.
        padding: "SAME" (zeros, `ceil(h / stride)` windows a column) or "VALID" (windows inside the image only).

    Returns:
        `[b, h', w', kernel * kernel * channels]`.

    Raises:
        InputError: `x` is not of rank 4 or smaller than the window, `kernel` or `stride` is below 1, or another
            `padding`.
    """
    if kernel < 1 or stride < 1:
        raise InputError(f"kernel is {kernel} and stride is {stride}, both must be at least 1.")
    if x.ndim != 4:
        raise InputError(f"x has shape {x.shape}, images must be [b, h, w, channels].")
    high, wide = (pads(n, kernel, stride, padding) for n in x.shape[1:3])
    rows, columns = (windows(n, kernel, stride, padding) for n in x.shape[1:3])
    if rows < 1 or columns < 1:
        raise InputError(f"x has shape {x.shape}, smaller than the {kernel} x {kernel} window with VALID padding.")
    x = jnp.pad(x, ((0, 0), high, wide, (0, 0)))

    # columns first, then rows: 2 k slices compile faster than k * k, and a gradient adds 2 k terms
    right, down = (columns - 1) * stride + 1, (rows - 1) * stride + 1
    x = jnp.concatenate([x[:, :, j : j + right : stride] for j in range(kernel)], axis=-1)
    return jnp.concatenate([x[:, i : i + down : stride] for i in range(kernel)], axis=-1)


def check_kernel(kernel: Array, channels: int) -> None:
    """Raise InputError unless `kernel` is `[k, k, channels, features]`."""
    if kernel.ndim != 4 or kernel.shape[0] != kernel.shape[1] or kernel.shape[2] != channels:
        raise InputError(f"kernel has shape {kernel.shape}, must be [k, k, {channels}, features] for this x.")


def conv(x: Array, kernel: Array, stride: int = 1, padding: str = "SAME") -> Array:
    """2-D convolution (cross-correlation, as in every deep-learning library) without bias.

    Args:
        x: `[b, h, w, channels]`.
        kernel: `[k, k, channels, features]`, the layout of `flax.nnx.Conv`.
        stride: as in `patches`.
        padding: as in `patches`.

    Returns:
        `[b, h', w', features]`, equal to `lax.conv_general_dilated` up to rounding.

    Raises:
        InputError: as `patches`, or `kernel` is not square or has other channels than `x`.
    """
    check_kernel(kernel, x.shape[-1])
    return patches(x, kernel.shape[0], stride, padding) @ kernel.reshape(-1, kernel.shape[-1])


def _quarters(x: Array) -> list[Array]:
    """The pixels of each 2 x 2 window as four images `[b, h // 2, w // 2, channels]`, an odd last line dropped."""
    if x.ndim != 4 or min(x.shape[1:3]) < 2:
        raise InputError(f"x has shape {x.shape}, pooling needs [b, h, w, channels] with h and w at least 2.")
    b, h, w, channels = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, channels)
    return [x[:, :, i, :, j] for i in (0, 1) for j in (0, 1)]


def max_pool(x: Array) -> Array:
    """Largest pixel of each 2 x 2 window, stride 2: `[b, h, w, channels]` to `[b, h // 2, w // 2, channels]`.

    Equal pixels (usual after a ReLU) send their gradient to the first, as `lax.reduce_window` does, whose gradient, a
    select-and-scatter, doubles the time of a small network on a CPU. NaN wins.

    Raises:
        InputError: `x` is not of rank 4 or an image is smaller than the window.
    """
    return largest(_quarters(x))


def largest(four: list[Array]) -> Array:
    """Elementwise the largest of four arrays, the first of equal ones; its gradient is elementwise too."""

    def larger(a: Array, b: Array) -> Array:
        return jnp.where((a >= b) | (a != a), a, b)

    a, b, c, d = four
    return larger(larger(a, b), larger(c, d))


def avg_pool(x: Array) -> Array:
    """Mean of each 2 x 2 window, stride 2: `[b, h, w, channels]` to `[b, h // 2, w // 2, channels]`.

    Raises:
        InputError: `x` is not of rank 4 or an image is smaller than the window.
    """
    a, b, c, d = _quarters(x)
    return (a + b + c + d) / 4
