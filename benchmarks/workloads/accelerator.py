"""All that is asked of an accelerator, the most important first, until the time is over.

W1 to W7 in short settings, formulations side by side, every system of the zoo against the CPU, for at most a third of
the time, 16 bits, and up to 100,000 nodes: one process, but for the systems, whose programs several compile.
"""

import gc
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial

import jax
from child import race

import workloads
from workloads import formulations, systems

Job = tuple[str, str, int, Callable[[], Iterator[dict]]]  # part, workload, nodes, rows


def _race(case: workloads.Case, turns: int) -> Iterator[dict]:
    yield race(case, turns)


def jobs(turns: int, tiny: bool, seconds: float, until: float) -> Iterator[Job]:
    """What is to be done, in this order; parts are those of `workloads.PARTS`."""
    table = workloads.TINY if tiny else workloads.CASES
    name = lambda case: " ".join([case.function.upper(), *(part for part in case.size if isinstance(part, str))])
    raced = [(name(case), case.size[0], partial(_race, case, turns)) for case in table["gpu"]]
    first = 1 if tiny else workloads.GPU_FIRST
    for workload in raced[:first]:
        yield "workloads", *workload
    for name in ("mixings", "convolutions", "robust"):
        yield "formulations", f"formulations: {name}", 0, partial(getattr(formulations, name), turns, tiny)
    yield "systems", "systems", 0, lambda: systems.rows(min(until, time.time() + seconds / 3), tiny)
    for workload in raced[first:]:
        yield "scale", *workload


def rows(turns: int, tiny: bool, seconds: float, only: Collection[str] = ()) -> Iterator[dict]:
    """Rows of the jobs that could be started in time; a job that fails, or is left out, is a row that says so."""
    until = time.time() + seconds
    for part, workload, nodes, job in jobs(turns, tiny, seconds, until):
        if only and part not in only:
            continue
        if time.time() > until:
            yield {"workload": workload, "nodes": nodes, "left_out": f"{seconds:.0f} s were over"}
            continue
        began = time.time()
        try:
            for row in job():
                yield row | {"took_seconds": time.time() - began}
        except Exception as error:  # out of memory, mostly: the others go on
            yield {"workload": workload, "nodes": nodes, "error": f"{type(error).__name__}: {error}"[:300]}
        gc.collect()
        jax.clear_caches()
