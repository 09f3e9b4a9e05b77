"""The recurrent model against its equations."""

import numpy as np
from flax import nnx

from jaxfl.models.recurrent import GRU


def test_gru_is_its_equations():
    model = GRU(7, 4, rngs=nnx.Rngs(0))
    u, r, c, head = (np.float64(p[...]) for p in (model.token, model.gates, model.candidate, model.head))
    bias, head_bias = np.linspace(-1, 1, 12), np.linspace(0, 1, 7)
    model.bias[...], model.head_bias[...] = bias, head_bias
    x, sigmoid = np.array([[1, 0, 6], [3, 3, 2]]), lambda v: 1 / (1 + np.exp(-v))
    got = np.asarray(model(x))
    for row, logits in zip(x, got, strict=True):
        h = np.zeros(4)
        for t, token in enumerate(row):
            given = u[token] + bias
            reset, update = sigmoid(given[:4] + h @ r[:, :4]), sigmoid(given[4:8] + h @ r[:, 4:])
            h = (1 - update) * h + update * np.tanh(given[8:] + (reset * h) @ c)
            np.testing.assert_allclose(logits[t], h @ head + head_bias, atol=1e-5)
