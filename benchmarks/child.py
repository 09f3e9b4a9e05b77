"""One measurement in a process of its own; `suite.py` starts these.

python benchmarks/child.py race w1 0      case 0 of w1 beside its rival, and the machine's limit
python benchmarks/child.py alone w1 0     start-up and memory of jaxfl by itself
python benchmarks/child.py rows sweep     a workload that makes its rows itself
python benchmarks/child.py compile fedavg
python benchmarks/child.py round scaffold    a round beside FedAvg's
python benchmarks/child.py shapes w3 2    odd numbers of nodes on two devices
python benchmarks/child.py systems FOLDER --only fedavg    numbers of systems, into files
python benchmarks/child.py data images.npz    the images, as `peers.run.measure` wants them
python benchmarks/child.py machine
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import workloads

BEGAN = "JAXFL_BENCHMARK_BEGAN"  # in the environment of a child: when it was started


def run_child(*args: str, cache: str | None = None) -> Iterator[dict]:
    """The rows that `child.py *args` prints, as they come; without a compilation cache unless `cache` names a folder.

    Raises:
        RuntimeError: the process failed; the message is the last it wrote.
    """
    command = [sys.executable, str(Path(__file__).resolve()), *args]
    env = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": str(int(cache is not None)), BEGAN: str(time.time())}
    if cache is not None:  # as the command line sets it
        env |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=env) as process:
            for line in process.stdout or ():
                yield json.loads(line)
        if process.returncode:
            errors.seek(0)
            said = errors.read().strip().splitlines() or [f"exit status {process.returncode}"]
            raise RuntimeError(said[-1])


def race(case: workloads.Case, turns: int) -> dict:
    """Times of jaxfl and its rival, which take turns, and the floor."""
    import jax
    import machine
    import timing
    from workloads.work import ours

    work = workloads.load(case)
    program = work.build()
    sides = {"": work.ours(program) if work.ours else ours(program, work.rounds, work.scored)}
    if work.rival is not None:
        sides["bound_"] = work.rival(program)
    test = (program.data.test_x, program.data.test_y) if work.scored else None
    row = {"workload": work.workload, "nodes": work.nodes, "cohort": work.cohort, "rounds": work.rounds}
    row |= {"data": program.data.name, "devices": jax.device_count()}
    return row | timing.race(sides, work.rounds, turns, test) | machine.floor(work.cost(program))


def alone(case: workloads.Case) -> dict:
    """Seconds from the start of the process to the end of the first round, and memory in MB (10^6 bytes).

    `run_mb` is the most the process held less what it held after the imports, `arrays_mb` that of a further run, which
    loads and compiles nothing, less what the process held before beside the data: the arrays alone. `state_mb` and
    `data_mb` (samples of train and test set, shards, graph; the messages of W4) are what no run can do without.
    """
    import jax
    import timing

    work = workloads.load(case)
    for name in work.imports:
        importlib.import_module(name)
    jax.devices()
    before = timing.memory()[0]
    program = work.build()
    work.afresh(program, 1)
    startup = time.time() - float(os.environ[BEGAN])
    state = work.afresh(program, 3)
    peak = timing.memory()[1]
    row = {"startup_seconds": startup, "peak_mb": peak, "run_mb": peak - before}
    row |= {"state_mb": timing.megabytes(state), "data_mb": timing.megabytes(work.held(program))}
    if jax.default_backend() == "cpu":  # an accelerator's memory is that of the arrays anyway
        del state
        row["arrays_mb"] = timing.further(lambda: work.afresh(program, 3), row["data_mb"])
    return row


def _rows(args: argparse.Namespace) -> Iterable[dict]:
    """What the command line asks for."""
    if args.mode == "machine":
        from jaxfl.report.tables import machine

        return [machine()]
    if args.mode == "data":
        from peers.run import save_data
        from workloads.work import images

        known = images()
        save_data(args.name, known.x, known.y, known.test_x, known.test_y)
        return []
    if args.mode == "compile":
        from workloads.compilation import system

        return [system(args.name)]
    if args.mode == "round":
        from workloads.rounds import system

        return [system(args.name, args.turns, args.tiny)]
    if args.mode == "systems":
        from workloads.systems import save

        save(args.only, Path(args.name))
        return []
    if args.mode == "shapes":
        from workloads.shapes import of

        return of(args.name, args.case, args.tiny)
    if args.mode == "rows":
        rows = importlib.import_module(f"workloads.{workloads.TABLES[args.name]}").rows
        more = {"seconds": args.seconds} if args.name == "gpu" else {}
        return rows(args.turns, args.tiny, **more, **({"only": args.only} if args.only else {}))
    if args.name in workloads.CORES and os.environ.get("JAX_PLATFORMS", "cpu") == "cpu":
        from jaxfl.engine.sharding import use_cores

        use_cores(os.cpu_count() or 1)
    if args.tiny:  # nothing is measured
        import machine

        machine.REPEATS = 1
    case = (workloads.TINY if args.tiny else workloads.CASES)[args.name][args.case]
    return [race(case, args.turns) if args.mode == "race" else alone(case)]


def main() -> None:
    """Print rows as JSON lines."""
    parser = argparse.ArgumentParser()
    modes = ("race", "alone", "rows", "compile", "round", "shapes", "systems", "data", "machine")
    parser.add_argument("mode", choices=modes)
    parser.add_argument("name", nargs="?", default="")
    parser.add_argument("case", nargs="?", type=int, default=0)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=450)
    parser.add_argument("--only", nargs="*", default=[])
    for row in _rows(parser.parse_args()):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
