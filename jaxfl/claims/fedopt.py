"""FedAdagrad, FedAdam and FedYogi: adaptive servers on features of unlike scale and frequency.

Adaptive Federated Optimization; Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan; ICLR 2021;
https://arxiv.org/abs/2003.00295 (paper 091). In words: adaptive server optimizers, the clients' plain SGD untouched,
improve much over FedAvg where gradients are sparse, both tuned.

Setting: softmax regression on `learn.synthetic.sparse_features` (10 dense and 200 rare binary features, 5 classes), 100
clients of 30 samples, 10 a round, one epoch of batch 10, 150 rounds. Every method is tuned on a grid of client rates
0.03 to 3 and server rates 0.3 to 10 (FedAvg, FedAvgM) or 0.01 to 1 (adaptive, tau = 1e-3), half a decade apart, which
grows while the best cell lies on an edge. A seed is another draw of data, cohorts and batches; every cell runs with all
seeds, and the best has the least mean loss over all training data and the last 30 rounds (evaluated every 5).

Found, mean and standard deviation over 3 seeds (rounds: to a training loss of 0.9, median; cells: within 10 % of the
best loss, of all tried):

| system | best rates, client and server | loss | test accuracy | rounds | cells |
| --- | --- | --- | --- | --- | --- |
| FedAvg | 0.3, 3 | 0.88 +- 0.11 | 0.64 +- 0.06 | 90 | 5 of 20 |
| FedAvgM | 0.3, 1 | 0.69 +- 0.08 | 0.71 +- 0.04 | 45 | 4 of 20 |
| FedAdagrad | 0.3, 3 | 0.24 +- 0.04 | 0.82 +- 0.02 | 15 | 3 of 35 |
| FedAdam | 1, 0.3 | 0.28 +- 0.05 | 0.81 +- 0.02 | 15 | 1 of 25 |
| FedYogi | 1, 0.3 | 0.27 +- 0.04 | 0.81 +- 0.02 | 15 | 1 of 25 |

All inequalities of the plan hold: loss ratios to FedAvg 0.27 to 0.32, speed-ups of 5.4 and more, accuracy gaps of 0.18.
That adaptive servers are easier to tune is not seen here, nor in the plan: fewer of their cells are near the best.

The control, the same without the dense block, does not do what the plan says. A client rate of 10 does rescue FedAvg
(loss 0.51 +- 0.08, accuracy 0.76), yet adaptive servers keep half its loss (ratios 0.48 to 0.49, accuracy 0.81), where
the plan asks for a ratio above 0.65; only against FedAvgM (0.34 +- 0.09) is it above. With a finer grid for FedAvg,
rarer features (topic weights of mean 0.5) or the loss that clients see it stayed between 0.42 and 0.56. So the dense
block makes a part of the gap, and sparse features alone, which is the paper's claim, make the rest. The plan does not
list the control among what must hold: it is a part of the table and no check.

Deviations: FedAdagrad has b1 = 0 as in the paper. Without the dense block its columns are zeros, which changes no
number and compiles nothing anew.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxfl.algorithms.server.fedopt import fedadagrad, fedadam, fedopt, fedyogi
from jaxfl.claims.evidence import Evidence, at_least, at_most, tail
from jaxfl.core import Algorithm, Metric
from jaxfl.data import partition
from jaxfl.data.sets import Dataset
from jaxfl.data.synthetic import sparse_features
from jaxfl.engine.run import run
from jaxfl.learn import task
from jaxfl.report.plots import learning_curves
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario

CLIENTS, SAMPLED, DENSE, FEATURES, CLASSES = 100, 10, 10, 210, 5
ROUNDS, EVERY, LAST, TARGET = 150, 5, 30, 0.9
WIDEN = 6  # rungs by which a grid may grow


def sgd_server(problem: task.Task, *, lr: Any, server_lr: Any, momentum: float | None = None, **kw) -> Algorithm:
    """FedAvg with a server rate, FedAvgM with `momentum`; `kw` as in `fedopt`."""
    return fedopt(problem, local=optax.sgd(lr), server=optax.sgd(server_lr, momentum=momentum), **kw)


def rate(rung: int) -> float:
    """The ladder of rates: rungs -2, -1, 0, 1, 2 are 0.1, 0.3, 1, 3, 10."""
    return (1.0, 3.0)[rung % 2] * 10.0 ** (rung // 2)


CLIENT_RUNGS, SGD_RUNGS, ADAPTIVE_RUNGS = range(-3, 2), range(-1, 3), range(-4, 1)
# factory, and the rungs of its server rate to begin with
METHODS: Mapping[str, tuple[Callable, range]] = {
    "FedAvg": (sgd_server, SGD_RUNGS),
    "FedAvgM": (partial(sgd_server, momentum=0.9), SGD_RUNGS),
    "FedAdagrad": (partial(fedadagrad, tau=1e-3), ADAPTIVE_RUNGS),
    "FedAdam": (partial(fedadam, b1=0.9, b2=0.99, tau=1e-3), ADAPTIVE_RUNGS),
    "FedYogi": (partial(fedyogi, b1=0.9, b2=0.99, tau=1e-3), ADAPTIVE_RUNGS),
}


class Tuned(NamedTuple):
    """A method at its best cell. A cell is the rungs of client and server rate."""

    cell: tuple[int, int]
    losses: dict[tuple[int, int], float]  # of every cell tried, infinite where a seed diverged
    edge: bool  # whether the best still lies on an edge of the grid
    history: Any  # of the best cell, its evaluated rounds


def search(loss: Callable, rows: range, columns: range, widen: int = WIDEN) -> tuple[tuple[int, int], dict, bool]:
    """The least `loss(row, column)` on a grid that grows one rung beyond each edge where its best cell lies.

    It grows at most `widen` times. Returns the cell, the losses of all cells tried, and whether the best is still on
    an edge.
    """
    tried: dict[tuple[int, int], float] = {}
    while True:
        tried |= {(i, j): loss(i, j) for i in rows for j in columns if (i, j) not in tried}
        i, j = min(tried, key=lambda cell: tried[cell])
        edge = i in (rows[0], rows[-1]) or j in (columns[0], columns[-1])
        if not edge or not widen:
            return (i, j), tried, edge
        widen -= 1
        rows = range(rows[0] - (i == rows[0]), rows[-1] + 1 + (i == rows[-1]))
        columns = range(columns[0] - (j == columns[0]), columns[-1] + 1 + (j == columns[-1]))


def tune_all(
    sets: Sequence[Sequence[Dataset]], methods: Mapping[str, tuple], rounds: int = ROUNDS, rows: range = CLIENT_RUNGS
) -> list[dict[str, Tuned]]:
    """Each of `sets` (data of the same shapes, one a seed): every method tuned on it, every cell with all seeds."""
    import pandas as pd

    problem = task.logistic_regression(FEATURES, CLASSES)
    world = scenario(partition.by_client(sets[0][0]), cohort=cohort.uniform(CLIENTS, SAMPLED))
    makes = {name: (partial(make, problem, epochs=1, batch=10), columns) for name, (make, columns) in methods.items()}

    def measure(arrays, row):
        train, test = (task.scores(problem, row, *part) for part in arrays)
        return {"train_loss": train["loss"], "accuracy": test["accuracy"]}

    def tune(make: Callable, columns: range, seeds: Sequence[tuple]) -> Tuned:
        histories = {}

        def loss(i: int, j: int) -> float:
            kw = {"every": EVERY, "hyper": {"lr": rate(i), "server_lr": rate(j)}, "progress": False}
            parts = [
                run(make, w, problem.init, rounds, seed=s, evaluate=Metric(measure, arrays), **kw).history
                for s, (w, arrays) in enumerate(seeds)
            ]
            h = pd.concat([p[p["accuracy"].notna()] for p in parts], ignore_index=True)
            histories[i, j] = h.assign(train_loss=h["train_loss"].fillna(np.inf))
            return float(tail(histories[i, j], "train_loss", LAST).mean())

        cell, losses, edge = search(loss, rows, columns)
        return Tuned(cell, losses, edge, histories[cell])

    out = []
    for draws in sets:
        seeds = [
            (
                world._replace(data=partition.by_client(d)),
                jax.tree.map(jnp.asarray, ((d.x, d.y), (d.test_x, d.test_y))),
            )
            for d in draws
        ]
        out.append({name: tune(make, columns, seeds) for name, (make, columns) in makes.items()})
    return out


def no_dense(d: Dataset) -> Dataset:
    """Columns of 0 where the dense features were: their parameters never move, and the compiled programs serve."""
    fill = lambda x: np.pad(x, ((0, 0), (DENSE, 0)))
    return d._replace(x=fill(d.x), test_x=fill(d.test_x))


def reached(history: Any) -> np.ndarray:
    """The first evaluated round with a training loss below `TARGET`, one value a seed; infinite if there is none."""
    below = history["round"].where(history["train_loss"] < TARGET, np.inf)
    return below.groupby(history["seed"]).min().to_numpy(float)


def reproduce(
    seeds: int = 3, *, rounds: int = ROUNDS, methods: Mapping[str, tuple] = METHODS, rows: range = CLIENT_RUNGS
) -> Evidence:
    """Tune all `methods`, of which FedAvg must be one, with and without the dense features.

    Args:
        seeds: draws of data, cohorts and batches.
        rounds: of each run.
        methods: factory and first rungs of the server rate, by name.
        rows: first rungs of the client rate.
    """
    import pandas as pd

    sets = [[sparse_features(CLIENTS, seed=s) for s in range(seeds)]]
    sets.append([no_dense(sparse_features(CLIENTS, seed=s, dense=False)) for s in range(seeds)])
    tuned = tune_all(sets, methods, rounds, rows)
    results: dict[str, dict[str, Tuned]] = {"sparse and dense": tuned[0], "sparse only (control)": tuned[1]}
    table = pd.DataFrame(
        {"features": features, "system": name} | _row(method, part["FedAvg"])
        for features, part in results.items()
        for name, method in part.items()
    )

    part = results["sparse and dense"]

    def level(name: str, column: str) -> Any:
        return tail(part[name].history, column, LAST)

    checks = []
    for name in [name for name in part if name not in ("FedAvg", "FedAvgM")]:
        ratio = level(name, "train_loss") / level("FedAvg", "train_loss")
        # a FedAvg that never arrives counts as if it did in the last round
        speed: Any = np.minimum(reached(part["FedAvg"].history), rounds) / reached(part[name].history)
        gap = level(name, "accuracy") - level("FedAvg", "accuracy")
        checks.append(at_most(f"training loss {name} / FedAvg", ratio, 0.6))
        checks.append(at_least(f"rounds to a training loss of {TARGET}: FedAvg / {name}", speed, 4))
        checks.append(at_least(f"test accuracy {name} - FedAvg", gap, 0.05))
    return Evidence(table, checks, _figure(results))


def _row(tuned: Tuned, base: Tuned) -> dict[str, Any]:
    loss, accuracy = (tail(tuned.history, column, LAST) for column in ("train_loss", "accuracy"))
    best = min(tuned.losses.values())
    spread = lambda a: a.std(ddof=1) if a.size > 1 else np.nan
    return {
        "lr": rate(tuned.cell[0]),
        "server lr": rate(tuned.cell[1]),
        "on an edge": tuned.edge,
        "loss": loss.mean(),
        "loss std": spread(loss),
        "loss / FedAvg": (loss / tail(base.history, "train_loss", LAST)).mean(),
        "rounds to target (median)": np.median(reached(tuned.history)),
        "accuracy": accuracy.mean(),
        "accuracy std": spread(accuracy),
        "cells": len(tuned.losses),
        "cells within 10 %": sum(v <= 1.1 * best for v in tuned.losses.values()),
    }


def _figure(results: Mapping[str, Mapping[str, Tuned]]) -> Any:
    from matplotlib.figure import Figure

    fig = Figure(figsize=(11, 3.4), layout="constrained")
    for ax, (features, part) in zip(fig.subplots(1, 2), results.items(), strict=True):
        learning_curves({name: tuned.history for name, tuned in part.items()}, "train_loss", ax=ax, log=True)
        ax.set_title(features)
    return fig
