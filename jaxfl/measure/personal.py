"""Accuracy of every node where labels are skewed: on its own distribution of labels, and on all labels alike.

The `beta_priv` and `beta_sh` of Zhmoginov et al. (CVPR 2023, https://arxiv.org/abs/2211.15774). Models may have
several heads, and nodes several architectures.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxfl.core import Array, Metric, Tree
from jaxfl.errors import InputError
from jaxfl.learn.groups import Groups, in_node_order, map_groups, require_groups


def one_head(prediction: Array) -> Array:
    """Logits `[b, classes]` as those of one head, `[1, b, classes]`."""
    return prediction[None]


def all_heads(prediction: Tree) -> Array:
    """The logits `[heads, b, classes]` of a `heads.Output`."""
    return prediction.logits


def class_accuracy(groups: Groups, rows: tuple[Array, ...], x: Tree, y: Array, classes: int, logits: Callable) -> Array:
    """The share of the examples of each class that each head of each node gets right, `[n, heads, classes]`."""
    of = jax.nn.one_hot(y, classes)  # [N, classes]

    def one(task, shared, row):
        x, y, of = shared
        said = logits(task.predict(task.unravel(row), x))
        hit = (said.argmax(-1) == y).astype(jnp.float32)  # [heads, N]
        sound = jnp.isfinite(row).all() & (said < jnp.inf).all()
        return jnp.where(sound, hit @ of / of.sum(0), jnp.nan)

    return in_node_order(groups, map_groups(groups, one, (x, y, of), rows))


def head_accuracy(
    groups: Groups, rows: tuple[Array, ...], x: Tree, y: Array, share: Array, logits: Callable = all_heads
) -> tuple[Array, Array]:
    """`(private, shared)` accuracy `[n, heads]` of every node and head, nodes in order.

    Args:
        groups: architectures.
        rows: models `[n_g, d_g]` a group.
        x: test inputs `[N, ...]`.
        y: test labels `[N]`; every class occurs.
        share: how often each node meets each label, `[n, classes]`, rows sum to one.
        logits: `[heads, b, classes]` from what the tasks predict.
    """
    right = class_accuracy(groups, rows, x, y, share.shape[1], logits)
    return (right * share[:, None]).sum(-1), right.mean(-1)


def personal_accuracy(
    groups: Groups, x: Tree, y: ArrayLike, counts: ArrayLike, *, logits: Callable = all_heads
) -> Metric:
    """Columns `private_k` and `shared_k` for each head k, means over nodes, and their standard deviations `.._spread`.

    `private` weighs the classes as the node's own samples do, `shared` all alike. With several groups also
    `private_k_group_g` and `shared_k_group_g`, means over the nodes of group g.

    Args:
        groups: architectures; the system's answer has rows `[n_g, d_g]` for each, or is one array if there is one
            group: rows `[n, d]`, or a server's `[d]`, every node's model.
        x: test inputs `[N, ...]`.
        y: test labels `[N]`.
        counts: samples of each label a node has, `[n, classes]` (`partition.label_histogram`).
        logits: `all_heads` or `one_head`, for what the tasks predict.

    Raises:
        InputError: the groups are not those of `counts`, a node has no sample, or a class has no test example; while
            tracing, an answer of other shapes.
    """
    table = np.asarray(counts, np.float64)
    require_groups(groups, len(table))
    if table.ndim != 2 or table.min() < 0 or not table.sum(1).all():
        raise InputError(f"counts has shape {list(table.shape)}: [n, classes] of counts with no empty row is needed.")
    missing = set(range(table.shape[1])) - set(np.unique(np.asarray(y)).tolist())
    if missing:
        raise InputError(f"y has no example of the classes {sorted(missing)}, so their accuracy is unknown.")
    share = jnp.asarray(table / table.sum(1, keepdims=True), jnp.float32)

    def measure(arrays, answer):
        (x, y, share), out = arrays, {}
        for name, each in zip(("private", "shared"), _accuracy(groups, answer, x, y, share, logits), strict=True):
            for k in range(each.shape[1]):
                values = each[:, k]
                out |= {f"{name}_{k}": values.mean(), f"{name}_{k}_spread": values.std()}
                if len(groups) > 1:
                    out |= {f"{name}_{k}_group_{g}": values[np.array(v.ids)].mean() for g, v in enumerate(groups)}
        return out

    return Metric(measure, (jnp.asarray(x), jnp.asarray(y), share))


def _accuracy(groups: Groups, answer: Tree, x: Tree, y: Array, share: Array, logits: Callable) -> tuple[Array, Array]:
    """`head_accuracy` of what a system answers: rows a group, or one array."""
    rows: tuple[Array, ...] = answer if isinstance(answer, tuple) else (answer,)
    found = [jnp.shape(a) for a in rows]
    if found == [(groups[0].task.dim,)] and len(groups) == 1:  # a server's: looked at once
        return head_accuracy((groups[0]._replace(ids=(0,)),), (rows[0][None],), x, y, share, logits)
    want = [(len(g.ids), g.task.dim) for g in groups]
    if found != want:
        raise InputError(f"the system's answer has the shapes {found}, but personal_accuracy of these groups {want}.")
    return head_accuracy(groups, rows, x, y, share, logits)
