"""Counting clients less whose labels are unlike the whole makes FedAvg, FedProx, SCAFFOLD and FedDyn better.

Claim. Data size is not the best weight: with weights by size and label discrepancy every method that averages gets more
accurate, under full and under partial participation, most where some clients have few labels and others all
("noniid-2"), and all sizes are equal.

Setting. Digits, a perceptron of 50 units. Five of six clients have two labels each, the sixth has all, 200 samples
each, 50 steps of batch 16, 60 rounds; and 15 of 20 clients with two labels, 60 samples each, 8 a round, 20 steps.
Fashion-MNIST, 1,500 training images, a perceptron of 16 units, five of six clients with two labels, 20 steps, 40
rounds. A seed is another draw of data, clients and batches; those are the same in all arms. a = 0.5 and b = 0.1,
mu = 0.1; FedDyn has alpha = 0.1 and averages models by the cohort's weights. `first` and `last` are the mean test
accuracy over the first and the last ten rounds. The control is the same discrepancies given to other clients by chance.

Here it is faster, not more accurate in the end: over the last ten rounds all weights are within half a point.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np

from jaxfl.algorithms.server.feddyn import feddyn
from jaxfl.algorithms.server.fedprox import fedprox
from jaxfl.algorithms.server.scaffold import scaffold
from jaxfl.claims.evidence import tail
from jaxfl.claims.images import SIZE, everything, fashion, stand_in
from jaxfl.claims.study import Arm, Inequality, Score, Setting, Study
from jaxfl.core import Scenario, constant
from jaxfl.data import partition
from jaxfl.data.sets import Dataset, digits, generator
from jaxfl.learn.task import Task, classification
from jaxfl.measure.metrics import shared_test
from jaxfl.models.networks import MLP
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario
from jaxfl.world.weights import disco

DATA = (everything,)
FEW, PART, IMAGES = "digits, 6 of 6", "digits, 8 of 20", "images, 6 of 6"
A, B = 0.5, 0.1
perceptron = lambda size, hidden: classification(partial(MLP, (size, hidden, 10)), np.zeros((1, size), np.float32))


def clients(task: Task, data: Dataset, seed: int, n: int, biased: int, c: int, size: int | None) -> Setting:
    """`biased` of `n` clients with two labels each, `c` a round, all weights by size: `counted` changes that."""
    shards = partition.biased(data, n, biased, seed=seed, size=size)
    d, rng = partition.label_discrepancy(shards, 10), generator(seed)
    other = rng.permutation(d)
    while n > biased and not (other[biased:] > d[biased:].max()).any():  # a shuffle that leaves all as it was is none
        other = rng.permutation(d)
    weights = disco(d, 0.0, 0.0)
    weights = weights._replace(arrays=weights.arrays | {"shuffled": constant(other, np.float32)})
    test = shared_test(task, jnp.asarray(data.test_x[:500]), jnp.asarray(data.test_y[:500]))
    return Setting(scenario(shards, cohort=cohort.uniform(n, c), weights=weights), test)


def counted(world: Scenario, *, shuffled: bool = False) -> Scenario:
    """The world with the paper's weights, or with those of others; shapes stay, so nothing compiles."""
    own = world.arrays["weights"]
    d = own["shuffled" if shuffled else "discrepancy"]
    new = own | {"discrepancy": d, "a": jnp.float32(A), "b": jnp.float32(B)}
    return world._replace(arrays=world.arrays | {"weights": new})


def first(history, rounds: int = 10) -> np.ndarray:
    """Mean test accuracy over the first rounds, by seed."""
    there = history[(history["round"] > 0) & (history["round"] <= rounds)]
    return there.groupby("seed")["accuracy"].mean().to_numpy()


def arms(task: Task, steps: int, systems: tuple[str, ...]) -> dict[str, Arm]:
    """Every system by size, by discrepancy, and by the discrepancies of others. FedAvg is FedProx with mu = 0."""
    kw, found = {"steps": steps, "batch": 16}, {}
    known = {"FedAvg": (fedprox, {"mu": 0.0}), "FedProx": (fedprox, {"mu": 0.1}), "SCAFFOLD": (scaffold, {})}
    known["FedDyn"] = (partial(feddyn, weighted=True), {"alpha": 0.1})
    for name, (make, hyper) in ((name, known[name]) for name in systems):
        arm = Arm(partial(make, task, **kw), hyper, small={"make": partial(make, task, steps=2, batch=16)})
        found[name] = arm
        found[f"{name} + Disco"] = arm._replace(world=counted)
        found[f"{name} + shuffled"] = arm._replace(world=partial(counted, shuffled=True))
    return found


def says(systems: tuple[str, ...]) -> tuple[Inequality, ...]:
    """Better at first than by size and than by the weights of others; at the end no worse."""
    found = []
    for name in systems:
        ours, bound = f"{name} + Disco", 0.01 if name == "FedAvg" else 0.0
        found += [
            Inequality("first", ours, "-", name, bound),
            Inequality("first", ours, "-", f"{name} + shuffled", bound),
        ]
        found.append(Inequality("last", ours, "-", name, -0.005, tuned=-0.005, headline=False))
    return tuple(found)


def studies() -> list[Study]:
    """Images, few clients who are all there, and a part of more."""
    net, small = perceptron(SIZE, 16), perceptron(64, 50)
    images = lambda data, seed: {IMAGES: clients(net, data, seed, 6, 5, 6, None)}
    full = lambda seed: {FEW: clients(small, digits(), seed, 6, 5, 6, 200)}
    some = lambda seed: {PART: clients(small, digits(), seed, 20, 15, 8, 60)}
    scores = {"first": Score(first, "high"), "last": Score(lambda h: tail(h, "accuracy", 10), "high")}

    def study(settings, task: Task, rounds: int, steps: int, systems: tuple[str, ...], **more) -> Study:
        return Study(
            settings=settings,
            arms=arms(task, steps, systems),
            ablations=tuple(f"{name}{how}" for name in systems for how in ("", " + shuffled")),
            model=task.init,
            rounds=rounds,
            every=1,
            grid={"lr": (0.03, 0.1, 0.3, 1.0)},
            paper={"lr": 0.1},
            scores=scores,
            says=says(systems),
            picture={"y": "accuracy"},
            **more,
        )

    four = ("FedAvg", "FedProx", "SCAFFOLD", "FedDyn")
    stand = lambda seed: images(stand_in(300, 50, seed), seed)
    return [
        study(lambda seed: images(fashion(1500, 500, seed), seed), net, 40, 20, ("FedAvg",), stand_in=stand),
        study(full, small, 60, 50, four, stand_in=lambda seed: {FEW: some(seed)[PART]}),
        study(some, small, 60, 20, four),
    ]
