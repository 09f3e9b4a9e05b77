"""With 90 % stragglers FedProx is more accurate and more stable than FedAvg, which drops them.

Claim. Figure 1 of the paper: keeping the partial work of stragglers (mu = 0) is better than dropping them, and the
proximal term (mu > 0) on top of it is better still, in accuracy and in the stability of the loss; 22 points of test
accuracy on average over the paper's data sets.

Setting. Synthetic(1, 1), another draw each seed, 30 devices of at most 300 samples of which a tenth is held out,
softmax regression, 10 devices a round, 20 epochs of batch 10, 80 rounds; the paper's rate 0.01, and mu = 1. Devices,
stragglers and their epochs are the same for all systems. `wobble` is the standard deviation of the training loss over
the last 50 rounds.

Why. Keeping partial work does what the paper says at every rate. The proximal term does not: at the paper's rate it
gains accuracy and no stability, and once each system has its best rate, a tenth of the paper's, mu changes nothing.
The setting is the cause, as far as tried: what mu forgives is a rate too large for 20 epochs on unlike devices, and
figure 1 has one rate for all. The bound of 1/3 on the wobble was the plan's for one draw of Synthetic(1, 1); over three
draws it is missed by chance of the draw (standard error 0.1). No code is: at mu = 0 all three are one system, and three
rounds equal the paper's equations in float64.
"""

from functools import partial

import jax.numpy as jnp

from jaxfl.algorithms.server.fedprox import fedprox
from jaxfl.claims.evidence import tail
from jaxfl.claims.study import Arm, Inequality, Score, Setting, Study
from jaxfl.core import Metric, Scenario
from jaxfl.data import partition
from jaxfl.data.synthetic import synthetic_fedprox
from jaxfl.learn.task import logistic_regression, scores
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario
from jaxfl.world.work import straggling

EPOCHS, BATCH = 20, 10
SLOW = "90 % stragglers"
TASK = logistic_regression(60, 10)


def settings(seed: int) -> dict[str, Setting]:
    """A draw of Synthetic(1, 1) with and without stragglers."""
    data = synthetic_fedprox(1.0, 1.0, 30, seed, cap=300)
    shards = partition.by_client(data)
    members = straggling(cohort.uniform(30, 10, weight=shards.size), 0.9, EPOCHS, steps=-(-shards.longest // BATCH))
    world = scenario(shards, cohort=members)
    sets = {"train": (shards.x, shards.y), "test": (jnp.asarray(data.test_x), jnp.asarray(data.test_y))}

    def measure(arrays, x):
        each = {name: scores(TASK, x, *pair) for name, pair in arrays.items()}
        return {"train_loss": each["train"]["loss"], "accuracy": each["test"]["accuracy"]}

    metric = Metric(measure, sets)
    return {SLOW: Setting(world, metric), "no stragglers": Setting(_cohort(world, fraction=0.0), metric)}


def _cohort(world: Scenario, **values: float) -> Scenario:
    """`world` with another share of stragglers, or with them dropped; shapes stay, so nothing compiles."""
    who = world.arrays["cohort"] | {name: jnp.float32(v) for name, v in values.items()}
    return world._replace(arrays=world.arrays | {"cohort": who})


def wobble(history, rounds: int = 50):
    """Standard deviation of the training loss over the last rounds, by seed."""
    late = history[history["round"] > history["round"].max() - rounds]
    return late.groupby("seed")["train_loss"].std().to_numpy()


def studies() -> list[Study]:
    """FedAvg that drops, FedProx with and without its proximal term, on the same grid of rates."""
    make = partial(fedprox, TASK, epochs=EPOCHS, batch=BATCH)
    drop = lambda world: _cohort(world, drop=1.0)
    says = partial(Inequality, setting=SLOW)
    free = "those that were dropped worked too and are not counted; what is measured is the use of work that is done"
    return [
        Study(
            settings=settings,
            arms={
                "FedAvg, drops": Arm(make, {"mu": 0.0}, world=drop, settings=(SLOW,)),
                "FedProx, mu = 0": Arm(make, {"mu": 0.0}),
                "FedProx": Arm(make, grid={"mu": (0.01, 0.1, 1.0)}, paper={"mu": 1.0}),
            },
            ablations=("FedAvg, drops", "FedProx, mu = 0"),
            model=TASK.init,
            rounds=80,
            every=2,
            grid={"lr": (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03)},
            paper={"lr": 0.01},
            scores={
                "accuracy": Score(lambda h: tail(h, "accuracy", 20), "high"),
                "loss": Score(lambda h: tail(h, "train_loss", 20)),
                "wobble": Score(wobble),
            },
            says=(
                says("accuracy", "FedProx", "-", "FedAvg, drops", 0.1, costlier=free),
                says("wobble", "FedProx", "/", "FedAvg, drops", 1 / 3, costlier=free),
                says("accuracy", "FedProx, mu = 0", "-", "FedAvg, drops", 0.0, costlier=free),
                says("accuracy", "FedProx", "-", "FedProx, mu = 0"),
                says("wobble", "FedProx", "/", "FedProx, mu = 0"),
                says("loss", "FedProx", "/", "FedAvg, drops", 0.6, headline=False),
                says("loss", "FedProx", "/", "FedProx, mu = 0", setting="no stragglers", headline=False),
            ),
            ends={"mu low": "0 is an arm of its own", "mu high": "the largest that the paper tries"},
            picture={"y": "train_loss"},
        )
    ]
