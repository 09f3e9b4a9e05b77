"""The layers of a model in its row, by their paths, and parts of it: what is personal, frozen or exchanged apart."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.learn.task import Task
from jaxfl.models.modules import matching, paths_of


class Layer(NamedTuple):
    """The place of one parameter array in the row: `row[start:stop].reshape(shape)`."""

    path: str
    start: int
    stop: int
    shape: tuple[int, ...]


def layers(task: Task) -> list[Layer]:
    """The layer map of the row, in its order: path ("conv1/kernel"), start, stop and shape of each parameter array."""

    def places() -> Iterator[Layer]:
        start = 0
        tree = jax.eval_shape(task.unravel, jax.ShapeDtypeStruct((task.dim,), jnp.float32))
        for path, leaf in paths_of(tree):
            stop = start + math.prod(leaf.shape)
            yield Layer(path, start, stop, leaf.shape)
            start = stop

    return list(places())


class Part(NamedTuple):
    """Some columns of a task's rows, hashable: what is personal, frozen or exchanged apart."""

    dim: int  # d
    spans: tuple[tuple[int, int], ...]  # [start, stop) of each run of columns, ascending

    @property
    def columns(self) -> np.ndarray:
        """Their numbers, ascending integers."""
        return np.concatenate([np.arange(*span) for span in self.spans])

    @property
    def mask(self) -> np.ndarray:
        """`[d]` bool."""
        mask = np.zeros(self.dim, bool)
        mask[self.columns] = True
        return mask


def part(task: Task, *patterns: str) -> Part:
    """The columns of the layers whose path (`layers`) matches one of the patterns, with `*` for anything.

    `part(task, "layers/1/*")` is the second layer of `networks.MLP`, `part(task, "*norm*")` all that is called so.

    Raises:
        InputError: a pattern that matches no layer, or none at all.
    """
    found = layers(task)
    chosen = matching([layer.path for layer in found], patterns)
    return _spans(task.dim, [(a.start, a.stop) for a, yes in zip(found, chosen, strict=True) if yes])


def statistics(task: Task) -> Part | None:
    """The columns that no optimizer moves, `BatchNorm`'s statistics (`Task.untrained`); None where there are none."""
    if not task.untrained:
        return None
    chosen = zip(layers(task), task.untrained, strict=True)
    return _spans(task.dim, [(a.start, a.stop) for a, yes in chosen if yes])


def _spans(dim: int, spans: Sequence[tuple[int, int]]) -> Part:
    """Neighbouring spans as one."""
    joined: list[tuple[int, int]] = []
    for start, stop in spans:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, stop))
    return Part(dim, tuple(joined))
