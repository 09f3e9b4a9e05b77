"""Clients of unlike depth train one early-exit model that is better at every exit than what the strong train alone.

Claim. Federating prefixes of one model with an exit after each block, averaged block by block over those who have it,
is as good as training one homogeneous early-exit model, and serves all devices; FedAdam at the server is better still.
The equivalence in one step is a test (`tests/papers/test_early_exit.py`). The paper measures word errors on TED-LIUM
and VoxPopuli of a Conformer that was trained before.

Setting. Digits, 20 clients, Dirichlet 0.3, another split each seed, a residual perceptron 64-24 with four blocks and
exits from the start; five clients of each depth 1 to 4, all take part, 5 steps of batch 16, 80 rounds. Accuracy on
the test set, mean of the last five evaluations. Beside the method: the five of depth 4 alone (who is weak is excluded);
missing blocks averaged in as they were (`zero_fill`); everybody at depth 1, and at depth 4 (what no weak device can).
After a first run the grid of FedAdam's rate was moved up by one, as its best point was the last, and exit 1 was asked
for by itself.
"""

from functools import partial

import jax.numpy as jnp
import optax

from jaxfl.algorithms.server.early_exit import early_exit
from jaxfl.claims.evidence import tail
from jaxfl.claims.study import Arm, Inequality, Score, Setting, Study
from jaxfl.core import Scenario
from jaxfl.data import partition
from jaxfl.data.sets import digits
from jaxfl.learn.exits import multi_exit
from jaxfl.measure.metrics import shared_test, together
from jaxfl.measure.submodels import exit_accuracy
from jaxfl.models.residual import MultiExit
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario

WORLD, N, DEPTHS = "digits, 20 clients", 20, (1, 2, 3, 4)
OURS, STRONG, ZERO = "early exits", "strong clients alone", "missing blocks count as unmoved"
SHALLOW, FULL, ADAM = "all at depth 1", "all at depth 4", "early exits, FedAdam"
TASK = multi_exit(partial(MultiExit, 64, 24, 4, 10), jnp.zeros((1, 64)))


def settings(seed: int) -> dict[str, Setting]:
    """Another split each seed."""
    data = digits()
    shards = partition.dirichlet(data, N, 0.3, seed, min_size=4)
    x, y = jnp.asarray(data.test_x), jnp.asarray(data.test_y)
    metric = together(shared_test(TASK, x, y, nodes=False), exit_accuracy(TASK, x, y))
    return {WORLD: Setting(scenario(shards, cohort=cohort.everyone(N, shards.size)), metric)}


def only_strong(world: Scenario) -> Scenario:
    """The same world, in which clients of less than the full depth take no part."""
    who = world.arrays["cohort"]
    strong = jnp.arange(N) % len(DEPTHS) == len(DEPTHS) - 1
    weight = jnp.where(strong, jnp.asarray(who["weight"]), 0)
    return world._replace(arrays=world.arrays | {"cohort": who | {"weight": weight}})


def studies() -> list[Study]:
    """Six arms on one grid of rates."""
    make = partial(early_exit, TASK, depths=DEPTHS, steps=5, batch=16)

    def adam(lr, server_lr):
        return make(lr=lr, server=optax.adam(server_lr))

    used = "to use the work of weak devices is the method; the strong do the same work in both"
    less = "devices of less depth do less work: counted are gradients of parts of the model"
    says = partial(Inequality, setting=WORLD)
    return [
        Study(
            settings=settings,
            arms={
                OURS: Arm(make),
                STRONG: Arm(make, world=only_strong),
                ZERO: Arm(partial(make, zero_fill=True)),
                SHALLOW: Arm(partial(make, depths=(1,))),
                FULL: Arm(partial(make, depths=(4,))),
                ADAM: Arm(adam, grid={"server_lr": (0.01, 0.03, 0.1)}, paper={"server_lr": 0.01}),
            },
            ablations=(ZERO, STRONG),
            model=TASK.init,
            rounds=80,
            every=4,
            grid={"lr": (0.02, 0.05, 0.1, 0.2)},
            paper={"lr": 0.05},
            scores={
                "accuracy": Score(lambda h: tail(h, "accuracy", 20), "high"),
                "accuracy of exit 1": Score(lambda h: tail(h, "exit_1", 20), "high"),
                "accuracy of exit 4": Score(lambda h: tail(h, "exit_4", 20), "high"),
            },
            says=(
                says("accuracy", OURS, "-", STRONG, 0.02, costlier=used),
                says("accuracy of exit 4", OURS, "-", ZERO, 0.005),
                says("accuracy of exit 4", OURS, "-", STRONG, costlier=used),
                says("accuracy of exit 1", OURS, "-", STRONG, costlier=used),
                says("accuracy", OURS, "-", FULL, -0.03, headline=False, tuned=-0.03, costlier=less),
                says("accuracy of exit 1", OURS, "-", SHALLOW, headline=False, costlier=used),
                says("accuracy", ADAM, "-", OURS, headline=False),
            ),
            picture={"y": "accuracy"},
        )
    ]
