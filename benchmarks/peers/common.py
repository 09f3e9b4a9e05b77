"""What the workers share: the sizes of the workloads, the clock of rounds and the JSON row. Needs numpy only.

A worker takes the time by a `clock`: it calls `mark()` once before its first round and once after each, either from its
own loop or from a callback of the framework, and hands the marks to `report`.
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np


class Work(NamedTuple):
    """What one member does in a round of a workload."""

    samples: int
    steps: int
    batch: int
    lr: float


class Data(NamedTuple):
    """Images `[n, 784]` in [0, 1] and labels `[n]`, to train and to test on."""

    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


class Mark(NamedTuple):
    """A moment between two rounds and the setting that the round before it ran under."""

    at: float
    wall: float
    cpu: float
    setting: Any


def arguments(*names: str) -> argparse.Namespace:
    """The command line of a worker that knows the workloads `names`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", required=True, choices=names)
    parser.add_argument("--data", type=Path, help="arrays x, y, test_x, test_y (w1, w2, w3)")
    parser.add_argument("--nodes", type=int, required=True, help="clients, nodes, or messages (w4)")
    parser.add_argument("--cohort", type=int, help="clients a round (w1, w2)")
    parser.add_argument("--rounds", type=int, default=20, help="at least 3")
    parser.add_argument("--variant", help="which of the forms that the worker knows")
    return parser.parse_args()


def work(workload: str, nodes: int) -> Work:
    """The sizes of W1, W2 or W3; node `i` owns samples `i * samples` to `(i + 1) * samples`."""
    return {
        "w1": Work(60, 3, 20, 0.05),
        "w2": Work(120, 6, 20, 0.05),
        "w3": Work(min(200, 60_000 // nodes), 1, 20, 0.05),
    }[workload]


def load(path: Path) -> Data:
    """The arrays of a file written by `run.save_data`."""
    with np.load(path) as arrays:
        return Data(*(arrays[name] for name in Data._fields))


def stand_in(*names: str) -> None:
    """Make `import` find empty modules of these names, whose every attribute is a class that does nothing.

    Some peers import torchvision for data sets that no workload touches, and its wheels fit few builds of torch.
    """
    for name in names:
        module = ModuleType(name)
        module.__path__ = []
        module.__getattr__ = _empty_class  # type: ignore[method-assign]
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


def _empty_class(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {"__init__": lambda self, *args, **options: None})


def family() -> list[int]:
    """The process and all its living descendants."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        fields = _stat(entry)
        if fields:
            parents[int(entry.parent.name)] = int(fields[1])
    found = [os.getpid()]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def _stat(path: Path) -> list[str]:
    """Fields of a process from its state on (the name before may hold spaces); none if it is gone."""
    try:
        return path.read_text().rpartition(")")[2].split()
    except OSError:
        return []


def family_cpu() -> float:
    """CPU seconds of the process, its living descendants and the children they waited for."""
    stats = [_stat(Path(f"/proc/{pid}/stat")) for pid in family()]
    return sum(sum(map(int, fields[11:15])) for fields in stats if fields) / os.sysconf("SC_CLK_TCK")


def family_peak_mb() -> float:
    """Sum of the peak memories of the process and its living descendants, MB (10^6 bytes)."""
    total = 0
    for pid in family():
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return (total or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1.024e-3


def clock(
    rounds: int,
    settings: Sequence[Any] = (None,),
    choose: Callable[[Any], Any] = lambda setting: None,
    cpu: Callable[[], float] = time.process_time,
) -> tuple[Callable[[], None], list[Mark]]:
    """`(mark, marks)`: `mark()` notes the end of a round, and before that the start of the first.

    With several `settings` (numbers of threads), the first rounds after the first try each in turn by `choose`, and
    the rest run under the one with the shortest median round.
    """
    marks: list[Mark] = []
    tries = max(1, min(10, (rounds - 1) // (2 * len(settings))))
    plan = [settings[0], *(setting for setting in settings for _ in range(tries))]  # of rounds 1, 2, ...
    trials = len(plan)

    def mark() -> None:
        marks.append(Mark(time.time(), time.perf_counter(), cpu(), plan[max(0, len(marks) - 1)]))
        if len(marks) > len(plan):
            plan.append(_fastest(marks) if len(plan) == trials else plan[-1])
        choose(plan[len(marks) - 1])

    return mark, marks


def _warm(marks: list[Mark], setting: Any) -> list[tuple[Mark, Mark]]:
    """Start and end of the rounds under a setting, the first round apart."""
    return [(before, after) for before, after in itertools.pairwise(marks[1:]) if after.setting == setting]


def _seconds(rounds: list[tuple[Mark, Mark]]) -> list[float]:
    return [after.wall - before.wall for before, after in rounds]


def _fastest(marks: list[Mark]) -> Any:
    """The setting with the shortest median round."""
    known = dict.fromkeys(mark.setting for mark in marks[2:])
    return min(known, key=lambda setting: statistics.median(_seconds(_warm(marks, setting))))


def take(step: Callable[[], Any], rounds: int, mark: Callable[[], None]) -> None:
    """`rounds` rounds of `step`, each marked."""
    mark()
    for _ in range(rounds):
        step()
        mark()


def report(
    args: argparse.Namespace, peer: str, package: str, marks: list[Mark], accuracy: float | None, **more
) -> None:
    """Print the row of `peer`: the rounds after the first that ran under the fastest setting."""
    setting = _fastest(marks)
    kept = _warm(marks, setting)
    seconds = _seconds(kept)
    row = {
        "peer": peer,
        "version": importlib.metadata.version(package),
        "workload": args.workload.upper(),
        "nodes": args.nodes,
        "cohort": args.cohort,
        "seconds": statistics.median(seconds),
        "seconds_low": min(seconds),
        "seconds_high": max(seconds),
        "cpu_seconds": statistics.median(after.cpu - before.cpu for before, after in kept),
        "peak_mb": family_peak_mb(),
        "first_round_at": marks[1].at,
        "accuracy": accuracy,
        "rounds": len(marks) - 1,
    }
    if setting is not None:
        row["threads"] = setting
    print(json.dumps(row | more), flush=True)
