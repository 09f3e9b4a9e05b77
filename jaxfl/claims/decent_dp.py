"""Gossip is faster than all-reduce where it hides, links are unlike or workers vary; accumulation makes up for batches.

Claim. The paper: (1) decentralized training shortens an iteration where communication overlaps, links between machines
are dearer than within, or computing times vary, and its run-time model says by how much; (2) DAdam converges with
overlap; (3) accumulating gradients for the moments closes the gap that small local batches open to all-reduce Adam.

Setting. Its clusters of 64 GPUs are not at hand. Run time: 8 machines of 4 workers, an iteration's computing time
Gamma of mean 1 and deviation 0.2, in 2 % of iterations three times as long; an exchange takes 0.5 between machines and
0.1 within one, an all-reduce of all 0.5, of which 0.6 hide behind the backward pass; 3,000 iterations. AER overlaps by
`max_plus.grouped`. Optimiser: digits, 16 workers on the hypercube, one peer a round, all samples spread evenly, batch 2
a worker, perceptron 64-64-10, 1,200 iterations, period 8, betas 0.9 and 0.999, models exchanged while gradients are
computed; training loss of the mean model, over the last 100 iterations. A seed is another split, model and batches. All
bounds are the plan's; the rate 0.1 came after a first look, as best points lay at 0.03, then the largest.

Beside the headline one thing is not true: at the best rate, 30 times the paper's, to exchange models while gradients
are computed leaves nearly twice the loss of doing so afterwards, in two seeds of three. There a step is large beside
what a model that is one step old still says; both losses are near 0 (0.007 and 0.004). At the paper's rate they are
level.
"""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxfl.algorithms.gossip.decent_dp import dadam, decent_dp
from jaxfl.algorithms.server.fedopt import fedopt
from jaxfl.claims.evidence import Check, Evidence, check, tail
from jaxfl.claims.study import POINTS, Arm, Inequality, Score, Setting, Study
from jaxfl.core import Array
from jaxfl.data import partition
from jaxfl.data.sets import digits
from jaxfl.learn.task import Task, classification
from jaxfl.measure.metrics import shared_test
from jaxfl.models.networks import MLP
from jaxfl.world import groups, max_plus
from jaxfl.world.durations import Seconds, fixed, gamma
from jaxfl.world.scenario import scenario

MACHINES, LOCAL, INSIDE, HIDDEN, SLOWER = 8, 4, 0.1, 0.6, 3.0
WORKERS, BATCH, PERIOD, ROUNDS = 16, 2, 8, 1200
PLACE = "digits, batch 2"
BETAS: dict[str, Any] = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}
OURS, PLAIN, SERVER = "AccumAdam", "DAdam", "all-reduce Adam"


def computing(deviation: float, straggling: float) -> Seconds:
    """Gamma of mean 1, in a share of all iterations `SLOWER` times as long."""
    inner = gamma(1.0, deviation**-2) if deviation else fixed(1.0)

    def draw(key: Array, arrays: dict, i: Array) -> Array:
        late = jax.random.uniform(jax.random.fold_in(key, 1)) < arrays["straggling"]
        return jnp.where(late, SLOWER, 1.0) * inner.draw(key, arrays["of"], i)

    return Seconds(draw, {"of": inner.arrays, "straggling": jnp.float32(straggling)})


def speedup(deviation: float, straggling: float, exchange: float, rounds: int = 3000, seed: int = 0) -> float:
    """Mean iteration of an all-reduce, part of which is hidden, over that of AER with overlap."""
    work, n = computing(deviation, straggling), MACHINES * LOCAL
    labels = groups.alternating_exponential(MACHINES, LOCAL)
    size = np.stack([np.bincount(row, minlength=labels.max() + 1) for row in labels])
    aer = max_plus.grouped(work, labels, np.where(size > LOCAL, exchange, INSIDE))
    barrier = max_plus.grouped(work, np.zeros(n, int), max(0.0, exchange - HIDDEN), overlap=False)
    times = [max_plus.alone(clocks, n, rounds, seed=seed)[0].mean() for clocks in (barrier, aer)]
    return float(times[0] / times[1])


def run_times(seeds: int, small: bool) -> list[Check]:
    """The paper's three factors: none of them, workers that vary, stragglers, dear links between machines."""
    rounds = 30 if small else 3000
    of = lambda *what: np.array([speedup(*what, rounds=rounds, seed=seed) for seed in range(seeds)])
    name = "mean iteration of all-reduce over AER's: "
    nothing = of(0.0, 0.0, 0.5)
    return [
        check(name + "computing times vary", of(0.2, 0.0, 0.5), ">", 1.25, "headline"),
        check(name + "and some straggle", of(0.2, 0.02, 0.5), ">", 1.4, "headline"),
        check(name + "nothing to gain, from 1", np.abs(nothing - 1), "<=", 0.02, "condition"),
        check(name + "an exchange of 1.5 that hides no more", of(0.2, 0.02, 1.5), ">", 1.25),
    ]


def extra(seeds: int, small: bool) -> Evidence:
    """The run-time model."""
    return Evidence(None, run_times(seeds, small))


@cache
def problem() -> Task:
    """A perceptron on digits."""
    return classification(partial(MLP, (64, 64, 10)), np.zeros((1, 64), np.float32))


def settings(seed: int) -> dict[str, Setting]:
    """All digits, evenly over the workers; what is measured is the training loss."""
    data, task = digits(), problem()
    split = partition.iid(data, WORKERS, seed)
    world = scenario(split, topology=groups.averaging(groups.pairs(WORKERS)))
    return {PLACE: Setting(world, shared_test(task, jnp.asarray(data.x), jnp.asarray(data.y), nodes=False))}


def all_reduce(task: Task, lr: Array) -> Any:
    """Adam on the mean gradient of all workers, at the rate of a step of each."""
    return fedopt(task, local=optax.sgd(1.0), server=optax.adam(lr, **BETAS), steps=1, batch=BATCH)


def as_near(scores: Any) -> list[Check]:
    """How much of DAdam's gap to all-reduce AccumAdam leaves."""
    out = []
    for point in POINTS:
        ours, plain, server = (scores[point, PLACE, name]["training loss"] for name in (OURS, PLAIN, SERVER))
        what = f"gap of {OURS} to {SERVER} minus half of that of {PLAIN}, {point} points"
        out.append(check(what, (ours - server) - 0.5 * (plain - server), "<", 0.0, "headline"))
    return out


def studies() -> list[Study]:
    """All-reduce Adam, DAdam and AccumAdam, at equal iterations and batches."""
    task = problem()
    kw = {"batch": BATCH, **BETAS}
    ours = partial(decent_dp, task, accumulate=PERIOD, **kw)
    return [
        Study(
            settings=settings,
            arms={
                OURS: Arm(ours),
                f"{OURS}, adapt then combine": Arm(partial(ours, overlap=False), small={"make": ours}),
                PLAIN: Arm(partial(dadam, task, **kw)),
                SERVER: Arm(partial(all_reduce, task)),
            },
            ablations=(PLAIN,),
            model=task.init,
            rounds=ROUNDS,
            every=20,
            grid={"lr": (1e-3, 1e-2, 3e-2, 1e-1)},
            paper={"lr": 1e-3},
            scores={"training loss": Score(lambda h: tail(h, "test_loss", 100))},
            says=(
                Inequality("training loss", OURS, "/", PLAIN, 0.6, every_seed=True),
                Inequality("training loss", OURS, "/", f"{OURS}, adapt then combine", 1.5, headline=False, tuned=1.5),
            ),
            beside=as_near,
            picture={"y": "test_loss", "log": True},
        )
    ]
