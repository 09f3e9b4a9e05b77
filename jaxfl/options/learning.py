"""Model and metric, by the names of their options."""

import inspect
import math
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxfl import data, plugins
from jaxfl.core import Metric, Shards, constant
from jaxfl.errors import InputError
from jaxfl.learn.multilabel import multilabel
from jaxfl.learn.task import Task, check_labels, classification, language_model, logistic_regression, regression
from jaxfl.measure.metrics import among, local_test, shared_test
from jaxfl.models import networks
from jaxfl.options.config import MODELS, Setup

SMALLEST_LENET = 12  # pixels a side
DEPTH = 2  # layers of the transformer
EVALUATED = {
    "mlp": None,
    "logistic": None,
    "linear": None,
    "transformer": 8,
}  # samples at once, else 50: activations are large


def task_of(setup: Setup, dataset: data.Dataset) -> Task:
    """The model on the data. Raises `InputError` for a model that does not fit them, or lacks classes for labels."""
    with plugins.making("model", str(setup.model)):
        task = _task_of(setup, dataset)
    for what in ("y", "test_y"):
        check_labels(task, getattr(dataset, what), f"{what} of data {setup.data}")
    return task


def _task_of(setup: Setup, dataset: data.Dataset) -> Task:
    shape = dataset.x.shape[1:]
    features, outputs = math.prod(shape), dataset.classes or math.prod(dataset.y.shape[1:])
    if setup.model == "logistic" and dataset.task == "classification":
        return logistic_regression(features, outputs)
    sample: Any = jax.ShapeDtypeStruct((2, *shape), dataset.x.dtype)
    module, compute = _module(setup, shape, outputs), setup.compute
    if dataset.task == "language_model":
        return language_model(module, sample, compute)
    if dataset.task == "regression":
        return regression(module, sample, compute)
    return (multilabel if dataset.task == "multilabel" else classification)(module, sample, outputs, compute)


def _module(setup: Setup, shape: tuple[int, ...], outputs: int) -> Any:
    """The constructor of the network for inputs of this shape."""
    model, features = str(setup.model), math.prod(shape)
    if model in ("logistic", "linear"):
        return partial(networks.MLP, (features, outputs))
    if model == "mlp":
        return partial(networks.MLP, (features, setup.hidden, outputs))
    if model == "transformer":
        return partial(networks.Transformer, outputs, setup.hidden, DEPTH, length=shape[0])
    if model not in MODELS:
        return _own_module(model, plugins.find("model", model), shape, outputs)
    side = math.isqrt(features)
    if len(shape) == 1 and side * side != features:
        raise InputError(f"model is {model}, but data {setup.data} has {features} features, not square images.")
    image = (side, side, 1) if len(shape) == 1 else (*shape, 1) if len(shape) == 2 else shape
    least = SMALLEST_LENET if model == "lenet" else 1
    if len(image) != 3 or min(image[:2]) < least:
        raise InputError(
            f"model is {model}, but needs {least} pixels a side, and data {setup.data} has "
            f"{side if len(shape) == 1 else ' x '.join(map(str, shape))}."
        )
    return partial(networks.MODELS[model], image, outputs)


def _own_module(name: str, found: Any, shape: tuple[int, ...], outputs: int) -> Any:
    """A user's module, or what a user's function of shape and outputs makes."""
    from flax import linen, nnx

    made = found.func if isinstance(found, partial) else found
    if isinstance(found, linen.Module | nnx.Module) or (
        isinstance(made, type) and issubclass(made, linen.Module | nnx.Module)
    ):
        return found
    try:
        inspect.signature(found).bind(shape, outputs)
    except TypeError as error:
        raise InputError(
            f"model {name!r} must be a flax module, or a function of the shape of one input and the number of outputs "
            f"that makes one ({error})."
        ) from None
    return found(shape, outputs)


def metric_of(setup: Setup, task: Task, dataset: data.Dataset) -> Metric:
    """Scores on the test set of the nodes that do not lie."""
    x, y = map(constant, dataset.tested(setup.test_samples))
    test = shared_test(task, x, y, batch=EVALUATED.get(str(setup.model), 50))
    return among(test, np.arange(setup.byzantine, setup.nodes)) if setup.byzantine else test


def local_metric_of(setup: Setup, task: Task, held_out: Shards) -> Metric:
    """Scores of the nodes that do not lie, each on what it held out."""
    honest = np.arange(setup.byzantine, setup.nodes) if setup.byzantine else None
    return local_test(task, held_out, ids=honest, batch=EVALUATED.get(str(setup.model), 50))
