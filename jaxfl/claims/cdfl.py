"""A server that estimates whose data a client has gives it, in one model, what several models down would give.

Claim. The paper's abstract: better models for clients whose data drift than rivals have, quick adaptation after a
shift, and an estimate at the server that spares clients computation and downloads. The rivals here are asynchronous
IFCA, whose clients get all cluster models, FedAsync, whose clients get the one of all, and no exchange; the system
without its idea is CDFL that takes every client for an equal mixture of all clusters.

Setting. The card's reconstruction, as only the abstract was at hand. Four clusters with optima `theta_s ~ 1.5 N(0, I)`
of 20 numbers; 60 clients with optimum `mu_i theta`, `mu_i ~ Dirichlet(0.1)`, all drawn anew after 2,000 of 4,000
contacts; 10 local steps, rate 0.05, gradient noise of 4 a number (64 noise vectors a client), prox 0.1; cluster models
start at `theta_s + N(0, I)`; half of the clients are at work at any time, for exponential times. All rates are the
card's. The distance of a client's model to its optimum is the mean over clients and the last five evaluations, 100
contacts apart; a seed is another draw of all. IFCA's clients keep the cluster model, which is its strongest form: with
the models they trained themselves they are 1.5 times as far. That one model goes down and not four is by construction.
IFCA is back sooner after the shift, as its clients choose anew at every contact.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxfl.algorithms.asynchronous.cdfl import async_ifca, cdfl
from jaxfl.algorithms.asynchronous.fedasync import fedasync
from jaxfl.claims.evidence import Check, Evidence, check
from jaxfl.core import Algorithm, Metric, Shards
from jaxfl.engine.run import run
from jaxfl.exchange import mixtures
from jaxfl.learn.task import Task, quadratic_noise
from jaxfl.report.style import COLOURS, DASHES, legend_above, new_figure, styled
from jaxfl.world import clock, durations
from jaxfl.world.scenario import scenario

N, D, S, EACH, SIGMA, PHASE, EVERY = 60, 20, 4, 64, 4.0, 2000, 100
OURS, BLIND, IFCA, ASYNC, ALONE = "CDFL", "CDFL, uniform guess", "IFCA", "FedAsync", "local only"


class World(NamedTuple):
    """A seed: clients' data and optima before and after the shift, and the first cluster models."""

    data: tuple[Shards, Shards]
    mixtures: np.ndarray  # [2, n, S]
    optima: np.ndarray  # [2, n, d]
    models: np.ndarray  # [S, d]


def drawn(seed: int) -> World:
    """Another draw of everything."""
    rng = np.random.default_rng(seed)
    theta, mu = 1.5 * rng.normal(size=(S, D)), rng.dirichlet(np.full(S, 0.1), (2, N))
    optima = mu @ theta
    noise = rng.normal(size=(N, EACH, D))
    noise = jnp.asarray((noise - noise.mean(1, keepdims=True)).reshape(-1, D), jnp.float32)
    curve = jnp.broadcast_to(jnp.eye(D), (N * EACH, D, D))
    place = jnp.arange(N * EACH, dtype=jnp.int32), jnp.arange(N, dtype=jnp.int32) * EACH, jnp.full(N, EACH, jnp.int32)
    of = lambda best: Shards((curve, noise), jnp.asarray(np.repeat(best, EACH, 0), jnp.float32), *place, EACH)
    return World((of(optima[0]), of(optima[1])), mu, optima, theta + rng.normal(size=(S, D)))


def systems(task: Task) -> dict[str, Algorithm]:
    """What is compared, at the card's rates."""
    kw: dict[str, Any] = {"lr": 0.05, "steps": 10, "batch": 1}
    ours = {"clusters": S, "warmup": 0, **kw}
    return {
        OURS: cdfl(task, **ours),
        BLIND: cdfl(task, estimate=mixtures.uniform(), **ours),
        IFCA: async_ifca(task, clusters=S, **kw),
        ASYNC: fedasync(task, alpha=0.2, longest=255, **kw),
        ALONE: cdfl(task, alpha=0.0, beta=0.0, rho=0.0, **ours),
    }


def measure(name: str, algorithm: Algorithm, world: World, seed: int, phase: int) -> dict[str, Any]:
    """Two runs, one after the other, on the data before and after the shift: all gaps, bits and estimates."""
    first = world.models.mean(0) if name == ASYNC else world.models
    who, carry, gaps, down, each = clock.buffered(N, N // 2, 1, durations.exponential()), None, [], 0.0, None
    for part in range(2):
        target = jnp.asarray(world.optima[part], jnp.float32)
        gap = Metric(lambda best, x: {"gap": jnp.sqrt(((x - best) ** 2).sum(1)).mean()}, target)
        end = phase * (part + 1)
        kw = {"seed": seed, "every": min(EVERY, phase), "evaluate": gap, "progress": False, "carry": carry}
        done = run(algorithm, scenario(world.data[part], cohort=who), jnp.asarray(first, jnp.float32), end, **kw)
        carry, history = done.carry, done.history
        gaps.append(history["gap"][history["round"] > phase * part].dropna().to_numpy())
        down = float(history["total_down_bits"].iloc[-1]) / (32 * D)
        each = done.state.nodes["share"] if name in (OURS, BLIND) else None
    found: dict[str, Any] = {"gaps": np.concatenate(gaps), "before": gaps[0][-5:].mean(), "end": gaps[1][-5:].mean()}
    found |= {"after 600": gaps[1][: max(1, 600 // EVERY)][-1], "models down": down}
    if each is not None:
        u, mu = np.asarray(each, float), world.mixtures[1]
        found |= {"L1": np.abs(u - mu).sum(1).mean(), "same cluster": (u.argmax(1) == mu.argmax(1)).mean()}
    return found


def extra(seeds: int, small: bool) -> Evidence:
    """All systems on the same draws."""
    import pandas as pd

    phase, worlds = 20 if small else PHASE, [drawn(seed) for seed in range(seeds)]
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, algorithm in systems(quadratic_noise(D, SIGMA)).items():
        each = [measure(name, algorithm, world, seed, phase) for seed, world in enumerate(worlds)]
        found[name] = {what: np.array([one[what] for one in each], float) for what in each[0]}
    rows = {
        name: {
            what + part: float(v)
            for what, a in row.items()
            if what != "gaps"
            for part, v in (("", a.mean()), (" std", a.std(ddof=min(1, seeds - 1))))
        }
        for name, row in found.items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("system")
    return Evidence(table, checks(found), (picture(found),))


def checks(found: dict[str, dict[str, np.ndarray]]) -> list[Check]:
    """The card's inequalities."""
    over: Callable = lambda when, other: found[OURS][when] / found[other][when]
    out = []
    for when, words in (("before", "before the shift"), ("end", "at the end")):
        for other, bound, role in (
            (ASYNC, 0.5, "headline"),
            (ALONE, 0.75, "headline"),
            (BLIND, 1.0, "headline"),
            (IFCA, 1.1, "condition"),
        ):
            out.append(check(f"{words}: distance of {OURS} over {other}", over(when, other), "<", bound, role))
    ours, blind = found[OURS], found[BLIND]
    back = ours["after 600"] / ours["before"]
    out.append(check("10 contacts a client after the shift: distance over that before", back, "<", 1.1, "headline"))
    out.append(check(f"models sent down of {OURS} over {IFCA}", over("models down", IFCA), "<", 0.5))
    out.append(check("estimates: L1 error", ours["L1"], "<", 0.3, "headline"))
    out.append(check("estimates: clients whose largest cluster is right", ours["same cluster"], ">", 0.9))
    out.append(check("uniform guess: L1 error", blind["L1"], ">", 0.3, "condition"))
    return out


@styled
def picture(found: dict[str, dict[str, np.ndarray]]) -> Any:
    """Distances over contacts."""
    from matplotlib.lines import Line2D

    figure = new_figure((8, 3.6))
    ax, lines = figure.subplots(), []
    for i, (name, row) in enumerate(found.items()):
        look: dict[str, Any] = {"color": COLOURS[i], "linestyle": DASHES[i % len(DASHES)]}
        gaps = row["gaps"]
        contacts = EVERY * np.arange(1, gaps.shape[1] + 1)
        ax.plot(contacts, gaps.mean(0), **look)
        ax.fill_between(contacts, gaps.min(0), gaps.max(0), color=look["color"], alpha=0.18, linewidth=0)
        lines.append(Line2D([], [], label=name, **look))
    ax.set(yscale="log", xlabel="contacts", ylabel="distance of a client's model to its optimum")
    ax.grid(alpha=0.3)
    legend_above(figure, lines)
    return figure
