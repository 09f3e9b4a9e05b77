"""How alike layers of models are: linear CKA of what they say about the same examples.

    CKA(A, B) = |A^T B|_F^2 / (|A^T A|_F |B^T B|_F),    columns of A [b, w] and B [b, v] centred

(Kornblith, Norouzi, Lee, Hinton; ICML 2019; https://arxiv.org/abs/1905.00414). 1 where one is the other turned and
scaled.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxfl.core import Array, Metric, Shards, node_keys
from jaxfl.learn.submodels import Policy
from jaxfl.mapping.nodes import map_nodes
from jaxfl.measure.metrics import mean_model


def cka(a: Array, b: Array) -> Array:
    """Linear CKA `[]` of `a` `[b, w]` and `b` `[b, v]`; 0 where one of them is constant."""
    a, b = a - a.mean(0), b - b.mean(0)
    a, b = a / jnp.maximum(jnp.abs(a).max(), 1e-30), b / jnp.maximum(jnp.abs(b).max(), 1e-30)
    inner = lambda u, v: (jnp.dot(u.T, v, precision="highest") ** 2).sum()
    return inner(a, b) / jnp.maximum(jnp.sqrt(inner(a, a) * inner(b, b)), 1e-30)


def layer_similarity(
    data: Shards, learn: Callable, policy: Policy, says: Callable, columns: Sequence[int], x: Array, ids: Sequence[int]
) -> Metric:
    """`cka_1`, `cka_2`, ...: by layer, the mean CKA between nodes' models after one local training from the mean model.

    Args:
        data: the nodes' samples.
        learn: of ONE node, `local_sgd(...)`.
        policy: which numbers of the model a node has (`learn.submodels`); a layer is compared among those who have it.
        says: `(row [d], x) -> [layers, b, w]`, what each layer says.
        columns: one number of each layer, by its place in the row.
        x: the examples `[b, ...]`.
        ids: the nodes that are compared, two at least of each layer.
    """
    count = len(columns)

    def measure(arrays, answer):
        data, x, ids = arrays
        model, key = mean_model(answer), jax.random.key(0)

        def trained(shared, row):
            (data, model, x), (key, i) = shared, row
            sub = policy(key, i, jnp.int32(0), model)
            y, _ = learn(key, data, i, jnp.where(sub.held, model, sub.fill), held=sub.held)
            return says(y, x), sub.held[jnp.asarray(columns)]

        said, has = map_nodes(trained, (data, model, x), (node_keys(key, ids), ids))
        pairs = jax.vmap(jax.vmap(cka, (None, 0)), (0, None))
        found = {}
        for j in range(count):
            both = (has[:, None, j] & has[None, :, j]) & ~jnp.eye(len(ids), dtype=bool)
            alike = jnp.where(both, pairs(said[:, j], said[:, j]), 0).sum()
            found[f"cka_{j + 1}"] = alike / jnp.maximum(both.sum(), 1)
        return found

    return Metric(measure, (data, x, jnp.asarray(ids, jnp.int32)))
