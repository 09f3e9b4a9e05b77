"""Cross-layer mixing of a server's mean update: a deep layer's is mixed with that of the first block of its stage.

With G the update of a layer, R that of its reference, of the same shape, and their norms,

    theta = min(|<R, G>| / |R|^2, most),      G' = (G / |G| + theta R / |R|) (|G| + |R|) / 2,      entries in +-clip,

of a convolution filter by filter (each `[k, k]` by itself), of all else over the whole array; always from the updates
as they came, never from mixed ones. A layer that nobody trained has G = 0 and stays (InCo Aggregation; Chan, Zhou,
Zhao, Jiang, Ngai; ICLR 2024; https://arxiv.org/abs/2308.11464; theta as in its code).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxfl.core import Array
from jaxfl.errors import InputError, require
from jaxfl.learn.layers import layers
from jaxfl.learn.task import Task

EPS = 1e-7  # beside norms, as in the code of the paper


def references(task: Task, stages: Sequence[Sequence[str]]) -> tuple[tuple[str, str], ...]:
    """Pairs of a kernel in a later block of its stage and its reference in the first block (`submodels.stages`).

    The reference of a convolution is the last of the first block that has its shape, so that a stage may begin with
    another number of channels; that of any other kernel is the one of the same name.

    Raises:
        InputError: no block has a reference.
    """
    shape, found = {a.path: a.shape for a in layers(task)}, []
    for first, *later in stages:
        for block in later:
            for path in (p for p in shape if p.startswith(f"{block}/") and p.endswith("kernel")):
                here = [p for p in shape if p.startswith(f"{first}/") and shape[p] == shape[path]]
                same = first + path.removeprefix(block)
                reference = here[-1] if len(shape[path]) == 4 and here else same
                if reference in here:
                    found.append((path, reference))
    if not found:
        raise InputError(
            f"stages are {[list(s) for s in stages]}, but no kernel has one of its shape in a first block."
        )
    return tuple(found)


class DirectionState(NamedTuple):
    """What the random control draws by."""

    key: Array


def mixed(update: Array, reference: Array, most: float = 5.0, clip: float = 0.1, unit: Array | None = None) -> Array:
    """`G'` of one layer; `unit` is the direction that stands for `R / |R|`, where that is another."""
    axes = (0, 1) if update.ndim == 4 else tuple(range(update.ndim))
    over = lambda a: a.sum(axes, keepdims=True)
    ours, theirs = jnp.sqrt(over(update**2)), jnp.sqrt(over(reference**2))
    theta = jnp.minimum(jnp.abs(over(reference * update)) / (theirs**2 + EPS), most)
    unit = reference / (theirs + EPS) if unit is None else unit / (jnp.sqrt(over(unit**2)) + EPS)
    return jnp.clip((update / (ours + EPS) + theta * unit) * (ours + theirs) / 2, -clip, clip)


def cross_layer(
    task: Task, pairs: Sequence[tuple[str, str]], *, most: float = 5.0, clip: float = 0.1, control: bool = False
) -> optax.GradientTransformation:
    """An optax transformation of a row `[d]`, for a server: `optax.chain(cross_layer(...), optax.sgd(1.0))`.

    `pairs` are paths of layers and of their references (`references`). It is odd, so that it makes no difference that a
    server's optimizer is given minus the mean update. With `control` each layer is mixed with a random direction in
    place of its reference's, as strongly; drawn anew each round.

    Raises:
        InputError: an unknown path, a reference of another shape, a bound that is not above 0.
    """
    require("most", most, above=0)
    require("clip", clip, above=0)
    known = {a.path: a for a in layers(task)}
    for pair in pairs:
        for path in pair:
            if path not in known:
                raise InputError(f"pairs has {path!r}, but the layers are {', '.join(known)}.")
        if known[pair[0]].shape != known[pair[1]].shape:
            shapes = [list(known[path].shape) for path in pair]
            raise InputError(f"pairs has {pair[0]} {shapes[0]} beside {pair[1]} {shapes[1]}: shapes must be equal.")

    def update(updates, state, params=None):
        del params
        g = jnp.asarray(updates)
        part = lambda path: g[known[path].start : known[path].stop].reshape(known[path].shape)
        out, keys = g, [None] * len(pairs)
        if control:
            mine, *keys = jax.random.split(state.key, len(pairs) + 1)
            state = DirectionState(mine)
        for (path, reference), key in zip(pairs, keys, strict=True):
            unit = None if key is None else jax.random.normal(key, known[path].shape)
            new = mixed(part(path), part(reference), most, clip, unit)
            out = out.at[known[path].start : known[path].stop].set(new.ravel())
        return out, state

    first = lambda params: DirectionState(jax.random.key(0)) if control else optax.EmptyState()
    return optax.GradientTransformation(first, update)
