"""Every system of the zoo on this machine's accelerator and on its CPU: the same numbers, at a tolerance."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from jaxfl import zoo
from jaxfl.engine.run import run
from jaxfl.options import build
from jaxfl.options.config import Setup

SETTING = {"nodes": 16, "data": "digits", "model": "logistic", "topology": "ring", "cohort": 8, "concurrency": 8}
SETTING |= {"goal": 4, "rounds": 4, "every": 4, "seeds": 1, "test_samples": 50, "batch": 16, "steps": 4}
PROTOCOL = ("data", "model", "test_samples", "batch", "steps")  # what protocols do not read
TOLERANCE = 1e-3
CHILD = Path(__file__).resolve().parent.parent / "child.py"


def numbers(name: str) -> list[np.ndarray]:
    """The state and what is read from it after 4 rounds of 16 nodes, and the table of the run."""
    kind = zoo.find(name).kind
    setting = {k: v for k, v in SETTING.items() if kind != "protocol" or k not in PROTOCOL}
    arm = build.build(build.prepare(Setup(**setting), [name]), name, {})
    done = run(arm.algorithm, arm.scenario, arm.model, 4, every=4)
    return [np.asarray(a) for a in jax.tree.leaves((done.state, arm.algorithm.read(done.state)))]


def save(names: list[str], folder: Path) -> None:
    """Write `NAME.npz`, or `NAME.txt` with what went wrong, of each; whole from the moment that it is there."""
    for name in names:
        part = folder / f"{name}.{os.getpid()}"
        try:
            with part.open("wb") as file, jax.default_matmul_precision("highest"):
                np.savez(file, *numbers(name))
            part.rename(folder / f"{name}.npz")
        except Exception as error:  # the others go on
            part.write_text(f"{type(error).__name__}: {error}")
            part.rename(folder / f"{name}.txt")


def apart(one: Path, other: Path) -> float:
    """The largest difference of two files of `save` over the largest value of its array, or infinity."""
    a, b = ([found[key] for key in found.files] for found in (np.load(one), np.load(other)))
    if [v.shape for v in a] != [v.shape for v in b]:
        return float("inf")
    return max((_difference(v, w) for v, w in zip(a, b, strict=True)), default=0.0)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    if not np.issubdtype(a.dtype, np.floating):
        return 0.0 if np.array_equal(a, b) else float("inf")
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    good = np.isfinite(a)
    return float(np.abs(a - b)[good].max(initial=0) / max(np.abs(b)[good].max(initial=0), 1e-30))


def rows(until: float, tiny: bool) -> Iterator[dict]:
    """A row a system, those left out at the time `until` without numbers; several processes share the accelerator."""
    names = ["fedavg"] if tiny else list(zoo.systems())
    count = 1 if tiny else max(1, min(8, (os.cpu_count() or 1) // 2))
    with tempfile.TemporaryDirectory() as folder:
        places = {"": Path(folder) / "here", "cpu": Path(folder) / "cpu"}
        started = []
        for platform, place in places.items():
            place.mkdir()
            env = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
            env |= {"JAX_PLATFORMS": platform} if platform else {}
            for i in range(count):
                command = [sys.executable, str(CHILD), "systems", str(place), "--only", *names[i::count]]
                started.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        try:
            yield from _compared(names, list(places.values()), started, until)
        finally:
            for process in started:
                process.kill()
                process.wait()


def _compared(names: list[str], places: list[Path], started: list[subprocess.Popen], until: float) -> Iterator[dict]:
    left = list(names)
    while left:
        late, ended = time.time() > until, all(process.poll() is not None for process in started)
        for name in list(left):
            row = {"system": name, "tolerance": TOLERANCE}
            errors = [place / f"{name}.txt" for place in places if (place / f"{name}.txt").exists()]
            arrays = [place / f"{name}.npz" for place in places]
            if errors:
                yield row | {"error": errors[0].read_text()[:300]}
            elif all(path.exists() for path in arrays):
                yield row | {"apart": apart(*arrays)}
            elif late:
                yield row | {"left_out": "its time was over"}
            elif ended:
                yield row | {"error": "its process ended"}
            else:
                continue
            left.remove(name)
        time.sleep(0.2 if left else 0)
