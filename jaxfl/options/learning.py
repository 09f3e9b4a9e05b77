"""Data, partition, model and metric, by the names of their options."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl import data, plugins
from jaxfl.core import Metric, Shards
from jaxfl.data import partition, sets, synthetic, text
from jaxfl.errors import InputError
from jaxfl.learn.task import Task, classification, language_model, logistic_regression
from jaxfl.measure.metrics import among, local_test, shared_test
from jaxfl.models import networks
from jaxfl.options.config import MODELS, Setup

SMALLEST_LENET = 12  # pixels a side
DEPTH = 2  # layers of the transformer
EVALUATED = {"mlp": None, "logistic": None, "transformer": 8}  # samples at once, else 50: activations are large


def dataset_of(setup: Setup) -> data.Dataset:
    """The data set on the host. Raises `InputError` for files that are missing."""
    folder = setup.data_folder
    known = {
        "mnist5k": data.mnist5k,
        "digits": data.digits,
        "fashion": lambda: data.fashion_mnist(folder or sets.FASHION_MNIST),
        "shakespeare": lambda: text.shakespeare(folder),
        "smartwatch": lambda: data.smartwatch(folder),
        "topics": text.pydoc_topics,
        "synthetic": lambda: synthetic.synthetic_fedprox(nodes=setup.nodes, seed=setup.seed),
    }
    made = (known.get(setup.data) or plugins.find("data", setup.data))()
    if not isinstance(made, data.Dataset):
        raise InputError(f"data {setup.data!r} makes a {type(made).__name__}, but must make a data.Dataset.")
    return made


def shards_of(setup: Setup, dataset: data.Dataset) -> Shards:
    """Who owns which samples. Raises `InputError` for more nodes than samples."""
    n, seed = setup.nodes, setup.seed
    if setup.partition == "natural":
        return partition.shards(dataset, _largest(dataset.clients, n))
    return {
        "dirichlet": lambda: partition.dirichlet(dataset, n, setup.alpha, seed),
        "iid": lambda: partition.iid(dataset, n, seed),
        "pathological": lambda: partition.pathological(dataset, n, setup.labels_per_node, seed),
        "lognormal": lambda: partition.quantity_skew(dataset, n, "lognormal", seed),
        "power": lambda: partition.quantity_skew(dataset, n, "power", seed),
        "resampled": lambda: partition.resampled(
            dataset, n, setup.alpha * max(1, dataset.classes or 1), seed, setup.shard_size
        ),
    }[str(setup.partition)]()


def _largest(clients: Any, most: int) -> np.ndarray:
    """Owner of each sample where the `most` largest clients become nodes, in their order; else -1."""
    size = np.bincount(clients)
    largest = np.sort(np.argsort(-size, kind="stable")[: min(most, np.count_nonzero(size))])
    node = np.full(len(size), -1)
    node[largest] = np.arange(len(largest))
    return node[clients]


def task_of(setup: Setup, dataset: data.Dataset) -> Task:
    """The model on the data. Raises `InputError` for a model that does not fit them."""
    sample: Any = jax.ShapeDtypeStruct((2, *dataset.x.shape[1:]), dataset.x.dtype)
    features, classes = math.prod(dataset.x.shape[1:]), dataset.classes or 1
    if setup.model == "logistic":
        return logistic_regression(features, classes)
    if setup.model == "mlp":
        return classification(partial(networks.MLP, (features, setup.hidden, classes)), sample, classes, setup.compute)
    if setup.model == "transformer":
        module = partial(networks.Transformer, classes, setup.hidden, DEPTH, length=dataset.x.shape[1])
        return language_model(module, sample, setup.compute)
    if setup.model not in MODELS:
        module = plugins.find("model", str(setup.model))(dataset.x.shape[1:], classes)
        return classification(module, sample, classes, setup.compute)
    side = math.isqrt(features)
    if side * side != features:
        raise InputError(f"model is {setup.model}, but data {setup.data} has {features} features, not square images.")
    if setup.model == "lenet" and side < SMALLEST_LENET:
        raise InputError(f"model is lenet, but needs {SMALLEST_LENET} pixels a side, and data {setup.data} has {side}.")
    module = partial(networks.MODELS[str(setup.model)], (side, side, 1), classes)
    return classification(module, sample, classes, setup.compute)


def metric_of(setup: Setup, task: Task, dataset: data.Dataset) -> Metric:
    """Scores on the test set of the nodes that do not lie."""
    count = len(dataset.test_y)
    # Evenly spaced, as test sets may be sorted by label.
    some = np.linspace(0, count - 1, min(count, setup.test_samples)).round().astype(int)
    x, y = jnp.asarray(dataset.test_x[some]), jnp.asarray(dataset.test_y[some])
    test = shared_test(task, x, y, batch=EVALUATED.get(str(setup.model), 50))
    return among(test, np.arange(setup.byzantine, setup.nodes)) if setup.byzantine else test


def local_metric_of(setup: Setup, task: Task, held_out: Shards) -> Metric:
    """Scores of the nodes that do not lie, each on what it held out."""
    honest = np.arange(setup.byzantine, setup.nodes) if setup.byzantine else None
    return local_test(task, held_out, ids=honest, batch=EVALUATED.get(str(setup.model), 50))
