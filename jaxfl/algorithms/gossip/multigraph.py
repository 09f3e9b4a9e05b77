"""Multigraph topology: slow links of a ring are used every m-th round, in the background, and keep nobody waiting.

An edge of delay `D_e` is strong in rounds that `m_e = min(t_max, round(D_e / min D))` divides, else weak
(`world.overlay`). With y_j the model of site j after its local steps,

    x_i <- w_ii y_i + sum_{e = (j, i) strong} w_e z_e,
    z_e = y_j of this round, or, if e was weak in the round before, y_j of the first round in which it was.

So over a weak edge one model is under way, `m_e - 1` rounds old when it is used; a site whose edges are all weak goes
on alone. In time (`max_plus.neighbours(background=True)`), with c_i^k = f_i^{k-1} + T_comp and D_e without the latter,

    f_i^k = max(c_i^k,  max_{e strong} launch_e + D_e),   launch_e = c_j of the round in which z_e was sent.

Where this departs from the paper: which edges are strong is the topology's, by its weights of the round; an edge that
churn takes away is weak as well. A model is coded when it is heard. Sites hear one other at most, and are heard by one,
as in the paper's directed ring; its code has weights 0.7 and 0.3, the plan 1/2.
"""

import jax.numpy as jnp
import numpy as np
import optax

from jaxfl.algorithms.gossip.dsgd import check_gossip
from jaxfl.core import Algorithm, Array, State, n_nodes, tile
from jaxfl.errors import InputError, require
from jaxfl.exchange.network import Network
from jaxfl.learn.local import local_sgd
from jaxfl.learn.task import Task
from jaxfl.mapping.at import at
from jaxfl.paper import Example, Given, Paper, System
from jaxfl.world import overlay, regions

PAPER = Paper(
    "Reducing Training Time in Cross-Silo Federated Learning using Multigraph Topology",
    "Do, Nguyen, Pham, Tran, Tjiputra, Tran, Nguyen",
    "ICCV 2023",
    "https://arxiv.org/abs/2207.09657",
    number="075",
)
MAP = (8000.0, 4000.0)  # km, of sites at random
SECONDS_KM, SECONDS = 8.5e-6, 4e-3  # latency by km, and least


def multigraph(
    task: Task, net: Network = Network(), *, lr: float | Array = 0.1, steps: int = 1, batch: int | None = 16
) -> Algorithm:
    """D-SGD on a ring whose edges come and go, over which models are under way. Logs the share of sites `alone`.

    Raises:
        InputError: without a graph, one in which a site hears several others, or if the cohort is not all nodes.
    """
    require("lr", lr, above=0)
    learn = local_sgd(task, optax.sgd(lr), steps=steps, batch=batch)

    def init(key, env, x):
        check_gossip(env)
        n = n_nodes(env)
        if env.graph is not None and env.graph.nbr.shape[1] != 1:
            raise InputError(
                f"topology has {env.graph.nbr.shape[1]} slots, but the multigraph is a directed ring, of one."
            )
        nodes = {"x": tile(x, n), "under_way": tile(x, n), "strong": jnp.ones(n, bool)}
        return State((), nodes, net.init(env, x))

    def round(key, env, s):
        y = at(jnp.arange(n_nodes(env)), learn)(key, env, s.nodes["x"])
        from_, strong, before = env.graph.nbr[:, 0], env.graph.weight[:, 0] != 0, s.nodes["strong"]
        under_way = jnp.where((before & ~strong)[:, None], y.rows[from_], s.nodes["under_way"])
        said = jnp.where((strong & ~before)[:, None], under_way, y.rows[from_])  # by listener, of whom each has its own
        x, mail, log = net.gossip(key, env, s.mail, y.rows.at[from_].set(said), own=y.rows)
        log |= {"alone": 1 - strong.mean()}
        return State((), {"x": x, "under_way": under_way, "strong": strong}, mail), y.log | log

    return Algorithm(init, round, read=lambda s: s.nodes["x"])


def latencies(n: int, seed: int = 0) -> np.ndarray:
    """Seconds from site to site `[n, n]`, of sites at random places of a map."""
    places = np.random.default_rng(seed).uniform(0, 1, (n, 2)) * MAP
    return SECONDS + SECONDS_KM * regions.distances(places)


def _example(given: Given) -> Example:
    """A ring through sites at random places."""
    delay = latencies(given.nodes, given.seed)
    ring = overlay.halves(overlay.directed_ring(overlay.tour(delay)))
    there = overlay.by_slot(ring, delay)
    return Example(topology=overlay.every(ring, overlay.multiplicity(there)))


SYSTEMS = {"multigraph": System(multigraph, PAPER, _example)}
