"""A small recurrent language model, as a flax.nnx module of parameters only."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxfl.core import Array


class GRU(nnx.Module):
    """Gated recurrent units (Cho et al., EMNLP 2014) over one-hot tokens: 15,681 parameters for 97 tokens, width 32.

    r, z = sigmoid(U x + R h),  c = tanh(U' x + R' (r * h)),  h <- (1 - z) h + z c,  from h = 0.

    Args:
        vocab: number of tokens.
        width: units.
        rngs: where parameters are drawn, all normal of variance 1 / width but the biases, which are 0.
    """

    def __init__(self, vocab: int, width: int, *, rngs: nnx.Rngs):
        def drawn(rows: int, columns: int) -> nnx.Param:
            flat = jax.random.normal(rngs.params(), (rows * columns,))  # several axes compile for longer
            return nnx.Param(flat.reshape(rows, columns) * width**-0.5)

        self.token, self.bias = drawn(vocab, 3 * width), nnx.Param(jnp.zeros(3 * width))
        self.gates, self.candidate = drawn(width, 2 * width), drawn(width, width)
        self.head, self.head_bias = drawn(width, vocab), nnx.Param(jnp.zeros(vocab))

    def __call__(self, x: Array) -> Array:
        """Tokens `[b, t]` to logits `[b, t, vocab]` of the token after each; a token out of range counts as none."""
        vocab, width = self.token.shape[0], self.candidate.shape[0]
        heard = jax.nn.one_hot(x, vocab) @ self.token[...] + self.bias[...]  # as in `networks.Transformer`
        gates, candidate = self.gates[...], self.candidate[...]

        def step(h: Array, u: Array) -> tuple[Array, Array]:
            r, z = jnp.split(jax.nn.sigmoid(u[:, : 2 * width] + h @ gates), 2, axis=1)
            h = (1 - z) * h + z * jnp.tanh(u[:, 2 * width :] + (r * h) @ candidate)
            return h, h

        _, states = jax.lax.scan(step, jnp.zeros((x.shape[0], width)), heard.swapaxes(0, 1))
        return states.swapaxes(0, 1) @ self.head[...] + self.head_bias[...]
