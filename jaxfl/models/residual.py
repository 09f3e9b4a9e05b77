"""Residual perceptrons of blocks of equal width, with one head or with an exit after each block.

    h_0 = stem(x),   h_e = h_{e-1} + W2_e relu(W1_e h_{e-1} + b1_e) + b2_e

A block of zeros hands on what comes in, and an exit of zeros says nothing and passes no gradient. So a model whose last
blocks (and exits) are 0 is the shallower model: what is cut to some depth need not know it (`learn.submodels.nested`).
"""

import jax.numpy as jnp
from flax import nnx

from jaxfl.core import Array
from jaxfl.errors import require
from jaxfl.models.networks import _linear, _List


class _Residual(nnx.Module):
    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
        self.up = _linear(width, hidden, rngs)
        self.down = _linear(hidden, width, rngs)

    def __call__(self, h: Array) -> Array:
        return h + self.down(nnx.relu(self.up(h)))


class _Trunk(nnx.Module):
    """Stem and blocks."""

    def __init__(self, features: int, width: int, blocks: int, hidden: int | None, *, rngs: nnx.Rngs):
        for name, value in (("features", features), ("width", width), ("blocks", blocks)):
            require(name, value, least=1, whole=True)
        require("hidden", hidden, least=1, whole=True, none=True)
        self.stem = _linear(features, width, rngs)
        self.blocks = _List([_Residual(width, hidden or width, rngs=rngs) for _ in range(blocks)])

    def hidden(self, x: Array) -> list[Array]:
        """What each block says of `x` `[b, ...]`: as many `[b, width]`."""
        h, said = self.stem(x.reshape(x.shape[0], -1)), []
        for block in self.blocks:
            h = block(h)
            said.append(h)
        return said


class ResidualMLP(_Trunk):
    """A residual perceptron with one linear head.

    Args:
        features: inputs, flattened.
        width: of what the blocks hand on.
        blocks: how many.
        classes: logits.
        hidden: units inside a block; None: `width`.
        rngs: where parameters are drawn.

    Raises:
        InputError: a count below 1.
    """

    def __init__(
        self, features: int, width: int, blocks: int, classes: int, hidden: int | None = None, *, rngs: nnx.Rngs
    ):
        super().__init__(features, width, blocks, hidden, rngs=rngs)
        self.head = _linear(width, classes, rngs)

    def __call__(self, x: Array) -> Array:
        """`[b, ...]` to logits `[b, classes]`."""
        return self.head(self.hidden(x)[-1])


class MultiExit(_Trunk):
    """A residual perceptron with a linear exit after each block; arguments as of `ResidualMLP`."""

    def __init__(
        self, features: int, width: int, blocks: int, classes: int, hidden: int | None = None, *, rngs: nnx.Rngs
    ):
        super().__init__(features, width, blocks, hidden, rngs=rngs)
        self.exits = _List([_linear(width, classes, rngs) for _ in range(blocks)])

    def __call__(self, x: Array) -> Array:
        """`[b, ...]` to the logits of every exit `[b, blocks, classes]`."""
        return jnp.stack([leave(h) for leave, h in zip(self.exits, self.hidden(x), strict=True)], 1)
