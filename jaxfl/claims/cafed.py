"""Leaving out clients who are there rarely and in bursts makes training steadier, at no loss.

Claim. Bursts slow down unbiased aggregation; CA-Fed leaves out those for whom the bias costs less than it saves, and is
more accurate over time and steadier than Unbiased, AdaFed and F3AST: on MNIST 62.8 % on average over the rounds against
61.4, 60.5 and 61.5, with a standard deviation of 0.61 against 1.09 of Unbiased.

Setting. Part A: 24 quadratics `|x - b_k|^2 / 2` in 5 dimensions, all there half of the time with one memory, Unbiased,
one step of rate 0.01, 10,000 rounds from the optimum: `|x - x*|^2` over that without memory is
`(1 + memory) / (1 - memory)` to first order in the rate. Part B: logistic regression in 10 dimensions, 50 samples a
client, labels of one parameter; 12 clients are there for 0.9 of the rounds, 6 for 0.05 without memory, 6 for 0.05 with
memory 0.95, all known, as is the least loss of each client; 2 steps of the whole shard, 300 rounds, rate 1 and the
paper's kappa of 1. What is measured is the mean and the standard deviation over rounds 150 to 300 of the excess of the
loss over its optimum. A seed is another draw of availability. Changed after a first look, in which the least losses
were taken as 0: CA-Fed then left out two clients of three, and its excess was four times that of Unbiased at the plan's
kappa of 0.2; the authors' code knows the least losses. With them the plan's kappa is still too small.

Why. The setting, as far as tried; the code agrees with the equations in float64. What memory costs is the law's,
within 6 %. CA-Fed beats F3AST throughout, and Unbiased in the means over seeds: a quarter lower in excess and
deviation at the paper's point, a third and a half at the best rates. But seeds differ: in the second half of a run
there are two or three bursts on average, or none, where leaving clients out is nothing but a bias. So the mean over
seeds of the ratios misses the plan's 0.75, and AdaFed, which no burst can push further than a mean, is as good. What
CA-Fed takes away are the bad runs: its deviation differs between seeds by a third to a quarter of what that of the
others does. A kappa below 1 costs accuracy: half the clients are left out. On digits, IID over the same clients with
least losses of 0 (a trial of five seeds), nobody is ever left out at kappa 1, as nobody's loss stands out.
"""

from functools import cache, partial

import jax.numpy as jnp
import numpy as np

from jaxfl.algorithms.server.cafed import adafed, cafed, f3ast, unbiased_fedavg
from jaxfl.claims.evidence import Evidence, check, tail
from jaxfl.claims.study import Arm, Inequality, Score, Setting, Study
from jaxfl.core import Algorithm, Metric, Shards
from jaxfl.data import partition
from jaxfl.data.cut import in_order
from jaxfl.data.sets import from_arrays
from jaxfl.engine.run import run
from jaxfl.learn.task import logistic_regression, quadratic, scores
from jaxfl.world import availability, cohort
from jaxfl.world.scenario import scenario

M, ROUNDS = 24, 300
UP, MEMORY = np.repeat([0.9, 0.05, 0.05], [12, 6, 6]), np.repeat([0.0, 0.0, 0.95], [12, 6, 6])
RARE = "rare and in bursts"
OURS, PLAIN = "CA-Fed", "Unbiased"
TASK = logistic_regression(10, 2)
LOSSES = "the loss that a client reports is one number beside the models; F3AST takes 8 clients a round at most"


def world(shards: Shards):
    """All clients, as far as they are there."""
    return scenario(shards, cohort=cohort.everyone(M), churn=availability.markov(M, UP, MEMORY))


@cache
def separable() -> tuple[dict[str, Setting], np.ndarray]:
    """Labels of one logistic model, the loss over that of the best model; and the least loss of each client."""
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=10), rng.normal(size=(M * 50, 10))
    y = (rng.random(len(x)) < 1 / (1 + np.exp(-x @ w))).astype(int)
    data = from_arrays(x, y, x[:10], y[:10], clients=np.repeat(np.arange(M), 50))

    def measure(arrays, x):
        return {"excess": scores(TASK, x, *arrays[:2])["loss"] - arrays[2]}

    arrays = jnp.asarray(data.x), jnp.asarray(data.y), jnp.float32(least(x, y))
    each = [least(*pair) for pair in zip(np.split(x, M), np.split(y, M), strict=True)]
    return {RARE: Setting(world(partition.by_client(data)), Metric(measure, arrays))}, np.array(each)


def least(x: np.ndarray, y: np.ndarray) -> float:
    """The least logistic loss with an intercept."""
    from scipy.optimize import minimize

    x, sign = np.concatenate([x, np.ones((len(x), 1))], 1), np.where(y == 1, -1, 1)
    return float(minimize(lambda w: np.logaddexp(0, sign * (x @ w)).mean(), np.zeros(x.shape[1])).fun)


def arms() -> dict[str, Arm]:
    """CA-Fed and its baselines, with pi and lambda known to all."""
    known = {"up": UP, "memory": MEMORY, "steps": 2, "batch": None}
    kappa = {"grid": {"kappa": (0.5, 1.0, 2.0, 5.0)}, "paper": {"kappa": 1.0}}
    return {
        OURS: Arm(partial(cafed, TASK, optimum=separable()[1], **known), **kappa),
        PLAIN: Arm(partial(unbiased_fedavg, TASK, **known)),
        "AdaFed": Arm(partial(adafed, TASK, **known)),
        "F3AST": Arm(partial(f3ast, TASK, most=8, **known)),
    }


def wobble(history) -> np.ndarray:
    """Standard deviation over the second half of the rounds, by seed."""
    late = history[history["round"] > history["round"].max() / 2]
    return late.groupby("seed")["excess"].std().to_numpy()


def studies() -> list[Study]:
    """The plan's regression."""
    says = partial(Inequality, ours=OURS, op="/", costlier=LOSSES)

    def against(theirs: str, bound: float | None = None) -> tuple[Inequality, ...]:
        excess = says("excess", theirs=theirs, headline=theirs == PLAIN)
        return says("deviation", theirs=theirs, bound=bound), excess

    return [
        Study(
            settings=separable()[0],
            arms=arms(),
            ablations=(PLAIN,),
            model=TASK.init,
            rounds=ROUNDS,
            every=2,
            grid={"lr": (0.01, 0.03, 0.1, 0.3, 1.0)},
            paper={"lr": 1.0},
            scores={
                "excess": Score(lambda h: tail(h, "excess", h["round"].max() // 2)),
                "deviation": Score(wobble),
            },
            says=(*against(PLAIN, 0.75), *against("AdaFed"), *against("F3AST")),
            picture={"y": "excess", "log": True},
            ends={f"kappa {end}": "beyond it nearly all, or nearly nobody, is left out" for end in ("low", "high")},
        )
    ]


def counting(make, **own) -> Algorithm:
    """A system that also logs how many of the two rare kinds it uses."""
    inner = make(TASK, up=UP, memory=MEMORY, steps=2, batch=None, lr=1.0, **own)

    def round(key, env, s):
        new, log = inner.round(key, env, s)
        used = (env.alive & (new.shared["q"] > 0)).astype(jnp.float32)
        return new, log | {"in_bursts": used[18:].sum(), "alone": used[12:18].sum()}

    return inner._replace(round=round)


def extra(seeds: int, small: bool) -> Evidence:
    """What memory costs; who is used, and with what, for every kappa."""
    import pandas as pd

    b = np.random.default_rng(0).normal(size=(M, 5))
    eye = jnp.broadcast_to(jnp.eye(5), (M, 5, 5))
    shards = in_order(jnp.asarray(b, jnp.float32), M, eye)
    best = jnp.asarray(b.mean(0), jnp.float32)
    gap = Metric(lambda best, x: {"gap": ((x - best) ** 2).sum()}, best)
    bare = partial(unbiased_fedavg, quadratic(5), steps=1, batch=None, up=np.full(M, 0.5), memory=np.zeros(M))
    rounds, every = (4, 2) if small else (10_000, 20)
    kw = {"hyper": {"lr": [0.01]}, "seeds": 2 * seeds, "every": every, "evaluate": gap, "progress": False}
    error, rows, checks = {}, {}, []
    for memory in (0.0, -0.5, 0.5, 0.8, 0.9):
        place = scenario(shards, cohort=cohort.everyone(M), churn=availability.markov(M, 0.5, memory))
        h = run(bare, place, best, rounds, **kw).history
        error[memory] = h[h["round"] > rounds / 10]["gap"].mean()
        off = error[memory] / error[0.0] * (1 - memory) / (1 + memory) - 1
        rows["extra", "part A", f"memory {memory:g}"] = {"gap": error[memory], "over the law": 1 + off}
        if memory:
            what = f"memory {memory:g}: error over that without, off its law"
            checks.append(check(what, abs(off), "<=", 0.15, "headline"))
    place, last = separable()[0][RARE], 4 if small else ROUNDS
    kw = {"evaluate": place.evaluate, "seeds": 2 * seeds, "every": 1, "progress": False}
    kappas = {"kappa": [0.1, 0.2, 0.5, 1.0]}
    ours = run(
        partial(counting, cafed, optimum=separable()[1]), place.world, TASK.init, last, hyper=kappas, **kw
    ).history
    plain = run(counting(unbiased_fedavg), place.world, TASK.init, last, **kw).history
    used = {}
    for kappa, h in [(None, plain), *ours.groupby("kappa")]:
        late = h[h["round"] > last / 2]
        used[kappa] = late[["in_bursts", "alone"]].sum()
        each, name = late.groupby("seed")["excess"], PLAIN if kappa is None else f"kappa {kappa:g}"
        rows["extra", RARE, name] = {"excess": each.mean().mean(), "deviation": each.std().mean()}
        rows["extra", RARE, name] |= (used[kappa] / used[None]).to_dict()
    at = used[1.0] / used[None]
    checks += [
        check("kappa 1: uses of those in bursts, over Unbiased", at["in_bursts"], "<=", 0.5),
        check("kappa 1: uses of the rare without memory, over Unbiased", at["alone"], ">=", 0.6),
    ]
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(["point", "setting", "system"])
    return Evidence(table, checks)
