"""FedBuff (Papaya): asynchrony wins in time and uploads where an upload moves the model little, and it depends on that.

Papaya: Practical, Private, and Scalable Federated Learning; Huba et al.; MLSys 2022; https://arxiv.org/abs/2111.04877
(paper 038), and Federated Learning with Buffered Asynchronous Aggregation; Nguyen et al.; AISTATS 2022;
https://arxiv.org/abs/2106.06639.

Claim. At equal concurrency C the asynchronous system reaches a target up to 5 times sooner and with up to 8 times
fewer uploads than synchronous rounds with 30 % over-selection; more concurrency helps it and not them; over-selection
neglects slow clients; secure aggregation loses nothing.

Setting. 2000 clients estimate a mean in R^10, c_i ~ 1 + N(0, I) / 2, from 0, with 5 local steps on gradients of noise
0.3; durations exp(N(0, 1)) seconds. FedBuff: K = max(10, C / 10), s = (1 + age)^-1/2. Time and uploads (those that
counted) until |x - x*|^2 < 0.05 and stays there for 2 C uploads. Then half of the clients is moved by 1 in every
coordinate and made 4 times slower, C = 260. "Best" is the fastest of ten pairs of client and server rate for SyncFL and
FedBuff alike (server rate 1 to 14), of five for FedAsync.

Found (3 seeds, seconds and uploads, mean; standard deviations are in the table):

                                       C = 65           C = 260          C = 1040
    client 0.02, server 1
      SyncFL, waits for all            321    1733      480    7020      703   28080
      SyncFL, 1.3 over-selected        56.1   1333      56.5   5400      56.4  21600
      FedBuff                          10.0    410       6.2   1066       6.5   4368
    client 0.1, server 1
      SyncFL, 1.3 over-selected        11.6    283      11.8   1133      11.7   4533
      FedBuff                          never             6.2   1057       6.2   4160
    best rates of each
      SyncFL, 1.3 over-selected         6.9    167       2.2    200       2.1    800
      FedBuff                           5.1    213       2.7    468       2.9   1976
      FedAsync                         12.7    511       7.1   1215       3.8   2082

With the plan's rates all its inequalities hold: 9.1 and 8.6 times the time and 5.1 and 4.9 times the uploads at C = 260
and 1040, SyncFL gains nothing from concurrency (1.01) while FedBuff takes 0.65 of its time.

Most of that is the server rate. An upload moves the model by a tenth of the way, so at server rate 1 SyncFL needs 27
rounds however many clients it averages. With client rate 0.1 (the plan's large steps) FedBuff is 1.9 times faster at
C = 260 and 1040, with as many uploads, and at C = 65 it never settles under the target where SyncFL does. With server
rate 10 a round of SyncFL makes the whole step, and with many clients one round suffices: over-selected SyncFL is then
the faster one (2.1 s against 2.9 s at C = 1040) with fewer than half of the uploads; FedBuff's delay allows it a
rate of 1.5 only. These quadratics have one curvature, the best case of such a large step; the advantage stands where
progress a round is bounded by something else than the number of clients. So no check asks for it at the best rates.

Slow clients that differ (error at the end, share of slow clients' weight): waiting for all 0.002 and 0.50,
over-selection 0.15 and 0.39, FedBuff with s = 1 0.04 and 0.46, but FedBuff with s = (1 + age)^-1/2 0.28 and 0.34: the
discount neglects the slow more than over-selection does. Claim 4 of the plan holds for FedBuff without a discount, and
that is what is checked.

Deviations from the plan: uploads of SyncFL are those that counted (with the late ones they are 1.3 times more); the
target must be kept, since tuned runs fly past the optimum; samples carry the noise, so that x* is known exactly.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxfl.algorithms.asynchronous.fedasync import fedasync
from jaxfl.algorithms.asynchronous.fedbuff import fedbuff
from jaxfl.algorithms.server.fedopt import fedopt
from jaxfl.claims.evidence import Check, Evidence, at_least, at_most
from jaxfl.core import Algorithm, Scenario, Shards
from jaxfl.engine.run import run
from jaxfl.exchange import secure
from jaxfl.exchange.staleness import polynomial
from jaxfl.learn.task import Task, from_functions
from jaxfl.report.style import COLOURS, DASHES, legend_above, new_figure, styled
from jaxfl.world import cohort
from jaxfl.world.clock import buffered, over_selected
from jaxfl.world.durations import lognormal
from jaxfl.world.scenario import scenario

CLIENTS, DIM, SAMPLES, STEPS = 2000, 10, 8, 5
CONCURRENCY = (65, 260, 1040)
TARGET = 0.05  # of |x - x*|^2
SMALL, LARGE = 0.02, 0.1  # client rates
RATES = tuple((SMALL, rate) for rate in (1.0, 1.25, 1.5, 2.0, 4.0, 7.0, 10.0, 14.0)) + ((LARGE, 1.0), (LARGE, 2.0))
MIXING = ((SMALL, 1.0), (LARGE, 1.0), (LARGE, 0.6), (LARGE, 0.3), (LARGE, 0.1))  # client, FedAsync's alpha
WAITS, FIRST, BUFFER, ASYNC = "SyncFL, waits for all", "SyncFL, 1.3 over-selected", "FedBuff", "FedAsync"


def setting(clients: int = CLIENTS, apart: float = 0.0, seed: int = 0) -> tuple[Task, Shards, np.ndarray]:
    """Estimation of a mean: `F_i = |p - c_i|^2 / 2`, `c_i ~ 1 + N(0, I) / 2`, gradients of noise 0.3; and the optimum.

    The first half of the clients has its `c_i` moved by `apart`.
    """
    rng = np.random.default_rng(seed)
    centre = 1 + 0.5 * rng.normal(size=(clients, 1, DIM))
    centre[: clients // 2] += apart
    y = (centre + 0.3 * rng.normal(size=(clients, SAMPLES, DIM))).reshape(-1, DIM).astype(np.float32)
    node, order = jnp.arange(clients, dtype=jnp.int32), jnp.arange(len(y), dtype=jnp.int32)
    sizes = jnp.full(clients, SAMPLES, jnp.int32)
    data = Shards(jnp.zeros((len(y), 0)), jnp.asarray(y), order, node * SAMPLES, sizes, SAMPLES)
    task = from_functions(lambda key: jnp.zeros(DIM), lambda p, x, y: 0.5 * ((p - y) ** 2).sum(-1))
    return task, data, y.mean(0, dtype=np.float64)


def observed(make: Callable[..., Algorithm], optimum: np.ndarray) -> Callable[..., Algorithm]:
    """The factory `make` with `error`, the squared distance to the optimum after each round, in the log."""
    aim = jnp.asarray(optimum, jnp.float32)

    def made(**hyper):
        system = make(**hyper)

        def round(key, env, s):
            s, log = system.round(key, env, s)
            return s, log | {"error": ((system.read(s) - aim) ** 2).sum()}

        return system._replace(round=round)

    return made


def systems(task: Task, optimum: np.ndarray) -> dict[str, Callable[..., Algorithm]]:
    """The server rule of each system, by its traced rates: `lr`, and `server_lr` or `alpha`."""
    kw: dict[str, Any] = {"steps": STEPS, "batch": 1}

    def sync(lr, server_lr):
        return fedopt(task, local=optax.sgd(lr), server=optax.sgd(server_lr), **kw)

    def buffer(lr, server_lr, a=0.5):
        return fedbuff(task, lr=lr, server_lr=server_lr, discount=polynomial(a), longest=255, **kw)

    def each(lr, server_lr):
        return fedasync(task, lr=lr, alpha=server_lr, longest=1023, **kw)

    made = {"sync": observed(sync, optimum), BUFFER: observed(buffer, optimum), ASYNC: observed(each, optimum)}
    return {WAITS: made["sync"], FIRST: made["sync"], BUFFER: made[BUFFER], ASYNC: made[ASYNC]}


def worlds(data: Shards, concurrency: int, median: Any = 1.0) -> dict[str, Scenario]:
    """The clock of each system at one concurrency; `median` of the log-normal durations, one or by client."""
    n = len(data.size)
    law = lognormal(np.broadcast_to(median, n), 1.0)
    clocks = {
        WAITS: over_selected(cohort.uniform(n, concurrency), concurrency, law),
        FIRST: over_selected(cohort.uniform(n, concurrency), int(concurrency / 1.3), law),
        BUFFER: buffered(n, concurrency, max(10, concurrency // 10), law),
        ASYNC: buffered(n, concurrency, 1, law),
    }
    return {name: scenario(data, cohort=clock) for name, clock in clocks.items()}


def arrives(history: Any, concurrency: int, target: float = TARGET) -> np.ndarray:
    """When each seed reaches the target and stays there for `2 * concurrency` uploads: seconds and uploads, `[2, s]`.

    Infinite where it never does. A model that flies past the optimum has not arrived.
    """
    found = []
    for _, h in history[history["round"] > 0].groupby("seed"):
        sent = h["total_up_bits"].to_numpy() / (32 * DIM)
        above = ~(h["error"].to_numpy() < target)
        fails = np.minimum.accumulate(np.where(above, sent, np.inf)[::-1])[::-1]  # uploads at the next miss
        stays = ~above & (fails > sent + 2 * concurrency)
        at = int(np.argmax(stays))
        found.append((h["time"].iloc[at], sent[at]) if stays.any() else (np.inf, np.inf))
    return np.array(found).T


def masked(seeds: int, members: int = 260, m: int = 4096) -> tuple[int, np.ndarray]:
    """Numbers in which the unmasked sum differs from the integer sum, and the chi-square p of one masked message."""
    from scipy.stats import chisquare

    wrong, p = 0, []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        move, v = 0.1 * rng.normal(size=(members, m)), rng.integers(0, 256, members)
        q = secure.to_fixed(jnp.asarray(move, jnp.float32), 2.0**-16)
        keys = jax.random.split(jax.random.key(seed), members)
        server, released = jax.device_get(secure.masked_sums(keys, q, jnp.asarray(v, jnp.uint32)))
        exact = (np.asarray(q).view(np.int32).astype(np.int64) * v[:, None]).sum(0)
        wrong += int(((server - released).view(np.int32) != exact).sum())
        alone, _ = secure.masked_sums(keys[:1], q[:1], jnp.ones(1, jnp.uint32))
        p.append(chisquare(np.bincount(np.asarray(alone) >> 28, minlength=16)).pvalue)
    return wrong, np.array(p)


def reproduce(seeds: int = 3, *, concurrency: tuple[int, ...] = CONCURRENCY, clients: int = CLIENTS) -> Evidence:
    """Run the four systems at every concurrency and every pair of rates.

    Args:
        seeds: runs a cell; seeds differ in clients drawn, durations and batches, and share the data.
        concurrency: jobs in progress, ascending; the smallest and the largest are compared.
        clients: in the population, at least 1.1 times the largest concurrency.
    """
    import pandas as pd

    task, data, optimum = setting(clients)
    rules = systems(task, optimum)
    found, curves = {}, {}
    for c in concurrency:
        rounds = {WAITS: 60, FIRST: 60, BUFFER: 120, ASYNC: min(20 * c, 10_000)}
        for name, world in worlds(data, c).items():
            for lr, rate in MIXING if name == ASYNC else RATES:
                hyper = {"lr": lr, "server_lr": rate} | ({"a": 0.5} if name == BUFFER else {})
                got = run(rules[name], world, task.init, rounds[name], seeds=seeds, hyper=hyper, every=rounds[name])
                found[c, name, lr, rate] = arrives(got.history, c)
                curves[c, name, lr, rate] = got.history
    best = {
        (c, name): min((k for k in found if k[:2] == (c, name)), key=lambda k: found[k][0].mean())[2:]
        for c in concurrency
        for name in rules
    }
    sides = {
        f"client rate {SMALL:g}": dict.fromkeys(best, (SMALL, 1.0)),
        f"client rate {LARGE:g}": dict.fromkeys(best, (LARGE, 1.0)),
        "best rates of each": best,
    }
    rows = {
        (label, c, name): {"client_rate": rates[0], "server_rate": rates[1]}
        | _columns("time", found[c, name, *rates][0])
        | _columns("uploads", found[c, name, *rates][1])
        for label, chosen in sides.items()
        for (c, name), rates in chosen.items()
    }
    middle = concurrency[len(concurrency) // 2]
    fair = unequal(seeds, clients, middle)
    rows |= {
        ("slow clients differ", middle, name): {"client_rate": SMALL, "server_rate": 1.0}
        | _columns("error", error)
        | _columns("slow_share", share)
        for name, (error, share) in fair.items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(["setting", "concurrency", "system"])
    checks = _checks(found, best, concurrency, fair, masked(seeds))
    return Evidence(table, checks, _figure(curves, found, best, concurrency, middle))


def unequal(seeds: int, clients: int, c: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Half of the clients is 4 times slower and 1 away in every coordinate: error at the end, share of slow updates."""
    task, data, optimum = setting(clients, apart=1.0)
    slow = np.arange(clients) < clients // 2
    clocks, rules = worlds(data, c, np.where(slow, 4.0, 1.0)), systems(task, optimum)
    arms = {WAITS: (WAITS, {}, 80), FIRST: (FIRST, {}, 80)} | {
        f"{BUFFER}, s = {text}": (BUFFER, {"a": a}, 240) for text, a in (("1", 0.0), ("(1 + age)^-1/2", 0.5))
    }
    out = {}
    for label, (name, hyper, rounds) in arms.items():
        rates = {"lr": SMALL, "server_lr": 1.0}
        got = run(_counting(rules[name], slow), clocks[name], task.init, rounds, seeds=seeds, hyper=rates | hyper)
        late = got.history[got.history["round"] > rounds // 2].groupby("seed")
        out[label] = late["error"].mean().to_numpy(), late["slow_share"].mean().to_numpy()
    return out


def _counting(make: Callable[..., Algorithm], slow: np.ndarray) -> Callable[..., Algorithm]:
    """The factory `make` with `slow_share`, the weight of slow clients' updates over that of all, in the log."""
    late = jnp.asarray(slow)

    def made(**hyper):
        system = make(**hyper)

        def round(key, env, s):
            s, log = system.round(key, env, s)
            c = env.cohort
            counts = c.weight * polynomial(hyper.get("a", 0.0))(c.age)
            return s, log | {"slow_share": jnp.where(late[c.ids], counts, 0).sum() / counts.sum()}

        return system._replace(round=round)

    return made


def _columns(name: str, values: np.ndarray) -> dict[str, float]:
    sure = np.isfinite(values).all()
    return {name: values.mean(), f"{name}_std": values.std(ddof=min(1, len(values) - 1)) if sure else np.nan}


def _checks(found: dict, best: dict, concurrency: tuple[int, ...], fair: dict, secret: tuple) -> list[Check]:
    small, large = concurrency[0], concurrency[-1]
    plan = {(c, name): found[c, name, SMALL, 1.0] for c, name in best}
    checks = []
    for c in concurrency[1:]:
        ratio = plan[c, FIRST] / plan[c, BUFFER]
        checks.append(at_least(f"C = {c}: time of {FIRST} over {BUFFER}", ratio[0], 4))
        checks.append(at_least(f"C = {c}: uploads of {FIRST} over {BUFFER}", ratio[1], 3))
    for name, check, bound in ((FIRST, at_least, 0.9), (BUFFER, at_most, 0.75)):
        what = f"time of {name} at C = {large} over C = {small}"
        checks.append(check(what, plan[large, name][0] / plan[small, name][0], bound))
    for c in concurrency:
        what = f"C = {c}: time of {WAITS} over {FIRST}"
        checks.append(at_least(what, plan[c, WAITS][0] / plan[c, FIRST][0], 2))
    plain = next(name for name in fair if name.startswith(f"{BUFFER}, s = 1"))
    checks.append(at_most(f"slow differ: error of {plain} over {FIRST}", fair[plain][0] / fair[FIRST][0], 0.5))
    checks.append(at_most("numbers in which the unmasked sum differs from the integer sum", secret[0], 0))
    checks.append(at_least("chi-square p of one masked message, lowest seed", secret[1].min(), 1e-3))
    return checks


@styled
def _figure(curves: dict, found: dict, best: dict, concurrency: tuple[int, ...], middle: int) -> Any:
    from matplotlib.lines import Line2D

    figure = new_figure((11, 3.3))
    axes = figure.subplots(1, 3)
    handles = []
    for i, name in enumerate((WAITS, FIRST, BUFFER, ASYNC)):
        look: dict[str, Any] = {"color": COLOURS[i], "linestyle": DASHES[i % len(DASHES)]}
        handles.append(Line2D([], [], label=name, **look))
        for _, h in curves[middle, name, SMALL, 1.0].groupby("seed"):
            h = h[h["round"] > 0]
            axes[0].plot(h["time"], h["error"], linewidth=1, **look)
            axes[1].plot(h["total_up_bits"] / (32 * DIM), h["error"], linewidth=1, **look)
        for rates, alpha, marker in ((None, 1.0, "o"), (best, 0.6, "s")):
            key = lambda c, rates=rates, name=name: rates[c, name] if rates else (SMALL, 1.0)
            times = np.array([found[c, name, *key(c)][0] for c in concurrency])  # [concurrencies, seeds]
            if np.isfinite(times).all():
                axes[2].plot(concurrency, times.mean(1), marker=marker, markersize=4, alpha=alpha, **look)
    handles.append(Line2D([], [], color="0.4", marker="o", linestyle="", label=f"rates {SMALL:g} and 1"))
    handles.append(Line2D([], [], color="0.4", marker="s", linestyle="", label="best rates of each"))
    for ax in axes[:2]:
        ax.axhline(TARGET, color="0.5", linewidth=0.8)
        ax.set(yscale="log", ylim=(1e-4, 20), ylabel="squared distance to the optimum")
    sent = max(h["total_up_bits"].max() for k, h in curves.items() if k[:2] == (middle, FIRST)) / (32 * DIM)
    axes[0].set(xlim=(0, 70), xlabel="simulated time (s)", title=f"C = {middle}, client rate {SMALL:g}, server rate 1")
    axes[1].set(xlim=(0, sent / 2), xlabel="uploads that counted", title=f"C = {middle}, the same runs")
    axes[2].set(xscale="log", yscale="log", xlabel="concurrency C", ylabel="time to the target (s)", title="scaling")
    axes[2].set_xticks(concurrency, [str(c) for c in concurrency])
    axes[2].minorticks_off()
    for ax in axes:
        ax.grid(True, color="#dddddd", linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    legend_above(figure, handles)
    return figure
