"""DFedSAM: sharpness-aware local steps and several gossip steps a round help decentralized learning.

TODO
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.algorithms.dfedsam import dfedsam_mgs
from jaxfl.claims.evidence import Check, Evidence, at_least, at_most, tail
from jaxfl.core import Scenario
from jaxfl.engine.run import Result, run
from jaxfl.learn import partition
from jaxfl.learn.data import digits
from jaxfl.learn.models import MLP
from jaxfl.learn.task import Task, classification
from jaxfl.measure.curvature import sharpness
from jaxfl.measure.metrics import consensus_distance, shared_test
from jaxfl.measure.plots import COLOURS, DASHES, learning_curves
from jaxfl.world import graph, mixing
from jaxfl.world.scenario import scenario

NODES, ALPHA, STEPS, BATCH = 16, 0.1, 10, 16
RATE, ROUNDS = 0.1, 80  # the card's
RATES, LONG = (0.1, 0.3, 0.6, 1.0, 1.8), 240  # where every system has the rate that serves it best
RADIUS, GOSSIP = 0.1, 4  # rho of SAM, gossip steps of MGS
ARMS = {  # name: (rho, Q)
    "DFedAvg": (0.0, 1),
    "DFedSAM": (RADIUS, 1),
    "DFedAvg-MGS": (0.0, GOSSIP),
    "DFedSAM-MGS": (RADIUS, GOSSIP),
}


def setting(seeds: int, nodes: int = NODES) -> tuple[Task, list[Scenario]]:
    """The task and one world a seed, each with its own split; all of one shape, so that one compilation serves all."""
    data = digits()
    task = classification(partial(MLP, (64, 64, 10)), data.x)
    splits = [partition.dirichlet(data, nodes, ALPHA, seed=s) for s in range(seeds)]
    longest = max(split.longest for split in splits)
    world = scenario(splits[0], topology=mixing.metropolis(graph.ring(nodes)))
    who = [world.arrays["cohort"] | {"weight": split.size.astype(jnp.float32)} for split in splits]
    return task, [
        world._replace(arrays=world.arrays | {"cohort": w}, data=dataclasses.replace(split, longest=longest))
        for w, split in zip(who, splits, strict=True)
    ]


def contraction(factory: Any, world: Scenario, result: Result, hyper: dict) -> float:
    """Consensus distance after over that before the mixing of one more round.

    The round is computed twice, with the links of `world` and with none: local training draws the same batches.
    """
    links = world.arrays["topology"]
    silent = dataclasses.replace(links, weight=jnp.zeros_like(links.weight))

    def distance(topology):
        now = world._replace(arrays=world.arrays | {"topology": topology})
        more = run(
            factory,
            now,
            result.state.nodes[0, 0],
            result.carry[0] + 1,
            seeds=1,
            hyper=hyper,
            every=1,
            carry=result.carry,
        )
        return float(consensus_distance(more.state.nodes[0]))

    return distance(links) / distance(silent)


def reproduce(
    seeds: int = 3, *, rates: tuple[float, ...] = RATES, rounds: int = ROUNDS, long: int = LONG, every: int = 5
) -> Evidence:
    """Run the four systems on every split at every rate.

    Args:
        seeds: splits, each with its own first model and batches.
        rates: learning rates tried, the same for all systems; the card's is always among them.
        rounds: rounds after which the card's inequalities are read.
        long: rounds after which systems are compared at the rate that serves each best, above `rounds`.
        every: rounds between evaluations.
    """
    import pandas as pd

    task, worlds = setting(seeds)
    data = digits()
    test = shared_test(task, jnp.asarray(data.test_x), jnp.asarray(data.test_y))
    flat = sharpness(task, jnp.asarray(data.x), jnp.asarray(data.y))
    top = jax.jit(lambda arrays, rows: flat.measure(arrays, rows)["sharpness"])
    factories = {q: partial(dfedsam_mgs, task, gossip_steps=q, steps=STEPS, batch=BATCH) for _, q in ARMS.values()}

    found, shrink = {}, {q: [] for q in factories}
    for name, (rho, q) in ARMS.items():
        for rate in sorted({RATE, *rates}):
            hyper, parts = {"lr": rate, "rho": rho}, {rounds: [], long: []}
            for seed, world in enumerate(worlds):
                go = partial(run, factories[q], world, task.init, seed=seed, seeds=1, hyper=hyper, every=every)
                early = go(rounds, evaluate=test)
                late = go(long, evaluate=test, carry=early.carry)
                if rate == RATE:
                    shrink[q].append(contraction(factories[q], world, early, hyper))
                both = pd.concat([early.history, late.history])
                for last, result, history in ((rounds, early, early.history), (long, late, both)):
                    parts[last].append((history, float(top(flat.arrays, result.state.nodes[0]))))
            for last, pairs in parts.items():
                history = pd.concat([h for h, _ in pairs])
                found[last, name, rate] = {
                    "history": history,
                    "accuracy": tail(history, "node_accuracy", 5),
                    "sharpness": np.array([v for _, v in pairs]),
                    "consensus": tail(history, "consensus", 5),
                }
    card = {name: found[rounds, name, RATE] for name in ARMS}
    best = {name: max(rates, key=lambda r, name=name: found[long, name, r]["accuracy"].mean()) for name in ARMS}
    tuned = {name: found[long, name, best[name]] for name in ARMS}
    rows = {}
    for label, arms in ((f"rate {RATE:g}, {rounds} rounds", card), (f"best rate, {long} rounds", tuned)):
        for name, arm in arms.items():
            row = {"rate": RATE if arms is card else best[name]}
            for column in ("accuracy", "sharpness", "consensus"):
                row |= {column: arm[column].mean(), f"{column}_std": arm[column].std(ddof=min(1, seeds - 1))}
            rows[label, name] = row
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(["setting", "system"])
    return Evidence(table, _checks(card, tuned, shrink), _figure(card, tuned, found, sorted({RATE, *rates}), long))


def _checks(card: dict, tuned: dict, shrink: dict[int, list[float]]) -> list[Check]:
    def gain(arms, a, b):
        return arms[a]["accuracy"] - arms[b]["accuracy"]

    checks = []
    for a, b, least in (("DFedSAM", "DFedAvg", 0.01), ("DFedSAM-MGS", "DFedAvg-MGS", 0.005)):
        better = gain(card, a, b)
        checks += [
            at_least(f"accuracy of {a} minus {b}", better, least),
            at_least(f"the same, least of the seeds ({a})", better.min(), 0),
            at_least(f"accuracy of {a} minus {b}, each at its best rate", gain(tuned, a, b), 0),
        ]
    flatter = card["DFedSAM"]["sharpness"].mean() / card["DFedAvg"]["sharpness"].mean()
    checks.append(at_most("largest Hessian eigenvalue of DFedSAM over that of DFedAvg", flatter, 0.75))
    flatter = tuned["DFedSAM"]["sharpness"].mean() / tuned["DFedAvg"]["sharpness"].mean()
    checks.append(at_most("the same, each at its best rate", flatter, 1))
    for a, b in (("DFedAvg-MGS", "DFedAvg"), ("DFedSAM-MGS", "DFedSAM")):
        checks.append(at_least(f"accuracy of {a} minus {b}", gain(card, a, b), 0.05))
    second = mixing.second_eigenvalue(mixing.metropolis(graph.ring(NODES)))
    for q, ratios in shrink.items():
        what = f"squared consensus distance after over before a mixing phase, Q = {q}, most of all runs"
        checks.append(at_most(what, max(ratios) ** 2, second ** (2 * q)))
    return checks


def _figure(card: dict, tuned: dict, found: dict, rates: list[float], long: int) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.2), layout="constrained")
    axes = figure.subplots(1, 3)
    for ax, arms, title in ((axes[0], card, f"rate {RATE:g}"), (axes[2], tuned, "best rate of each")):
        learning_curves({name: arm["history"] for name, arm in arms.items()}, "node_accuracy", "round", ax)
        ax.set_title(title)
    axes[0].get_legend().remove()
    for i, name in enumerate(ARMS):
        values = np.array([found[long, name, r]["sharpness"] for r in rates])  # [rates, seeds]
        axes[1].plot(rates, values.mean(1), DASHES[i % len(DASHES)], color=COLOURS[i])
        axes[1].fill_between(rates, values.min(1), values.max(1), color=COLOURS[i], alpha=0.18, linewidth=0)
    axes[1].set(xscale="log", yscale="log", xlabel="learning rate", ylabel="largest Hessian eigenvalue")
    axes[1].set_title(f"mean model after {long} rounds")
    return figure
