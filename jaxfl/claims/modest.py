"""MoDeST: as fast as FedAvg without its server, a fraction of the traffic of gossip, and unmoved by crashes.

MoDeST: Bridging the Gap between Federated and Decentralized Learning with Decentralized Sampling; De Vos, Dhasade,
Kermarrec, Lavoie, Pouwelse, Sharma; 2023; https://arxiv.org/abs/2302.13837 (paper 001).

Claim. MoDeST converges as fast as federated learning, with 3 to 14 times less traffic than decentralized learning, and
adapts to joins, leaves and crashes, even of 80 % of the nodes.

Setting. Digits of scikit-learn, 100 nodes that draw 60 samples each with label shares Dirichlet(0.5), perceptron
64-32-10, 5 local steps of batch 10, 150 rounds; s = 10, a = 1; D-SGD with one peer a round (exponential graph, weights
1/2), mean accuracy of the nodes. Costs count up to 85 % test accuracy, at the plan's rate 0.1 and at the best of the
same grid for each (fewest rounds); traffic in models, MoDeST's views included. Then, at rate 0.1, from round 60 on 80
nodes crash in silence, 5 a round for 16 rounds; accuracy there of the survivors, mean and standard deviation over the
last 20 rounds. `MoDeST without pings` takes the first s of the order, up or not. In a last run 50 nodes join in round
30 and 20 leave in round 80.

Found (3 seeds, mean and standard deviation):

                            rate 0.1                       best rate (0.4 for all)
                            rounds        models           rounds        models
    MoDeST                  21 (3.6)      430 (73)         9.3 (2.3)     191 (47)
    FedAvg                  21.3 (2.3)    427 (46)         9.3 (1.5)     187 (31)
    D-SGD                   44.7 (5.5)    4470 (550)       23 (1.0)      2300 (100)

    crash                   accuracy       wobble            participants  pings      rounds without anyone
    MoDeST                  0.937 (0.009)  0.0068 (0.0003)   10 (0)        86 (2.8)   0
    MoDeST without pings    0.921 (0.004)  0.0169 (0.0051)   2.8 (0.04)    10 (0.4)   5.7 (1.5)
    FedAvg                  0.928 (0.006)  0.0161 (0.0048)
    D-SGD                   0.846 (0.008)  0.0050 (0.0012)

The claims hold: as many rounds as FedAvg, 11 and 12 times less traffic than D-SGD, and after the crash exactly s
participants every round with 0.43 times the wobble (0.30, 0.40 and 0.60 in single seeds; D-SGD wobbles least, as its
value is a mean over 20 models). A server that draws blindly does as MoDeST without pings. The crash costs pings:
each of 10 participants looks for the aggregator as well as the aggregator for participants, so 20 a round become about
95, of which the plan counts only the aggregator's 48. Joins and leaves cost none in vain. MoDeST moves as much as
FedAvg, but the busiest node carries 5 % of what the server does.

Not true as the plan has it: in a crash of 80 nodes at once (`crash at once`), training ended in one seed of three. The
model is then in the hands of the aggregator and the 10 participants alone, and all of them are among the dead with
probability 0.8^11 = 9 %; no ping can help. In the two other seeds exactly s train in every round. (Here participants
resend when the aggregator crashes; in the authors' code they do so only if it leaves, so with a = 1 it would end in 4
seeds of 5.) So the crash compared above is spread over 16 rounds, another deviation from the plan.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.modest import modest
from jaxfl.claims.evidence import Check, Evidence, at_least, at_most, tail
from jaxfl.core import Algorithm, Metric, Process, Scenario
from jaxfl.data import partition
from jaxfl.data.sets import digits
from jaxfl.engine.run import Result, run
from jaxfl.exchange.ledger import by_member
from jaxfl.exchange.membership import first_alive, public_hash
from jaxfl.learn.task import Task, classification, scores
from jaxfl.mapping.nodes import map_nodes
from jaxfl.models.networks import MLP
from jaxfl.report.plots import learning_curves
from jaxfl.report.style import COLOURS, DASHES
from jaxfl.world import churn, cohort, topology
from jaxfl.world.scenario import scenario

NODES, SAMPLE, STEPS, BATCH, SIZE = 100, 10, 5, 10, 60
RATE, RATES = 0.1, (0.1, 0.2, 0.4, 0.8)  # the plan's, and those tried for every system
ROUNDS, CRASH, SHARE, SPREAD = 150, 60, 0.8, 16  # the crash takes so many rounds, 5 nodes in each
TARGET = 0.85
JOIN, LEAVE = 30, 80  # half of the nodes join, then a fifth leaves
SYSTEMS = ("MoDeST", "FedAvg", "D-SGD")
BLIND = "MoDeST without pings"


def setting(nodes: int = NODES, members: int = SAMPLE) -> tuple[Task, dict[str, Scenario]]:
    """The task and a world a system: a server's cohort, a graph of one peer a round, or neither."""
    data = digits()
    shards = partition.resampled(data, nodes, 5.0, size=SIZE)  # 0.5 for each of 10 labels
    up = script(nodes)
    return classification(partial(MLP, (64, 32, 10)), data.x), {
        "MoDeST": scenario(shards, churn=up),
        "FedAvg": scenario(shards, cohort=cohort.uniform(nodes, members), churn=up),
        "D-SGD": scenario(shards, topology=topology.one_peer_exponential(nodes), churn=up),
    }


def script(nodes: int, **pairs: Any) -> Process:
    """`churn.events` with room for two sessions a node, so that all scripts share a program."""
    first, last = (np.asarray(a) for a in churn.events(nodes, **pairs).arrays)
    more = ((0, 0), (0, 2 - first.shape[1]))
    return churn.intervals(np.pad(first, more), np.pad(last, more))


def under(world: Scenario, up: Process) -> Scenario:
    """`world` with another script."""
    return world._replace(arrays=world.arrays | {"churn": up.arrays})


def accuracy_of(task: Task, here: np.ndarray) -> Metric:
    """`accuracy` on the test set: of the one model, or the mean over the models of the nodes `here` `[k]`."""
    data = digits()

    def measure(arrays, answer):
        x, y, ids = arrays
        rows = answer[None] if answer.ndim == 1 else answer[ids]
        return {"accuracy": map_nodes(lambda test, row: scores(task, row, *test)["accuracy"], (x, y), rows).mean()}

    return Metric(measure, (jnp.asarray(data.test_x), jnp.asarray(data.test_y), jnp.asarray(here)))


def counted_fedavg(task: Task, **kw: Any) -> Algorithm:
    """FedAvg with bits by node."""
    return by_member(fedavg(task, **kw))


def reached(history: Any, column: str, target: float) -> np.ndarray:
    """The value `[s]` of `column` when accuracy first reaches `target`; infinite for a seed that never does."""
    found = []
    for _, one in history.groupby("seed"):
        hit = one[one["accuracy"] >= target]
        found.append(float(hit[column].iloc[0]) if len(hit) else np.inf)
    return np.array(found)


def uniformity(nodes: int, members: int, rounds: int = 1000) -> float:
    """p-value of the chi-square test that nodes are sampled equally often (draws without replacement)."""
    from scipy.stats import chi2

    everyone = jnp.ones(nodes, bool)
    draw = jax.vmap(lambda t: first_alive(public_hash(jnp.uint32(0), t, nodes), everyone, everyone, members).ids)
    counts = np.bincount(np.asarray(jax.jit(draw)(jnp.arange(rounds))).ravel(), minlength=nodes)
    expected = rounds * members / nodes
    statistic = ((counts - expected) ** 2 / expected).sum() * (nodes - 1) / (nodes - members)
    return float(chi2.sf(statistic, nodes - 1))


def reproduce(
    seeds: int = 3,
    *,
    rates: tuple[float, ...] = RATES,
    rounds: int = ROUNDS,
    crash: int = CRASH,
    join: int = JOIN,
    leave: int = LEAVE,
    target: float = TARGET,
) -> Evidence:
    """Run the systems with everybody up at every rate, then through a crash, joins and leaves at the plan's.

    Args:
        seeds: runs a cell; seeds differ in first model, samples and batches, and share data and script.
        rates: learning rates tried for every system; the plan's is always among them.
        rounds: rounds of a run.
        crash: the round before which `SHARE` of the nodes go down for good.
        join: the round from which the second half of the nodes takes part, in a run of its own.
        leave: the round before which a fifth of the nodes leaves, after `join`.
        target: test accuracy whose cost is compared.
    """
    import pandas as pd

    task, worlds = setting()
    kw = {"steps": STEPS, "batch": BATCH}
    factories = {
        "MoDeST": partial(modest, task, sample=SAMPLE, **kw),
        "FedAvg": partial(counted_fedavg, task, **kw),
        "D-SGD": partial(dsgd, task, **kw),
        BLIND: partial(modest, task, sample=SAMPLE, liveness=False, **kw),
    }
    gone = np.random.default_rng(0).permutation(NODES)[: round(SHARE * NODES)]
    stay, everyone = np.setdiff1d(np.arange(NODES), gone), np.arange(NODES)

    def go(name: str, up: Process, here: np.ndarray, rate: float = RATE, **more: float) -> Result:
        world = under(worlds["MoDeST" if name == BLIND else name], up)
        test, hyper = accuracy_of(task, here), {"lr": rate} | more
        return run(factories[name], world, task.init, rounds, seeds=seeds, hyper=hyper, every=1, evaluate=test)

    calm = {(name, r): go(name, script(NODES), everyone, r) for name in SYSTEMS for r in sorted({RATE, *rates})}
    slowly = script(NODES, leaves=[(crash + k, part) for k, part in enumerate(np.array_split(gone, SPREAD))])
    silent = {"MoDeST": {"announced": 0.0}, BLIND: {"announced": 0.0}}
    hit = {name: go(name, slowly, stay, **silent.get(name, {})) for name in (*SYSTEMS, BLIND)}
    at_once = go("MoDeST", script(NODES, leaves=[(crash, gone)]), stay, announced=0.0)
    moving = script(NODES, joins=[(join, everyone[NODES // 2 :])], leaves=[(leave, everyone[: NODES // 5])])
    move = go("MoDeST", moving, everyone)

    cost = {key: _cost(key[0], result.history, target, task.dim) for key, result in calm.items()}
    best = {name: min(rates, key=lambda r, name=name: cost[name, r]["rounds"].mean()) for name in SYSTEMS}
    rows = {(f"rate {RATE:g}", name): {"rate": RATE} | _spread(cost[name, RATE]) for name in SYSTEMS}
    rows |= {("best rate", name): {"rate": best[name]} | _spread(cost[name, best[name]]) for name in SYSTEMS}
    after = {name: _after(result.history, crash) for name, result in hit.items()}
    rows |= {("crash", name): {"rate": RATE} | _spread(part) for name, part in after.items()}
    once = _after(at_once.history, crash)
    rows["crash at once", "MoDeST"] = {"rate": RATE} | _spread(once)
    rows["joins and leaves", "MoDeST"] = {"rate": RATE} | _spread(_after(move.history, 0))
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(["setting", "system"])

    load = {name: _load(name, calm[name, RATE], task.dim) for name in SYSTEMS}
    checks = _checks(cost, best, after, once, load)
    busy = move.nodes["sent_bits"][:, join + 1 : leave]  # the newcomers are half of the nodes
    share = busy[:, :, NODES // 2 :].sum((1, 2)) / busy.sum((1, 2))
    moved = move.history[move.history["round"] > 0]
    few, most = (moved.groupby("seed")[c].agg(f) for c, f in (("participants", "min"), ("pings", "max")))
    checks += [
        at_least("joins and leaves: participants of a round, least", few.min(), SAMPLE),
        at_most("joins and leaves: pings of a round, most", most.max(), 2 * SAMPLE),
        at_least("joins and leaves: share of the traffic that newcomers, half of the nodes, send", share, 0.4),
        at_most("the same, from above", share, 0.6),
        at_most("private views that agree: largest difference from the shared view's model", _apart(task, worlds), 0),
        at_least("1,000 rounds: p-value of uniform participation", uniformity(NODES, SAMPLE), 0.01),
    ]
    return Evidence(table, checks, _figure(calm, hit, load, task.dim, crash))


def _cost(name: str, history: Any, target: float, d: int) -> dict[str, np.ndarray]:
    """Rounds and traffic, in models `[s]`, up to the target; of a server both ways, of peers each message once."""
    bits = history["total_up_bits"] + (history["total_down_bits"] if name == "FedAvg" else 0)
    counted = history.assign(models=bits / (32.0 * d))
    ends = {"accuracy": tail(history, "accuracy", 20)}
    return {"rounds": reached(counted, "round", target), "models": reached(counted, "models", target)} | ends


def _after(history: Any, crash: int) -> dict[str, np.ndarray]:
    """Accuracy over the last rounds and its standard deviation over them; who trained and was pinged, all `[s]`."""
    late = history[history["round"] > crash].groupby("seed")
    last = history[history["round"] > history["round"].max() - 20].groupby("seed")["accuracy"]
    found = {"accuracy": tail(history, "accuracy", 20), "wobble": last.std().to_numpy()}
    if "participants" not in history:
        return found
    who = late["participants"]
    lost = who.agg(lambda v: (v == 0).sum()).to_numpy()
    return found | {
        "participants": who.mean().to_numpy(),
        "fewest": who.min().to_numpy(),
        "lost": lost,
        "pings": late["pings"].mean().to_numpy(),
    }


def _spread(columns: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean and standard deviation over seeds of each column."""
    return {
        name + part: float(value)
        for name, v in columns.items()
        for part, value in (("", v.mean()), ("_std", v.std(ddof=min(1, v.size - 1))))
    }


def _load(name: str, result: Result, d: int) -> np.ndarray:
    """Models a node sent and received, a round, mean of the seeds, busiest first; FedAvg's server is one more node."""
    if name == "D-SGD":  # one peer a round: every node sends and hears one model
        return np.full(NODES, 2.0)
    both = result.nodes["sent_bits"] + result.nodes["received_bits"]  # [s, rounds, n]
    each = both.mean(1) / (32.0 * d)  # [s, n]
    each = np.c_[each, each.sum(1)] if name == "FedAvg" else each
    return np.sort(each)[:, ::-1].mean(0)


def _apart(task: Task, worlds: dict[str, Scenario], rounds: int = 10) -> float:
    """Largest difference between the models of the two kinds of views, when nobody comes or goes."""
    systems = [
        modest(task, sample=SAMPLE, steps=1, batch=BATCH, window=rounds + 1, **kw)
        for kw in ({}, {"private": True, "room": 1})
    ]
    one, own = (a.read(run(a, worlds["MoDeST"], task.init, rounds, every=rounds).state) for a in systems)
    return float(abs(one - own).max())


def _checks(cost: dict, best: dict, after: dict, once: dict, load: dict) -> list[Check]:
    checks = []
    for label, rate in ((f"rate {RATE:g}", dict.fromkeys(SYSTEMS, RATE)), ("best rate of each", best)):
        ours, server, gossip = (cost[name, rate[name]] for name in SYSTEMS)
        checks += [
            at_most(f"{label}: rounds to the target, MoDeST over FedAvg", ours["rounds"] / server["rounds"], 1.33),
            at_least("the same, from below, " + label, ours["rounds"] / server["rounds"], 0.75),
            at_least(f"{label}: traffic to the target, D-SGD over MoDeST", gossip["models"] / ours["models"], 3),
        ]
    live, blind = after["MoDeST"], after[BLIND]
    fewest = min((v for v in once["fewest"] if v > 0), default=np.nan)
    return [
        *checks,
        at_least("crash: participants of a round after it, least of all seeds", live["fewest"].min(), SAMPLE),
        at_least("crash at once: the same, of the seeds in which someone with the model is left", fewest, SAMPLE),
        at_most(
            "crash: std of the accuracy over the last 20 rounds, with pings over without",
            live["wobble"] / blind["wobble"],
            0.5,
        ),
        at_most("crash: participants without pings, mean", blind["participants"], SAMPLE / 2),
        at_most(
            "traffic of the busiest node of MoDeST over that of FedAvg's server",
            load["MoDeST"][0] / load["FedAvg"][0],
            0.25,
        ),
    ]


def _figure(calm: dict, hit: dict, load: dict, d: int, crash: int) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.4), layout="constrained")
    axes = figure.subplots(1, 3)
    histories = {}
    for name in SYSTEMS:
        h = calm[name, RATE].history
        both = h["total_up_bits"] + (h["total_down_bits"] if name == "FedAvg" else 0)
        histories[name] = h.assign(total_gradients=both / (32.0 * d))
    learning_curves(histories, "accuracy", "gradients", axes[0])
    axes[0].set(xscale="log", xlabel="models sent, all nodes", title="nobody leaves")
    learning_curves({name: result.history for name, result in hit.items()}, "accuracy", "round", axes[1])
    axes[1].axvline(crash, color="#555555", linewidth=0.8)
    axes[1].set(title=f"{SHARE:.0%} of the nodes crash, {SPREAD} rounds from the line", ylim=(0.6, 1.0))
    for i, name in enumerate(SYSTEMS):
        line, first = DASHES[i % len(DASHES)], int(name == "FedAvg")
        axes[2].plot(load[name][first:], line, color=COLOURS[i], label=name)
    axes[2].plot([0], load["FedAvg"][:1], "o", color=COLOURS[1], label="FedAvg's server")
    axes[2].set(yscale="log", xlabel="node, busiest first", ylabel="models in and out a round", title="load by node")
    axes[0].get_legend().remove()
    for ax in axes[1:]:
        ax.legend(fontsize=8, frameon=False)
    axes[2].spines[["top", "right"]].set_visible(False)
    return figure
