"""FedProx: keeping the partial work of stragglers beats dropping them, and the proximal term helps on unlike devices.

Federated Optimization in Heterogeneous Networks; Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith; MLSys 2020;
https://arxiv.org/abs/1812.06127 (paper 037), figure 1.

Claim. With 90 % stragglers FedProx is more accurate and more stable than FedAvg, which drops them (22 points of test
accuracy on average over the paper's data sets); mu = 0 already is, mu > 0 adds stability. Without stragglers mu = 0 is
FedAvg and mu = 1 converges further.

Setting. Synthetic(1, 1), 30 devices of at most 300 samples, softmax regression, 10 devices a round, 20 epochs of batch
10, rate 0.01 (the paper's) for all, 80 rounds. Devices, stragglers and their epochs are the same for all systems.
Training loss and accuracy of the server's model on all training data, mean of the last 20 rounds; `wobble` is the
standard deviation of the loss over the last 50 rounds. Since a rate that suits ten averaged models need not suit one,
every system also runs on the same grid of rates with 90 % stragglers.

Found (3 seeds, mean and standard deviation):

                                   loss            accuracy         wobble
    90 %: FedAvg, drops            1.38 (0.11)     0.639 (0.015)    0.48 (0.040)
    90 %: FedProx mu = 0           0.635 (0.022)   0.792 (0.011)    0.11 (0.020)
    90 %: FedProx mu = 1           0.632 (0.008)   0.811 (0.008)    0.12 (0.012)
    none: FedProx mu = 0, FedAvg   0.690 (0.047)   0.777 (0.005)    0.11 (0.020)
    none: FedProx mu = 1           0.635 (0.017)   0.800 (0.013)    0.12 (0.014)
    90 %, best rate: FedAvg        0.961 (0.096)   0.695 (0.037)    0.32 (0.017)
    90 %, best rate: mu = 0        0.629 (0.005)   0.815 (0.007)    0.12 (0.015)
    90 %, best rate: mu = 1        0.632 (0.008)   0.811 (0.008)    0.12 (0.012)

All inequalities of the plan hold at the paper's rate: loss 0.46 times that of dropping, 17 points of accuracy more, a
wobble 4 times smaller. Part of that is the rate: FedAvg prefers a tenth of it (0.001), and with the best rate of each
the advantage falls to 0.66 times the loss and 12 points (after 100 rounds to 0.77 and 6 points). Keeping partial work
still wins in every seed, so the check there asks for the paper's direction only. Not seen: more stability from mu = 1
(its wobble is that of mu = 0). What mu = 1 does is to forgive a large rate: at 0.03 and 0.1, after 100 rounds, its
loss is 0.58 and 0.91 against 0.77 and 1.7 of mu = 0.

The plan's factor 0.6 depends on the draw of Synthetic(1, 1): `data_seed` 1 gives 0.66 and 0.65 and fails it (its other
checks hold), 2 gives 0.49 and 0.50. Deviation from the plan: 80 rounds, in its range of 60 to 100, because at 60 the
loss is still falling and the last 50 rounds measure that fall: there the wobble is only 2.7 and 2.5 times smaller and
fails the plan's 3, after 100 it is 7 times smaller.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.fedprox import fedprox
from jaxfl.claims.evidence import Check, Evidence, at_least, at_most, tail
from jaxfl.core import Metric, Scenario
from jaxfl.data import partition
from jaxfl.data.synthetic import synthetic_fedprox
from jaxfl.engine.run import run
from jaxfl.learn.task import Task, logistic_regression, scores
from jaxfl.report.plots import learning_curves
from jaxfl.report.style import COLOURS, DASHES
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario
from jaxfl.world.work import straggling

DEVICES, MEMBERS, EPOCHS, BATCH, ROUNDS = 30, 10, 20, 10, 80
RATE = 0.01  # the paper's
RATES = (0.0003, 0.001, 0.003, 0.01)
ARMS = {  # name: (factory, mu, whether stragglers are dropped)
    "FedProx mu=0": (fedprox, 0.0, False),
    "FedProx mu=1": (fedprox, 1.0, False),
    "FedAvg, drops": (fedavg, None, True),
}


def setting(
    devices: int = DEVICES, members: int = MEMBERS, epochs: int = EPOCHS, seed: int = 0
) -> tuple[Task, Scenario]:
    """Softmax regression on Synthetic(1, 1) and a world with stragglers."""
    shards = partition.by_client(synthetic_fedprox(1.0, 1.0, devices, seed, cap=300))
    who = cohort.uniform(devices, members, weight=shards.size)
    who = straggling(who, 0.0, epochs, steps=-(-shards.longest // BATCH))
    return logistic_regression(60, 10), scenario(shards, cohort=who)


def with_stragglers(world: Scenario, fraction: float, drop: bool) -> Scenario:
    """`world` with another share of stragglers, dropped or kept; shapes stay, so nothing compiles."""
    who = world.arrays["cohort"] | {"fraction": jnp.float32(fraction), "drop": jnp.float32(drop)}
    return world._replace(arrays=world.arrays | {"cohort": who})


def on_training_data(task: Task, world: Scenario) -> Metric:
    """`train_loss` and `train_accuracy` of the server's model over all samples that devices hold."""
    data = world.data

    def measure(arrays, row):
        return {f"train_{name}": v for name, v in scores(task, row, *arrays).items()}

    return Metric(measure, (data.x[data.order], data.y[data.order]))


def reproduce(
    seeds: int = 3, *, rates: tuple[float, ...] = RATES, rounds: int = ROUNDS, epochs: int = EPOCHS, data_seed: int = 0
) -> Evidence:
    """Run the three systems with 90 % stragglers at every rate, and without stragglers at the paper's.

    Args:
        seeds: runs a cell; seeds differ in cohorts, stragglers and batches, and share the data.
        rates: learning rates tried with stragglers, the same for all systems; the paper's is always among them.
        rounds: rounds of a run.
        epochs: local epochs of a full member.
        data_seed: which draw of Synthetic(1, 1).
    """
    import pandas as pd

    task, world = setting(epochs=epochs, seed=data_seed)
    measured = on_training_data(task, world)
    factories = {f: partial(f, task, epochs=epochs, batch=BATCH) for f, _, _ in ARMS.values()}
    window, ends = min(50, rounds - 1), min(20, rounds)
    found = {}
    for name, (f, mu, drop) in ARMS.items():
        cells = [(0.9, lr) for lr in sorted({RATE, *rates})] + ([] if drop else [(0.0, RATE)])
        for share, lr in cells:
            hyper, there = {"lr": lr} | ({} if mu is None else {"mu": mu}), with_stragglers(world, share, drop)
            result = run(factories[f], there, task.init, rounds, seeds=seeds, hyper=hyper, every=2, evaluate=measured)
            late = result.history[result.history["round"] > rounds - window]
            found[share, name, lr] = {
                "history": result.history,
                "loss": tail(result.history, "train_loss", ends),
                "accuracy": tail(result.history, "train_accuracy", ends),
                "wobble": late.groupby("seed")["train_loss"].std().to_numpy(),
            }
    best = {name: min(rates, key=lambda lr, name=name: _finite_mean(found[0.9, name, lr]["loss"])) for name in ARMS}
    settings = {
        "90 % stragglers": {name: found[0.9, name, RATE] for name in ARMS},
        "no stragglers": {name: found[0.0, name, RATE] for name in ARMS if (0.0, name, RATE) in found},
        "90 %, best rate of each": {name: found[0.9, name, best[name]] for name in ARMS},
    }
    rows = {
        (label, name): {"rate": best[name] if "best" in label else RATE}
        | {
            column + part: value
            for column in ("loss", "accuracy", "wobble")
            for part, value in (("", arm[column].mean()), ("_std", arm[column].std(ddof=min(1, seeds - 1))))
        }
        for label, arms in settings.items()
        for name, arm in arms.items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(["setting", "system"])
    twins = [
        run(factories[f], with_stragglers(world, 0.0, drop), task.init, 2, seeds=seeds, hyper=hyper, every=2)
        for f, drop, hyper in ((fedavg, True, {"lr": RATE}), (fedprox, False, {"lr": RATE, "mu": 0.0}))
    ]
    apart = float(abs(twins[0].state.shared["x"] - twins[1].state.shared["x"]).max())
    return Evidence(table, _checks(settings, apart), _figure(settings, found, sorted({RATE, *rates})))


def _finite_mean(loss: np.ndarray) -> float:
    return float(np.where(np.isfinite(loss), loss, np.inf).mean())


def _checks(settings: dict, apart: float) -> list[Check]:
    slow, even, tuned = settings.values()
    keep, pull, drop = ARMS
    checks = [
        at_most(f"90 %: loss of {name} over that of {drop}", slow[name]["loss"] / slow[drop]["loss"], 0.6)
        for name in (keep, pull)
    ]
    checks.append(
        at_least(f"90 %: accuracy of {pull} minus {drop}", slow[pull]["accuracy"] - slow[drop]["accuracy"], 0.1)
    )
    checks += [
        at_least(
            f"90 %: std of the loss over rounds, {drop} over {name}", slow[drop]["wobble"] / slow[name]["wobble"], 3
        )
        for name in (keep, pull)
    ]
    checks.append(at_most(f"no stragglers: largest difference between the models of {keep} and FedAvg", apart, 0))
    gap = even[pull]["loss"] - even[keep]["loss"]
    checks.append(at_most(f"no stragglers: loss of {pull} minus {keep}", gap, 0))
    for name in (keep, pull):
        ratio, more = tuned[name]["loss"] / tuned[drop]["loss"], tuned[name]["accuracy"] - tuned[drop]["accuracy"]
        checks.append(at_most(f"90 %, best rate of each: loss of {name} over that of {drop}", ratio, 1))
        checks.append(at_least(f"90 %, best rate of each: accuracy of {name} minus {drop}", more, 0))
    return checks


def _figure(settings: dict, found: dict, rates: list[float]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.2), layout="constrained")
    axes = figure.subplots(1, 3)
    labels = list(settings)
    for ax, label in ((axes[0], labels[1]), (axes[2], labels[0])):
        learning_curves({name: arm["history"] for name, arm in settings[label].items()}, "train_loss", "round", ax)
        ax.set(title=f"{label}, rate {RATE:g}", ylim=(0, 3))
    axes[0].get_legend().remove()
    for i, name in enumerate(ARMS):
        values = np.array([found[0.9, name, lr]["loss"] for lr in rates])  # [rates, seeds]
        axes[1].plot(rates, values.mean(1), DASHES[i % len(DASHES)], color=COLOURS[i])
        axes[1].fill_between(rates, values.min(1), values.max(1), color=COLOURS[i], alpha=0.18, linewidth=0)
    axes[1].set(xscale="log", ylim=(0, 3), xlabel="learning rate", ylabel="train loss, last rounds", title=labels[0])
    return figure
