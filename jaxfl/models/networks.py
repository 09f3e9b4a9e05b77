"""Small models of federated and decentralized papers, as flax.nnx modules of parameters only.

Each is made for a vmap over nodes with a model each: convolutions and attention are matmuls, and nothing carries
statistics of batches. A task takes a constructor: `classification(functools.partial(CNN, (28, 28, 1), 10), x)`.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxfl.core import Array
from jaxfl.errors import InputError
from jaxfl.models import convolution
from jaxfl.models.conv_pool import ConvPool, conv_pool

_List: Any = getattr(nnx, "List", list)  # flax before 0.12 holds modules in plain lists


def _images(x: Array, image: tuple[int, int, int]) -> Array:
    """Images `[b, h, w, channels]` from the same, flat `[b, h * w * channels]`, or `[b, h, w]`."""
    size = image[0] * image[1] * image[2]
    if x.size != x.shape[0] * size:
        raise InputError(f"x has shape {x.shape}, this model takes images {image}, flat or not.")
    return x.reshape(x.shape[0], *image)


def _lecun(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32, **_: Any) -> Array:
    """LeCun normal, truncated at two deviations, for a kernel `[..., inputs, outputs]`; drawn flat.

    XLA takes up to four times as long to compile a draw of several axes, which is most of the start of a small model.
    """
    size = math.prod(shape)
    deviation = (shape[-1] / size) ** 0.5 / 0.87962566103423978  # that of a normal truncated at two is not 1
    return jax.random.truncated_normal(key, -2, 2, (size,), dtype).reshape(shape) * deviation


def _linear(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, kernel_init=_lecun, rngs=rngs)


class Conv(nnx.Module):
    """2-D convolution by patches with parameters `kernel [k, k, channels, features]` and `bias [features]`.

    Parameter names and shapes are those of `flax.nnx.Conv`. Arguments as `convolution.conv`; the bias starts at zero
    and is left out with `use_bias=False`, the kernel starts LeCun normal.
    """

    def __init__(
        self,
        channels: int,
        features: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        padding: str = "SAME",
        use_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(_lecun(rngs.params(), (kernel, kernel, channels, features)))
        self.bias = nnx.Param(jnp.zeros(features)) if use_bias else None
        self.stride, self.padding = stride, padding

    def __call__(self, x: Array) -> Array:
        """`[b, h, w, channels]` to `[b, h', w', features]`."""
        y = convolution.conv(x, self.kernel[...], self.stride, self.padding)
        return y if self.bias is None else y + self.bias


def _weights(layer: Conv | nnx.Linear) -> tuple[Array, Array]:
    """Kernel and bias."""
    kernel = layer.kernel[...]
    return kernel, jnp.zeros(kernel.shape[-1]) if layer.bias is None else layer.bias[...]


def _pooled(x: Array, convolutions: Sequence[Conv], dense: nnx.Linear) -> Array:
    """Convolutions of stride 1, each with ReLU and a 2 x 2 max pool, then a dense layer: `[b, outputs]`."""
    kernel, bias = _weights(dense)
    return conv_pool(x, [ConvPool(*_weights(conv), conv.padding) for conv in convolutions], kernel) + bias


class MLP(nnx.Module):
    """Perceptron with ReLU between layers; `sizes` runs from inputs to outputs, `(784, 64, 10)`.

    Raises:
        InputError: fewer than two sizes, or one below 1.
    """

    def __init__(self, sizes: Sequence[int], *, rngs: nnx.Rngs):
        if len(sizes) < 2 or min(sizes) < 1:
            raise InputError(f"sizes is {tuple(sizes)}, must be two or more sizes of at least 1.")
        self.layers = _List([_linear(a, b, rngs) for a, b in pairwise(sizes)])

    def __call__(self, x: Array) -> Array:
        """`[b, ...]`, flattened to `[b, sizes[0]]`, to `[b, sizes[-1]]`."""
        return self.rest(self.layers[0](x.reshape(x.shape[0], -1)))

    def rest(self, x: Array) -> Array:
        """What follows the first layer, `[b, sizes[1]]` to `[b, sizes[-1]]`."""
        for layer in self.layers[1:]:
            x = layer(nnx.relu(x))
        return x


class CNN(nnx.Module):
    """Two 3 x 3 convolutions with ReLU and 2 x 2 max pooling, then one dense layer: 20,490 parameters on MNIST.

    Args:
        image: (height, width, channels) of an input.
        classes: number of logits.
        widths: channels after each convolution.
        rngs: where parameters are drawn.
    """

    def __init__(
        self,
        image: tuple[int, int, int] = (28, 28, 1),
        classes: int = 10,
        *,
        widths: tuple[int, int] = (16, 32),
        rngs: nnx.Rngs,
    ):
        self.image = image
        self.conv1 = Conv(image[2], widths[0], 3, rngs=rngs)
        self.conv2 = Conv(widths[0], widths[1], 3, rngs=rngs)
        self.dense = _linear((image[0] // 4) * (image[1] // 4) * widths[1], classes, rngs)

    def __call__(self, x: Array) -> Array:
        """Images `[b, h, w, channels]` or flat `[b, h * w * channels]` to logits `[b, classes]`."""
        return _pooled(_images(x, self.image), (self.conv1, self.conv2), self.dense)


class LeNet(nnx.Module):
    """LeNet-5 (LeCun et al., Proceedings of the IEEE 1998) as it is written today: ReLU and max pooling.

    The first convolution is padded, so 28 x 28 images give the paper's sizes and 61,706 parameters. Arguments are
    those of `CNN`.
    """

    def __init__(self, image: tuple[int, int, int] = (28, 28, 1), classes: int = 10, *, rngs: nnx.Rngs):
        self.image = image
        self.conv1 = Conv(image[2], 6, 5, rngs=rngs)
        self.conv2 = Conv(6, 16, 5, padding="VALID", rngs=rngs)
        rest = [(side // 2 - 4) // 2 for side in image[:2]]
        self.head = MLP((16 * rest[0] * rest[1], 120, 84, classes), rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Images `[b, h, w, channels]` or flat `[b, h * w * channels]` to logits `[b, classes]`."""
        return self.head.rest(_pooled(_images(x, self.image), (self.conv1, self.conv2), self.head.layers[0]))


class _Block(nnx.Module):
    """Basic residual block; a 1 x 1 convolution carries the shortcut where the shape changes."""

    def __init__(self, channels: int, features: int, stride: int, groups: int, *, rngs: nnx.Rngs):
        self.conv1 = Conv(channels, features, 3, stride=stride, use_bias=False, rngs=rngs)
        self.norm1 = nnx.GroupNorm(features, groups, rngs=rngs)
        self.conv2 = Conv(features, features, 3, use_bias=False, rngs=rngs)
        self.norm2 = nnx.GroupNorm(features, groups, rngs=rngs)
        change = stride > 1 or channels != features
        self.short = Conv(channels, features, 1, stride=stride, use_bias=False, rngs=rngs) if change else None

    def __call__(self, x: Array) -> Array:
        y = self.norm2(self.conv2(nnx.relu(self.norm1(self.conv1(x)))))
        return nnx.relu(y + (x if self.short is None else self.short(x)))


class ResNet(nnx.Module):
    """Residual network for small images (He et al., CVPR 2016, section 4.2) with GroupNorm (Wu and He, ECCV 2018).

    Batch statistics do not average over clients of unlike data (Hsieh et al., ICML 2020), so there are none.

    Args:
        image: (height, width, channels) of an input.
        classes: number of logits.
        widths: channels of each stage; every stage after the first halves the image.
        blocks: residual blocks a stage (the paper's n; 3 with three stages is ResNet-20).
        groups: groups of each GroupNorm.
        rngs: where parameters are drawn.

    Raises:
        InputError: `groups` does not divide every width, or `blocks` is below 1.
    """

    def __init__(
        self,
        image: tuple[int, int, int] = (32, 32, 3),
        classes: int = 10,
        *,
        widths: tuple[int, ...] = (16, 32, 64),
        blocks: int = 1,
        groups: int = 8,
        rngs: nnx.Rngs,
    ):
        if blocks < 1 or any(width % groups for width in widths):
            raise InputError(f"blocks is {blocks} and groups {groups}, must be at least 1 and divide widths {widths}.")
        self.image = image
        self.stem = Conv(image[2], widths[0], 3, use_bias=False, rngs=rngs)
        self.norm = nnx.GroupNorm(widths[0], groups, rngs=rngs)
        channels, stages = widths[0], []
        for stage, width in enumerate(widths):
            for i in range(blocks):
                stages.append(_Block(channels, width, 2 if stage and not i else 1, groups, rngs=rngs))
                channels = width
        self.blocks = _List(stages)
        self.dense = _linear(widths[-1], classes, rngs)

    def __call__(self, x: Array) -> Array:
        """Images `[b, h, w, channels]` or flat `[b, h * w * channels]` to logits `[b, classes]`."""
        x = nnx.relu(self.norm(self.stem(_images(x, self.image))))
        for block in self.blocks:
            x = block(x)
        return self.dense(x.mean(axis=(1, 2)))


class _Layer(nnx.Module):
    """Pre-norm transformer layer: causal attention, then a GELU perceptron four times as wide."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.qkv = _linear(width, 3 * width, rngs)
        self.out = _linear(width, width, rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.up = _linear(width, 4 * width, rngs)
        self.down = _linear(4 * width, width, rngs)

    def __call__(self, x: Array) -> Array:
        b, t, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, t, 3, self.heads, width // self.heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) * (width // self.heads) ** -0.5
        logits = jnp.where(jnp.tril(jnp.ones((t, t), bool)), logits, -jnp.inf)
        heard = jnp.einsum("bhqk,bkhd->bqhd", nnx.softmax(logits), v)
        x = x + self.out(heard.reshape(b, t, width))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class Transformer(nnx.Module):
    """Causal language model (Vaswani et al., NeurIPS 2017), pre-norm, learned positions: 216,794 parameters.

    Args:
        vocab: number of tokens (90 covers the characters of Shakespeare).
        width: size of a token's vector.
        depth: layers.
        heads: attention heads a layer.
        length: the longest sequence.
        rngs: where parameters are drawn.

    Raises:
        InputError: `heads` does not divide `width`; while tracing, `x` is not integers `[b, t]`, `t <= length`.
    """

    def __init__(
        self, vocab: int = 90, width: int = 64, depth: int = 4, heads: int = 4, length: int = 80, *, rngs: nnx.Rngs
    ):
        if heads < 1 or width % heads:
            raise InputError(f"heads is {heads}, must divide width {width}.")
        start = 0.02 * jax.random.normal(rngs.params(), ((vocab + length) * width,))
        self.token = nnx.Param(start[: vocab * width].reshape(vocab, width))
        self.position = nnx.Param(start[vocab * width :].reshape(length, width))
        self.layers = _List([_Layer(width, heads, rngs=rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = _linear(width, vocab, rngs)

    def __call__(self, x: Array) -> Array:
        """Tokens `[b, t]` to logits `[b, t, vocab]` of the token after each; token out of range is a zero vector."""
        vocab, length = self.token.shape[0], self.position.shape[0]
        if x.ndim != 2 or x.shape[1] > length or not jnp.issubdtype(x.dtype, jnp.integer):
            raise InputError(f"x is {x.dtype}{list(x.shape)}, must be integer tokens [b, t] with t at most {length}.")
        # a matmul, because the gradient of a gather adds in any order on a GPU: runs would not repeat bit for bit
        h = jax.nn.one_hot(x, vocab) @ self.token[...] + self.position[: x.shape[1]]
        for layer in self.layers:
            h = layer(h)
        return self.head(self.norm(h))


MODELS = {"mlp": MLP, "cnn": CNN, "lenet": LeNet, "resnet": ResNet, "transformer": Transformer}
