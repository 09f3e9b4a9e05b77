"""Asynchrony lands where the fast clients pull it; weights in closed form bring it back, and ticks keep it steady.

Claim. Unweighted asynchronous schemes converge to the optimum of a surrogate, biased to fast clients; with weights that
are the rounds between two deliveries they converge to the true one. Asynchronous FedAvg is fast and unsteady, FedFix
nearly as fast and nearly as steady as synchronous FedAvg. The paper has image and text data.

Setting. Ten clients with `F_i = |x - c_i|^2 / 2` in R^5, one local step on exact gradients, `p_i = 1/10`, jobs of 1 s
to 0.2 s; the first coordinate of `c_i` goes from -1 to 1 in order of speed. 600 seconds, FedFix every 0.5 s, FedBuff of
5. Bias and spread are those of the iterates of the last quarter, around the true optimum and around their mean. The
ablations are the schemes as they come: asynchronous FedAvg and FedBuff take means, FedFix sums `p_i Delta_i`.

After a first run of 300 seconds it was made as long as planned, and that FedFix is sooner there than FedAvg is no
longer asked at the best points, which are those of the least bias. No bound was moved.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxfl.algorithms.asynchronous.fedfix import fedfix
from jaxfl.claims.study import Arm, Inequality, Score, Setting, Study
from jaxfl.core import Metric, Process, Scenario
from jaxfl.data.cut import in_order
from jaxfl.data.sets import generator
from jaxfl.learn.task import from_functions
from jaxfl.world.delivery import quorum, ticks
from jaxfl.world.durations import fixed
from jaxfl.world.participation import frequency, summed
from jaxfl.world.scenario import scenario

N, DIM, HORIZON, TICK, BUFFER = 10, 5, 600.0, 0.5, 5
TAU = np.linspace(1, 0.2, N)
FIX, ASYNC, BUFF, SYNC = "FedFix", "Async FedAvg", "FedBuff", "FedAvg"
PLAIN = ", unweighted"
MEAN = from_functions(lambda key: jnp.full(DIM, 3.0), lambda p, x, y: 0.5 * ((p - y) ** 2).sum(-1))
CLOCKS = {
    FIX: ticks(N, TICK, fixed(TAU)),
    ASYNC: quorum(N, 1, fixed(TAU)),
    BUFF: quorum(N, BUFFER, fixed(TAU)),
    SYNC: quorum(N, N, fixed(TAU)),
}
PER_SECOND = {FIX: 1 / TICK, ASYNC: float((1 / TAU).sum()), BUFF: 3.44, SYNC: 1.0}  # rounds
EACH = [f"x{j}" for j in range(DIM)]


def period(name: str) -> np.ndarray:
    """Rounds from one delivery of each client to the next."""
    if name == FIX:
        return np.ceil(TAU / TICK)
    return TAU * (1 / TAU).sum() if name == ASYNC else 1 / frequency(CLOCKS[name], 1000)


def quadratics(seed: int) -> dict[str, Setting]:
    """One sample a client, its centre; the metric is the way from the true optimum."""
    centre = generator(seed).normal(size=(N, DIM)).astype(np.float32)
    centre[:, 0] = np.linspace(-1, 1, N)
    data = in_order(centre, N)
    off = Metric(
        lambda optimum, x: {name: x[j] - optimum[j] for j, name in enumerate(EACH)}, jnp.asarray(centre.mean(0))
    )
    return {"quadratics": Setting(scenario(data), off)}


def lives(clock: Process, world: Scenario) -> Scenario:
    """The world with a clock."""
    return scenario(world.data, cohort=clock)


def late(history: Any) -> list[np.ndarray]:
    """The iterates of the last quarter of the time `[t, d]`, by seed."""
    last = lambda h: h[(h["time"] >= 0.75 * HORIZON) & (h["time"] <= HORIZON + 1)]
    return [last(h)[EACH].to_numpy() for _, h in history.dropna(subset=EACH).groupby("seed")]


def bias(history: Any) -> np.ndarray:
    """From the optimum to the mean of the late iterates, by seed; infinite for a run that ends before."""
    return np.array([np.linalg.norm(x.mean(0)) if len(x) else np.inf for x in late(history)])


def spread(history: Any) -> np.ndarray:
    """Root mean square of the late iterates around their mean, by seed."""
    return np.array([np.sqrt(((x - x.mean(0)) ** 2).sum(1).mean()) if len(x) else np.inf for x in late(history)])


def seconds(history: Any) -> np.ndarray:
    """When the model is first a tenth as far from the optimum as at the start, by seed."""
    found = []
    for _, h in history.dropna(subset=EACH).groupby("seed"):
        far = np.linalg.norm(h[EACH].to_numpy(), axis=1)
        near = far <= far[0] / 10
        found.append(h["time"].to_numpy()[int(np.argmax(near))] if near.any() else np.inf)
    return np.array(found)


def studies() -> list[Study]:
    """The fixed points of four schemes."""
    make = partial(fedfix, MEAN, steps=1, batch=None, longest=63)
    rounds = {name: rate / PER_SECOND[FIX] for name, rate in PER_SECOND.items()}
    clocks = {SYNC: CLOCKS[SYNC]}
    for name in (FIX, ASYNC, BUFF):
        clocks[name] = summed(CLOCKS[name], period(name))
        clocks[name + PLAIN] = summed(CLOCKS[name]) if name == FIX else CLOCKS[name]
    says = partial(Inequality, op="/")
    beside: dict[str, Any] = {
        "headline": False,
        "costlier": "at equal time",
        "untuned": "best points have the least bias, each at a rate of its own",
    }
    own = [says("bias", name, theirs=name + PLAIN, bound=b) for name, b in ((FIX, 0.1), (ASYNC, 0.05), (BUFF, 0.5))]
    return [
        Study(
            settings=quadratics,
            arms={
                name: Arm(make, world=partial(lives, clock), rounds=rounds[name.removesuffix(PLAIN)])
                for name, clock in clocks.items()
            },
            ablations=tuple(name + PLAIN for name in (FIX, ASYNC, BUFF)),
            model=MEAN.init,
            rounds=round(HORIZON * PER_SECOND[FIX]),
            grid={"lr": (0.005, 0.01, 0.02, 0.04)},
            paper={"lr": 0.02},
            scores={"bias": Score(bias), "spread": Score(spread), "seconds to a tenth": Score(seconds)},
            says=(
                *own,
                says("spread", FIX, theirs=ASYNC, bound=0.25),
                says("spread", SYNC, theirs=FIX, headline=False),
                says("seconds to a tenth", FIX, theirs=SYNC, bound=0.7, **beside),
            ),
            every=5,
            ends={
                "lr low": "a fixed point does not depend on the rate, but for how far the model swings about it",
                "lr high": "a fixed point does not depend on the rate, but for what is left of the way there",
            },
            picture={"y": "x0", "x": "time"},
        )
    ]
