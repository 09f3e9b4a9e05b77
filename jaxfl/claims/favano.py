"""Divided by the steps they are expected to do, fast and slow clients count alike; undivided, the fast ones lead.

Claim. A server that interrupts its clients and divides the progress of each by its expected number of steps has no bias
in favour of fast clients, waits for nobody, and outperforms the asynchronous and synchronous methods of its time, most
of all where slow clients hold classes of their own. The paper has MNIST, CIFAR-10 and TinyImageNet on 100 clients, a
third of them fast, a step of a client geometric.

Setting. Thirty clients, ten of which complete a step with probability 1/2 in a second and twenty with 1/16; a round of
four seconds, after which 6 are contacted, at most 20 steps between. Quadratics in R^5, `c_i ~ N(0, I)`, first
coordinate 2 more for the fast and 1 less for the slow, one small rate: where it stops, not how soon, as the mean over
the last quarter of 6,000 rounds, in units of the distance between the optimum and the point to which the numbers of
steps pull. Digits, the slow clients with 0 to 4 and the fast with 5 to 9, softmax regression, batch 4, 400 rounds: the
accuracy on 0 to 4 over the last quarter. FedBuff has 24 at work and takes 6 answers, FedAvg waits for 6; their jobs are
20 of these steps (gamma), and all end at the same time. The ablation is division by 1. Set after a first look: rates
up to 32, and how many rounds of FedBuff and FedAvg take as long.

Why. The setting. On quadratics it holds as the paper has it, as exactly as the means of its length tell, and on digits
for what the slow clients hold. Over all digits equal clients are the wrong aim: twenty of thirty hold 0 to 4, which an
unbiased server counts double, while the test has both halves alike. Divided by 1 the fast ten, who do seven times as
many steps, outweigh that, and score higher on both halves together. Divided by its steps a contact moves the model by
one mean gradient, undivided by up to twenty, so that at one rate FAVANO is also several times slower; rates of 8 and
more make up for most of that. FedBuff's bias is of the same kind, and larger. FedAvg waits six minutes for a round.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np
from scipy.stats import binom

from jaxfl.algorithms.asynchronous.favano import favano, quafl
from jaxfl.algorithms.asynchronous.fedbuff import fedbuff
from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.claims.evidence import check, tail
from jaxfl.claims.study import Arm, Inequality, Score, Setting, Study
from jaxfl.core import Metric, Scenario, Shards
from jaxfl.data import sets
from jaxfl.data.cut import in_order
from jaxfl.data.sets import generator
from jaxfl.learn.task import logistic_regression, quadratic
from jaxfl.world import cohort
from jaxfl.world.clock import buffered
from jaxfl.world.deadline import deadline
from jaxfl.world.durations import gamma
from jaxfl.world.scenario import scenario
from jaxfl.world.slices import slices

N, S, CAP, SLOTS, DIM = 30, 6, 20, 4, 5
RATE = np.array([0.5] * 10 + [1 / 16] * 20)
JOB = gamma(CAP / RATE, CAP)  # seconds of 20 steps
STOCHASTIC, DETERMINISTIC, NONE = "FAVANO, stochastic", "FAVANO, deterministic", "FAVANO, divided by 1"
QUAFL, FEDBUFF, FEDAVG = "QuAFL", "FedBuff", "FedAvg"
TIMED = "all run for the same time, in which others do more or less"
SOFTMAX = logistic_regression(64, 10)
SLOW = 5  # classes of the slow clients


def expected_steps(rate: np.ndarray, slots: int, cap: int, contacted: float) -> np.ndarray:
    """`E min(E_i, cap)` `[n]`, where a node is contacted after a slice with probability `contacted`."""
    waited = np.arange(1, 1 + int(np.ceil(np.log(1e-12) / np.log1p(-contacted))))
    often = contacted * (1 - contacted) ** (waited - 1)
    above = binom.sf(np.arange(cap)[:, None], slots * waited, np.asarray(rate)[:, None, None])  # [n, cap, waited]
    return above.sum(1) @ often


def sliced(world: Scenario) -> Scenario:
    """Six are contacted every four seconds."""
    return scenario(world.data, cohort=slices(cohort.uniform(N, S, np.ones(N)), RATE, SLOTS, cap=CAP, seconds=SLOTS))


def late(world: Scenario) -> Scenario:
    """Twenty-four at work, six answers."""
    return scenario(world.data, cohort=buffered(N, 24, S, JOB, weight=np.ones(N)))


def waiting(world: Scenario) -> Scenario:
    """Six at work, and all are waited for."""
    return scenario(world.data, cohort=deadline(cohort.uniform(N, S, np.ones(N)), JOB))


def quadratics(seed: int) -> dict[str, Setting]:
    """Other optima; the model is measured from the true optimum and from where the fast pull, in units between them."""
    centre = generator(seed).normal(size=(N, DIM))
    centre[:, 0] += np.where(RATE > 0.1, 2.0, -1.0)
    steps = expected_steps(RATE, SLOTS, CAP, S / N)
    true, pulled = centre.mean(0), steps @ centre / steps.sum()
    unit = np.linalg.norm(pulled - true)
    points = jnp.asarray(np.stack([true, pulled]), jnp.float32)
    names = [f"{name}{k}" for name in ("optimum", "pulled") for k in range(DIM)]

    def measure(arrays, x):
        away = ((x - arrays[0]) / arrays[1]).ravel()
        return {name: away[k] for k, name in enumerate(names)} | {"error": jnp.linalg.norm(away[:DIM])}

    curvature = jnp.tile(jnp.eye(DIM), (N, 1, 1))
    data = in_order(jnp.asarray(centre, jnp.float32), N, curvature)
    return {"quadratics": Setting(scenario(data), Metric(measure, (points, jnp.float32(unit))))}


def late_mean(history, column: str) -> np.ndarray:
    """The mean over the last quarter, by seed."""
    return tail(history, column, max(1, (history["round"].max() + 1) // 4))


def away(history, point: str) -> np.ndarray:
    """The distance of the mean model of the last quarter, by seed."""
    return np.linalg.norm([late_mean(history, f"{point}{k}") for k in range(DIM)], axis=0)


def digits(seed: int) -> dict[str, Setting]:
    """The slow clients share 0 to 4, the fast ones 5 to 9."""
    whole, rng = sets.digits(), generator(seed)
    y, parts = np.asarray(whole.y), []
    for slow in (False, True):
        mine = rng.permutation(np.flatnonzero((y < SLOW) == slow))
        parts += np.array_split(mine, (RATE < 0.1).sum() if slow else (RATE > 0.1).sum())
    size = np.array([len(p) for p in parts])
    begin = jnp.asarray(size.cumsum() - size, jnp.int32)
    order = jnp.asarray(np.concatenate(parts), jnp.int32)
    data = Shards(whole.x, jnp.asarray(whole.y), order, begin, jnp.asarray(size, jnp.int32), int(size.max()))

    def measure(arrays, x):
        right = jnp.argmax(SOFTMAX.predict(SOFTMAX.unravel(x), arrays[0]), -1) == arrays[1]  # type: ignore[misc]
        rare = arrays[1] < SLOW
        return {"accuracy": right.mean(), "slow_accuracy": jnp.where(rare, right, 0).sum() / rare.sum()}

    return {"digits": Setting(scenario(data), Metric(measure, (whole.test_x, whole.test_y)))}


def arms(task, batch: int | None, buffer: float, wait: float) -> dict[str, Arm]:
    """All systems; `buffer` and `wait` are how many rounds FedBuff and FedAvg have in the time of one slice."""
    kw = {"steps": CAP, "batch": batch}
    made = {STOCHASTIC: "stochastic", DETERMINISTIC: "deterministic", NONE: "none"}
    found = {name: Arm(partial(favano, task, reweight=how, **kw), world=sliced) for name, how in made.items()}
    found[QUAFL] = Arm(partial(quafl, task, **kw), world=sliced)
    found[FEDBUFF] = Arm(partial(fedbuff, task, longest=127, **kw), world=late, rounds=buffer)
    return found | {FEDAVG: Arm(partial(fedavg, task, **kw), world=waiting, rounds=wait)}


def stopped(scores) -> list:
    """The bounds on where each stops, in units of the distance between the two points."""
    at = lambda name, score: scores["paper", "quadratics", name][score]
    one, two = at(STOCHASTIC, "from the optimum"), at(DETERMINISTIC, "from the optimum")
    return [
        check(f"{STOCHASTIC}: distance from the optimum", one, "<=", 0.05),
        check(f"{DETERMINISTIC}: distance from the optimum", two, "<=", 0.05),
        check("difference of the two", np.abs(one - two), "<=", 0.02),
        check(f"{NONE}: distance from the point of the steps", at(NONE, "from the point of the steps"), "<=", 0.05),
        check(f"{NONE}: distance from the optimum", at(NONE, "from the optimum"), ">=", 0.9),
        check(f"{FEDBUFF}: distance from the optimum", at(FEDBUFF, "from the optimum"), ">=", 0.3),
    ]


def studies() -> list[Study]:
    """Quadratics, where all have one small rate, and digits."""
    buffer, wait = 0.13, 0.0105
    near = partial(Inequality, "from the optimum", op="/", untuned="there is one rate: where they stop is asked")
    kept = partial(Inequality, "accuracy on 0 to 4", op="-", costlier=TIMED)
    ours = (STOCHASTIC, DETERMINISTIC)
    return [
        Study(
            settings=quadratics,
            arms={k: a for k, a in arms(quadratic(DIM), 1, buffer, wait).items() if k != FEDAVG},
            ablations=(NONE,),
            model=lambda key: jnp.zeros(DIM),
            rounds=6000,
            grid={"lr": (0.01,)},
            paper={"lr": 0.01},
            scores={
                "from the optimum": Score(lambda h: away(h, "optimum")),
                "from the point of the steps": Score(lambda h: away(h, "pulled")),
            },
            says=(
                *(near(name, theirs=NONE, bound=1 / 18) for name in ours),
                *(near(name, theirs=FEDBUFF, bound=1 / 6, costlier=TIMED) for name in ours),
                *(near(name, theirs=QUAFL, bound=1 / 6, headline=False) for name in ours),
            ),
            every=10,
            beside=stopped,
            picture={"y": "error", "x": "time", "log": True},
        ),
        Study(
            settings=digits,
            arms=arms(SOFTMAX, 4, buffer, wait),
            ablations=(NONE,),
            model=SOFTMAX.init,
            rounds=400,
            grid={"lr": (0.1, 0.5, 2.0, 8.0, 32.0)},
            paper={"lr": 0.5},
            scores={
                "accuracy": Score(lambda h: late_mean(h, "accuracy"), "high"),
                "accuracy on 0 to 4": Score(lambda h: late_mean(h, "slow_accuracy"), "high"),
            },
            says=(
                kept(DETERMINISTIC, theirs=NONE, bound=0.05),
                kept(DETERMINISTIC, theirs=FEDBUFF),
                kept(STOCHASTIC, theirs=NONE, bound=0.05, headline=False),
                *(Inequality("accuracy", DETERMINISTIC, "-", theirs, costlier=TIMED) for theirs in (NONE, FEDBUFF)),
                Inequality("accuracy", DETERMINISTIC, "-", FEDAVG, headline=False),
            ),
            every=2,
            ends={"lr high": "from zeros a softmax regression becomes a perceptron, which knows no rate"},
            picture={"y": "accuracy", "x": "time"},
        ),
    ]
