"""The estimate of what a batch at one node does to all nodes some hops away agrees with retraining without it.

Claim. Theorem 2 of the paper and its experiments: the first-order estimate agrees with the measured influence over
several hops, up to the square of the rate; it is shaped by data, topology and curvature, so that neither self-influence
(hop 0), nor one hop, nor an estimate without the Hessian factor does as well; and it tells abnormal neighbours from
normal ones. No other method for decentralized learning exists.

Setting. Digits, another cut and other models each seed, 8 nodes, perceptron 64-16-10 with tanh, D-SGD with batch 16.
Cascades: Dirichlet(1), float64, 30 rounds at rate 0.1, then one step of each node is probed at four rates; losses on
100 test samples; error is mean |estimate - truth| over nodes relative to mean |truth|, at rate 0.01. The truth is that
over as many hops as the estimate has; for `self only` and `1 hop of 3` it is that over 3 hops. Anomalies: ring, rate
0.1, each node bad in turn, influence of each node's batch on its neighbours, mean of rounds 10 to 80; the bad node is
`found` if it is the most harmful. The star, which is not regular, and all nodes in turn are more than the plan has,
whose bounds these are.

Why. Two parts are not true, for want of theory, not of precision. The Hessian factor, though exact for the perturbation
(see the tests), does not reduce the error of the influence reliably: with some cuts of the data by half, with others
not at all, on every graph. The curvature of the evaluation loss, of the same order, is left out of both estimates, and
nothing prevents the two from cancelling. And where shards are unlike, Dirichlet(1), a bad node is the most harmful in
about half of the cases only: a sound node whose labels its neighbours' evaluation does not need harms them as much, and
clean data have such a node, too.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.algorithms.gossip.dice import dice, retrained
from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.claims.evidence import Check, Evidence, check
from jaxfl.core import Array, Graph, Shards
from jaxfl.data import partition
from jaxfl.data.corrupt import flipped_labels, noisy_inputs
from jaxfl.data.sets import Dataset, digits
from jaxfl.engine.run import run
from jaxfl.learn.task import Task, classification, mean_loss
from jaxfl.measure.influence import watched
from jaxfl.report.style import COLOURS, new_figure
from jaxfl.world import graph, mixing
from jaxfl.world.scenario import scenario

NODES, BATCH, HOPS, EXAMPLES = 8, 16, 3, 100
RATES = (0.02, 0.01, 0.005, 0.0025)
RATE = 0.01  # at which estimates are compared
TRAINING = 0.1  # rate of the training before them, and of the anomalies
GRAPHS = {"exponential": graph.exponential, "ring": graph.ring, "star": graph.star}
BLIND, SHORT, ONE = "self only", f"1 hop of {HOPS}", "1 hop"
FLAT, FULL = f"{HOPS} hops, no H", f"{HOPS} hops"
SKEWED, NOISY, WRONG = "labels flipped, Dirichlet(1)", "noisy inputs, IID", "labels flipped, IID"
LATER = "ours, after a first look"


def setting() -> tuple[Task, Dataset, Callable[[Array], Array]]:
    """A tanh perceptron 64-16-10, digits, and the loss of one model `[d]` on 100 test samples."""
    from flax import linen

    data = digits()
    task = classification(linen.Sequential([linen.Dense(16), jnp.tanh, linen.Dense(10)]), data.x[:1], 10)
    x, y = jnp.asarray(data.test_x[:EXAMPLES]), jnp.asarray(data.test_y[:EXAMPLES])
    return task, data, partial(mean_loss, task, x=x, y=y)


def shards(data: Dataset, alpha: float | None, seed: int = 0) -> Shards:
    """Eight shards, Dirichlet(alpha) or IID, of one static shape, so that all of them share a program."""
    cut = partition.iid(data, NODES, seed) if alpha is None else partition.dirichlet(data, NODES, alpha, seed)
    return dataclasses.replace(cut, longest=len(data.y))


def mixing_of(name: str) -> Graph:
    """One of `GRAPHS` in a table of `NODES - 1` slots, where a node counts as much as each of those it hears."""
    g = mixing.uniform(GRAPHS[name](NODES))
    k = NODES - 1 - g.nbr.shape[1]
    nbr = jnp.concatenate([g.nbr, jnp.tile(jnp.arange(NODES, dtype=jnp.int32)[:, None], k)], 1)
    return Graph(nbr, jnp.pad(g.weight, ((0, 0), (0, k))))


def cascades(seeds: int, rates: tuple[float, ...], warm_up: int) -> dict[str, dict[str, np.ndarray]]:
    """By graph `[seeds, rates, j, hops + 1, n]` each of the truth and the estimate with and without H.

    All rates start from the same trained models, so that only the probed rounds depend on the rate.
    """
    task, data, loss = setting()
    factory = partial(dsgd, task, steps=1, batch=BATCH)

    def model(key):
        return task.init(key).astype(jnp.float64)

    def probe(world, seed, begun, lr):
        ask, kw = (factory, world, (warm_up, begun), loss, HOPS), {"seed": seed, "hyper": {"lr": lr}}
        kinds = {"truth": retrained, "with H": dice, "without H": partial(dice, curvature=False)}
        return {name: f(*ask, **kw).reach for name, f in kinds.items()}

    any_world = scenario(shards(data, 1.0), topology=mixing_of("ring"))

    @jax.jit
    def grid(arrays, held, *args):
        each = partial(probe, any_world._replace(arrays=arrays, data=held))
        return jax.vmap(each, (None, None, 0))(*args)

    found = {}
    for name in GRAPHS:
        each = []
        for seed in range(seeds):
            world = scenario(shards(data, 1.0, seed), topology=mixing_of(name))
            kw = {"seed": seed, "hyper": {"lr": TRAINING}, "every": warm_up, "progress": False}
            begun = run(factory, world, model, warm_up, **kw).carry[1]
            each.append(jax.device_get(grid(world.arrays, world.data, seed, begun, jnp.asarray(rates))))
        found[name] = {kind: np.stack([one[kind] for one in each]) for kind in each[0]}
    return found


def anomalies(seeds: int, rounds: int, nodes: range) -> dict[str, np.ndarray]:
    """Influence on its neighbours of each node's batch, `[bad node, seeds, rounds, n]`, each of `nodes` bad in turn."""
    task, data, loss = setting()
    system = watched(dsgd(task, lr=TRAINING, batch=BATCH), loss, jnp.ones(NODES))
    flip, noise = partial(flipped_labels, classes=10), partial(noisy_inputs, deviation=3.0)
    found = {}
    for name, alpha, spoil in ((WRONG, None, flip), (NOISY, None, noise), (SKEWED, 1.0, flip)):
        runs = []
        for bad in nodes:
            each = []
            for seed in range(seeds):
                world = scenario(spoil(shards(data, alpha, seed), bad), topology=mixing_of("ring"))
                result = run(system, world, task.init, rounds, seed=seed, every=rounds, progress=False)
                each.append(result.nodes["influence"][0])
            runs.append(np.stack(each))
        found[name] = np.array(runs)
    return found


def compared(found: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Estimate and truth `[seeds, rates, j]` of each estimator; the shorter ones are compared with all hops, too."""
    truth, bent, flat = (found[name].sum(-1).cumsum(-1) for name in ("truth", "with H", "without H"))
    return {
        BLIND: (bent[..., 0], truth[..., HOPS]),
        SHORT: (bent[..., 1], truth[..., HOPS]),
        ONE: (bent[..., 1], truth[..., 1]),
        FLAT: (flat[..., HOPS], truth[..., HOPS]),
        FULL: (bent[..., HOPS], truth[..., HOPS]),
    }


def relative(estimate: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean error over nodes relative to the mean size of the truth, `[seeds, rates]`."""
    return np.abs(estimate - truth).mean(-1) / np.abs(truth).mean(-1)


def judged(estimate: np.ndarray, truth: np.ndarray, rates: tuple) -> dict[str, np.ndarray]:
    """What is said of one estimator, one number a seed: `error` at RATE, its `slope` in the rate, `correlation`."""
    error, at = relative(estimate, truth), rates.index(RATE)
    return {
        "error": error[:, at],
        "slope": np.polyfit(np.log(rates), np.log(error).T, 1)[0],
        "correlation": np.array([np.corrcoef(e, v)[0, 1] for e, v in zip(estimate[:, at], truth[:, at], strict=True)]),
    }


def detection(influence: np.ndarray, skip: int) -> dict[str, np.ndarray]:
    """What is said of one corruption, `[bad node, seeds]`, over the rounds from `skip` on."""
    late, each = influence[:, :, skip:], np.eye(NODES, dtype=bool)[: len(influence)]
    mean, harm = late.mean(2), (late > 0).mean(2)  # [bad, seeds, n]
    bad = lambda v: v.transpose(0, 2, 1)[each]
    sound = lambda v: v.transpose(0, 2, 1)[~each].reshape(len(each), NODES - 1, -1)
    return {
        "bad": bad(mean),
        "sound": sound(mean).max(1),
        "found": (bad(mean) > sound(mean).max(1)).astype(float),
        "single": bad((late == late.max(-1, keepdims=True)).mean(2)),
        "bad_harm": bad(harm),
        "sound_harm": sound(harm).mean(1),
    }


def extra(seeds: int, small: bool) -> Evidence:
    """Cascades on three graphs, anomalies of three kinds."""
    import pandas as pd

    rates, warm_up, rounds, nodes = (RATES[:2], 2, 8, range(1)) if small else (RATES, 30, 80, range(NODES))
    with jax.enable_x64(True):
        spread = cascades(seeds, rates, warm_up)
    watch = anomalies(seeds, rounds, nodes)
    estimates = {(g, name): pair for g, found in spread.items() for name, pair in compared(found).items()}
    parts = {key: judged(*pair, rates) for key, pair in estimates.items()}
    bad = {name: {k: v.mean(0) for k, v in detection(found, rounds // 8).items()} for name, found in watch.items()}
    rows = parts | {(name, "all nodes in turn"): found for name, found in bad.items()}
    spelt = {
        key: {
            c + part: float(value)
            for c, v in row.items()
            for part, value in (("", v.mean()), ("_std", v.std(ddof=min(1, v.size - 1))))
        }
        for key, row in rows.items()
    }
    table = pd.DataFrame.from_dict(spelt, orient="index").rename_axis(["setting", "estimate"])
    return Evidence(table, checks(parts, bad), (picture(estimates, watch, rates),))


def checks(parts: dict[tuple[str, str], dict[str, np.ndarray]], bad: dict[str, dict[str, np.ndarray]]) -> list[Check]:
    """Alignment, what each part of the estimate is worth, and the anomalies."""
    out = []
    for g in GRAPHS:
        full = parts[g, FULL]
        out.append(check(f"{g}: correlation of estimate and truth, {FULL}", full["correlation"], ">", 0.99, "headline"))
        for name in (ONE, FULL):
            what, slope = f"{g}: slope of the error in the rate, {name}", parts[g, name]["slope"]
            out.append(check(f"{what}, least", slope, ">", 0.85, "headline"))
            out.append(check(f"{what}, most", slope, "<", 1.25))
        for name, bound, source in ((BLIND, 1, "derived"), (SHORT, 1, "derived"), (FLAT, 0.85, "plan")):
            ratio = full["error"] / parts[g, name]["error"]
            out.append(check(f"{g}: error of {FULL} over {name}", ratio, "<", bound, "headline", source))
        out.append(check(f"{g}: error of {BLIND}", parts[g, BLIND]["error"], ">", 0.4))
        out.append(check(f"{g}: size of the slope of {BLIND}", np.abs(parts[g, BLIND]["slope"]), "<", 0.1))
    for name, found in bad.items():
        out.append(check(f"{name}: share of bad nodes that are found", found["found"], ">", 0.95, "headline", LATER))
        out.append(check(f"{name}: mean influence of the bad node", found["bad"], ">", 0))
        out.append(check(f"{name}: share of rounds in which the bad node harms", found["bad_harm"], ">", 0.7))
        out.append(check(f"{name}: share of rounds in which a sound node harms", found["sound_harm"], "<", 0.5))
    return out


def picture(estimates: dict, watch: dict[str, np.ndarray], rates: tuple[float, ...]) -> Any:
    """Estimate against truth, error against the rate, and the influence of a bad node among sound ones."""
    figure, at = new_figure((12, 3.6)), rates.index(RATE)
    first, second, third = figure.subplots(1, 3)
    for i, name in enumerate((BLIND, ONE, FULL)):
        e, v = (1e3 * np.concatenate([estimates[g, name][side][:, at].ravel() for g in GRAPHS]) for side in (0, 1))
        first.scatter(v, e, s=14, color=COLOURS[i], label=name, alpha=0.75, linewidths=0)
    ends = np.array(first.get_xlim())
    first.plot(ends, ends, ":", color="#555555", linewidth=1, zorder=0)
    first.set(xlabel="retrained without the step (1e-3 nats)", ylabel="estimate (1e-3 nats)", title=f"rate {RATE:g}")
    for i, name in enumerate((BLIND, ONE, FULL, FLAT, SHORT)):
        error = np.concatenate([relative(*estimates[g, name]) for g in GRAPHS])
        second.plot(rates, error.mean(0), "o-", markersize=3, color=COLOURS[i], label=name)
        second.fill_between(rates, error.min(0), error.max(0), color=COLOURS[i], alpha=0.15, linewidth=0)
    second.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="relative error", title="all graphs")
    second.set_ylim(bottom=5e-5)
    second.set_xticks(rates, [f"{r:g}" for r in rates])
    second.set_xticks([], minor=True)
    influence = watch[WRONG]
    so_far = influence[0].mean(0).cumsum(0) / np.arange(1, influence.shape[2] + 1)[:, None]  # [rounds, n]
    for k in range(NODES - 1, -1, -1):
        name = {0: "labels flipped", 1: "sound nodes"}.get(k)
        third.plot(1e3 * so_far[:, k], color="#999999" if k else COLOURS[1], label=name, linewidth=0.9 if k else 1.5)
    third.axhline(0, color="#555555", linewidth=0.6)
    third.set(xlabel="round", ylabel="influence on neighbours (1e-3 nats)", title="mean over rounds so far, IID, ring")
    for ax in (first, second, third):
        ax.legend(frameon=False, fontsize=8)
    return figure
