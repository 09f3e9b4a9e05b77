"""InCo Aggregation: the server mixes the update of each deep block with that of the first block of its stage.

Clients own nested models: of every stage of blocks the first e_k (and all that is in no stage). Of every number the
server takes the mean over the members S who have it, HeteroAvg,

    G_j = sum_{k has j} p_k (y_k - x)_j / sum_{k has j} p_k,

and then, for every kernel of a later block and its reference R in the first block of its stage,

    theta = min(|<R, G>| / |R|^2, 5),    G <- (G / |G| + theta R / |R|) (|G| + |R|) / 2, entries in +-0.1,    x <- x + G

(`learn.cross_layer`; a convolution filter by filter). Nothing else is sent, and clients do not change: `mixing` is that
step alone, for other systems by their slot, `fedprox(server=)`, `scaffold(transform=)`, `feddyn(transform=)`.

Deviations: theta and the bounds are those of the authors' code; the paper poses a small problem for it.
"""

import math
from collections.abc import Sequence
from functools import partial

import optax

from jaxfl.algorithms.server.fedopt import fedopt
from jaxfl.core import Algorithm, Array, constant
from jaxfl.errors import require
from jaxfl.exchange.network import Network
from jaxfl.learn import submodels
from jaxfl.learn.cross_layer import cross_layer, references
from jaxfl.learn.task import Task, classification
from jaxfl.measure.metrics import shared_test
from jaxfl.measure.submodels import handed
from jaxfl.models.residual import ResidualMLP
from jaxfl.paper import Example, Given, Paper, System

PAPER = Paper(
    "Internal Cross-layer Gradients for Extending Homogeneity to Heterogeneity in Federated Learning",
    "Chan, Zhou, Zhao, Jiang, Ngai",
    "ICLR 2024",
    "https://arxiv.org/abs/2308.11464",
    number="119",
)
WIDTH, TESTED, DEPTHS = 24, 500, (1, 2, 3, 4, 5)


def mixing(task: Task, stages: int = 1, *, control: bool = False) -> optax.GradientTransformation:
    """InCo's transformation of the mean update; `stages` of `blocks/0`, ..., `control` as in `cross_layer`."""
    return cross_layer(task, references(task, submodels.stages(task, stages)), control=control)


def prefixes(task: Task, depths: submodels.Profile = DEPTHS, stages: int = 1) -> submodels.Policy:
    """Node `i` has of each stage the first `depths[i % len]` blocks."""
    return submodels.nested(task, submodels.stages(task, stages), depths)


def inco(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    depths: Sequence[int] | Array = DEPTHS,
    stages: int = 1,
    **kw,
) -> Algorithm:
    """InCo over FedAvg with client rate `lr`; `depths` as in `prefixes`, `stages` of equally many blocks.

    The model has its blocks in `blocks/0/...` and so on: `models.residual.ResidualMLP`, `networks.ResNet`. `kw` as in
    `fedopt`, without `server`.
    """
    return _of_prefixes("inco", task, net, lr, depths, stages, True, kw)


def heteroavg(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    depths: Sequence[int] | Array = DEPTHS,
    stages: int = 1,
    **kw,
) -> Algorithm:
    """HeteroAvg, `inco` without the mixing: of every number the mean over those who have it."""
    return _of_prefixes("heteroavg", task, net, lr, depths, stages, False, kw)


def _of_prefixes(name: str, task: Task, net: Network, lr, depths, stages: int, mixed: bool, kw: dict) -> Algorithm:
    require("lr", lr, above=0)
    net = net.fill(name, submodel=prefixes(task, depths, stages))
    server = {"server": optax.chain(mixing(task, stages), optax.sgd(1.0))} if mixed else {}
    return fedopt(task, net, local=optax.sgd(lr), **server, **kw)


def _blocks(given: Given) -> Example:
    """A residual perceptron of five blocks; scores are those of the model of each depth."""
    known = given.dataset
    known.require_labels("this model classifies")
    module = partial(ResidualMLP, math.prod(known.x.shape[1:]), WIDTH, len(DEPTHS), known.classes)
    task = classification(module, known.x[:1], known.classes)
    test = shared_test(task, *map(constant, known.tested(TESTED)))
    return Example((task,), model=task.init, metric=handed(test, prefixes(task), range(len(DEPTHS))))


SYSTEMS = {
    "inco": System(inco, PAPER, _blocks),
    "heteroavg": System(heteroavg, PAPER, _blocks),
}
