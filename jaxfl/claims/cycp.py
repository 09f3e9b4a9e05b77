"""Clients that come group after group, each whole, take the noise of sampling out of FedAvg: 1 / T^2 in place of 1 / T.

Claim. Under cyclic participation FedAvg can converge faster than under uniform sampling of as many clients: with N the
size of a group the term in 1 / T is gone, for full gradients and for shuffled passes (SSGD); with N smaller it is the
unlikeness within the groups alone that counts. The paper's experiments: Fashion-MNIST and EMNIST, Dirichlet splits.

Setting. 100 quadratics in 10 dimensions, curvatures uniform on [0.5, 2] along the axes, optima N(0, I), 10 groups, 5
local steps, lr = c log(T) / T with c tried for each; T = 3200 decides, T = 200 to 3200 gives the slopes of
`|x - x*|^2`. SSGD: least squares in 10 dimensions, 20 samples a client, models `w + 1.5 N(0, I)` of their own, one
pass in 4 batches. Images: Fashion-MNIST, 2,000 images, Dirichlet 0.3 over 100 clients, perceptron of 16 units, 5 steps
of batch 16, 10 a round, 150 rounds at a constant rate. Alike: optima are 0.9 a centre of their group, 0.44 their own,
and the same clients are dealt to groups at random for comparison. A seed is another draw of data and cohorts.
Set after a first look: the two least c, as 0.15 was best at the end of the grid.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np

from jaxfl.algorithms.server.cycp import cycp
from jaxfl.claims.evidence import Evidence, check, tail
from jaxfl.claims.images import SIZE, everything, fashion, stand_in
from jaxfl.claims.study import Arm, Inequality, Score, Setting, Study
from jaxfl.core import Metric, Scenario, Shards
from jaxfl.data import partition, synthetic
from jaxfl.data.cut import in_order
from jaxfl.data.sets import Dataset
from jaxfl.engine.run import run
from jaxfl.learn.task import Task, classification, linear_regression, quadratic, scores
from jaxfl.models.networks import MLP
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario

DATA = (everything,)
M, D, GROUPS, SAMPLE, STEPS = 100, 10, 10, 10, 5
RATES, HORIZONS, DECIDES = (0.0375, 0.075, 0.15, 0.3, 0.6, 1.2), (200, 800, 3200), 3200
QUADRATICS, SQUARES, IMAGES = "quadratics", "least squares, passes", "images"
OURS, UNIFORM = "CyCP", "FedAvg, uniform"
TASK, LINEAR = quadratic(D), linear_regression(D)
NET = classification(partial(MLP, (SIZE, 16, 10)), np.zeros((1, SIZE), np.float32))


def start(key) -> jnp.ndarray:
    """Away from all optima."""
    del key
    return jnp.ones(D)


def distance(optimum: np.ndarray) -> Metric:
    """The squared distance of the server's model from the optimum."""
    return Metric(lambda best, x: {"error": ((x - best) ** 2).sum()}, jnp.asarray(optimum, jnp.float32))


def bowls(seed: int, alike: float = 0.0) -> tuple[Shards, Metric]:
    """The quadratics: a share `alike` of the variance of their optima is that of successive tens of clients."""
    rng = np.random.default_rng(seed)
    curve, centre = rng.uniform(0.5, 2, (M, D)), np.repeat(rng.normal(size=(GROUPS, D)), M // GROUPS, 0)
    b = np.sqrt(alike) * centre + np.sqrt(1 - alike) * rng.normal(size=(M, D))
    a = jnp.asarray(curve[:, :, None] * np.eye(D), jnp.float32)
    shards = in_order(jnp.asarray(b, jnp.float32), M, a)
    return shards, distance((curve * b).sum(0) / curve.sum(0))


def passes(seed: int) -> dict[str, Setting]:
    """Least squares with 20 samples a client."""
    data = partition.by_client(synthetic.linear_regression_clients(M, samples=20, seed=seed))
    x, y = np.asarray(data.x, np.float64), np.asarray(data.y, np.float64)
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    return {SQUARES: Setting(scenario(data, cohort=cohort.in_turn(M, SAMPLE, GROUPS)), distance(best))}


def images(data: Dataset) -> dict[str, Setting]:
    """A Dirichlet split."""
    shards = partition.dirichlet(data, M, 0.3, seed=0, min_size=2)
    sets = {"train": (data.x, data.y), "test": (data.test_x, data.test_y)}

    def measure(arrays, x):
        each = {name: scores(NET, x, *pair) for name, pair in arrays.items()}
        return {"train_loss": each["train"]["loss"], "accuracy": each["test"]["accuracy"]}

    sets = {name: tuple(map(jnp.asarray, pair)) for name, pair in sets.items()}
    return {IMAGES: Setting(scenario(shards, cohort=cohort.in_turn(M, SAMPLE, GROUPS)), Metric(measure, sets))}


def uniformly(world: Scenario) -> Scenario:
    """The same world in which ten clients are drawn of all."""
    return scenario(world.data, cohort=cohort.uniform(M, SAMPLE))


def paced(task: Task, rounds: int, **kw):
    """CyCP (FedAvg, where nobody takes turns) of a constant `c` in lr = c log(T) / T."""
    return lambda c: cycp(task, lr=c * np.log(rounds) / rounds, **kw)


def arms(make, **more: Arm) -> dict[str, Arm]:
    """Groups in turn, and as many clients drawn of all."""
    return {OURS: Arm(make), UNIFORM: Arm(make, world=uniformly), **more}


def studies() -> list[Study]:
    """Images, quadratics, least squares: the same clients a round."""
    last = lambda column: Score(lambda h: tail(h, column, 1))
    by_c = {"grid": {"c": RATES}, "paper": {"c": 0.6}, "model": start, "every": DECIDES // 8}
    says = partial(Inequality, ours=OURS, op="/", theirs=UNIFORM)
    sampled = paced(LINEAR, DECIDES, steps=4, batch=5)
    slow = {"rounds": DECIDES, "scores": {"error": last("error")}, "picture": {"y": "error", "log": True}}
    return [
        Study(
            settings=lambda seed: images(fashion(2000, 1000, seed)),
            stand_in=lambda seed: images(stand_in(400, 50, seed)),
            arms=arms(partial(cycp, NET, steps=5, batch=16)),
            ablations=(UNIFORM,),
            model=NET.init,
            rounds=150,
            every=10,
            grid={"lr": (0.03, 0.1, 0.3, 1.0)},
            paper={"lr": 0.1},
            scores={
                "train_loss": Score(lambda h: tail(h, "train_loss", 50)),
                "accuracy": Score(lambda h: tail(h, "accuracy", 50), "high"),
            },
            says=(says("train_loss"), Inequality("accuracy", OURS, "-", UNIFORM)),
        ),
        Study(
            settings=lambda seed: {
                QUADRATICS: Setting(scenario(bowls(seed)[0], cohort=cohort.in_turn(M, SAMPLE, GROUPS)), bowls(seed)[1])
            },
            arms=arms(paced(TASK, DECIDES, steps=STEPS, batch=None)),
            ablations=(UNIFORM,),
            says=(says("error", tuned=0.05),),
            **by_c,
            **slow,
        ),
        Study(
            settings=passes,
            arms=arms(paced(LINEAR, DECIDES, epochs=1, batch=5), **{"CyCP, sampled batches": Arm(sampled)}),
            ablations=(UNIFORM, "CyCP, sampled batches"),
            says=(says("error"), says("error", theirs="CyCP, sampled batches")),
            **by_c,
            **slow,
        ),
    ]


def horizon(seeds: int, c: int, grouped: str, horizons: tuple, most: int) -> np.ndarray:
    """The error of the best rate by horizon and seed `[T, s]`: `c` clients a round, of all or of groups in turn."""
    found = np.zeros((len(horizons), seeds))
    for seed in range(seeds):
        shards, measure = bowls(seed, 0.0 if grouped in ("", "any") else 0.8)
        shuffled = np.random.default_rng(seed).permutation(M) * GROUPS // M
        groups = shuffled if grouped == "dealt" else np.arange(M) * GROUPS // M
        who = cohort.uniform(M, c) if grouped == "" else cohort.in_turn(M, c, groups)
        world = scenario(shards, cohort=who)
        for k, rounds in enumerate(horizons):
            make = partial(cycp, TASK, steps=STEPS, batch=None)
            rates = [r * np.log(rounds) / rounds for r in RATES]
            kw = {"seed": seed, "seeds": 1, "hyper": {"lr": rates}, "progress": False}
            history = run(make, world, start, rounds, every=most, evaluate=measure, **kw).history
            found[k, seed] = history[history["round"] == rounds].groupby("lr")["error"].first().min()
    return found


def extra(seeds: int, small: bool) -> Evidence:
    """Slopes over the horizon, fewer clients than a group has, groups of like clients."""
    import pandas as pd

    horizons, every = ((2, 4), 2) if small else (HORIZONS, HORIZONS[0])
    error = {
        (c, how): horizon(seeds, 10 if small else c, how, horizons, every)  # two programs in place of six
        for c, how in ((10, "any"), (10, ""), (5, "any"), (5, ""), (1, "any"), (1, ""), (5, "alike"), (5, "dealt"))
    }
    slope = {k: np.polyfit(np.log(horizons), np.log(v), 1)[0] for k, v in error.items()}
    ratio = {c: error[c, ""].mean(1) / error[c, "any"].mean(1) for c in (10, 5, 1)}
    checks = [
        check("N = 10: slope of the error of CyCP over T", slope[10, "any"], "<=", -1.5, "headline"),
        check("N = 10: slope of the error of uniform sampling over T", slope[10, ""], ">=", -1.3, "headline"),
        check("N = 1: least error of uniform sampling over that of CyCP, over T", ratio[1].min(), ">=", 0.5),
        check("N = 1: largest error of uniform sampling over that of CyCP, over T", ratio[1].max(), "<=", 2.5),
        check("N = 5: error of uniform sampling over that of CyCP, largest T", ratio[5][-1], ">", ratio[1][-1]),
        check("N = 5: the same, below that of N = 10", ratio[5][-1], "<", ratio[10][-1]),
        check("N = 5: like groups over dealt groups, largest T", error[5, "alike"][-1] / error[5, "dealt"][-1], "<", 1),
    ]
    names = {"any": "groups", "": "uniform", "alike": "like groups", "dealt": "like clients, dealt"}
    rows = {
        ("extra", f"quadratics, N = {c}", names[how]): {
            f"error at {T}": e for T, e in zip(horizons, v.mean(1), strict=True)
        }
        | {"slope": slope[c, how].mean()}
        for (c, how), v in error.items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(["point", "setting", "system"])
    return Evidence(table, checks)
