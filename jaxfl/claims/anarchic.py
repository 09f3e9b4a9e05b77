"""Clients who come when they like bias a server that hears them alone, and not one that remembers what all sent last.

Claim. Both algorithms converge as fast as synchronous federated learning although clients choose when they take part,
for how many steps, and from how old a model; speed grows linearly with the members of a round; where some come more
often than others, the memory of all clients' last messages (AFA-CS) takes away the floor that is left without it
(AFA-CD). On images and text both come near to FedAvg.

Setting. 20 quadratics of curvature 1 in R^5 with optima `N(0, I)`, the first coordinate from -2 to 2; five come a
round, one after the other with chances from 1 to 8 in the order of that coordinate, or alike; delays of 0 to 5
versions and 1 to 10 local steps of rate 0.01, drawn anew; 2,000 rounds, no noise: the distance to the optimum of the
mean over the last 500. Gradient noise of standard deviation 1 on clients who are alike, 2 or 8 of 20 a round: the
squared distance. Digits of scikit-learn, two label slices a client, 10 clients, five a round with chances from 1 to 8,
delays and steps as above, batch 16, softmax regression, 200 rounds: test accuracy over the last 50. FedAvg has uniform
members without delays who run all ten steps. A seed is another draw of data. The server's
rate is 5. The grid on digits was widened upwards after a first run.
"""

from collections.abc import Mapping
from functools import partial

import jax.numpy as jnp
import numpy as np
import optax

from jaxfl.algorithms.asynchronous.anarchic import afa_cd, afa_cs
from jaxfl.algorithms.server.fedopt import fedopt
from jaxfl.claims.evidence import Check, check, tail
from jaxfl.claims.study import Arm, Inequality, Score, Setting, Study
from jaxfl.core import Metric, Process, Scenario
from jaxfl.data import partition
from jaxfl.data.cut import in_order
from jaxfl.data.sets import digits
from jaxfl.learn.task import logistic_regression, quadratic, quadratic_noise
from jaxfl.measure.metrics import shared_test
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario
from jaxfl.world.uneven import successive
from jaxfl.world.work import delayed, random_steps

N, D, DELAY, MOST = 20, 5, 5, 10
CD, CS, SYNC = "AFA-CD", "AFA-CS", "FedAvg, synchronous"
UNEVEN, EVEN, NOISY, IMAGES = "uneven arrivals", "even arrivals", "noise, alike", "digits, uneven arrivals"
SOFTMAX = logistic_regression(64, 10)


def anarchy(members: Process) -> Process:
    """Members who come late and run as many steps as they like."""
    return delayed(random_steps(members, MOST), DELAY)


def distance(optimum: np.ndarray) -> Metric:
    """How far the model is from `optimum`, and the square of that."""

    def measure(where, x):
        square = ((x - where) ** 2).sum()
        return {"distance": jnp.sqrt(square), "square": square}

    return Metric(measure, jnp.asarray(optimum, jnp.float32))


def quadratics(seed: int) -> dict[str, Setting]:
    """Optima ordered as the chances to take part, which are uneven or not."""
    b = np.random.default_rng(seed).normal(size=(N, D)).astype(np.float32)
    b[:, 0] = np.linspace(-2, 2, N)
    curvature = jnp.broadcast_to(jnp.eye(D), (N, D, D))
    data = in_order(b, N, curvature)
    chances = {UNEVEN: np.linspace(1, 8, N), EVEN: np.ones(N)}
    world = lambda p: scenario(data, cohort=anarchy(successive(N, 5, p)))
    return {name: Setting(world(p), distance(b.mean(0))) for name, p in chances.items()}


def noisy(seed: int) -> dict[str, Setting]:
    """Clients of one optimum, 0, with 200 noisy samples each."""
    xi = np.random.default_rng(seed).normal(size=(N, 200, D)).astype(np.float32)
    xi = (xi - xi.mean(1, keepdims=True)).reshape(-1, D)
    curvature = jnp.broadcast_to(jnp.eye(D), (len(xi), D, D))
    data = in_order(jnp.zeros(xi.shape), N, (curvature, xi))
    return {NOISY: Setting(scenario(data, cohort=anarchy(cohort.uniform(N, 2))), distance(np.zeros(D)))}


def images(seed: int) -> dict[str, Setting]:
    """Another split of the digits, two label slices a client."""
    data = digits()
    split = partition.pathological(data, 10, 2, seed)
    test = shared_test(SOFTMAX, jnp.asarray(data.test_x), jnp.asarray(data.test_y))
    return {IMAGES: Setting(scenario(split, cohort=anarchy(successive(10, 5, np.linspace(1, 8, 10)))), test)}


def of(members: Process, world: Scenario) -> Scenario:
    """The world with other members."""
    return scenario(world.data, cohort=members)


def even_or_not(scores: Mapping) -> list[Check]:
    """AFA-CD has no floor where all come alike."""
    pair = [scores["paper", where, CD]["distance"] for where in (EVEN, UNEVEN)]
    return [check("distance of AFA-CD, even over uneven arrivals, paper points", pair[0] / pair[1], "<", 0.5)]


def studies() -> list[Study]:
    """Bias by uneven arrivals, speed by members, and digits."""
    kw = {"longest": DELAY, "steps": MOST, "batch": None}
    make = lambda system, task, **more: partial(system, task, **(kw | more))
    plain, noise = quadratic(D), quadratic_noise(D, 1.0)
    more = "that a round with more members costs more is what is bought"
    longer = "it runs all ten steps; members of the others run 5.5 on average"

    def fedavg(lr, server_lr):
        del server_lr
        return fedopt(SOFTMAX, local=optax.sgd(lr), steps=MOST, batch=16)

    return [
        Study(
            settings=quadratics,
            arms={
                CD: Arm(make(afa_cd, plain), {"lr": 0.01}),
                CS: Arm(make(afa_cs, plain), {"lr": 0.01}),
            },
            ablations=(CD,),
            model=lambda key: jnp.zeros(D),
            rounds=2000,
            grid={"server_lr": (0.6, 1.25, 2.5, 5.0, 10.0, 20.0)},
            paper={"server_lr": 5.0},
            scores={"distance": Score(lambda h: tail(h, "distance", 500))},
            says=(
                Inequality("distance", CS, "/", CD, 0.2, setting=UNEVEN, every_seed=True),
                Inequality("distance", CS, "/", CD, setting=EVEN, headline=False),
            ),
            every=10,
            ends={"server_lr low": "rates only change how fast a floor is reached, and how noisy it is"},
            beside=even_or_not,
            picture={"y": "distance", "log": True},
        ),
        Study(
            settings=noisy,
            arms={
                f"{CD}, m = 2": Arm(make(afa_cd, noise, batch=1), {"lr": 0.01}),
                f"{CD}, m = 8": Arm(
                    make(afa_cd, noise, batch=1), {"lr": 0.01}, world=partial(of, anarchy(cohort.uniform(N, 8)))
                ),
            },
            ablations=(f"{CD}, m = 2",),
            model=lambda key: jnp.zeros(D),
            rounds=2000,
            grid={"server_lr": (2.5, 5.0, 10.0)},
            paper={"server_lr": 5.0},
            scores={"square": Score(lambda h: tail(h, "square", 1500))},
            says=(
                Inequality(
                    "square",
                    f"{CD}, m = 8",
                    "/",
                    f"{CD}, m = 2",
                    1 / 3,
                    costlier=more,
                    untuned="the smallest rate is always the least noisy",
                ),
            ),
            every=10,
            ends={"server_lr low": "the floor of noise shrinks with the rate"},
            picture={"y": "square", "log": True},
        ),
        Study(
            settings=images,
            arms={
                CD: Arm(make(afa_cd, SOFTMAX, batch=16)),
                CS: Arm(make(afa_cs, SOFTMAX, batch=16)),
                SYNC: Arm(fedavg, world=partial(of, cohort.uniform(10, 5))),
            },
            ablations=(CD,),
            model=SOFTMAX.init,
            rounds=200,
            grid={"lr": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0), "server_lr": (1.5, 5.0, 15.0)},
            paper={"lr": 0.1, "server_lr": 5.0},
            scores={"accuracy": Score(lambda h: tail(h, "accuracy", 50), "high")},
            says=(
                Inequality("accuracy", CS, "-", CD),
                Inequality("accuracy", CS, "-", SYNC, -0.03, tuned=-0.03, headline=False, costlier=longer),
                Inequality("accuracy", CD, "-", SYNC, -0.05, tuned=-0.05, headline=False, costlier=longer),
            ),
            ends={f"server_lr {end}": "what counts is its product with lr" for end in ("low", "high")},
            picture={"y": "accuracy"},
        ),
    ]
