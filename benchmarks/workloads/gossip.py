"""W3, W5 and G10k: every node trains and averages with its neighbours, every round."""

import bound
import jax
import numpy as np

from jaxfl import data
from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.data import partition
from jaxfl.learn.task import logistic_regression
from jaxfl.world import graph, mixing
from jaxfl.world.scenario import scenario
from workloads import work
from workloads.work import Cost, Program, Work

MLP, SMALL = (784, 64, 10), (64, 32, 10)
LATE = ("pandas", "networkx", "sklearn.datasets")
BOUND_BYTES = 4e9  # the bound keeps a second state beside ours: above this one does not run


def w3(nodes: int, rounds: int) -> Work:
    """D-SGD on a ring with Metropolis weights, MLP 784-64-10 on images, one step of 20."""
    samples = 200 if nodes <= 300 else max(14, 60_000 // nodes)

    def build():
        known, task = work.images(), work.mlp(MLP)
        world = scenario(work.even_shards(known, nodes, samples), topology=mixing.metropolis(graph.ring(nodes)))
        return Program(dsgd(task, lr=0.05, steps=1, batch=20), world, task, known)

    def rival(program):
        run = bound.ring_gossip(nodes=nodes, samples=samples, batch=20, lr=0.05, rounds=rounds)
        rows = jax.tree.map(lambda a: np.broadcast_to(a, (nodes, *a.shape)), bound.init(jax.random.key(0)))
        x, y = bound.everywhere((program.world.data.x, program.world.data.y))
        return work.by_hand(run, bound.by_row(rows), x, y, bound.mlp, stacked=True)

    def cost(program):
        return Cost(work.perceptron(20, MLP, nodes), work.gossip_round(program, nodes, 20))

    fits = 4 * nodes * 50_890 <= BOUND_BYTES
    return Work("W3", nodes, None, rounds, build, cost, rival if fits else None, True)


def _on_digits(nodes, task, lr):
    known = data.digits()
    where = mixing.metropolis(graph.random_regular(nodes, 8, seed=0))
    world = scenario(partition.resampled(known, nodes, alpha=3.0), topology=where)
    return Program(dsgd(task, lr=lr, steps=1, batch=4), world, task, known)


def w5(nodes: int, rounds: int) -> Work:
    """D-SGD on a random 8-regular graph, MLP 64-32-10 on digits, one step of 4."""

    def cost(program):
        return Cost(work.perceptron(4, SMALL, nodes), work.gossip_round(program, nodes, 4))

    return Work("W5", nodes, None, rounds, lambda: _on_digits(nodes, work.mlp(SMALL), 0.1), cost, imports=LATE)


def g10k(nodes: int, rounds: int) -> Work:
    """W5 with a logistic model."""

    def cost(program):
        return Cost(work.perceptron(4, (64, 10), nodes), work.gossip_round(program, nodes, 4))

    build = lambda: _on_digits(nodes, logistic_regression(64, 10), 0.1)
    return Work("G10k", nodes, None, rounds, build, cost, imports=LATE)
