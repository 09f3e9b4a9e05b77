"""Times, memory and accuracy, as the suite measures them."""

import ctypes
import gc
import resource
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from workloads.work import Side

from jaxfl.engine.plan import resident

MMAP_THRESHOLD = -3  # as glibc's mallopt numbers it
SCORED = 64  # at most so many nodes' models are evaluated


def cpu_seconds() -> float:
    """User and system time of this process."""
    use = resource.getrusage(resource.RUSAGE_SELF)
    return use.ru_utime + use.ru_stime


def memory() -> tuple[float, float]:
    """What this process holds and the most it ever held, in MB (10^6 bytes): of an accelerator if there is one."""
    account = jax.devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    if account:
        return account["bytes_in_use"] / 1e6, account["peak_bytes_in_use"] / 1e6
    now, peak = resident()
    if not peak:  # the last resort: a process inherits `ru_maxrss` from the one that started it
        now = peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1000
    return now / 1e6, peak / 1e6


def further(run: Callable, own: float) -> float:
    """The most MB that the process holds in `run()`, less what it held before but for `own` MB.

    Where `run` loads and compiles nothing, that is its arrays and `own`. Elsewhere than on Linux, free memory counts.
    From here on arrays of 128 kB or more come from the system and go back to it: what a heap keeps of smaller ones, up
    to 32 MB each as the allocator is set, would depend on all that ran before.
    """
    gc.collect()
    try:
        allocator = ctypes.CDLL("libc.so.6")
        allocator.mallopt(MMAP_THRESHOLD, 2**17)
        allocator.malloc_trim(0)  # free memory back to the system
        Path("/proc/self/clear_refs").write_text("5")  # forget the most it held
    except (OSError, AttributeError):
        pass
    before = memory()[0] - own
    run()
    return memory()[1] - before


def megabytes(tree: Any) -> float:
    """MB of the arrays of a tree."""
    return sum(a.nbytes for a in jax.tree.leaves(tree) if hasattr(a, "nbytes")) / 1e6


def accuracy(side: Side, state: Any, x: np.ndarray, y: np.ndarray) -> float:
    """Mean accuracy on a test set of the models, or of up to 64 of them evenly spaced."""
    models, predict = side.models(state), side.predict
    every = -(-jax.tree.leaves(models)[0].shape[0] // SCORED)
    models = jax.device_get(jax.tree.map(lambda a: a[::every], models))
    right = jax.jit(lambda models, x, y: jax.lax.map(lambda m: (predict(m, x).argmax(-1) == y).mean(), models))
    return float(right(models, x, y).mean())


def clocked(step: Callable) -> tuple[float, float, Any]:
    """Wall and CPU seconds of a call, and what it returns."""
    cpu, begin = cpu_seconds(), time.perf_counter()
    got = step()
    return time.perf_counter() - begin, cpu_seconds() - cpu, got


def in_turns(sides: Iterable[Side], turns: int) -> np.ndarray:
    """Wall and CPU seconds `[turns, sides, 2]` of a step of each side, one after the other, in every turn."""
    sides = list(sides)
    return np.array([[clocked(side.step)[:2] for side in sides] for _ in range(turns)])


def ratios(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Of `one` over `other`, turn by turn: the median `ratio`, `ratio_low` and `ratio_high`."""
    ratio = one / other
    return {"ratio": float(np.median(ratio)), "ratio_low": float(ratio.min()), "ratio_high": float(ratio.max())}


def race(sides: Mapping[str, Side], rounds: int, turns: int, test: tuple | None = None) -> dict[str, float]:
    """Warm seconds a round of one side or two that take turns; the first is ours.

    Returns, with the side's name before each (nothing for the first): `seconds` and `cpu_seconds` a round, medians of
    the turns, `seconds_low` and `seconds_high`, `compile_cpu_seconds` (of the first block, less those of a later one)
    and, given `test` `(x, y)`, `accuracy` after the first block. With two sides also `ratio`, the median of the turns'
    ratios, `ratio_low` and `ratio_high`.
    """
    row: dict[str, float] = {}
    first = {}
    for name, side in sides.items():
        _, first[name], state = clocked(side.step)
        if test is not None and side.models is not None:
            row[f"{name}accuracy"] = accuracy(side, state, *test)
        del state
        side.step()
    times = in_turns(sides.values(), turns)
    for (wall, cpu), name in zip(times.transpose(1, 2, 0), sides, strict=True):
        row |= {
            f"{name}seconds": float(np.median(wall)) / rounds,
            f"{name}seconds_low": float(wall.min()) / rounds,
            f"{name}seconds_high": float(wall.max()) / rounds,
            f"{name}cpu_seconds": float(np.median(cpu)) / rounds,
            f"{name}compile_cpu_seconds": max(0.0, first[name] - float(np.median(cpu))),
        }
    if len(sides) == 2:
        row |= ratios(times[:, 0, 0], times[:, 1, 0])
    return row
