"""MoDeST learns as fast as FedAvg, with a fraction of the traffic of gossip, even when 80 % of the nodes crash.

Claim. The paper's abstract: as fast as federated learning (the plan: rounds within 4/3), 3 to 14 times less traffic
than decentralized learning, in less time; quick to adapt to crashes, of 80 % of the nodes, too.

Setting. Digits, another draw each seed, 100 nodes of 60 samples each with label shares Dirichlet(0.5), perceptron
64-32-10, 5 local steps of batch 10, s = 10; D-SGD on the exponential graph with one peer a round, the mean accuracy of
its nodes. A local step takes 0.2 s and a model 0.1 s over a link of the median node, log-normal(0.5) each, 20 ms of
latency; FedAvg's server is as fast as it likes, as in the paper. Costs count up to 85 % test accuracy; models are those
in and out of the mean node, and of the busiest machine, FedAvg's server among them. In the crashes, from round 60 on,
80 nodes go in silence, at once or 5 a round; accuracy and its standard deviation over rounds (`wobble`) are those of
the last 20 rounds. A run in which nobody trains any more is the worst there is, and 40 more runs count how often that
happens.

Why. What is missing is the protocol's: when 80 nodes crash at once the model is in the hands of the aggregator and the
10 participants alone, and all of them are among the dead in about one run of twelve, with three aggregators in one of
twenty; no ping can help. (Here participants resend when the aggregator crashes; in the authors' code they do so only if
it leaves, so that one aggregator's crash is the end.) Two things do not decide but are not true either. In simulated
seconds MoDeST takes twice as long as FedAvg, whose server has no link to wait for, as one node's link carries ten
models; in rounds it is as fast. And at equal gradients, in 1.6 times as many rounds, sampling without pings is as
accurate: by then the window of activity has forgotten the dead. Pings buy a quick adaptation.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial

import jax.numpy as jnp
import numpy as np

from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.modest import modest
from jaxfl.claims.evidence import Check, Evidence, check, first_at
from jaxfl.claims.study import POINTS, Arm, Inequality, Score, Setting, Study
from jaxfl.core import Algorithm, Metric, Process, Scenario
from jaxfl.data import partition
from jaxfl.data.sets import digits
from jaxfl.engine.run import run
from jaxfl.exchange.ledger import by_member
from jaxfl.learn.task import classification, scores
from jaxfl.mapping.nodes import map_nodes
from jaxfl.models.networks import MLP
from jaxfl.world import churn, cohort, topology
from jaxfl.world.links import links
from jaxfl.world.scenario import scenario

NODES, SAMPLE, SIZE, TARGET, CRASH, LAST = 100, 10, 60, 0.85, 60, 20
CALM, SLOWLY, ONCE = "nobody leaves", "5 crash a round", "80 crash at once"
LATER, SILENT = "ours, after a first look", {"announced": 0.0, "liveness": True}
TASK = classification(partial(MLP, (64, 32, 10)), np.zeros((1, 64), np.float32))
MODEL = 32.0 * TASK.dim  # bits


def weighed(system, server: bool = False, **kw) -> Algorithm:
    """`system` that also logs what the mean node and the busiest machine have sent and received so far, in models."""
    inner: Algorithm = system(TASK, **kw)

    def init(key, env, x):
        s = inner.init(key, env, x)
        return s._replace(shared=(s.shared, jnp.zeros(NODES + server)))

    def round(key, env, s):
        s, load = s._replace(shared=s.shared[0]), s.shared[1]
        s, log = inner.round(key, env, s)
        if "sent_bits" in log:
            moved = log["sent_bits"] + log["received_bits"]
        else:  # one peer a round: each sends one message and hears one
            moved = jnp.full(NODES, 2 * log["up_bits"] / NODES)
        load += (jnp.append(moved, moved.sum()) if server else moved) / MODEL
        log |= {"mean_node": load[:NODES].mean(), "busiest": load.max()}
        return s._replace(shared=(s.shared, load)), log

    return Algorithm(init, round, lambda s: inner.read(s._replace(shared=s.shared[0])))


def script(leaves: list) -> Process:
    """`churn.events` with room for two sessions a node: all scripts share a program."""
    first, last = (np.asarray(a) for a in churn.events(NODES, leaves=leaves).arrays)
    more = ((0, 0), (0, 2 - first.shape[1]))
    return churn.intervals(np.pad(first, more), np.pad(last, more))


def world(seed: int, leaves: list) -> Setting:
    """One draw of data and machines; accuracy of the one model, or the mean over the models of all nodes."""
    data, rng = digits(), np.random.default_rng(seed)
    speed, pace = rng.lognormal(0.0, 0.5, NODES), rng.lognormal(0.0, 0.5, NODES)
    shards = partition.resampled(data, NODES, 5.0, seed, size=SIZE)  # 0.5 for each of 10 labels
    machines = links(NODES, up=MODEL * speed / 0.1, latency=0.02, step=0.2 * pace)
    who = cohort.uniform(NODES, SAMPLE)

    def measure(arrays, answer):
        rows = answer[None] if answer.ndim == 1 else answer
        return {"accuracy": map_nodes(lambda test, row: scores(TASK, row, *test)["accuracy"], arrays, rows).mean()}

    sets = jnp.asarray(data.test_x), jnp.asarray(data.test_y)
    return Setting(
        scenario(shards, cohort=who, churn=script(leaves), links=machines, round_seconds=0.0), Metric(measure, sets)
    )


def gossiping(world: Scenario) -> Scenario:
    """The same nodes, up all the time, on the exponential graph with one peer a round."""
    return scenario(world.data, topology=topology.one_peer_exponential(NODES), links=world.links, round_seconds=0.0)


def crashes(seed: int) -> dict[str, Setting]:
    """80 nodes go, at once or over 16 rounds."""
    gone = np.random.default_rng(seed).permutation(NODES)[:80]
    slowly = [(CRASH + k, part) for k, part in enumerate(np.array_split(gone, 16))]
    return {SLOWLY: world(seed, slowly), ONCE: world(seed, [(CRASH, gone)])}


def late(history, of) -> np.ndarray:
    """Mean (`of` "mean") or standard deviation ("std") of the last accuracies, by seed; NaN of a dead run."""
    last = history[history["round"] > history["round"].max() - LAST]
    value = last.groupby("seed")["accuracy"].agg(of).to_numpy()
    dead = last.groupby("seed")["gradients"].sum().to_numpy() == 0
    return np.where(dead, np.nan, value)


@cache
def systems(small: bool = False) -> dict[str, Callable]:
    """MoDeST with one aggregator and with three, which are one where `small`."""
    ours = partial(weighed, modest, sample=SAMPLE, steps=5, batch=10)
    return {"a = 1": ours, "a = 3": ours if small else partial(ours, aggregators=3)}


def extra(seeds: int, small: bool) -> Evidence:
    """In how many runs training ends when 80 of 100 crash at once: nobody who has the model is left."""
    import pandas as pd

    runs, rounds = (2, 3) if small else (40, CRASH + 3)
    rows, checks = {}, []
    for name, make in systems(small).items():
        ends = []
        for seed in range(runs):
            gone = np.random.default_rng(seed).permutation(NODES)[:80]
            place = world(0, [(rounds - 3, gone)])
            kw = {"seed": seed, "seeds": 1, "hyper": {"lr": [0.1]} | SILENT, "every": 1, "progress": False}
            history = run(make, place.world, TASK.init, rounds, evaluate=place.evaluate, **kw).history
            ends.append(not history["gradients"].iloc[-2:].sum())
        rows["extra", ONCE, f"MoDeST, {name}"] = {"runs": runs, "ended": np.mean(ends)}
        checks.append(check(f"{ONCE}: share of runs that it ends, {name}", np.mean(ends), "<", 0.01, "headline", LATER))
    return Evidence(pd.DataFrame.from_dict(rows, orient="index").rename_axis(["point", "setting", "system"]), checks)


def as_fast(scores: Mapping) -> list[Check]:
    """MoDeST takes as many rounds as FedAvg: without that its savings say nothing."""
    out = []
    for point in POINTS:
        ours, theirs = (scores[point, CALM, name]["rounds to the target"] for name in ("MoDeST", "FedAvg"))
        what = f"{CALM}: rounds to the target of MoDeST over that of FedAvg, {point} points"
        with np.errstate(invalid="ignore"):
            out.append(check(what, ours / theirs, "<=", 4 / 3, "condition"))
    return out


def studies() -> list[Study]:
    """What it costs to learn while nobody leaves, and what is left after the crashes."""
    kw, blind = {"steps": 5, "batch": 10}, SILENT | {"liveness": False}
    ours, three = systems().values()
    server = partial(weighed, lambda task, **kw: by_member(fedavg(task, **kw)), server=True, **kw)
    spent = lambda cost: Score(lambda h: first_at(h, "accuracy", TARGET, cost, least=True))
    sides = "a message between nodes is counted at both, one to or from the server once"
    than = partial(Inequality, setting=CALM)
    calm = Study(
        settings=lambda seed: {CALM: world(seed, [])},
        arms={
            "MoDeST": Arm(ours, SILENT),
            "MoDeST, a = 3": Arm(three, SILENT, small={"make": ours}),
            "FedAvg": Arm(server),
            "D-SGD": Arm(partial(weighed, dsgd, **kw), world=gossiping),
        },
        ablations=("D-SGD",),  # everybody trains, nobody aggregates
        model=TASK.init,
        rounds=100,
        every=1,
        grid={"lr": (0.1, 0.2, 0.4, 0.8, 1.6)},
        paper={"lr": 0.1},
        scores={
            "rounds to the target": spent("round"),
            "seconds to the target": spent("time"),
            "gradients to the target": spent("total_gradients"),
            "models by node": spent("mean_node"),
            "models of the busiest": spent("busiest"),
        },
        says=(
            than("models by node", "MoDeST", "/", "D-SGD", 1 / 3),
            than("models by node", "MoDeST, a = 3", "/", "D-SGD"),
            than("seconds to the target", "MoDeST", "/", "D-SGD"),
            than("gradients to the target", "MoDeST", "/", "D-SGD"),
            than("models of the busiest", "MoDeST", "/", "FedAvg", 0.25, costlier=sides),
            than("seconds to the target", "MoDeST", "/", "FedAvg", 4 / 3, headline=False, tuned=4 / 3, source=LATER),
        ),
        picture={"x": "time"},
        beside=as_fast,
    )
    keeps = "to keep s participants is what is asked; beside, it is asked at equal gradients, 1.6 times as many rounds"
    crash = Study(
        settings=crashes,
        arms={
            "MoDeST": Arm(ours, SILENT),
            "MoDeST, a = 3": Arm(three, SILENT, small={"make": ours}),
            "without pings": Arm(ours, blind),
            "without pings, longer": Arm(ours, blind, rounds=1.6),
            "FedAvg": Arm(server),
        },
        ablations=("without pings", "without pings, longer"),
        model=TASK.init,
        rounds=150,
        every=1,
        grid={"lr": (0.1, 0.2, 0.4, 0.8, 1.6)},
        paper={"lr": 0.1},
        scores={"accuracy": Score(lambda h: late(h, "mean"), "high"), "wobble": Score(lambda h: late(h, "std"))},
        says=(
            Inequality("wobble", "MoDeST", "/", "without pings", 0.5, costlier=keeps),
            Inequality("accuracy", "MoDeST", "-", "without pings", costlier=keeps),
            Inequality("accuracy", "MoDeST", "-", "without pings, longer", headline=False),
            Inequality("accuracy", "MoDeST", "-", "FedAvg", headline=False),
            Inequality("accuracy", "MoDeST, a = 3", "-", "MoDeST", headline=False),
        ),
    )
    return [calm, crash]
