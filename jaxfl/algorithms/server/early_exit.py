"""Early exits: every client trains a prefix of one deep model that has an exit after each block.

Client k has the first e_k blocks and their exits. It minimises the sum of its exits' losses,

    L_k = sum_{e <= e_k} CE(exit_e(x), y),      y_k <- local training of its prefix from x,

and of every number the server takes the mean over the members who have it,

    Delta_j = sum_{k has j} p_k (y_k - x)_j / sum_{k has j} p_k,      x <- ServerOpt(x, -Delta).

With `zero_fill` it divides by all members, sum_S p_k: who has not a block says that it has not moved, so that blocks of
few owners move less. As sum_k p_k sum_{e <= e_k} L_e^k = sum_e sum_{k: e_k >= e} p_k L_e^k, one gradient step of each
client is then a step of ONE model whose exit e counts by the share of the members who have it; the mean over owners is
that step divided in each block by the share.

The front end (`stem`) is everybody's. Deviations: the paper has a speech model with CTC losses that was trained before;
classification here, from the start. Formulas from its summary and the model's code: the text says no more of the mean.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
import optax

from jaxfl.algorithms.server.fedopt import fedopt
from jaxfl.core import Algorithm, Array, constant
from jaxfl.errors import require
from jaxfl.exchange.network import Network
from jaxfl.learn import submodels
from jaxfl.learn.exits import multi_exit
from jaxfl.learn.task import Task
from jaxfl.measure.metrics import shared_test, together
from jaxfl.measure.submodels import exit_accuracy
from jaxfl.models.residual import MultiExit
from jaxfl.paper import Example, Given, Paper, System

PAPER = Paper(
    "Federating Dynamic Models using Early-Exit Architectures for Automatic Speech Recognition on Heterogeneous "
    "Clients",
    "Ali, Brutti, Falavigna",
    "2024",
    "https://arxiv.org/abs/2405.17376",
    number="088",
)
WIDTH, EXITS, TESTED = 24, 4, 500


def early_exit(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    depths: Sequence[int] | Array = (1, 2, 3, 4),
    zero_fill: bool = False,
    server: optax.GradientTransformation | None = None,
    **kw,
) -> Algorithm:
    """Early exits with client rate `lr`; node `i` has `depths[i % len]` blocks and exits, at depth 0 nothing.

    The model has its parameters in `blocks/0/...`, `exits/0/...` and so on (`learn.exits.multi_exit` of a
    `models.residual.MultiExit`). `server` is any optax optimizer; `kw` as in `fedopt`.
    """
    require("lr", lr, above=0)
    stacks = (*submodels.stages(task), *submodels.stages(task, name="exits"))
    prefix = submodels.nested(task, stacks, depths)

    def counted(key, i, t, x):
        return prefix(key, i, t, x)._replace(counted=jnp.ones(task.dim, bool))

    net = net.fill("early_exit", submodel=counted if zero_fill else prefix)
    return fedopt(task, net, local=optax.sgd(lr), server=server, **kw)


def _exits(given: Given) -> Example:
    """A residual perceptron of four exits, and how good each is."""
    known = given.dataset
    known.require_labels("these exits classify")
    module = partial(MultiExit, math.prod(known.x.shape[1:]), WIDTH, EXITS, known.classes)
    task = multi_exit(module, known.x[:1], known.classes)
    x, y = map(constant, known.tested(TESTED))
    metric = together(shared_test(task, x, y), exit_accuracy(task, x, y))
    return Example((task,), model=task.init, metric=metric)


SYSTEMS = {"early_exit": System(early_exit, PAPER, _exits)}
