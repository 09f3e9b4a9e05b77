"""Trust that bad updates cost shuts liars out, and heads that close a round by a quorum do not wait for the slowest.

Claim. Clusters with elected heads and a ledger of trust are reliable in the presence of bad workers, as penalties shut
them out, and asynchrony makes them faster. The abstract has no numbers; the bounds are ours.

Setting. 20 workers in two clusters, the first five bad; speeds `exp(0.7 N(0, 1))` seconds a job, two workers ten times
slower; 150 rounds, models averaged over the clusters every third. Quadratics in R^10 of curvature 1 with optima
`0.3 N(0, I)`, or of spread 1, gradient noise of standard deviation 0.3, five steps of rate 0.2, the bad send the
cluster's model plus `3 N(0, I)`: the distance to the optimum of the honest over the last 50 rounds. Digits of
scikit-learn cut by Dirichlet(0.5), softmax regression, five steps of batch 16, labels of the bad flipped, three judges
with 64 samples each: test accuracy over the last 50. A round ends with 14 answers of 20, or with all. A model is bad
whose loss is five times the median, on digits three times. A seed is another draw of data, speeds and workers. The
grids on digits were moved after a first run, of rates upwards and of that factor downwards.

Why. On quadratics all of it holds. On digits the setting is the cause of what is missing, our factor of three: within
five steps from the cluster's model flipped labels spoil a model too little for three times the median loss, and nobody
is shut out; with a factor of two and a larger rate penalties gain 17 points, though heads who wait for all then shut
out some of the honest too. The code is not, as far as tried: seven rounds equal the rules in float64. Beside the
headline: with a quorum the model ends farther from the optimum than with patience, in proportion to the spread of
optima, as the fast count more often; trust does not change that, and a median gets about as near.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxfl.algorithms.asynchronous.sdfl_b import sdfl_b
from jaxfl.claims.evidence import Check, check, tail
from jaxfl.claims.study import Arm, Inequality, Score, Setting, Study
from jaxfl.core import Metric, Scenario, Shards
from jaxfl.data import partition
from jaxfl.data.corrupt import flipped_labels
from jaxfl.data.cut import in_order
from jaxfl.data.sets import digits
from jaxfl.exchange.attacks import gaussian
from jaxfl.exchange.network import Network
from jaxfl.exchange.rules import median
from jaxfl.learn.task import logistic_regression, quadratic_noise
from jaxfl.measure.metrics import shared_test
from jaxfl.world.delivery import quorum
from jaxfl.world.durations import fixed
from jaxfl.world.scenario import scenario

N, BAD, D, SAMPLES, QUORUM, ROUNDS = 20, 5, 10, 40, 14, 150
OURS, FREE, WAITS, MEDIAN = "SDFL-B", "no penalties", "penalties, waits for all", "median, no penalties"
NEAR, FAR, IMAGES = "spread 0.3", "spread 1", "digits, flipped labels"
SOFTMAX = logistic_regression(64, 10)


def speeds(seed: int) -> np.ndarray:
    """Seconds of a job by worker; the slow ones are honest."""
    spent = np.exp(0.7 * np.random.default_rng(seed).normal(size=N))
    return np.where(np.arange(N) >= N - 2, 10.0, 1.0) * spent


def live(data: Shards, seed: int, goal: int = QUORUM) -> Scenario:
    """A world whose rounds end with so many answers."""
    return scenario(data, cohort=quorum(N, goal, fixed(speeds(seed))), byz=BAD)


def quadratics(seed: int) -> dict[str, Setting]:
    """Another draw of optima, near one another or not."""
    rng = np.random.default_rng(seed)
    unlike, xi = rng.normal(size=(N, D)), rng.normal(size=(N, SAMPLES, D))
    xi = jnp.asarray((xi - xi.mean(1, keepdims=True)).reshape(-1, D), jnp.float32)
    curvature, found = jnp.broadcast_to(jnp.eye(D), (N * SAMPLES, D, D)), {}
    for name, spread in ((NEAR, 0.3), (FAR, 1.0)):
        b = spread * unlike
        centre = jnp.asarray(np.repeat(b, SAMPLES, 0), jnp.float32)
        data = in_order(centre, N, (curvature, xi))
        honest = jnp.asarray(b[BAD:].mean(0), jnp.float32)
        metric = Metric(lambda at, x: {"distance": jnp.linalg.norm(x - at)}, honest)
        found[name] = Setting(live(data, seed), metric)
    return found


def images(seed: int) -> dict[str, Setting]:
    """Another split of the digits."""
    data = digits()
    split = flipped_labels(partition.dirichlet(data, N, 0.5, seed), np.arange(BAD), 10)
    test = shared_test(SOFTMAX, jnp.asarray(data.test_x), jnp.asarray(data.test_y))
    return {IMAGES: Setting(live(split, seed), test)}


def patient(world: Scenario) -> Scenario:
    """The world whose rounds end when all have answered; the quorum is another shape, the speeds are the same."""
    seconds = world.arrays["cohort"]["seconds"]["seconds"]
    return scenario(world.data, cohort=quorum(N, N, fixed(np.asarray(seconds))), byz=BAD)


def arms(task: Any, attack: Any, factors: tuple[float, ...] = (), **kw: Any) -> dict[str, Arm]:
    """With and without penalties, with and without waiting, and a robust rule in their place."""
    make = lambda **net: partial(sdfl_b, task, Network(attack=attack, **net), steps=5, **kw)
    free, penal = {"gain": 0.0, "loss": 0.0, "late": 0.0}, {"gain": 0.02, "loss": 0.2, "late": 0.01}
    free |= {"factor": 3.0} if factors else {}
    tuned: dict[str, Any] = {"grid": {"factor": factors}, "paper": {"factor": 3.0}} if factors else {}
    return {
        OURS: Arm(make(), penal, **tuned),
        FREE: Arm(make(), free),
        WAITS: Arm(make(), penal, world=patient, small={"world": lambda world: world}, **tuned),
        MEDIAN: Arm(make(rule=median()), free),
    }


def shut_out(scores: Mapping) -> list[Check]:
    """Who counts, after twelve rounds and in the end."""
    of = lambda where, name, arm=OURS: scores["paper", where, arm][name]
    return [
        check("spread 0.3: share of liars who count after round 12, largest", of(NEAR, "liars"), "<=", 0.0),
        check("spread 0.3: share of the honest who count in the end", of(NEAR, "honest"), ">=", 1.0),
        check("spread 1: share of the honest who count in the end", of(FAR, "honest"), ">=", 1.0),
        check("spread 0.3, waits: share of liars who count after round 12", of(NEAR, "liars", WAITS), "<=", 0.0),
    ]


def ends_at(history: Any, column: str) -> np.ndarray:
    """The last value of a column, by seed."""
    return history.groupby("seed")[column].last().to_numpy()


def liars(history: Any) -> np.ndarray:
    """The largest share of liars who count after round 12, by seed."""
    late = history[history["round"] > min(12, history["round"].max() - 1)]
    return late.groupby("seed")["trusted_liars"].max().to_numpy()


def studies() -> list[Study]:
    """Quadratics with noise for updates, digits with flipped labels."""
    known = {"seconds": Score(lambda h: ends_at(h, "time")), "honest": Score(lambda h: ends_at(h, "trusted"), "high")}
    known |= {"liars": Score(liars)}
    says = partial(Inequality, setting=NEAR)
    return [
        Study(
            settings=quadratics,
            arms=arms(quadratic_noise(D, 0.3), gaussian(3.0), batch=1),
            ablations=(FREE, WAITS),
            model=lambda key: jnp.zeros(D),
            rounds=ROUNDS,
            grid={"lr": (0.05, 0.1, 0.2, 0.4, 0.8)},
            paper={"lr": 0.2},
            scores={"distance": Score(lambda h: tail(h, "distance", 50))} | known,
            says=(
                says("distance", OURS, "/", FREE, 0.2),
                says("seconds", OURS, "/", WAITS, 0.3),
                says("distance", OURS, "/", WAITS, 2.5, tuned=2.5, headline=False),
                says("distance", OURS, "/", MEDIAN, headline=False),
                Inequality("distance", OURS, "/", FREE, setting=FAR, headline=False),
            ),
            ends={
                "lr low": "the slower a model moves, the less noise moves it",
                "lr high": "liars are as bad at all rates",
            },
            beside=shut_out,
            picture={"y": "distance", "x": "time", "log": True},
        ),
        Study(
            settings=images,
            arms=arms(SOFTMAX, None, (1.1, 1.25, 1.5, 2.0, 3.0), batch=16, judges=3, probe=64),
            ablations=(FREE, WAITS),
            model=SOFTMAX.init,
            rounds=ROUNDS,
            grid={"lr": (0.1, 0.3, 1.0, 3.0, 10.0)},
            paper={"lr": 0.1},
            scores={"accuracy": Score(lambda h: tail(h, "accuracy", 50), "high")} | known,
            says=(
                Inequality("accuracy", OURS, "-", FREE, 0.05),
                Inequality("accuracy", OURS, "-", MEDIAN, headline=False),
                Inequality("accuracy", OURS, "-", WAITS, -0.02, tuned=-0.02, headline=False),
            ),
            picture={"y": "accuracy", "x": "time"},
        ),
    ]
