"""Lifts between architectures: a model in a larger one that computes the same, and back.

For chains of dense layers with ReLU between them (`networks.MLP`): identity layers make a chain deeper (after a ReLU
the identity changes nothing), copied or zero units make it wider (Net2Net; Chen, Goodfellow, Shlens; ICLR 2016;
https://arxiv.org/abs/1511.05641). All are numbers or gathers known beforehand, so that a lift costs nothing to compile.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array, frozen
from jaxfl.errors import InputError
from jaxfl.learn.layers import Layer, layers, part
from jaxfl.learn.task import Task


def identity(task: Task, *patterns: str) -> np.ndarray:
    """A row `[d]` with the identity in the kernels of the layers that match, a convolution's in its middle, else 0.

    Raises:
        InputError: a pattern that matches nothing, or a kernel `[..., inputs, outputs]` that is not square, or has a
            window of even sides.
    """
    row, chosen = np.zeros(task.dim, np.float32), part(task, *patterns).mask
    for a in layers(task):
        if not chosen[a.start] or not a.path.endswith("kernel"):
            continue
        *window, inputs, outputs = a.shape
        if inputs != outputs or any(side % 2 == 0 for side in window):
            raise InputError(f"{a.path} is {list(a.shape)}, but only a square kernel can be the identity.")
        kernel = np.zeros(a.shape, np.float32)
        kernel[tuple(side // 2 for side in window)] = np.eye(inputs)
        row[a.start : a.stop] = kernel.ravel()
    return frozen(row)


def deeper(task: Task, row: Array, larger: Task, kept: Sequence[int]) -> Array:
    """The row of `larger` that computes what `row` of `task` does: its layer `kept[j]` is layer `j`, others identity.

    Raises:
        InputError: chains of other kinds, `kept` not ascending or not of every layer, or a layer of another shape.
    """
    ours, theirs = _chain(task), _chain(larger)
    if len(kept) != len(ours) or list(kept) != sorted(set(kept)) or not set(kept) <= set(range(len(theirs))):
        raise InputError(f"kept is {list(kept)}, but must be {len(ours)} ascending numbers below {len(theirs)}.")
    missing = [a.path for j, both in enumerate(theirs) if j not in kept for a in both]
    out = jnp.asarray(identity(larger, *missing) if missing else np.zeros(larger.dim, np.float32))
    for j, both in zip(kept, ours, strict=True):
        for a, b in zip(both, theirs[j], strict=True):
            if a.shape != b.shape:
                raise InputError(f"{a.path} is {list(a.shape)}, but {b.path} {list(b.shape)}: shapes must be equal.")
            out = out.at[b.start : b.stop].set(row[a.start : a.stop])
    return out


def shallower(larger: Task, row: Array, task: Task, kept: Sequence[int]) -> Array:
    """The row of `task` that has the layers `kept` of `row`: what `deeper` made is undone."""
    theirs = _chain(larger)
    return jnp.concatenate([row[a.start : a.stop] for a in _in_order(task, [theirs[j] for j in kept])])


def wider(task: Task, row: Array, larger: Task, copies: Sequence[Sequence[int]] | None = None) -> Array:
    """The row of `larger`, a chain of as many and wider hidden layers, that computes what `row` of `task` does.

    `copies` says for each hidden layer of which unit each of the wider layer is a copy; what reads a unit is divided by
    how many there are of it. None: the further units are 0. One list for all clients keeps their units together.

    Raises:
        InputError: chains of other kinds or lengths, a narrower layer, or `copies` of units that do not exist or leave
            one out.
    """
    ours, theirs = _chain(task), _chain(larger)
    ends = lambda pairs: (pairs[0][0].shape[0], pairs[-1][0].shape[1])
    if len(ours) != len(theirs) or ends(ours) != ends(theirs):
        raise InputError(f"larger has {len(theirs)} layers, must have {len(ours)}, with the same inputs and outputs.")
    if copies is not None and len(copies) != len(ours) - 1:
        raise InputError(f"copies has {len(copies)} entries, must have {len(ours) - 1}, one a hidden layer.")
    dot = lambda a, b: jnp.dot(a, b, precision="highest")
    parts, reads = {}, _padded(ours[0][0].shape[0], theirs[0][0].shape[0])
    for j, (kernel, bias) in enumerate(ours):
        more, unit = theirs[j][0].shape[1], _padded(kernel.shape[1], theirs[j][0].shape[1])
        if copies is not None and j + 1 < len(ours):
            unit = _copied(kernel.shape[1], more, copies[j])
        value = lambda a: row[a.start : a.stop].reshape(a.shape)
        share = reads / reads.sum(1, keepdims=True)  # what reads a unit is divided among its copies
        parts[theirs[j][0].path] = dot(dot(share.T, value(kernel)), unit)
        parts[theirs[j][1].path] = dot(value(bias), unit)
        reads = unit
    return jnp.concatenate([parts[a.path].ravel() for a in layers(larger)])


def narrower(larger: Task, row: Array, task: Task) -> Array:
    """The row of `task` that has the first units of each layer of `row`: what `wider` by zeros made is undone."""
    parts = []
    for a, b in zip(layers(task), layers(larger), strict=True):
        parts.append(row[b.start : b.stop].reshape(b.shape)[tuple(slice(side) for side in a.shape)].ravel())
    return jnp.concatenate(parts)


def _padded(units: int, more: int) -> np.ndarray:
    """`[units, more]`: each unit stands where it stood, further ones are nobody's."""
    if more < units:
        raise InputError(f"larger has a layer of {more} units beside one of {units}, but must be as wide or wider.")
    return np.eye(units, more, dtype=np.float32)


def _copied(units: int, more: int, of: Sequence[int]) -> np.ndarray:
    """`[units, more]`: 1 where the wider layer's unit is a copy of a unit."""
    if len(of) != more or set(of) != set(range(units)):
        raise InputError(f"copies has {list(of)}, but must name each of {units} units, {more} numbers in all.")
    return np.eye(units, dtype=np.float32)[:, list(of)]


def _chain(task: Task) -> list[tuple[Layer, Layer]]:
    """Kernel and bias of each dense layer, in order."""
    found = {a.path: a for a in layers(task)}
    stems = [path.removesuffix("kernel") for path in found if path.endswith("kernel")]
    stems.sort(key=lambda stem: [int(word) if word.isdigit() else word for word in stem.split("/")])
    pairs = [(found[f"{s}kernel"], found[f"{s}bias"]) for s in stems if f"{s}bias" in found]
    if 2 * len(pairs) != len(found) or any(k.shape != (k.shape[0], *b.shape) for k, b in pairs):
        raise InputError(f"task is no chain of dense layers with biases: it has {', '.join(found)}.")
    return pairs


def _in_order(task: Task, pairs: Sequence[tuple[Layer, Layer]]) -> list[Layer]:
    """The layers of `pairs`, one for each of the chain of `task`, in the order of its row."""
    mine, others = ([a for both in found for a in both] for found in (_chain(task), pairs))
    of = {a.path: other for a, other in zip(mine, others, strict=True)}
    return [of[a.path] for a in layers(task)]
