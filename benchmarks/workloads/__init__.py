"""What the suite runs, as data: naming a workload imports nothing, so that a process pays only for its own."""

import importlib
from typing import Any, NamedTuple


class Case(NamedTuple):
    """`function(*size)` of the module `workloads.<module>` makes the `Work` of one row."""

    module: str
    function: str
    size: Any


def _cases(module: str, function: str, *sizes: tuple[Any, ...]) -> tuple[Case, ...]:
    return tuple(Case(module, function, size) for size in sizes)


RULES = ("mean", "median", "trimmed mean", "krum", "geometric median, 3 steps", "centered clipping")
LIES = ("sign flip", "ALIE")  # of a tenth of the nodes
# Sizes are clients, members of a round, rounds of a timed block; without members in gossip; in W4 messages, their
# numbers and the rule. Accuracy is taken after one block.
CASES: dict[str, tuple[Case, ...]] = {
    "w1": _cases("federated", "w1", (1000, 10, 100), (1000, 100, 20), (1000, 1000, 4)),
    "w2": _cases("federated", "w2", (500, 50, 4)),
    "w3": _cases("gossip", "w3", (16, 600), (64, 200), (256, 40), (1024, 10), (4096, 4)),
    "w4": _cases("rules", "w4", *((k, 100_000, rule) for k in (64, 512) for rule in RULES)),
    "w5": _cases("gossip", "w5", (10_000, 4), (10_000, 2, "median"), *((10_000, 2, "median", lie) for lie in LIES)),
    "w6": _cases("federated", "w6", (1000, 100, 10, 40)),
    "w7": _cases("language", "w7", (16, 20)),
    "w8": _cases("federated", "w8", (1_000_000, 1000, 200)),
    "g10k": _cases("gossip", "g10k", (2500, 20), (5000, 10), (10_000, 10)),
    "gpu": (  # in this order, as far as the time goes
        *_cases("federated", "w1", (1000, 100, 200)),
        *_cases("gossip", "w3", (1000, 100)),
        *_cases("gossip", "w5", (10_000, 20)),
        *_cases("federated", "w2", (500, 50, 4)),
        *_cases("language", "w7", (16, 20)),
        *_cases("rules", "w4", *((64, 100_000, rule) for rule in ("median", "trimmed mean", "krum"))),
        *_cases("federated", "w6", (1000, 100, 10, 40)),
        *_cases("gossip", "w5", (10_000, 10, "median")),
        # what comes before, GPU_FIRST, runs before formulations and systems
        *_cases("federated", "w1", (10_000, 1000, 100), (10_000, 1000, 100, "bfloat16")),
        *_cases("gossip", "w3", (10_000, 20)),
        *_cases("federated", "w1", (100_000, 10_000, 20)),
        *_cases("gossip", "w5", (100_000, 10), (1000, 100)),
        *_cases("gossip", "w3", (100_000, 4)),
        *_cases("language", "w7", (16, 20, "bfloat16")),
        *_cases("federated", "w2", (500, 50, 4, "bfloat16")),
    ),
}
TINY: dict[str, tuple[Case, ...]] = {
    "w1": _cases("federated", "w1", (20, 4, 2)),
    "w2": _cases("federated", "w2", (8, 2, 1)),
    "w3": _cases("gossip", "w3", (8, 4), (16, 2)),
    "w4": _cases("rules", "w4", (16, 1000, "median"), (16, 1000, "krum")),
    "w5": _cases("gossip", "w5", (64, 2)),
    "w6": _cases("federated", "w6", (20, 8, 2, 4)),
    "w7": _cases("language", "w7", (4, 2)),
    "w8": _cases("federated", "w8", (2000, 200, 5)),
    "g10k": _cases("gossip", "g10k", (32, 2), (64, 2)),
    "gpu": (*_cases("gossip", "w5", (32, 2)), *_cases("language", "w7", (2, 1, "bfloat16"))),
}
GPU_FIRST = 10
# Modules whose `rows(turns, tiny)` are rows.
TABLES = {
    "shapes": "shapes",
    "sweep": "sweeps",
    "events": "events",
    "waves": "waves",
    "compile": "compilation",
    "round": "rounds",
    "gpu": "accelerator",
}
ORDER = ("w1", "w2", "w3", "w4", "w5", "w6", "w7", "w8", "g10k", "shapes", "sweep", "events", "waves", "compile")
ORDER += ("round", "gpu")
# What `--only` may choose of a table's rows: names of `shapes.SYSTEMS`, parts of `accelerator.jobs`.
PARTS = {
    "shapes": ("w1", "w3", "w5", "robust", "scaffold", "diloco"),
    "gpu": ("workloads", "formulations", "systems", "scale"),
}
CORES = ("w1", "w2", "w3", "w5", "w6", "w7")  # on a CPU these run on one device a core, the others on one
# What other libraries run too: nodes, members of a round, rounds in all.
PEERS: dict[str, list[tuple[Any, ...]]] = {
    "w1": [case.size for case in CASES["w1"]],
    "w2": [case.size for case in CASES["w2"]],
    "w3": [(case.size[0], None, case.size[1]) for case in CASES["w3"] if case.size[0] in (64, 1024)],
    "w4": [(64, None, 7), (512, None, 7)],
}


def load(case: Case) -> Any:
    """The `Work` of a case."""
    return getattr(importlib.import_module(f"workloads.{case.module}"), case.function)(*case.size)
