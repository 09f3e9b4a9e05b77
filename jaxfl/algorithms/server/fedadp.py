"""FedADP: models of unlike depth and width are lifted to one architecture, averaged there, and cut down again.

The global model G has the architecture that holds all others: a chain of dense layers with ReLU between them. Client k
has d_k of the inner layers, and of each layer the first share of its units. In a round

    w_k <- G cut to k's architecture, trained on k's data
    up_k <- w_k, with identity layers where k has none and zeros beyond its units: the same function, in G's shape
    G <- sum_S p_k up_k / sum_S p_k,        all parameters, the classifier too.

With `lift` off, a layer that a client has not is left out of the mean (of each number the mean over those who have it).
Missing layers cost no bits: the server knows what stands there.

Deviations: the paper's text was not at hand beyond its first page; expanding by function-preserving operations,
averaging and cutting is read from that. Its models are VGGs; these are perceptrons. Copied units (net2wider) are in
`learn.lift`: a copy is no part of a client's model, so the round widens by zeros.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
import optax

from jaxfl.algorithms.server.fedopt import fedopt
from jaxfl.core import Algorithm, Array, constant
from jaxfl.errors import InputError, require
from jaxfl.exchange.network import Network
from jaxfl.learn import submodels
from jaxfl.learn.lift import identity
from jaxfl.learn.task import Task, classification
from jaxfl.measure.metrics import shared_test
from jaxfl.measure.submodels import handed
from jaxfl.models.networks import MLP
from jaxfl.paper import Example, Given, Paper, System

PAPER = Paper(
    "FedADP: Unified Model Aggregation for Federated Learning with Heterogeneous Model Architectures",
    "Wang, Lv, Liu",
    "2025",
    "https://arxiv.org/abs/2505.06497",
    number="093",
)
WIDTH, DEPTHS, TESTED = 32, (1, 2, 3, 4), 500


def architectures(task: Task, depths: submodels.Profile = DEPTHS, widths: submodels.Profile = 1.0) -> submodels.Policy:
    """Node `i` has `depths[i % len]` of the inner layers and the first `widths[i % len]` of the units of each layer.

    The inner layers are square, `layers/1` to the last but one; identity layers fill the missing ones.

    Raises:
        InputError: a model that is no such chain, or a depth or share out of range.
    """
    inner = submodels.stages(task, name="layers")[0][1:-1]
    if not inner:
        raise InputError("task has no inner layers, but needs three layers or more.")
    prefix, eye = submodels.nested(task, [inner], depths), identity(task, *(f"{layer}/*" for layer in inner))
    shares = submodels.of_shares(widths, "widths")
    table = None if isinstance(widths, float) and widths == 1 else submodels.units(task)

    def policy(key, i, t, x):
        held = prefix(key, i, t, x).held
        fill = jnp.where(held, 0, jnp.asarray(eye))  # beyond a layer's units 0, where there is no layer the identity
        if table is not None:
            held &= submodels.window(table, submodels.of_node(shares, i))
        return submodels.Sub(held, fill=fill)

    return policy


def fedadp(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    depths: Sequence[int] | Array = DEPTHS,
    widths: submodels.Profile = 1.0,
    lift: bool = True,
    **kw,
) -> Algorithm:
    """FedADP with client rate `lr`, of a `networks.MLP`; `depths` and `widths` as in `architectures`.

    `lift` False leaves missing layers out of the mean. `kw` as in `fedopt`.
    """
    require("lr", lr, above=0)
    cut = architectures(task, depths, widths)

    def lifted(key, i, t, x):
        return cut(key, i, t, x)._replace(sent=jnp.ones(task.dim, bool))

    net = net.fill("fedadp", submodel=lifted if lift else cut)
    return fedopt(task, net, local=optax.sgd(lr), **kw)


def stacks(given: Given) -> Example:
    """A perceptron of four inner layers; scores are those of the model of each architecture."""
    known = given.dataset
    known.require_labels("this model classifies")
    sizes = (math.prod(known.x.shape[1:]), *[WIDTH] * (1 + max(DEPTHS)), known.classes)
    task = classification(partial(MLP, sizes), known.x[:1], known.classes)
    test = shared_test(task, *map(constant, known.tested(TESTED)))
    return Example((task,), model=task.init, metric=handed(test, architectures(task), range(len(DEPTHS))))


SYSTEMS = {"fedadp": System(fedadp, PAPER, stacks)}
