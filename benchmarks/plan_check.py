"""What `engine.plan` predicts against what a run then takes: memory and seconds a round.

    python benchmarks/plan_check.py               every workload below, one JSON line each
    python benchmarks/plan_check.py w1 w5         some of them
    python benchmarks/plan_check.py --fit 2       the largest W3 that 2 GB hold by the plan, and what it then takes

Prediction and measurement have a process each. `process_mb` is the most memory (10^6 bytes) of a process that imports,
builds the workload, compiles and runs; `arrays_mb` that of the arrays of a run: the most the process holds in a second
run that compiles nothing, less what it held before but for the workload's own arrays. Seconds are those of a chunk of
rounds inside a longer run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import workloads

WANTED = {"w1": (1,), "w2": (0,), "w3": (1, 2, 3, 4), "w5": (0,), "w7": (0,), "w8": (0,), "g10k": (2,)}


def _load(name: str, case: int, nodes: int | None) -> tuple[Any, Any]:
    """The work of a case, with another number of nodes if that is given, and its program."""
    from jaxfl.engine.sharding import use_cores

    if name in workloads.CORES and os.environ.get("JAX_PLATFORMS", "cpu") == "cpu":
        use_cores(os.cpu_count() or 1)
    found = workloads.CASES[name][case]
    work = workloads.load(found if nodes is None else found._replace(size=(nodes, *found.size[1:])))
    return work, work.build()


def predict(name: str, case: int, nodes: int | None = None) -> dict:
    """What the plan says."""
    from jaxfl.engine.plan import plan

    work, program = _load(name, case, nodes)
    made = plan(program.algorithm, program.world, program.task.init, every=work.rounds)
    row = {
        "arrays_mb": made.arrays / 1e6,
        "process_mb": (made.process_bytes or 0) / 1e6,
        "device_mb": made.memory / 1e6,
    }
    return row | {"compile_seconds": made.compile_seconds, "seconds": made.seconds()}


def measure(name: str, case: int, nodes: int | None = None) -> dict:
    """What runs take."""
    import jax
    import timing

    from jaxfl.engine.run import run

    work, (algorithm, world, task, _) = _load(name, case, nodes)

    def go(chunks: int) -> float:
        began = time.perf_counter()
        jax.block_until_ready(run(algorithm, world, task.init, chunks * work.rounds, every=work.rounds).carry[1])
        return time.perf_counter() - began

    own = sum(a.nbytes for a in jax.tree.leaves((world.arrays, world.data, world.byz, world.links)))
    go(2)
    process = timing.memory()[1]
    arrays = timing.further(lambda: go(3), own / 1e6)
    short, long = ([go(chunks) for _ in range(5)] for chunks in (1, 4))
    seconds = (statistics.median(long) - statistics.median(short)) / 3 / work.rounds
    return {"arrays_mb": arrays, "process_mb": process, "seconds": seconds}


def _child(mode: str, name: str, case: int, nodes: int | None) -> dict:
    command = [sys.executable, str(Path(__file__).resolve()), name, "--mode", mode, "--case", str(case)]
    command += [] if nodes is None else ["--nodes", str(nodes)]
    env = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"}
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout)


def compare(name: str, case: int, nodes: int | None = None) -> dict:
    """Prediction, measurement and their ratios."""
    said, met = _child("predict", name, case, nodes), _child("measure", name, case, nodes)
    row: dict = {"plan": name, "nodes": nodes or workloads.CASES[name][case].size[0]}
    for column, value in met.items():
        row |= {f"predicted_{column}": said[column], column: value, f"{column}_ratio": said[column] / value}
    return row


def fit(gigabytes: float) -> dict:
    """Nodes of W3 that fit by the plan, and what a run of as many takes."""
    from jaxfl.engine.plan import largest, plan

    plans = []
    for nodes in (512, 256):  # the first finds a process that holds no other plan
        work, program = _load("w3", 4, nodes)
        plans.append(plan(program.algorithm, program.world, program.task.init, every=work.rounds))
    nodes = largest(plans[1], plans[0], gigabytes * 1e9) // 2 * 2  # a multiple of the devices
    return {"memory_gb": gigabytes} | compare("w3", 4, nodes)


def main() -> None:
    """Print rows as JSON lines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(WANTED))
    parser.add_argument("--fit", type=float)
    parser.add_argument("--mode", choices=("predict", "measure"), help=argparse.SUPPRESS)
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--nodes", type=int)
    args = parser.parse_args()
    if args.mode is not None:
        print(json.dumps({"predict": predict, "measure": measure}[args.mode](args.names[0], args.case, args.nodes)))
    elif args.fit is not None:
        print(json.dumps(fit(args.fit)))
    else:
        for name in args.names:
            for case in WANTED[name]:
                print(json.dumps(compare(name, case, args.nodes)), flush=True)


if __name__ == "__main__":
    main()
