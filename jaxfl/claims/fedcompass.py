"""In groups that answer together clients are hardly stale, and nobody waits long: sooner there than rounds and buffers.

Claim. On clients of unlike data and unlike speed FedCompass converges faster and higher than other asynchronous
methods, and in far less time than synchronous ones; its groups answer almost together, so that staleness is small. The
paper has MNIST, CIFAR-10 and medical images on 5 to 20 clients whose seconds a step are alike, normal or exponential.

Setting. Ten clients, whose seconds a step are exponential beyond a least, 5% jitter; the slowest runs all steps, 100 or
40, in one second; six seconds. Quadratics of one curvature in R^10, `c_i ~ 2 N(0, I)`, noise 0.5 in the gradients, from
a point far off, with the plan's rates, until `|x - x*|^2 < 10`; digits, Dirichlet 0.1, softmax regression, batch 8,
until the training loss is 0.5. Everywhere `least = most / 5`, `patience = 1.2`, `p_i = 1/n`; FedBuff has 8 of the ten
at work, and 3 answers make a version. The late error is the mean over the last quarter of the time. The ablation gives
all clients all steps, so that groups form only by chance. Set after a first look: six seconds (which all runs last)
in place of 8, and the ends of the grids.

Why. Where it waits for a buffer of three, FedBuff has no staleness to speak of either. On quadratics of one
curvature, tuned, the two end equally far from the optimum, which for both lies where the fast clients pull it: they
answer more often. FedAvg alone goes on to the optimum there, after one round, so that "sooner" is true of coarse
targets. On digits at one and the same rate FedBuff's version moves the model by a mean over three, that of FedCompass
by the share of its group among all; at the best rates FedCompass is ahead. All else holds.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from jaxfl.algorithms.asynchronous.fedasync import fedasync
from jaxfl.algorithms.asynchronous.fedbuff import fedbuff
from jaxfl.algorithms.asynchronous.fedcompass import fedcompass
from jaxfl.algorithms.server.fedopt import fedopt
from jaxfl.claims.evidence import first_at
from jaxfl.claims.study import Arm, Inequality, Score, Setting, Study
from jaxfl.core import Metric, Scenario, Shards
from jaxfl.data import partition, sets
from jaxfl.data.cut import in_order
from jaxfl.data.sets import generator
from jaxfl.learn.task import Task, from_functions, logistic_regression, scores
from jaxfl.measure.metrics import distance_to
from jaxfl.world import cohort
from jaxfl.world.clock import buffered
from jaxfl.world.compass import compass
from jaxfl.world.deadline import deadline
from jaxfl.world.durations import Seconds, lognormal
from jaxfl.world.scenario import scenario

N, HORIZON, JITTER, DIM = 10, 6.0, 0.05, 10
OURS, ALIKE, SYNC, ASYNC, BUFFER = "FedCompass", "FedCompass, equal steps", "FedAvg", "FedAsync", "FedBuff"
QUADRATICS, DIGITS = "quadratics", "digits"
MEAN = from_functions(lambda key: jnp.full(DIM, 3.0), lambda p, x, y: 0.5 * ((p - y) ** 2).sum(-1))
SOFTMAX = logistic_regression(64, 10)
TIMED = "all run for the same time, in which fewer wait"


def quadratics(seed: int) -> dict[str, Setting]:
    """One curvature, centres that are far apart, noise in the samples."""
    rng = generator(seed)
    centre, noise = 2 * rng.normal(size=(N, 1, DIM)), 0.5 * rng.normal(size=(N, 200, DIM))
    y = (centre + noise - noise.mean(1, keepdims=True)).reshape(-1, DIM).astype(np.float32)
    data = in_order(y, N)
    return {QUADRATICS: Setting(timed(data, seed, 100), distance_to(y.mean(0, dtype=np.float64)))}


def digits(seed: int) -> dict[str, Setting]:
    """A Dirichlet split, and the loss over all digits."""
    data = partition.dirichlet(sets.digits(), N, 0.1, seed, min_size=8)
    metric = Metric(lambda a, x: {"error": scores(SOFTMAX, x, *a)["loss"]}, (data.x, data.y))
    return {DIGITS: Setting(timed(data, seed, 40), metric)}


def timed(data: Shards, seed: int, most: int) -> Scenario:
    """COMPASS; seconds a step are exponential beyond a least, and the slowest needs one second for `most` steps."""
    pace = 0.2 + generator(seed + 100).exponential(size=N)
    law = lognormal(pace / pace.max() / most, JITTER)
    return scenario(data, cohort=compass(N, law, least=most // 5, most=most, weight=np.ones(N)))


def job(most: int, world: Scenario) -> Seconds:
    """What `most` steps take."""
    return lognormal(most * np.asarray(world.arrays["cohort"]["seconds"]["median"], np.float64), JITTER)


def rounds(most: int, world: Scenario) -> Scenario:
    """All clients run all steps, the slowest is waited for."""
    return scenario(world.data, cohort=deadline(cohort.everyone(N, np.ones(N)), job(most, world)))


def arrivals(most: int, concurrency: int, goal: int, world: Scenario) -> Scenario:
    """Every `goal`-th answer makes a version; clients run all steps."""
    return scenario(world.data, cohort=buffered(N, concurrency, goal, job(most, world), weight=np.ones(N)))


def alike(most: int, world: Scenario) -> Scenario:
    """COMPASS that gives all clients all steps."""
    own = world.arrays["cohort"] | {"least": jnp.int32(most)}
    return world._replace(arrays=world.arrays | {"cohort": own})


def arms(task: Task, most: int, batch: int) -> dict[str, Arm]:
    """FedCompass, without its unlike steps, and methods that wait for all, for none, for a few."""
    kw: dict[str, Any] = {"steps": most, "batch": batch}

    def fedavg(lr, alpha):
        return fedopt(task, local=optax.sgd(lr), server=optax.sgd(alpha), **kw)

    def fedbuff_of(lr, alpha):
        return fedbuff(task, lr=lr, server_lr=alpha, longest=63, **kw)

    grid = lambda paper, *values: {"grid": {"alpha": values}, "paper": {"alpha": paper}}
    ours = partial(fedcompass, task, longest=63, **kw)
    return {
        OURS: Arm(ours, **grid(0.9, 0.3, 0.9, 2.7, 8.0, 24.0)),
        ALIKE: Arm(ours, world=partial(alike, most), rounds=2.4, **grid(0.9, 0.3, 0.9, 2.7, 8.0, 24.0)),
        SYNC: Arm(fedavg, world=partial(rounds, most), rounds=0.04, **grid(1.0, 0.5, 1.0, 2.0, 4.0, 8.0)),
        ASYNC: Arm(
            partial(fedasync, task, longest=63, **kw),
            world=partial(arrivals, most, N, 1),
            rounds=2.4,
            **grid(0.9, 0.03, 0.1, 0.3, 0.9),
        ),
        BUFFER: Arm(fedbuff_of, world=partial(arrivals, most, 8, 3), rounds=0.8, **grid(1.0, 0.1, 0.3, 1.0, 2.0, 4.0)),
    }


def until(history: Any, first: float, root: bool) -> np.ndarray:
    """The mean error from second `first` to the horizon, by seed; infinite for a run that ends before."""
    found = []
    for _, h in history.groupby("seed"):
        part = h[(h["time"] >= first) & (h["time"] <= HORIZON)]["error"].to_numpy()
        part = np.sqrt(part) if root else part
        found.append(part.mean() if len(part) and h["time"].max() >= HORIZON else np.inf)
    return np.array(found)


def mean_age(history: Any) -> np.ndarray:
    """Of the answers that made a version, by seed; 0 where none can be stale."""
    age = history["age"].fillna(0) if "age" in history else 0.0
    return history.assign(age=age).groupby("seed")["age"].mean().to_numpy()


def study(name: str, settings: Any, task: Task, most: int, batch: int, grid: dict, paper: dict, target: float) -> Study:
    """What is reached by the time."""
    root, says = name == QUADRATICS, partial(Inequality, ours=OURS, op="/")
    late, soon = partial(says, "late error", costlier=TIMED), partial(says, "seconds to target", costlier=TIMED)
    return Study(
        settings=settings,
        arms=arms(task, most, batch),
        ablations=(ALIKE,),
        model=task.init,
        rounds=180,
        grid=grid,
        paper=paper,
        scores={
            "mean error": Score(lambda h: until(h, 0, root)),
            "late error": Score(lambda h: until(h, 0.75 * HORIZON, root)),
            "seconds to target": Score(lambda h: first_at(h, "error", target, "time")),
            "age": Score(mean_age),
        },
        says=(
            late(theirs=ASYNC, bound=0.85),
            late(theirs=BUFFER, bound=0.9),
            late(theirs=ALIKE),
            soon(theirs=SYNC, bound=0.5),
            says("age", theirs=ASYNC, bound=0.35, headline=False),
            says("age", theirs=ALIKE, bound=0.35, headline=False),
        ),
        every=1,
        ends={"lr low": "towards 0 local steps are one large batch, which the server's rate scales"},
        picture={"y": "error", "x": "time", "log": True},
    )


def studies() -> list[Study]:
    """Quadratics with the plan's rates, and digits."""
    return [
        study(QUADRATICS, quadratics, MEAN, 100, 1, {"lr": (0.01, 0.03, 0.1, 0.3)}, {"lr": 0.01}, 10.0),
        study(DIGITS, digits, SOFTMAX, 40, 8, {"lr": (0.1, 1.0, 3.0, 10.0)}, {"lr": 0.1}, 0.5),
    ]
