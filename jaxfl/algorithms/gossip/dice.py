"""DICE: how the influence of one mini-batch cascades through a decentralized system.

In round t node j moves its model by Delta_j = y_j - x_j on the batch z_j; every node then mixes, x_k <- sum_j W_kj y_j.
With q_k the weight of node k and z' the evaluation examples, r hops away that changed

    truth:     q_j [L(y_j; z') - L(x_j; z')] + sum_{s=1..r} sum_k q_k [L(x_k^{t+s}; z') - L(x_k^{t+s} without z_j; z')]
    estimate:  q_j grad L(x_j; z')' Delta_j  + sum_{s=1..r} sum_k q_k grad L(x_k^{t+s}; z')' D_k^s
               D^1 = W^t (e_j Delta_j'),   D^{s+1}_k = sum_i W^{t+s}_ki (I - lr H_i^{t+s}) D_i^s

which is the paper's sum over paths of its theorem 2 (checked against it), as one derivative of the simulation
(`measure.influence`): local steps of any number and optax chain, any graph that changes by the round, any rule of
mixing with a derivative. A negative influence is a helpful batch.

Where this departs from the published text. Sign: the slides print a leading minus beside Delta = O(x) - x, which holds
only if Delta is the gradient, as in their code. Hessian: H_i is that of the training loss of the node which passes
the perturbation ON, on the batch it trains on then; the slides index the receiver k. Only the former is exact for
quadratic losses (tested). Without the Hessian factor (`curvature=False`) the estimate sees topology and data only.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.core import Algorithm, Array, Scenario, Tree
from jaxfl.exchange.network import Network
from jaxfl.learn.task import Task, mean_loss
from jaxfl.measure.influence import effect, first_order, watched
from jaxfl.paper import Example, Given, Paper, System

PAPER = Paper(
    "DICE: Data Influence Cascade in Decentralized Learning",
    "Zhu, Li, Wang, He",
    "ICLR 2025",
    "https://arxiv.org/abs/2507.06931",
    number="009",
)

PROBES = 64  # test samples whose loss is watched


class Cascade(NamedTuple):
    """Influence of the step of each of `j` probed nodes. Negative: the step lowers the loss."""

    reach: Array  # [j, hops + 1, n], on node k after s rounds, times q_k; after 0 rounds it is still in its own hands

    @property
    def within(self) -> Array:
        """Influence within 0, 1, ..., hops hops, `[j, hops + 1]`. Column 0 is self-influence, blind to topology."""
        return self.reach.sum(-1).cumsum(-1)


def dice(
    algorithm: Algorithm | Callable[..., Algorithm],
    scenario: Scenario,
    carry: Tree,
    loss: Callable[[Array], Array],
    hops: int = 1,
    *,
    weight: Array | None = None,
    **kw,
) -> Cascade:
    """The estimate for the steps of the round that follows `carry`.

    Args:
        algorithm: a gossip system whose state is its models `[n, d]`, such as `dsgd`.
        scenario: its world.
        carry: `run(...).carry`.
        loss: evaluation loss of one model `[d]`, such as `partial(mean_loss, task, x=x, y=y)`.
        hops: how far to follow it.
        weight: `q [n]` (None: `1 / n`).
        kw: `curvature`, `nodes`, `seed`, `hyper`, `chunk`, as in `measure.influence.first_order`.
    """
    return Cascade(first_order(algorithm, scenario, carry, _losses(scenario, loss, weight), hops, **kw))


def retrained(
    algorithm: Algorithm | Callable[..., Algorithm],
    scenario: Scenario,
    carry: Tree,
    loss: Callable[[Array], Array],
    hops: int = 1,
    *,
    weight: Array | None = None,
    **kw,
) -> Cascade:
    """The ground truth by retraining without each step; arguments as in `dice`, without `curvature`."""
    return Cascade(effect(algorithm, scenario, carry, _losses(scenario, loss, weight), hops, **kw))


def _losses(scenario: Scenario, loss: Callable, weight: Array | None) -> Callable[[Array], Array]:
    q = 1 / scenario.byz.shape[0] if weight is None else weight
    return lambda rows: q * jax.vmap(loss)(rows)


def watched_dsgd(
    task: Task,
    examples: tuple[Array, Array],
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    steps: int | None = None,
    epochs: int | None = None,
    batch: int | None = None,
) -> Algorithm:
    """D-SGD that logs what each step did to the loss on `examples`, the cascade of one hop (`influence.watched`)."""
    inner = dsgd(task, net, lr=lr, steps=steps or (None if epochs else 1), epochs=epochs, batch=batch)
    return watched(inner, partial(mean_loss, task, x=examples[0], y=examples[1]))


def _probed(given: Given) -> Example:
    """A batch of the test set is what influence is measured on."""
    x, y = given.dataset.test_x[:PROBES], given.dataset.test_y[:PROBES]
    return Example(arguments=(given.task, (jnp.asarray(x), jnp.asarray(y))))


SYSTEMS = {"dice": System(watched_dsgd, PAPER, _probed)}
