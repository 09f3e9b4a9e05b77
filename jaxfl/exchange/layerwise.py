"""Mixing layer by layer: each layer of a receiver's model is a mean of its own, over senders of its own."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array, frozen
from jaxfl.errors import InputError


def mix_layers(weight: Array, layer: np.ndarray, rows: Array) -> Array:
    """`z_i = sum_j weight[l, i, j] rows_j` in the columns of layer `l`, for rows `[c, d]`.

    Args:
        weight: `[L, r, c]`, one matrix a layer, for `r` receivers.
        layer: `[d]`, the number of the layer of each column, from 0.
        rows: `[c, d]`; a row that is not finite reaches those alone who weigh it.

    Raises:
        InputError: a layer that has no matrix.
    """
    if layer.min() < 0 or layer.max() >= weight.shape[0]:
        raise InputError(f"layer runs from {layer.min()} to {layer.max()}, but weight has {weight.shape[0]} matrices.")
    out = jnp.zeros((weight.shape[1], rows.shape[1]), rows.dtype)
    for j in np.unique(layer):
        at = np.flatnonzero(layer == j)
        mine = rows[:, at]
        sound = jnp.isfinite(mine).all(1)
        mixed = jnp.dot(weight[j], jnp.where(sound[:, None], mine, 0), precision="highest")
        lost = ((weight[j] != 0) & ~sound).any(1)
        out = out.at[:, at].set(jnp.where(lost[:, None], jnp.nan, mixed))
    return out


def shared_means(share: np.ndarray, kind: Array, count: Array) -> Array:
    """Weights `[L, c, c]` of means between members of several kinds, for `mix_layers`.

    In layer `l` a member of kind `a` takes the mean, by `count`, over the members of all kinds `b` with
    `share[l, a, b]`; where there is none (also of its own kind), or nobody counts, it keeps its own.

    Args:
        share: `[L, kinds, kinds]` bool.
        kind: `[c]`, of each member.
        count: `[c]`, what each counts; 0 for the absent.
    """
    heard = jnp.asarray(share)[:, kind][:, :, kind] * count
    total = heard.sum(-1, keepdims=True)
    return jnp.where(total > 0, heard / jnp.where(total > 0, total, 1), jnp.eye(kind.shape[0]))


def kinds_of(profile: Sequence[int]) -> tuple[tuple[int, ...], np.ndarray]:
    """The different entries of a profile, ascending, and which of them each entry is."""
    different = tuple(sorted(set(profile)))
    return different, frozen([different.index(entry) for entry in profile])
