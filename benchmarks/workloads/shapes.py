"""Speed at numbers of nodes that nobody tuned for: beside the next multiple of 64, which divides by all that matters.

A process for each system and number of devices; in it `n`, the number beside it and, where there is one, the bound at
`n` take turns. Time is a member and round: members are all nodes, of W1 and SCAFFOLD a cohort of a tenth, odd at `n`
and a multiple of 8 beside it.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import timing
from child import run_child

from jaxfl.algorithms.server.diloco import diloco
from jaxfl.algorithms.server.scaffold import scaffold
from jaxfl.engine.sharding import use_cores
from jaxfl.world import cohort
from workloads import federated, gossip, work
from workloads.work import Cost, Work

NODES = (63, 127, 193, 211, 257, 1001, 1009, 4093)
# On one device and on eight fewer: eight on fewer cores show only that none is lost.
SIZES = {2: NODES, 1: (63, 257), 8: (63,)}
TURNS, BLOCK = 5, 0.4  # of each number of nodes; seconds of a timed block, about, of at least 10 rounds


class System(NamedTuple):
    """`make(nodes, members, rounds)` is what runs; a member and round takes about `seconds`."""

    workload: str
    make: Callable[[int, int, int], Work]
    seconds: float
    cohort: bool = False
    largest: int = 4093


def _digits(name: str, make: Callable, nodes: int, members: int, rounds: int) -> Work:
    """A server and W5's nodes."""
    chosen = None if members == nodes else cohort.uniform(nodes, members)
    build = lambda: gossip.on_digits(make, nodes, cohort=chosen)
    return Work(name, nodes, members, rounds, build, lambda _: Cost((), ()))


_scaffold = partial(_digits, "SCAFFOLD", partial(scaffold, lr=0.1, steps=5, batch=8))
_diloco = partial(_digits, "DiLoCo", partial(diloco, lr=1e-3, steps=5, batch=8))
SYSTEMS = {
    "w1": System("W1", federated.w1, 200e-6, cohort=True),
    "w3": System("W3", lambda nodes, members, rounds: gossip.w3(nodes, rounds), 120e-6, largest=1009),
    "w5": System("W5", lambda nodes, members, rounds: gossip.w5(nodes, rounds), 15e-6),
    "robust": System("W5 median", lambda nodes, members, rounds: gossip.w5(nodes, rounds, "median"), 60e-6),
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
    rounds = 1 if tiny else int(np.clip(BLOCK / (count[other] * system.seconds), 10, 400))
    made = {n: system.make(n, count[n], rounds) for n in count}
    programs = {n: w.build() for n, w in made.items()}
    sides = {n: work.ours(program, rounds, False) for n, program in programs.items()}
    rivals = {-n: made[n].rival for n in sizes}
    sides |= {key: rival(programs[-key]) for key, rival in rivals.items() if rival is not None}
    for side in sides.values():
        timing.clocked(side.step)
        timing.clocked(side.step)
    found = timing.in_turns(sides.values(), turns)[..., 0] / rounds  # [turns, sides]
    times = {key: found[:, i] / count[abs(key)] for i, key in enumerate(sides)}
    for n in sizes:
        row = {
            "workload": system.workload,
            "devices": jax.device_count(),
            "nodes": n,
            "beside": other,
            "members": count[n],
            "members_beside": count[other],
            "member_seconds": float(np.median(times[n])),
            "member_seconds_beside": float(np.median(times[other])),
            "least": least(count[n], count[other], jax.device_count()),
        }
        row |= timing.ratios(times[n], times[other])
        if -n in times:
            row |= {f"bound_{key}": value for key, value in timing.ratios(times[n], times[-n]).items()}
        yield row
