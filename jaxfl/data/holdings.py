"""What nodes hold: the label by which a sample is dealt, and tables of labels and values by node."""

from typing import Any

import numpy as np

from jaxfl.core import Shards
from jaxfl.data.cut import owned
from jaxfl.data.sets import Dataset
from jaxfl.errors import InputError, nearest, require


def strata(data: Dataset, bins: int | None = None) -> np.ndarray:
    """The label by which partitions deal each train sample, `[N]` integers from 0.

    Labels are themselves. Targets of a regression, of one value each, are cut at their quantiles into `bins` classes of
    equally many samples up to ties; equal values share a class (`pandas.qcut`). A multilabel sample goes by the rarest
    of its labels (of equals the first), one without labels is of class `classes`.

    Raises:
        InputError: a regression without `bins`, or `bins` below 2 or for something else; several targets a sample.
    """
    if bins is not None and data.task != "regression":
        raise InputError(f"bins is {bins}, but data {data.name!r} is a {data.task}: it has labels.")
    if data.task == "multilabel":
        count = data.y.sum(axis=0)
        rank = np.argsort(np.argsort(count, kind="stable"))
        rarest = np.where(data.y == 1, rank, len(count)).min(axis=1)
        return np.append(np.argsort(count, kind="stable"), len(count))[rarest]
    if data.y.ndim != 1 or (data.classes is None and data.task != "regression"):
        raise InputError(
            f"data has y of shape {data.y.shape}, classes={data.classes} and task={data.task!r}, it must have one "
            "label a sample."
        )
    if data.task != "regression":
        return data.y
    if bins is None:
        raise InputError(f"data {data.name!r} is a regression without labels: bins=10 cuts its targets at quantiles.")
    require("bins", bins, least=2, whole=True)
    inner = np.quantile(data.y.astype(float), np.arange(1, bins) / bins)
    return np.unique(np.searchsorted(inner, data.y), return_inverse=True)[1]


def _held(data: Shards) -> tuple[np.ndarray, np.ndarray]:
    """Node and target of each sample that some node holds."""
    node, sample = owned(data)
    return node, np.asarray(data.y)[sample]


def label_histogram(data: Shards, classes: int) -> np.ndarray:
    """How many samples of each label each node has, `[n, classes]` integers.

    Labels are `[N]`, below `classes`, or a table `[N, classes]` of 0 and 1: a sample counts for each of its labels.
    """
    node, y = _held(data)
    n = len(data.size)
    if y.ndim == 2 and y.shape[1] == classes and y.dtype.kind in "iu":
        counts = np.zeros((n, classes), int)
        np.add.at(counts, node, y)
        return counts
    if y.ndim != 1 or y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= classes:
        raise InputError(f"data.y has shape {y.shape} and dtype {y.dtype}, it must be labels from 0 to {classes - 1}.")
    return np.bincount(node * classes + y, minlength=n * classes).reshape(n, classes)


MEASURES = {
    "kl": lambda p, t: np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / t), 0).sum(1),
    "l1": lambda p, t: np.abs(p - t).sum(1),
    "l2": lambda p, t: np.linalg.norm(p - t, axis=1),
    "cosine": lambda p, t: 1 - p @ t / (np.linalg.norm(p, axis=1) * np.linalg.norm(t)),
}


def label_discrepancy(data: Shards, classes: int, measure: str = "kl", target: Any = None) -> np.ndarray:
    """How far the labels of each node are from a target distribution, `[n]`, at least 0.

    Args:
        data: labels as for `label_histogram`, of which each node has some.
        classes: how many there are.
        measure: "kl", the divergence of the node's distribution from the target; "l1" or "l2", the norm of the
            difference; "cosine", 1 minus the cosine between them.
        target: the target's shares `[classes]`, of any scale, above 0; None: all classes alike.
    """
    if measure not in MEASURES:
        raise InputError(f"measure is {measure!r}: {nearest(measure, MEASURES)}")
    t = np.ones(classes) if target is None else np.asarray(target, float)
    if t.shape != (classes,) or not (np.isfinite(t) & (t > 0)).all():
        raise InputError(f"target has shape {list(t.shape)}: a finite share above 0 of each of {classes} is needed.")
    counts = label_histogram(data, classes)
    if not counts.any(1).all():
        raise InputError(f"data: node {int(np.argmin(counts.any(1)))} has no label, and every node needs one.")
    return np.maximum(MEASURES[measure](counts / counts.sum(1, keepdims=True), t / t.sum()), 0)


def labels_per_sample(data: Shards) -> np.ndarray:
    """How many samples with 0, 1, ... labels each node has, `[n, labels + 1]`; `data.y` is a table of 0 and 1."""
    node, y = _held(data)
    if y.ndim != 2 or y.dtype.kind not in "iu":
        raise InputError(f"data.y has shape {y.shape} and dtype {y.dtype}, it must be a table of 0 and 1.")
    n, most = len(data.size), y.shape[1] + 1
    return np.bincount(node * most + y.sum(axis=1), minlength=n * most).reshape(n, most)


def value_histogram(data: Shards, bins: int = 20, output: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """How many samples of each node have a target in each of equally wide `bins`: `[n, bins]`, edges `[bins + 1]`.

    The edges run from the least to the largest value that a node holds; of several targets `output` is counted.
    """
    require("bins", bins, least=1, whole=True)
    node, y = _held(data)
    y = y.reshape(len(y), -1)
    if y.dtype.kind != "f" or not 0 <= output < y.shape[1]:
        raise InputError(f"data.y has shape {y.shape} and dtype {y.dtype}, it must be numbers, with output {output}.")
    values = y[:, output].astype(float)
    edges = np.histogram_bin_edges(values, bins)
    where = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, bins - 1)
    n = len(data.size)
    return np.bincount(node * bins + where, minlength=n * bins).reshape(n, bins), edges
