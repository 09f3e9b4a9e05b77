"""Speed at numbers of nodes that nobody tuned for: beside the next multiple of 64, which divides by all that matters.

A process for each system and number of devices; in it `n` and the number beside it take turns. Time is a member and
round: members are all nodes, of W1 and SCAFFOLD a cohort of a tenth, odd at `n` and a multiple of 8 beside it.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import timing
from child import run_child

from jaxfl import data
from jaxfl.algorithms.gossip.clipped_gossip import robust_gossip
from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.algorithms.server.diloco import diloco
from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.scaffold import scaffold
from jaxfl.data import partition
from jaxfl.engine.sharding import use_cores
from jaxfl.exchange import rules
from jaxfl.exchange.network import Network
from jaxfl.world import cohort, graph, mixing
from jaxfl.world.scenario import scenario
from workloads import work
from workloads.work import Program

MLP, SMALL = (784, 64, 10), (64, 32, 10)
NODES = (63, 127, 193, 211, 257, 1001, 1009, 4093)
# On one device and on eight fewer: eight on fewer cores show only that none is lost.
SIZES = {2: NODES, 1: (63, 257, 1009), 8: (63, 1009)}
TURNS, BLOCK = 7, 0.04  # of each number of nodes; seconds of a timed block, about


class System(NamedTuple):
    """`make(nodes, members)` is what runs; a member and round takes about `seconds`."""

    workload: str
    make: Callable[[int, int], Program]
    seconds: float
    cohort: bool = False
    largest: int = 4093


def _w1(nodes: int, members: int) -> Program:
    known, task = work.images(), work.mlp(MLP)
    world = scenario(work.even_shards(known, nodes, 60), cohort=cohort.uniform(nodes, members))
    return Program(fedavg(task, lr=0.05, steps=3, batch=20), world, task, known)


def _w3(nodes: int, members: int) -> Program:
    known, task = work.images(), work.mlp(MLP)
    world = scenario(work.even_shards(known, nodes, 60), topology=mixing.metropolis(graph.ring(nodes)))
    return Program(dsgd(task, lr=0.05, steps=1, batch=20), world, task, known)


def _on_digits(make: Callable, nodes: int, **world: Any) -> Program:
    known, task = data.digits(), work.mlp(SMALL)
    return Program(make(task), scenario(partition.resampled(known, nodes, alpha=3.0), **world), task, known)


def _random(nodes: int) -> Any:
    return mixing.metropolis(graph.random_regular(nodes, 8, seed=0))


def _w5(nodes: int, members: int) -> Program:
    return _on_digits(partial(dsgd, lr=0.1, steps=1, batch=4), nodes, topology=_random(nodes))


def _robust(nodes: int, members: int) -> Program:
    make = lambda task: robust_gossip(task, Network(rule=rules.trimmed_mean(2)), lr=0.1, steps=1, batch=4)
    return _on_digits(make, nodes, topology=_random(nodes))


def _scaffold(nodes: int, members: int) -> Program:
    chosen = cohort.uniform(nodes, members)
    return _on_digits(partial(scaffold, lr=0.1, steps=5, batch=8), nodes, cohort=chosen)


def _diloco(nodes: int, members: int) -> Program:
    return _on_digits(partial(diloco, lr=1e-3, steps=5, batch=8), nodes)


SYSTEMS = {
    "w1": System("W1", _w1, 200e-6, cohort=True),
    "w3": System("W3", _w3, 120e-6, largest=1009),
    "w5": System("W5", _w5, 15e-6),
    "robust": System("robust gossip", _robust, 60e-6),
    "scaffold": System("SCAFFOLD", _scaffold, 60e-6, cohort=True),
    "diloco": System("DiLoCo", _diloco, 60e-6),
}
TINY = ("w5", "scaffold")


def beside(nodes: int) -> int:
    """The next multiple of 64."""
    return -(-nodes // 64) * 64


def members(system: System, nodes: int) -> int:
    """Who takes part in a round."""
    if not system.cohort:
        return nodes
    return nodes // 10 | 1 if nodes % 64 else max(8, round(nodes / 80) * 8)


def least(ours: int, beside: int, devices: int) -> float:
    """The ratio of times a member when a device takes a whole member more than another at most, and all take alike."""
    share = lambda count: -(-count // devices) / count
    return share(ours) / share(beside)


def rows(turns: int, tiny: bool, only: Iterable[str] = ()) -> Iterator[dict]:
    """Rows of every system, or of those of `only`, and number of devices, each pair in a process of its own."""
    del turns  # few, so that all of it takes minutes
    for name in only or (TINY if tiny else SYSTEMS):
        for devices in (2,) if tiny else SIZES:
            try:
                yield from run_child("shapes", name, str(devices), *(["--tiny"] if tiny else []))
            except RuntimeError as error:
                yield {"workload": SYSTEMS[name].workload, "devices": devices, "nodes": 0, "error": str(error)}


def of(name: str, devices: int, tiny: bool) -> Iterator[dict]:
    """Rows of one system on so many CPU devices."""
    jax.config.update("jax_platforms", "cpu")
    use_cores(devices)
    system, sizes = SYSTEMS[name], (9,) if tiny else SIZES[devices]
    sizes = [n for n in sizes if n <= system.largest]
    for other in dict.fromkeys(map(beside, sizes)):
        yield from pairs(system, [n for n in sizes if beside(n) == other], other, 1 if tiny else TURNS, tiny)


def pairs(system: System, sizes: list[int], other: int, turns: int, tiny: bool) -> Iterator[dict]:
    """Rows of all `sizes` that share the `other` beside them."""
    count = {n: members(system, n) for n in (*sizes, other)}
    rounds = 1 if tiny else int(np.clip(BLOCK / (count[other] * system.seconds), 1, 60))
    sides = {n: work.ours(system.make(n, count[n]), rounds, False) for n in count}
    for side in sides.values():
        timing.clocked(side.step)
        timing.clocked(side.step)
    times = timing.in_turns(sides.values(), turns)[..., 0] / rounds / np.array(list(count.values()))  # [turns, sides]
    for i, n in enumerate(sizes):
        ratio = times[:, i] / times[:, -1]
        yield {
            "workload": system.workload,
            "devices": jax.device_count(),
            "nodes": n,
            "beside": other,
            "members": count[n],
            "members_beside": count[other],
            "member_seconds": float(np.median(times[:, i])),
            "member_seconds_beside": float(np.median(times[:, -1])),
            "ratio": float(np.median(ratio)),
            "ratio_low": float(ratio.min()),
            "ratio_high": float(ratio.max()),
            "least": least(count[n], count[other], jax.device_count()),
        }
