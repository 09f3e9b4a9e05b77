"""When devices vanish from a network, what hurts is the links they take away, not the data they held.

Claim. On Barabasi-Albert graphs with IID data, accuracy suffers more from lost connectivity than from lost data, and
learning is relatively robust: survivors reach a good accuracy.

Setting. Digits, 50 nodes of 24 IID samples, Barabasi-Albert graphs of 2 links a new node, perceptron 64-64-10, 3 local
steps of batch 16, momentum 0.5, all nodes count alike, 60 rounds; from round 5 on a fifth or two fifths of the nodes
are lost, the best connected first or at random. The loss is of their data alone (they relay), of their links alone
(they never had data), or of both. A seed is another graph and split; accuracy is the mean over the survivors, the same
nodes in all arms, on the test images after the last round. Rates: in a first look at 0.01 to 1, 1 was best at the end
for most arms and 0.01 and 0.03 for none.
"""

from collections.abc import Mapping
from functools import partial

import jax.numpy as jnp
import numpy as np

from jaxfl.algorithms.gossip.decavg import decavg
from jaxfl.claims.evidence import Check, check, tail
from jaxfl.claims.study import POINTS, Arm, Inequality, Score, Setting, Study
from jaxfl.core import Metric, Scenario
from jaxfl.data import partition
from jaxfl.data.sets import digits
from jaxfl.learn.task import classification, scores
from jaxfl.mapping.nodes import map_nodes
from jaxfl.models.networks import MLP
from jaxfl.world import cohort, graph, mixing, removal
from jaxfl.world.churn import FOREVER
from jaxfl.world.scenario import scenario

NODES, SIZE, ROUNDS, AT = 50, 24, 60, 5
HUBS, MORE, ANY = "hubs, 20 %", "hubs, 40 %", "random, 20 %"
NONE, DATA_LOST, LINKS_LOST, BOTH = "nothing lost", "data lost", "links lost", "both lost"
TASK = classification(partial(MLP, (64, 64, 10)), np.zeros((1, 64), np.float32))
FREE = "who is gone works and sends no more: that is what is studied"


def settings(seed: int) -> dict[str, Setting]:
    """A graph and a split, and who is to be lost."""
    data, net = digits(), graph.barabasi_albert(NODES, 2, seed=seed)
    mine = np.random.default_rng(seed).permutation(len(data.y))[: NODES * SIZE]
    shards = partition.iid(data._replace(x=data.x[mine], y=data.y[mine]), NODES, seed)
    test = jnp.asarray(data.test_x), jnp.asarray(data.test_y)
    gone = {
        HUBS: removal.hubs(net, NODES // 5),
        MORE: removal.hubs(net, 2 * NODES // 5),
        ANY: removal.at_random(NODES, NODES // 5, seed),
    }

    def measure(arrays, x):
        test, stay = arrays
        each = map_nodes(lambda test, row: scores(TASK, row, *test)["accuracy"], test, x)
        return {"accuracy": (each * stay).sum() / stay.sum()}

    def world(ids) -> Setting:
        who = removal.without_data(cohort.everyone(NODES, np.ones(NODES)), NODES, ids, FOREVER)
        place = scenario(shards, topology=mixing.uniform(net), cohort=who, churn=removal.vanish(NODES, ids, FOREVER))
        stay = jnp.asarray(~np.isin(np.arange(NODES), ids), jnp.float32)
        return Setting(place, Metric(measure, (test, stay)))

    return {name: world(ids) for name, ids in gone.items()}


def loses(world: Scenario, data: int = FOREVER, links: int = FOREVER) -> Scenario:
    """The world whose chosen nodes lose their data in one round, and vanish in another; nothing compiles anew."""
    who, (first, last) = world.arrays["cohort"], world.arrays["churn"]
    gone = jnp.where(who["lost"][:, None], links, last).astype(jnp.int32)
    changed = {"cohort": who | {"at": jnp.int32(data)}, "churn": (first, gone)}
    return world._replace(arrays=world.arrays | changed)


def arms() -> dict[str, Arm]:
    """The factorial."""
    make = partial(decavg, TASK, by_size=False, steps=3, batch=16)
    return {
        NONE: Arm(make),
        DATA_LOST: Arm(make, world=partial(loses, data=AT)),
        LINKS_LOST: Arm(make, world=partial(loses, data=0, links=AT)),
        BOTH: Arm(make, world=partial(loses, links=AT)),
    }


def factors(found: Mapping) -> list[Check]:
    """How much more links cost than data, what both cost, and what a random loss costs."""
    out = []
    for point in POINTS:
        of = lambda setting, arm, point=point: found[point, setting, arm]["accuracy"]
        for where in (HUBS, MORE):
            links, data = of(where, NONE) - of(where, LINKS_LOST), of(where, NONE) - of(where, DATA_LOST)
            what = f"{where}: what the loss of links costs, less 1.5 times that of data, {point} points"
            out.append(check(what, links - 1.5 * data, ">=", 0.0))
            what = f"{where}: both lost and links lost differ by, {point} points"
            out.append(check(what, abs((of(where, BOTH) - of(where, LINKS_LOST)).mean()), "<=", 0.05))
        what = f"{ANY}: what the loss of both costs, {point} points"
        out.append(check(what, of(ANY, NONE) - of(ANY, BOTH), "<=", 0.05))
    share = []
    for seed in range(len(next(iter(found.values()))["accuracy"])):
        net = graph.barabasi_albert(NODES, 2, seed=seed)
        up = ~np.isin(np.arange(NODES), removal.at_random(NODES, NODES // 5, seed))
        share.append(removal.giant_share(net, up))
    return [*out, check(f"{ANY}: share of the survivors who stay connected", share, ">=", 0.9)]


def studies() -> list[Study]:
    """Who is lost, and with what."""
    says = partial(Inequality, "accuracy", DATA_LOST, "-", LINKS_LOST, costlier=FREE)
    return [
        Study(
            settings=settings,
            arms=arms(),
            ablations=(LINKS_LOST,),
            model=TASK.init,
            rounds=ROUNDS,
            every=10,
            grid={"lr": (0.1, 0.3, 1.0, 3.0)},
            paper={"lr": 0.1},
            scores={"accuracy": Score(lambda h: tail(h, "accuracy", 1), "high")},
            says=(says(setting=HUBS, bound=0.03, tuned=0.03), says(setting=MORE, bound=0.05, tuned=0.05)),
            beside=factors,
            picture={"y": "accuracy"},
        )
    ]
