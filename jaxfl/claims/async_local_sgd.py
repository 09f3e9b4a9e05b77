"""What breaks asynchronous Local-SGD is the server's momentum; applied once in N arrivals it is as good as synchronous.

Claim. Asynchronous Local-SGD with Nesterov at the server needs more updates than the synchronous one although it makes
more of them; discounts do not mend that. Delayed Nesterov, with local steps in proportion to speed (DyLU), needs as few
and takes far less time. The paper has language models of 20M to 150M parameters on 4 to 16 workers.

Setting. Eight workers of speeds 1, 1, 2, 2, 4, 4, 8, 8 with one quadratic in R^20, curvature 0.01 to 1, gradient noise
0.3, from 3; 16 steps of SGD of rate 0.05, with DyLU as many as in 2 seconds. 2,400 arrivals, 300 synchronous rounds;
the plan's server rate of 0.35, b = 0.9, and N = 8. Asynchronous servers see g / 8: rates are alike over eight arrivals.
"Early" is after a third of the arrivals, "late" is the mean of the last quarter. Best points have the least late loss.

Why. The setting. At one and the same rate all holds; but here, where noise decides in the end, asynchronous SGD may
have four times the rate, and is then ahead early of a momentum whose rate is best late. A discount of what is stale
mends Nesterov here, at the plan's rate more than the delay does: it is one more way to a smaller step. Set after a
first look: a further rate at the end of the grid.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from jaxfl.algorithms.asynchronous.async_local_sgd import async_local_sgd
from jaxfl.algorithms.server.fedopt import fedopt
from jaxfl.claims.evidence import first_at
from jaxfl.claims.study import Arm, Inequality, Score, Setting, Study
from jaxfl.core import Metric, Process, Scenario
from jaxfl.data.cut import in_order
from jaxfl.data.sets import generator
from jaxfl.exchange.staleness import Staleness, constant, polynomial
from jaxfl.learn.task import from_functions
from jaxfl.world.delivery import quorum
from jaxfl.world.durations import fixed
from jaxfl.world.scenario import scenario
from jaxfl.world.work import bounded, dynamic_steps

SPEED = np.array([1.0, 1, 2, 2, 4, 4, 8, 8])
N, DIM, STEPS, SAMPLES, TARGET = len(SPEED), 20, 16, 500, 0.1
CURVE = np.logspace(-2, 0, DIM).astype(np.float32)
OURS, DYLU = "Delayed Nesterov", "Delayed Nesterov, DyLU"
SGD, NESTEROV, DISCOUNT, SYNC = "async SGD", "async Nesterov", "async Nesterov, discount", "synchronous Nesterov"
TASK = from_functions(lambda key: jnp.full(DIM, 3.0), lambda p, x, y: 0.5 * (CURVE * p * p).sum() - (y * p).sum(-1))


def quadratic(seed: int) -> dict[str, Setting]:
    """The gradient noise is in the samples, whose mean is 0 at every worker."""
    y = 0.3 * generator(seed).normal(size=(N, SAMPLES, DIM))
    y = (y - y.mean(1, keepdims=True)).reshape(-1, DIM).astype(np.float32)
    loss = Metric(lambda curve, x: {"error": 0.5 * (curve * x * x).sum()}, jnp.asarray(CURVE))
    return {"quadratic": Setting(scenario(in_order(y, N)), loss)}


def lives(clock: Process, world: Scenario) -> Scenario:
    """The world with a clock."""
    return scenario(world.data, cohort=clock)


def alone(goal: int = 1) -> Process:
    """All workers run all steps."""
    return quorum(N, goal, fixed(STEPS / SPEED))


def dylu() -> Process:
    """Steps in proportion to speed: all take two seconds."""
    steps = dynamic_steps(SPEED, STEPS)
    return bounded(quorum(N, 1, fixed(steps / SPEED)), steps)


def between(history: Any, first: float, last: float) -> np.ndarray:
    """The mean error from one share of the rounds to another, by seed; infinite where it is not finite."""
    found = []
    for _, h in history.groupby("seed"):
        t, e = h["round"].to_numpy() / h["round"].max(), h["error"].to_numpy()
        inside = e[(t >= first) & (t <= last) & ~np.isnan(e)]
        mean = inside.mean() if len(inside) else e[-1]
        found.append(mean if np.isfinite([mean, e[-1]]).all() else np.inf)
    return np.array(found)


def age_spread(history: Any) -> np.ndarray:
    """Standard deviation of the ages of arrivals, by seed."""
    age = history["age"].fillna(0) if "age" in history else 0.0
    return history.assign(age=age).groupby("seed")["age"].std().to_numpy()


def studies() -> list[Study]:
    """One quadratic, at speeds that differ by 8."""
    kw: dict[str, Any] = {"local": optax.sgd(0.05), "steps": STEPS, "batch": 1}

    def plain(momentum, discount, eps):
        server = optax.sgd(eps / N, momentum=momentum, nesterov=momentum is not None)
        return fedopt(TASK, server=server, stale=Staleness(63, discount), **kw)

    def sync(eps):
        return fedopt(TASK, server=optax.sgd(eps, momentum=0.9, nesterov=True), **kw)

    def delayed(eps):
        return async_local_sgd(TASK, server_lr=eps, delay=N, longest=63, keep_state=False, **kw)

    here = partial(lives, alone())
    says = partial(Inequality, op="/")
    side: dict[str, Any] = {"headline": False}
    timed = "what is measured is the time until the target"
    return [
        Study(
            settings=quadratic,
            arms={
                OURS: Arm(delayed, world=here),
                DYLU: Arm(delayed, world=partial(lives, dylu())),
                SGD: Arm(partial(plain, None, constant()), world=here),
                NESTEROV: Arm(partial(plain, 0.9, constant()), world=here),
                DISCOUNT: Arm(partial(plain, 0.9, polynomial(0.5)), world=here),
                SYNC: Arm(sync, world=partial(lives, alone(N)), rounds=1 / N),
            },
            ablations=(NESTEROV, SGD),
            model=TASK.init,
            rounds=300 * N,
            grid={"eps": (0.05, 0.1, 0.2, 0.35, 0.7, 1.4, 2.8)},
            paper={"eps": 0.35},
            scores={
                "late loss": Score(lambda h: between(h, 0.75, 1.0)),
                "early loss": Score(lambda h: between(h, 0.3, 0.35)),
                "seconds to target": Score(lambda h: first_at(h, "error", TARGET, "time")),
                "age spread": Score(age_spread),
            },
            says=(
                says("early loss", OURS, theirs=SGD, bound=0.2),
                says("late loss", OURS, theirs=NESTEROV, bound=0.75),
                says("seconds to target", DYLU, theirs=SYNC, bound=0.5, costlier=timed),
                says("late loss", OURS, theirs=DISCOUNT, **side),
                says("late loss", OURS, theirs=SYNC, bound=2.0, tuned=2.0, **side),
                says("early loss", OURS, theirs=SYNC, bound=2.0, tuned=2.0, **side),
                says("age spread", DYLU, theirs=OURS, bound=0.5, tuned=0.5, **side),
            ),
            every=8,
            picture={"y": "error", "x": "time", "log": True},
        )
    ]
