"""24 points of FedProx with 2 seeds each, 50 clients, logistic model: one program against a run a point."""

from collections.abc import Iterator
from functools import partial

import jax.numpy as jnp
import machine
import numpy as np
import timing

from jaxfl import data
from jaxfl.algorithms.server.fedprox import fedprox
from jaxfl.data import partition
from jaxfl.engine.run import run
from jaxfl.engine.runs import grid
from jaxfl.learn import task
from jaxfl.measure.metrics import shared_test
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario
from workloads import work
from workloads.work import Cost, Program, Side


def rows(turns: int, tiny: bool) -> Iterator[dict]:
    """Neither side compiles while it is timed."""
    known, model, rounds = data.digits(), task.logistic_regression(64, 10), 5 if tiny else 50
    shards = partition.dirichlet(known, 50, 0.3)
    world = scenario(shards, cohort=cohort.uniform(50, 5, weight=shards.size))
    test = shared_test(model, jnp.asarray(known.test_x), jnp.asarray(known.test_y))
    points = grid(lr=np.geomspace(0.01, 1, 2 if tiny else 8).tolist(), mu=(0.0, 0.1, 1.0))
    factory = partial(fedprox, model, steps=5, batch=8)
    go = lambda hyper: run(factory, world, model.init, rounds, seeds=2, hyper=hyper, evaluate=test)

    def one_by_one():
        for lr, mu in zip(*points.values(), strict=True):
            go({"lr": lr, "mu": mu})

    steps = 2 * len(points["lr"]) * 5 * 5
    cost = Cost(work.perceptron(8, (64, 10), steps), work.local_steps(Program(None, world, model, known), steps, 8))
    row = {"workload": "sweep", "nodes": 50, "cohort": 5, "data": known.name}
    sides = {"": Side(lambda: go(points)), "bound_": Side(one_by_one)}
    row |= timing.race(sides, rounds, turns) | machine.floor(cost)
    yield row | {"peak_mb": timing.memory()[1]}
