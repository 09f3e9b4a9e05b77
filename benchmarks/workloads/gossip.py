"""W3, W5 and G10k: every node trains and averages with its neighbours, every round."""

from collections.abc import Callable
from typing import Any

import bound
import bound_graph
import jax
import numpy as np

from jaxfl import data
from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.core import Graph
from jaxfl.data import partition
from jaxfl.exchange import attacks, rules
from jaxfl.exchange.network import Network
from jaxfl.learn.task import logistic_regression
from jaxfl.world import graph, mixing
from jaxfl.world.scenario import scenario
from workloads import work
from workloads.work import Cost, Program, Side, Work

MLP, SMALL = (784, 64, 10), (64, 32, 10)
RULES = {"mean": rules.mean, "median": rules.median()}
ATTACKS = {"sign flip": attacks.sign_flip(), "ALIE": attacks.alie()}
LATE = ("pandas", "networkx", "sklearn.datasets")
BOUND_BYTES = 4e9  # the bound keeps a second state beside ours: above this one does not run


def ring_by_hand(program: Program, nodes: int, samples: int, rounds: int) -> Side:
    """The bound of a ring."""
    run = bound.ring_gossip(nodes=nodes, samples=samples, batch=20, lr=0.05, rounds=rounds)
    seats = bound.seats(nodes).reshape(-1)
    return _stacked(run, program, bound.init(jax.random.key(0)), len(seats), np.flatnonzero(seats >= 0))


def table_by_hand(program: Program, nodes: int, rounds: int, rule: str = "mean") -> Side:
    """The bound of any graph."""
    found = regular(nodes)
    made = {"samples": 20, "batch": 4, "lr": 0.1, "rounds": rounds, "rule": rule}
    run = bound_graph.table_gossip(nbr=found.nbr, weight=found.weight, **made)
    rows = nodes + -nodes % jax.device_count()
    return _stacked(run, program, bound.init(jax.random.key(0), SMALL), rows, np.arange(nodes))


def _stacked(run: Callable, program: Program, model: dict, rows: int, real: np.ndarray) -> Side:
    """`run` from `rows` times the same model; those at `real` are models of nodes."""
    models = bound.by_row(jax.tree.map(lambda a: np.broadcast_to(a, (rows, *a.shape)), model))
    x, y = bound.everywhere((program.world.data.x, program.world.data.y))
    side = work.by_hand(run, models, x, y, bound.mlp, stacked=True)
    return side if len(real) == rows else side._replace(models=lambda m: jax.tree.map(lambda a: a[real], m))


def w3(nodes: int, rounds: int) -> Work:
    """D-SGD on a ring with Metropolis weights, MLP 784-64-10 on images, one step of 20."""
    samples = 200 if nodes <= 300 else max(14, 60_000 // nodes)

    def build():
        known, task = work.images(), work.mlp(MLP)
        world = scenario(work.even_shards(known, nodes, samples), topology=mixing.metropolis(graph.ring(nodes)))
        return Program(dsgd(task, lr=0.05, steps=1, batch=20), world, task, known)

    rival = lambda program: ring_by_hand(program, nodes, samples, rounds)

    def cost(program):
        return Cost(work.perceptron(20, MLP, nodes), work.gossip_round(program, nodes, 20))

    fits = 4 * nodes * 50_890 <= BOUND_BYTES
    return Work("W3", nodes, None, rounds, build, cost, rival if fits else None, True)


def regular(nodes: int) -> Graph:
    """The graph of W5, with Metropolis weights."""
    return mixing.metropolis(graph.random_regular(nodes, 8, seed=0))


def on_digits(make: Callable, nodes: int, **world: Any) -> Program:
    """`make(task)` on digits, 20 samples a node, with the MLP 64-32-10."""
    known, task = data.digits(), work.mlp(SMALL)
    return Program(make(task), scenario(partition.resampled(known, nodes, alpha=3.0), **world), task, known)


def w5(nodes: int, rounds: int, rule: str = "mean", attack: str | None = None) -> Work:
    """D-SGD on a random 8-regular graph, MLP 64-32-10 on digits, one step of 4; under an `attack` a tenth lies.

    The bound has no liars.
    """
    net = Network(rule=RULES[rule], attack=None if attack is None else ATTACKS[attack])
    liars = 0 if attack is None else nodes // 10
    make = lambda task: dsgd(task, net, lr=0.1, steps=1, batch=4)

    def cost(program):
        return Cost(work.perceptron(4, SMALL, nodes), work.gossip_round(program, nodes, 4))

    build = lambda: on_digits(make, nodes, topology=regular(nodes), byz=liars)
    rival = lambda program: table_by_hand(program, nodes, rounds, rule)
    name = ("W5" if rule == "mean" else f"W5 {rule}") + ("" if attack is None else f", {attack}")
    return Work(name, nodes, None, rounds, build, cost, rival, attack is None, imports=LATE)


def g10k(nodes: int, rounds: int) -> Work:
    """W5 with a logistic model."""

    def cost(program):
        return Cost(work.perceptron(4, (64, 10), nodes), work.gossip_round(program, nodes, 4))

    def build():
        known, task = data.digits(), logistic_regression(64, 10)
        world = scenario(partition.resampled(known, nodes, alpha=3.0), topology=regular(nodes))
        return Program(dsgd(task, lr=0.1, steps=1, batch=4), world, task, known)

    return Work("G10k", nodes, None, rounds, build, cost, imports=LATE)
