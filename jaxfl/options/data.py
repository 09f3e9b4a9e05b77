"""Data and partition, by the names of their options, and what a user's own data leave open or refuse."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np

from jaxfl import data, plugins
from jaxfl.core import Shards
from jaxfl.data import partition, sets, synthetic, text
from jaxfl.errors import InputError
from jaxfl.options.config import MODELS, READ_BY, Setup
from jaxfl.options.files import file_ending

BINS = 10  # classes of a regression where labels are needed


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
    if file_ending(setup.data) is not None:
        return _of_file(setup)
    with plugins.making("data", setup.data):
        made = (known.get(setup.data) or plugins.find("data", setup.data))()
    if not isinstance(made, data.Dataset):
        raise InputError(f"data {setup.data!r} makes {type(made).__name__}, but must make a data.Dataset.")
    return made


def shards_of(setup: Setup, dataset: data.Dataset) -> Shards:
    """Who owns which samples. Raises `InputError` for more nodes than samples."""
    n, seed, bins = setup.nodes, setup.seed, _bins(setup, dataset)
    if setup.partition == "natural":
        return partition.shards(dataset, _largest(dataset.clients, n))
    return {
        "dirichlet": lambda: partition.dirichlet(dataset, n, setup.alpha, seed, bins=bins),
        "iid": lambda: partition.iid(dataset, n, seed),
        "pathological": lambda: partition.pathological(dataset, n, setup.labels_per_node, seed, bins),
        "lognormal": lambda: partition.quantity_skew(dataset, n, "lognormal", seed),
        "power": lambda: partition.quantity_skew(dataset, n, "power", seed),
        "resampled": lambda: partition.resampled(
            dataset, n, setup.alpha * (dataset.classes or bins or 1), seed, setup.shard_size, bins
        ),
    }[str(setup.partition)]()


def _largest(clients: Any, most: int) -> np.ndarray:
    """Owner of each sample where the `most` largest clients become nodes, in their order; else -1."""
    size = np.bincount(clients)
    largest = np.sort(np.argsort(-size, kind="stable")[: min(most, np.count_nonzero(size))])
    node = np.full(len(size), -1)
    node[largest] = np.arange(len(largest))
    return node[clients]


def _of_file(setup: Setup) -> data.Dataset:
    """The data set of a user's file; a line on stderr says what it was taken for."""
    target, features = (None if v is None else v.split(",") for v in (setup.target, setup.features))
    made = data.from_file(
        setup.data,
        target[0] if target is not None and len(target) == 1 else target,
        setup.client_column,
        features,
        task=setup.task,
        size=setup.image_size,
        seed=setup.seed,
    )
    classes = "" if made.classes is None else f" of {made.classes} {'tokens' if _tokens(made) else 'labels'}"
    if made.task == "regression":
        classes = f" of targets from {made.y.min():g} to {made.y.max():g}"
    clients = "" if made.client_names is None else f", {len(made.client_names)} clients"
    print(
        f"jaxfl: {made.name}, {made.task.replace('_', ' ')}{classes}: {len(made.y)} train and {len(made.test_y)} "
        f"test samples of shape {list(made.x.shape[1:])}{clients}.",
        file=sys.stderr,
        flush=True,
    )
    return made


def _tokens(dataset: data.Dataset) -> bool:
    return dataset.task == "language_model"


def _bins(setup: Setup, dataset: data.Dataset) -> int | None:
    return setup.bins or BINS if dataset.task == "regression" else None


def suited(setup: Setup, dataset: data.Dataset) -> Setup:
    """The setup with the partition and the model that the data ask for.

    Raises:
        InputError: a partition, a model or bins that the data cannot have, or no test sample.
    """
    by_label, name, kind = READ_BY["bins"][1], Path(setup.data).name, dataset.task.replace("_", " ")
    plain = dataset.y.ndim == 1 or dataset.task == "multilabel"
    model = setup.model or ("transformer" if _tokens(dataset) else "logistic" if setup.data == "synthetic" else "mlp")
    dealt = setup.partition or ("natural" if dataset.clients is not None else "dirichlet" if plain else "iid")
    only = {"transformer": "language_model", "linear": "regression"}
    fits = [m for m in MODELS if (only[m] == dataset.task if m in only else not _tokens(dataset))]
    fits = [m for m in fits if m != "logistic" or dataset.task != "regression"]
    if model in MODELS and model not in fits:
        raise InputError(f"model is {model}, but data {name} is a {kind}: {', '.join(fits)} fit.")
    if dealt == "natural" and dataset.clients is None:
        raise InputError(
            f"partition is natural, but data {name} has no natural key: in a table --client-column is one."
        )
    if dealt in by_label and not plain:
        raise InputError(f"partition is {dealt}, but data {name} has no one label a sample.")
    if setup.bins is not None and dataset.task != "regression":
        raise InputError(
            f"bins is {setup.bins}, but data {name} is a {kind}: targets of a regression are cut into bins."
        )
    if not len(dataset.test_y):
        raise InputError(f"data {name} has no test sample: at least one is needed.")
    return dataclasses.replace(setup, partition=dealt, model=model)
