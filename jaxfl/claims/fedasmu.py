"""Mixing that fades with time and staleness, and a fresh model in the middle of training, beat fixed rules.

Claim. FedASMU is up to 23.9 points more accurate than synchronous and asynchronous baselines, and reaches a target in
up to 98% less time; both of its parts contribute, the server's dynamic weight and the pull in the middle of training.
The paper has 100 clients, the slowest five times as slow as the fastest, Dirichlet splits of images and texts.

Setting. 40 clients, ten at work; a job is 20 local steps; 28 seconds. Quadratics of one curvature in R^10, centres
`N(0, I)` about the optimum, noise 0.5 in the gradients, from a point far off, jobs of `exp(0.8 N(0, 1))` seconds by
client, until `|x - x*| < 1`. Digits, Dirichlet 0.1, softmax regression, batch 8, jobs of 0.5 to 2.5 seconds, until the
training loss is 0.5. Errors are the distance to the optimum, and the root of the loss. The weight of FedAsync, the
floor iota of FedASMU and the rate are tuned; its other controls begin where the plan has them. Set after a first look:
28 seconds, which all runs last, in place of 45, and the ends of the grids.

Why. Setting, and the claim's reach. On quadratics the server's fading weight gives what the plan says, also against a
tuned FedAsync: with `1 / sqrt(t)` it averages noise away. On digits it is too small at the plan's rate, and at the
best rates all are alike: training there is far from a plateau, where fading has nothing to win. The pull gains two
hundredths on quadratics and nothing on digits: in half a job ten clients make five versions, hardly a step of the
model, and its weight fades too. Learned controls lose to constant ones on quadratics: an arrival's own loss asks for
a larger weight of its own model, whoever it is, so that alpha grows again.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxfl.algorithms.asynchronous.fedasmu import fedasmu
from jaxfl.algorithms.asynchronous.fedasync import fedasync
from jaxfl.claims.evidence import first_at
from jaxfl.claims.study import Arm, Inequality, Score, Setting, Study
from jaxfl.core import Metric, Shards
from jaxfl.data import partition, sets
from jaxfl.data.cut import in_order
from jaxfl.data.sets import generator
from jaxfl.exchange.staleness import constant
from jaxfl.learn.task import Task, from_functions, logistic_regression, mean_loss
from jaxfl.measure.metrics import distance_to
from jaxfl.world.clock import buffered
from jaxfl.world.durations import fixed
from jaxfl.world.scenario import scenario

N, SAMPLES, DIM = 40, 64, 10
OURS, KEPT, ALONE, POLY, SAME = (
    "FedASMU",
    "FedASMU, constant controls",
    "FedASMU without pull",
    "FedAsync, polynomial",
    "FedAsync, constant",
)
QUADRATICS, DIGITS = "quadratics", "digits"
MEAN = from_functions(lambda key: jnp.full(DIM, 3.0), lambda p, x, y: 0.5 * ((p - y) ** 2).sum(-1))
SOFTMAX = logistic_regression(64, 10)
TIMED = "what is measured is what is reached by the time"


def quadratics(seed: int) -> dict[str, Setting]:
    """One curvature, the optimum is 0, noise in the samples; jobs are log-normal by client."""
    rng = generator(seed)
    centre, noise = rng.normal(size=(N, 1, DIM)), 0.5 * rng.normal(size=(N, SAMPLES, DIM))
    y = centre - centre.mean(0) + noise - noise.mean(1, keepdims=True)
    y = y.reshape(-1, DIM).astype(np.float32)
    data = in_order(y, N)
    return {QUADRATICS: Setting(timed(data, np.exp(0.8 * rng.normal(size=N))), distance_to(jnp.zeros(DIM)))}


def digits(seed: int) -> dict[str, Setting]:
    """Digits, Dirichlet 0.1; the slowest client takes five times as long as the fastest."""
    data = partition.dirichlet(sets.digits(), N, 0.1, seed, min_size=8)
    metric = Metric(lambda a, x: {"error": mean_loss(SOFTMAX, x, *a)}, (data.x, data.y))
    return {DIGITS: Setting(timed(data, generator(seed + 100).uniform(0.5, 2.5, N)), metric)}


def timed(data: Shards, seconds: np.ndarray) -> Any:
    """Ten clients are always at work, every answer makes a version."""
    return scenario(data, cohort=buffered(N, 10, 1, fixed(seconds), weight=np.ones(N)))


def arms(task: Task, steps: int, batch: int) -> dict[str, Arm]:
    """FedASMU with and without its parts, and FedAsync."""
    kw: dict[str, Any] = {"steps": steps, "batch": batch, "longest": 63}
    floor = {"grid": {"iota": (0.0, 0.003, 0.01, 0.05, 0.2)}, "paper": {"iota": 0.05}}
    weight = lambda paper: {"grid": {"alpha": (0.02, 0.05, 0.15, 0.3, 0.6, 1.0)}, "paper": {"alpha": paper}}
    ours, theirs = partial(fedasmu, task, **kw), partial(fedasync, task, **kw)
    return {
        OURS: Arm(ours, **floor),
        KEPT: Arm(partial(ours, adapt=False), **floor, small={"make": ours}),
        ALONE: Arm(partial(ours, merge=False), **floor, small={"make": ours}),
        POLY: Arm(theirs, **weight(0.6)),
        SAME: Arm(partial(theirs, discount=constant()), **weight(0.6), small={"make": theirs}),
    }


def until(history: Any, first: float, last: float) -> np.ndarray:
    """The mean of the root of the error from second `first` to `last`, by seed; infinite for a run that ends before."""
    found = []
    for _, h in history.groupby("seed"):
        part = np.sqrt(h[(h["time"] >= first) & (h["time"] <= last)]["error"].dropna().to_numpy())
        found.append(part.mean() if len(part) and h["time"].max() >= last else np.inf)
    return np.array(found)


def study(settings: Any, task: Task, made: dict, grid: dict, paper: dict, last: float, target: float) -> Study:
    """What is reached by the time."""
    says = partial(Inequality, op="/", costlier=TIMED)
    late, over = partial(says, "late error", OURS), partial(says, "mean error", OURS)
    return Study(
        settings=settings,
        arms=made,
        ablations=(KEPT, ALONE),
        model=task.init,
        rounds=300,
        grid=grid,
        paper=paper,
        scores={
            "mean error": Score(lambda h: until(h, 0, last)),
            "late error": Score(lambda h: until(h, 0.75 * last, last)),
            "seconds to target": Score(lambda h: first_at(h, "error", target, "time")),
        },
        says=(
            late(theirs=POLY, bound=0.7),
            late(theirs=SAME, bound=0.7),
            over(theirs=POLY, bound=0.8),
            late(theirs=ALONE),
            late(theirs=KEPT, headline=False),
            says("seconds to target", OURS, theirs=POLY, bound=1.5, tuned=1.5, headline=False),
        ),
        every=2,
        ends={
            "lr low": "towards 0 local steps are one large batch, which the server's weight scales",
            "alpha high": "1 is the most",
            "iota low": "0 is no floor at all",
        },
        picture={"y": "error", "x": "time", "log": True},
    )


def studies() -> list[Study]:
    """Quadratics with the plan's rates, and digits."""
    rates, far = {"lr": (0.02, 0.05, 0.1, 0.2, 0.4)}, {"lr": (0.1, 1.0, 3.0, 10.0)}
    return [
        study(quadratics, MEAN, arms(MEAN, 20, 1), rates, {"lr": 0.05}, 28.0, 1.0),
        study(digits, SOFTMAX, arms(SOFTMAX, 20, 8), far, {"lr": 0.1}, 28.0, 0.5),
    ]
