"""Dividing local steps by one shared diagonal makes local SGD faster, most where curvatures are unlike.

Claim. One analysis holds for local steps scaled by any diagonal that all clients share and refresh where they meet; in
training networks the scaled methods need fewer rounds. The paper has ResNet-18 on CIFAR-10, ten clients, each with a
main class.

Setting. Quadratics of ten clients in 20 dimensions, curvatures from 0.01 to 32 times 0.7 to 1.3 by client, optima
1 + 0.3 N(0, I), gradient noise 0.01; 10 local steps, 300 rounds, until f - f* is below 0.01 ("isotropic": all
curvatures 1 times 0.7 to 1.3). Digits with a perceptron of 50 units, ten clients, each with a main class that comes to
it twenty times as often; 10 steps of batch 16, 60 rounds, until the test accuracy is 0.9. `rounds` of a run that never
gets there are all of them, times how far it is. Adam with beta 0.999, OASIS with 0.99, alpha 0.01. Ablations: no
scaling, and every client's own diagonal.

Why. The setting, in the network: clients who differ by a main class have gradients of much the same sizes, so that
their own diagonals are as good as a shared one, within a round. Where curvatures differ, own diagonals pull the mean to
another point and never get there, which is what the shared one is for. Local SGD with its best rate needs one round
more than SAVIC in the network, and two vectors a round cost more bits than that saves; on quadratics it needs fifty
times as many. That is the first time at the target: SAVIC-Adam passes it in round four, is beside local SGD at 0.013
after fifty, and ends at 0.1, as its diagonal shrinks with the gradient and its steps grow; SAVIC-OASIS stays below, at
0.002, and FedAdam, at the target fifteen times later, ends at 0.0001. With equal curvatures the tuned methods are
equal: what is gained is conditioning. FedAdam's grid of server rates was widened after a first look, where it was best
at its end.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from jaxfl.algorithms.server.fedopt import fedadam, fedopt
from jaxfl.algorithms.server.savic import savic
from jaxfl.claims.evidence import first_at, tail
from jaxfl.claims.study import Arm, Inequality, Score, Setting, Study
from jaxfl.core import Metric
from jaxfl.data import partition
from jaxfl.data.cut import in_order
from jaxfl.data.sets import digits, generator
from jaxfl.learn.task import Task, classification, quadratic_noise
from jaxfl.measure.metrics import shared_test
from jaxfl.models.networks import MLP
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario

M, DIM, SIGMA, ROUNDS = 10, 20, 0.01, 300
UNLIKE, ALIKE, NET = "unlike curvatures", "isotropic", "digits"
SGD, ADAM, OASIS, OWN = "Local SGD", "SAVIC-Adam", "SAVIC-OASIS", "own diagonals"
FAST = "SAVIC-Adam, beta 0.9"


def quadratics(curvature: np.ndarray, seed: int, samples: int = 32) -> Setting:
    """Ten clients around one diagonal `curvature` `[d]`; a sample's noise sums to zero at every client."""
    rng, d = generator(seed), len(curvature)
    a, b = curvature * rng.uniform(0.7, 1.3, (M, d)), 1 + 0.3 * rng.normal(size=(M, d))
    xi = rng.normal(size=(M, samples, d))
    xi -= xi.mean(1, keepdims=True)
    each = lambda v: jnp.asarray(np.repeat(v, samples, 0), jnp.float32)
    x, y = (each(a[:, :, None] * np.eye(d)), jnp.asarray(xi.reshape(-1, d), jnp.float32)), each(b)
    shards = in_order(y, M, x)
    best = (a * b).sum(0) / a.sum(0)
    arrays = tuple(jnp.asarray(v, jnp.float32) for v in (a.mean(0), best))
    measure = lambda arrays, x: {"excess": 0.5 * (arrays[0] * (x - arrays[1]) ** 2).sum()}
    return Setting(scenario(shards, cohort=cohort.everyone(M, np.ones(M))), Metric(measure, arrays))


def both(seed: int) -> dict[str, Setting]:
    """Curvatures over three and a half decades, and all alike."""
    return {UNLIKE: quadratics(np.logspace(-2, 1.5, DIM), seed), ALIKE: quadratics(np.ones(DIM), seed)}


def network(task: Task, seed: int) -> dict[str, Setting]:
    """Digits of ten clients with a main class each."""
    data = digits()
    shards = partition.primary_labels(data, M, 1, 19.0, seed, min_size=16)
    test = shared_test(task, jnp.asarray(data.test_x), jnp.asarray(data.test_y))
    return {NET: Setting(scenario(shards, cohort=cohort.everyone(M)), test)}


def arms(task: Task, batch: int) -> dict[str, Arm]:
    """With a shared diagonal, with none, with their own."""
    made = partial(savic, task, steps=10, batch=batch)
    return {
        SGD: Arm(partial(made, rule="identity"), paper={"lr": 0.03}),
        ADAM: Arm(made, {"beta": 0.999}),
        OWN: Arm(partial(made, shared=False), {"beta": 0.999}),
    }


def beside(task: Task) -> dict[str, Arm]:
    """Other scalings and adaptive methods, on the quadratics."""
    kw: dict[str, Any] = {"steps": 10, "batch": 1}
    made = partial(savic, task, **kw)
    server = {"grid": {"server_lr": (0.03, 0.1, 0.3, 1.0, 3.0)}, "paper": {"server_lr": 0.1, "lr": 0.03}}
    return {
        OASIS: Arm(partial(made, rule="oasis"), {"beta": 0.99}),
        FAST: Arm(made, {"beta": 0.9}),
        "Local Adam": Arm(lambda lr: fedopt(task, local=optax.adam(lr), **kw), paper={"lr": 0.03}),
        "FedAdam": Arm(partial(fedadam, task, **kw), **server),
    }


def rounds_to(history, column: str, target: float, *, least: bool = False) -> np.ndarray:
    """Rounds until `column` is there; of a run that never is, all, times how far it stays (at least once)."""
    found, last = first_at(history, column, target, least=least), tail(history, column, 1)
    far = target / np.maximum(last, 1e-9) if least else last / target
    far = np.where(np.isfinite(far), np.maximum(far, 1), np.inf)
    return np.where(np.isfinite(found), found, history["round"].max() * far)


def studies() -> list[Study]:
    """A network, and quadratics in closed form."""
    net, noisy = classification(partial(MLP, (64, 50, 10)), np.zeros((1, 64), np.float32)), quadratic_noise(DIM, SIGMA)
    more = "the paper counts rounds; a round of SAVIC sends two vectors up and two down"
    says = partial(Inequality, "rounds", costlier=more)
    return [
        Study(
            settings=partial(network, net),
            arms=arms(net, 16),
            ablations=(SGD, OWN),
            model=net.init,
            rounds=60,
            every=1,
            grid={"lr": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)},
            paper={"lr": 0.01},
            scores={"rounds": Score(lambda h: rounds_to(h, "accuracy", 0.9, least=True))},
            says=(says(ADAM, "/", SGD), says(ADAM, "/", OWN)),
            picture={"y": "accuracy"},
        ),
        Study(
            settings=both,
            arms=arms(noisy, 1) | beside(noisy),
            ablations=(SGD, OWN),
            model=noisy.init,
            rounds=ROUNDS,
            every=1,
            grid={"lr": tuple(float(f"{v:.2g}") for v in np.logspace(-4, 0, 13))},
            paper={"lr": 0.1},
            scores={
                "rounds": Score(lambda h: rounds_to(h, "excess", 1e-2)),
                "plateau": Score(lambda h: tail(h, "excess", 100)),
            },
            says=(
                says(ADAM, "/", SGD, 0.1, setting=UNLIKE, tuned=0.1),
                says(OASIS, "/", SGD, 0.1, setting=UNLIKE, tuned=0.1),
                says(ADAM, "/", OWN, setting=UNLIKE),
                says(ADAM, "/", "Local Adam", setting=UNLIKE, headline=False),
                says(ADAM, "/", "FedAdam", setting=UNLIKE, headline=False),
                says(SGD, "/", ADAM, 2.0, setting=ALIKE, tuned=2.0, headline=False),
                says(ADAM, "/", SGD, 2.0, setting=ALIKE, tuned=2.0, headline=False),
                Inequality("plateau", ADAM, "/", FAST, setting=UNLIKE, headline=False),
            ),
            picture={"y": "excess", "log": True},
        ),
    ]
