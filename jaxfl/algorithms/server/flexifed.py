"""FlexiFed: clients of unlike architecture average the layers that they have in common, and keep the others.

Clients have chains that begin alike; client i has d_i inner layers and a classifier. After local training from its own
model, layer l of a member's model becomes the mean, by the cohort's weights, over the members

    basic     everybody, if all clients have l;                                          else its own
    clustered everybody, if all clients have l; else those of its architecture
    max       all j with l <= min(d_i, d_j): the longest prefix that two have in common

and the classifier is never averaged (`classifier`: it is, over everybody). Clustered FedAvg averages whole models, but
within an architecture alone. A member downloads and uploads what it shares.

All clients keep their model in one shape, with identity layers where they have none. Rules as in a public
re-implementation. The mean is layer by layer, which codecs, robust rules and attacks on whole messages do not know:
there is no `net`.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
import optax

from jaxfl.algorithms.server.fedadp import DEPTHS, architectures, stacks
from jaxfl.core import Algorithm, Array, Metric, State, frozen, n_nodes
from jaxfl.errors import require
from jaxfl.exchange import timing
from jaxfl.exchange.layerwise import kinds_of, mix_layers, shared_means
from jaxfl.learn import submodels
from jaxfl.learn.local import local_sgd
from jaxfl.learn.task import Task
from jaxfl.mapping.at import lift, reported
from jaxfl.mapping.nodes import map_nodes, put_rows, rows_of
from jaxfl.paper import Example, Given, Paper, System

PAPER = Paper(
    "FlexiFed: Personalized Federated Learning for Edge Clients with Heterogeneous Model Architectures",
    "Wang, He, Chen, Chen, Jiang, Xiang, Yang",
    "WWW 2023",
    "https://doi.org/10.1145/3543507.3583347",
)


def common_layers(
    task: Task,
    *,
    common: Callable[[int, int, int, int], bool],
    head: Callable[[int, int], bool] = lambda a, b: False,
    lr: float | Array = 0.1,
    depths: Sequence[int] = DEPTHS,
    steps: int = 10,
    epochs: int | None = None,
    batch: int | None = 16,
) -> Algorithm:
    """The round of all four, of a `networks.MLP`; node `i` has `depths[i % len]` inner layers (`architectures`).

    `common(l, a, b, least)` says whether clients of depths `a` and `b`, which both have layer `l`, share it: 0 is the
    first layer, `least` the smallest depth of all. `head(a, b)` says whether they share the classifier. `epochs`
    replaces `steps` where given; `batch` None is the whole shard.
    """
    require("lr", lr, above=0)
    cut, blocks = architectures(task, depths), submodels.stages(task, name="layers")[0]
    layer, (different, which) = submodels.levels(task, [(f"{block}/*",) for block in blocks]), kinds_of(depths)
    both = lambda j, a, b: head(a, b) if j + 1 == len(blocks) else j <= min(a, b) and common(j, a, b, min(depths))
    share = frozen([[[both(j, a, b) for b in different] for a in different] for j in range(len(blocks))])
    bits = frozen(32.0 * (share.sum(-1) > 0).T[:, layer].sum(1), np.float32)  # of what a kind shares with anybody
    learn = local_sgd(task, optax.sgd(lr), steps=None if epochs else steps, epochs=epochs, batch=batch)

    def member(key, data, i, x, *, t, **more):
        return learn(key, data, i, x, t=t, held=cut(key, i, t, x).held, **more)

    def init(key, env, x):
        def own(x, i):
            sub = cut(key, i, jnp.int32(0), x)
            return jnp.where(sub.held, x, sub.fill)

        return State((), map_nodes(own, x, jnp.arange(n_nodes(env))))

    def round(key, env, s):
        c, old = env.cohort, rows_of(env.cohort, s.nodes)
        kind = jnp.asarray(which)[c.ids % len(which)]
        new, _, each = lift(c, member)(key, env, old)
        mixed = mix_layers(shared_means(share, kind, c.weight), layer, new)
        moved = jnp.asarray(bits)[kind]
        log = timing.through_server(env, each["steps"], moved, moved) | reported(c, each)
        return State((), put_rows(c, s.nodes, jnp.where((c.weight > 0)[:, None], mixed, old))), log

    return Algorithm(init, round, read=lambda s: s.nodes)


def basic_common(task: Task, *, classifier: bool = False, **kw) -> Algorithm:
    """Basic-Common: everybody averages the layers that all have; `kw` as in `common_layers`."""
    return common_layers(task, common=lambda j, a, b, least: j <= least, head=lambda a, b: classifier, **kw)


def clustered_common(task: Task, *, classifier: bool = False, **kw) -> Algorithm:
    """Clustered-Common: and each architecture the others of its own; `kw` as in `common_layers`."""
    common = lambda j, a, b, least: j <= least or a == b
    return common_layers(task, common=common, head=lambda a, b: classifier, **kw)


def max_common(task: Task, *, classifier: bool = False, **kw) -> Algorithm:
    """Max-Common: each two clients share the longest prefix that both have; `kw` as in `common_layers`."""
    return common_layers(task, common=lambda j, a, b, least: True, head=lambda a, b: classifier, **kw)


def clustered_fedavg(task: Task, **kw) -> Algorithm:
    """FedAvg within each architecture, classifier and all; `kw` as in `common_layers`."""
    return common_layers(task, common=lambda j, a, b, least: a == b, head=lambda a, b: a == b, **kw)


def _own_models(given: Given) -> Example:
    """The world of FedADP; a mean over unlike models is no model, so that scores are those of the nodes' own alone."""
    world = stacks(given)
    assert world.metric is not None
    whole = world.metric.measure

    def measure(arrays, answer):
        found = whole(arrays, answer)
        own = {name: found[name] for name in ("node_accuracy", "worst_decile", "node_spread")}
        return own | {"accuracy": found["node_accuracy"]}

    return world._replace(metric=Metric(measure, world.metric.arrays))


SYSTEMS = {
    "basic_common": System(basic_common, PAPER, _own_models),
    "clustered_common": System(clustered_common, PAPER, _own_models),
    "max_common": System(max_common, PAPER, _own_models),
    "clustered_fedavg": System(clustered_fedavg, PAPER, _own_models),
}
