"""W1, W2, W6 and W8: a server and a cohort of clients a round."""

from collections.abc import Callable

import bound
import bound_cnn
import jax
import numpy as np

from jaxfl import data
from jaxfl.algorithms.asynchronous.fedbuff import fedbuff
from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.data import partition
from jaxfl.learn.task import classification, logistic_regression
from jaxfl.models.networks import CNN
from jaxfl.world import clock, cohort, durations
from jaxfl.world.scenario import scenario
from workloads import work
from workloads.work import Cost, Program, Side, Work

MLP = (784, 64, 10)
TOGETHER = 1000  # most clients the bound advances at once on an accelerator


def by_hand(program: Program, made: dict, init: Callable, predict: Callable) -> Side:
    """The bound of FedAvg; `made` is what `bound.fedavg` takes."""
    together = 1 if jax.default_backend() == "cpu" else TOGETHER
    run = bound.fedavg(**made, predict=predict, together=together)
    x, y = bound.everywhere((program.world.data.x, program.world.data.y))
    return work.by_hand(run, init(jax.random.key(0)), x, y, predict, stacked=False)


def w1(clients: int, members: int, rounds: int, compute: str | None = None) -> Work:
    """FedAvg, MLP 784-64-10 on images, 60 a client, 3 steps of 20."""
    made = {"clients": clients, "samples": 60, "cohort": members, "steps": 3, "batch": 20, "lr": 0.05, "rounds": rounds}

    def build():
        known, task = work.images(), work.mlp(MLP, compute)
        world = scenario(work.even_shards(known, clients, 60), cohort=cohort.uniform(clients, members))
        return Program(fedavg(task, lr=0.05, steps=3, batch=20), world, task, known)

    def cost(program):
        return Cost(work.perceptron(20, MLP, 3 * members), work.local_steps(program, 3 * members, 20))

    rival = lambda p: by_hand(p, made, bound.init, bound.mlp)
    return Work(work.named("W1", compute), clients, members, rounds, build, cost, rival, True)


def w2(clients: int, members: int, rounds: int, compute: str | None = None) -> Work:
    """FedAvg, CNN of two 3 x 3 convolutions on images, 120 a client, 6 steps of 20."""
    made = {"clients": clients, "samples": 120, "cohort": members, "steps": 6, "batch": 20, "lr": 0.05}
    made["rounds"] = rounds

    def build():
        known, sample = work.images(), jax.ShapeDtypeStruct((1, 784), np.float32)
        task = classification(CNN, sample, compute=compute)
        world = scenario(work.even_shards(known, clients, 120), cohort=cohort.uniform(clients, members))
        return Program(fedavg(task, lr=0.05, steps=6, batch=20), world, task, known)

    def cost(program):
        count = 6 * members
        layers = (
            *work.dense(20 * 784, 9, 16, count, first=True),
            *work.dense(20 * 196, 144, 32, count),
            *work.dense(20, 1568, 10, count),
        )
        return Cost(layers, work.local_steps(program, count, 20))

    rival = lambda p: by_hand(p, made, bound_cnn.init, bound_cnn.predict)
    return Work(work.named("W2", compute), clients, members, rounds, build, cost, rival, True)


def w6(clients: int, working: int, goal: int, rounds: int) -> Work:
    """FedBuff with the task of W1, whose members start from many versions, against FedAvg of as many members."""

    def build():
        known, task = work.images(), work.mlp(MLP)
        late = clock.buffered(clients, working, goal, durations.lognormal())
        world = scenario(work.even_shards(known, clients, 60), cohort=late)
        return Program(fedbuff(task, lr=0.05, steps=3, batch=20, longest=64), world, task, known)

    def rival(program):
        plain = scenario(program.world.data, cohort=cohort.uniform(clients, goal))
        system = fedavg(program.task, lr=0.05, steps=3, batch=20)
        return work.ours(program._replace(algorithm=system, world=plain), rounds, False)

    def cost(program):
        return Cost(work.perceptron(20, MLP, 3 * goal), work.local_steps(program, 3 * goal, 20))

    return Work("W6", clients, goal, rounds, build, cost, rival)


def w8(clients: int, few: int, rounds: int) -> Work:
    """FedAvg of a logistic model with 100 clients a round, 3 steps of one sample: many clients against few."""

    def made(n):
        rng, samples = np.random.default_rng(0), max(n, 4000)
        x, y = rng.standard_normal((samples + 10, 32), np.float32), rng.integers(0, 10, samples + 10)
        known = data.from_arrays(x[:-10], y[:-10], x[-10:], y[-10:], classes=10, name="random numbers")
        shards, task = partition.iid(known, n), logistic_regression(32, 10)
        world = scenario(shards, cohort=cohort.uniform(n, 100, weight=shards.size))
        return Program(fedavg(task, lr=0.1, steps=3, batch=1), world, task, known)

    def cost(program):
        return Cost(work.perceptron(1, (32, 10), 300), work.local_steps(program, 300, 1))

    return Work("W8", clients, 100, rounds, lambda: made(clients), cost, lambda _: work.ours(made(few), rounds, False))
