"""Data of bad quality on some nodes: wrong labels, noisy inputs. The other nodes and the test set keep theirs.

Samples stay where they are in the shared data set, so a corrupted sample must belong to corrupted nodes alone. All
raise InputError for a node that does not exist, and for samples shared with a sound node.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import Shards
from jaxfl.data.sets import generator
from jaxfl.errors import InputError, require


def flipped_labels(data: Shards, nodes: Any, classes: int) -> Shards:
    """Labels `y` of the given node or nodes turned into `classes - 1 - y`; inputs are shared with `data`.

    Raises:
        InputError: also for labels that are not integers below `classes`.
    """
    mine, y = _samples(data, nodes), np.asarray(data.y)
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= classes:
        raise InputError(f"data.y is {y.dtype} from {y.min()} to {y.max()}, but must be labels below {classes}.")
    return dataclasses.replace(data, y=data.y.at[mine].set(classes - 1 - data.y[mine]))


def noisy_inputs(data: Shards, nodes: Any, deviation: float, seed: int = 0) -> Shards:
    """Gaussian noise of standard `deviation` (at least 0) on all inputs of the given nodes, drawn once by `seed`.

    Raises:
        InputError: also for inputs that are not floats.
    """
    require("deviation", deviation, least=0)
    mine, rng = _samples(data, nodes), generator(seed)

    def add(x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise InputError(f"data.x is {x.dtype}, but noise needs floats.")
        return x.at[mine].add(jnp.asarray(deviation * rng.standard_normal((len(mine), *x.shape[1:])), x.dtype))

    return dataclasses.replace(data, x=jax.tree.map(add, data.x))


def _samples(data: Shards, nodes: Any) -> np.ndarray:
    """Indices of the samples of `nodes`, each once."""
    order, start, size = (np.asarray(a) for a in (data.order, data.start, data.size))
    chosen = np.unique(np.atleast_1d(nodes))
    if chosen.size == 0 or chosen.dtype.kind not in "iu" or chosen[0] < 0 or chosen[-1] >= len(size):
        raise InputError(f"nodes = {nodes}: node ids from 0 to {len(size) - 1} are needed.")
    owner = np.repeat(np.arange(len(size)), size)
    held = order[np.repeat(start, size) + np.arange(len(owner)) - np.repeat(np.cumsum(size) - size, size)]
    bad = np.isin(owner, chosen)
    mine = np.unique(held[bad])
    if np.isin(held[~bad], mine).any():
        raise InputError(f"data shares samples of nodes {chosen.tolist()} with sound nodes, but they must be theirs.")
    return mine
