"""With 90 % stragglers FedProx is more accurate and more stable than FedAvg, which drops them.

Claim. Figure 1 of the paper: keeping the partial work of stragglers (mu = 0) is better than dropping them, and the
proximal term (mu > 0) on top of it is better still, in accuracy and in the stability of the loss; 22 points of test
accuracy on average over the paper's data sets.

Setting. Synthetic(1, 1), another draw each seed, 30 devices of at most 300 samples of which a tenth is held out,
softmax regression, 10 devices a round, 20 epochs of batch 10, 80 rounds; the paper's rate 0.01, and mu = 1. Devices,
stragglers and their epochs are the same for all systems. `wobble` is the standard deviation of the training loss over
the last 50 rounds.

Natural devices are the ten people of `data.smartwatch` (the paper has Shakespeare, Sent140, FEMNIST): seven shoulder
exercises from two seconds of motion at 10 Hz, 120 numbers, softmax regression, the last fifth of each recording held
out; all ten a round, 20 epochs of batch 10, 40 rounds, `wobble` over the last 20; rate and mu of the paper as above.

Why. Keeping partial work does what the paper says at every rate. The proximal term does not: at the paper's rate it
gains accuracy and no stability, and once each system has its best rate, a tenth of the paper's, mu changes nothing.
The setting is the cause, as far as tried: what mu forgives is a rate too large for 20 epochs on unlike devices, and
figure 1 has one rate for all. The bound of 1/3 on the wobble was the plan's for one draw of Synthetic(1, 1); over three
draws it is missed by chance of the draw (standard error 0.1). On people it is the same: partial work gains 4 points of
accuracy, and mu none; at mu = 1 and the paper's rate it takes 3 away, as it holds back devices that are not so unlike.
No code is: at mu = 0 all three are one system, and three rounds equal the paper's equations in float64.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np

from jaxfl.algorithms.server.fedprox import fedprox
from jaxfl.claims.evidence import tail
from jaxfl.claims.study import Arm, Inequality, Score, Setting, Study
from jaxfl.core import Metric, Scenario
from jaxfl.data import partition
from jaxfl.data.motion import smartwatch
from jaxfl.data.sets import Dataset, from_arrays
from jaxfl.data.synthetic import synthetic_fedprox
from jaxfl.learn.task import Task, logistic_regression, scores
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario
from jaxfl.world.work import straggling

DATA = (smartwatch,)
EPOCHS, BATCH = 20, 10
SLOW, PEOPLE = "90 % stragglers", "smartwatch, 90 % stragglers"
DROPS, KEEPS, OURS = "FedAvg, drops", "FedProx, mu = 0", "FedProx"
TASK, EXERCISES = logistic_regression(60, 10), logistic_regression(120, 7)


def settings(seed: int) -> dict[str, Setting]:
    """A draw of Synthetic(1, 1) with and without stragglers."""
    slow = devices(TASK, synthetic_fedprox(1.0, 1.0, 30, seed, cap=300))
    return {SLOW: slow, "no stragglers": slow._replace(world=_cohort(slow.world, fraction=0.0))}


def devices(task: Task, data: Dataset) -> Setting:
    """A device a client, ten a round, nine of which straggle."""
    shards = partition.by_client(data)
    members = cohort.uniform(len(shards.size), 10, weight=shards.size)
    members = straggling(members, 0.9, EPOCHS, steps=-(-int(np.max(shards.size)) // BATCH))
    sets = {"train": (shards.x, shards.y), "test": (jnp.asarray(data.test_x), jnp.asarray(data.test_y))}

    def measure(arrays, x):
        each = {name: scores(task, x, *pair) for name, pair in arrays.items()}
        return {"train_loss": each["train"]["loss"], "accuracy": each["test"]["accuracy"]}

    return Setting(scenario(shards, cohort=members), Metric(measure, sets))


def people(data: Dataset) -> dict[str, Setting]:
    """A device a person, who moves at 10 Hz."""
    return {PEOPLE: devices(EXERCISES, data._replace(x=data.x[:, ::5], test_x=data.test_x[:, ::5]))}


def robots() -> Dataset:
    """Drawn motion, in place of that of people."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(70, 100, 6)), np.arange(70) // 10
    return from_arrays(x, y, x[:14], y[:14], clients=np.arange(70) % 10)


def _cohort(world: Scenario, **values: float) -> Scenario:
    """`world` with another share of stragglers, or with them dropped; shapes stay, so nothing compiles."""
    who = world.arrays["cohort"] | {name: jnp.float32(v) for name, v in values.items()}
    return world._replace(arrays=world.arrays | {"cohort": who})


def wobble(history, rounds: int):
    """Standard deviation of the training loss over the last rounds, by seed."""
    late = history[history["round"] > history["round"].max() - rounds]
    return late.groupby("seed")["train_loss"].std().to_numpy()


def arms(task: Task) -> dict[str, Arm]:
    """FedAvg that drops, FedProx with and without its proximal term."""
    make = partial(fedprox, task, epochs=EPOCHS, batch=BATCH)
    return {
        DROPS: Arm(make, {"mu": 0.0}, world=lambda world: _cohort(world, drop=1.0), settings=(SLOW, PEOPLE)),
        KEEPS: Arm(make, {"mu": 0.0}),
        OURS: Arm(make, grid={"mu": (0.01, 0.1, 1.0)}, paper={"mu": 1.0}),
    }


def headlines(setting: str) -> tuple[Inequality, ...]:
    """More accurate and more stable, than dropping and than partial work alone."""
    says = partial(Inequality, setting=setting)
    free = "those that were dropped worked too and are not counted; what is measured is the use of work that is done"
    return (
        says("accuracy", OURS, "-", DROPS, 0.1, costlier=free),
        says("wobble", OURS, "/", DROPS, 1 / 3, costlier=free),
        says("accuracy", KEEPS, "-", DROPS, 0.0, costlier=free),
        says("accuracy", OURS, "-", KEEPS),
        says("wobble", OURS, "/", KEEPS),
    )


def studies() -> list[Study]:
    """Three systems on the same grid of rates, on ten people and on synthetic devices."""
    ends = {"mu low": "0 is an arm of its own", "mu high": "the largest that the paper tries"}
    scored = lambda last: {
        "accuracy": Score(lambda h: tail(h, "accuracy", 20), "high"),
        "loss": Score(lambda h: tail(h, "train_loss", 20)),
        "wobble": Score(lambda h: wobble(h, last)),
    }
    return [
        Study(
            settings=lambda seed: people(smartwatch()),
            arms=arms(EXERCISES),
            ablations=(DROPS, KEEPS),
            model=EXERCISES.init,
            rounds=40,
            every=2,
            grid={"lr": (0.003, 0.01, 0.03, 0.1, 0.3)},
            paper={"lr": 0.01},
            scores=scored(20),
            says=headlines(PEOPLE),
            ends=ends,
            picture={"y": "train_loss"},
            stand_in=lambda seed: people(robots()),
        ),
        Study(
            settings=settings,
            arms=arms(TASK),
            ablations=(DROPS, KEEPS),
            model=TASK.init,
            rounds=80,
            every=2,
            grid={"lr": (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03)},
            paper={"lr": 0.01},
            scores=scored(50),
            says=(
                *headlines(SLOW),
                Inequality("loss", OURS, "/", DROPS, 0.6, setting=SLOW, headline=False),
                Inequality("loss", OURS, "/", KEEPS, setting="no stragglers", headline=False),
            ),
            ends=ends,
            picture={"y": "train_loss"},
        ),
    ]
