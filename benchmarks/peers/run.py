"""Measure the peers that are installed. For the suite: `from peers.run import installed, measure`.

Each peer has a worker, `with_NAME.py`, run by the Python of its own environment, which prints its rows as JSON.
"""

import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
VENVS = HERE.parent / ".venvs"
# What each peer takes part in. Several workloads of a peer are measured one after the other.
WORKLOADS = {
    "torch": ("w1", "w2", "w3"),
    "fedjax": ("w1", "w2"),
    "pfl": ("w1", "w2"),
    "flower": ("w1", "w2"),
    "fluke": ("w1",),
    "gossipy": ("w3",),
    "byzfl": ("w4",),
}
# Forms of a workload, each in a process of its own, so that memory and start-up are its own too. `torch.func.vmap`
# sits W2 out: it makes slow grouped convolutions there.
VARIANTS = {
    ("torch", "w1"): ("loop", "vmap"),
    ("torch", "w2"): ("loop",),
    ("torch", "w3"): ("loop", "vmap"),
    ("byzfl", "w4"): ("torch", "numpy"),
}


def python(name: str, venvs: Path = VENVS) -> Path:
    """The interpreter of a peer."""
    return venvs / name / "bin" / "python"


def installed(venvs: Path = VENVS) -> list[str]:
    """Names of the peers that have an environment."""
    return [name for name in WORKLOADS if python(name, venvs).exists()]


def save_data(path: Path | str, x: Any, y: Any, test_x: Any, test_y: Any) -> None:
    """Write the images `[n, 784]` in [0, 1] and labels `[n]` for the workers, to train and to test on."""
    x, test_x = np.asarray(x, np.float32), np.asarray(test_x, np.float32)
    np.savez(path, x=x, y=np.asarray(y, np.int32), test_x=test_x, test_y=np.asarray(test_y, np.int32))


def measure(
    name: str,
    workload: str,
    data: Path | str | None = None,
    *,
    nodes: int,
    cohort: int | None = None,
    rounds: int = 20,
    timeout: float = 300,
    venvs: Path = VENVS,
) -> list[dict]:
    """The rows of one peer at one workload (`w1` to `w4`): one, or one a variant, or one a variant and rule.

    A row has `peer`, `version`, `workload`, `nodes`, `cohort`, `rounds`, `seconds` (median wall seconds of a warm
    round; `seconds_low`, `seconds_high`), `cpu_seconds` (of a warm round), `peak_mb` (10^6 bytes), both of all its
    processes together, `startup_seconds` (from the start of the process to the end of the first round) and `accuracy`
    (on the test set after `rounds` rounds). A worker that fails, or takes more than `timeout` seconds, gives instead
    `error`, the last line that it wrote.

    Raises:
        ValueError: the peer does not take part in the workload.
    """
    if workload not in WORKLOADS[name]:
        raise ValueError(f"{name} does not take part in {workload}")
    sizes = {"--workload": workload, "--nodes": nodes, "--rounds": rounds, "--cohort": cohort, "--data": data}
    options = [str(part) for option, value in sizes.items() if value is not None for part in (option, value)]
    rows = []
    for variant in VARIANTS.get((name, workload), (None,)):
        command = [str(python(name, venvs)), str(HERE / f"with_{name}.py"), *options]
        command += ["--variant", variant] if variant else []
        known = {"peer": name, "variant": variant, "workload": workload.upper(), "nodes": nodes, "cohort": cohort}
        rows += [known | row for row in _rows(command, timeout)]
    return rows


def _rows(command: list[str], timeout: float) -> list[dict]:
    """What a worker prints, or why it does not."""
    # PYTHONPATH and such would show a peer the packages of this process.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "JAX_", "XLA_"))}
    begin = time.time()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            # A session of its own, and files for its output: the processes of ray outlive the one that started them
            # and would hold a pipe open.
            process = subprocess.Popen(command, stdout=out, stderr=err, env=environment, start_new_session=True)
        except OSError as error:
            return [{"error": str(error)}]
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return [{"error": f"stopped after {timeout:g} s"}]
        out.seek(0)
        err.seek(0)
        rows = [json.loads(line) for line in out if line.startswith("{")]
        for row in rows:
            first = row.pop("first_round_at")
            if first is not None:
                row["startup_seconds"] = first - begin
        if process.returncode:
            said = err.read().strip().splitlines() or [f"exit status {process.returncode}"]
            rows.append({"error": said[-1]})
        return rows or [{"error": "printed no row"}]
