"""Speed and memory of jaxfl against the hand-written bound, measured side by side.

    python benchmarks/suite.py             all workloads, each in a process of its own; writes benchmarks/README.md
    python benchmarks/suite.py w1          one workload: prints its JSON lines

w1   FedAvg, MLP 784-64-10, 1,000 clients x 60 images, 100 a round, 3 steps of 20
w3   D-SGD on a ring, the same MLP, one step of 20 a round, 64 / 256 / 1,024 nodes
w8   FedAvg of 1,000,000 clients against 1,000, cohort 100, logistic model
g10k D-SGD on a random 8-regular graph, logistic model on digits, 2,500 / 5,000 / 10,000 nodes

Times are medians of warm blocks of rounds; jaxfl and the bound take turns, and the ratio is the median of the ratios of
turns. Images are Fashion-MNIST where its IDX files are installed, else random numbers of the same shape: no time
depends on their values.
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

TURNS = 9


def images():
    """`(x [60000, 784], y [60000], name)`."""
    from jaxfl.core import InputError
    from jaxfl.learn.data import fashion_mnist

    try:
        data = fashion_mnist()
        return data.x, data.y, "Fashion-MNIST"
    except InputError:
        rng = np.random.default_rng(0)
        return rng.random((60000, 784), np.float32), rng.integers(0, 10, 60000).astype(np.int32), "random numbers"


def peak_mb() -> float:
    """Peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def even_shards(x, y, n, m):
    """Node `i` owns samples `i * m` to `(i + 1) * m`."""
    import jax.numpy as jnp

    from jaxfl.core import Shards

    order, start = jnp.arange(len(y), dtype=jnp.int32), jnp.arange(n, dtype=jnp.int32) * m
    return Shards(jnp.asarray(x), jnp.asarray(y), order, start, jnp.full_like(start, m), m)


def mlp():
    """The task of W1 and W3."""
    from functools import partial

    from jaxfl.learn.models import MLP
    from jaxfl.learn.task import classification

    return classification(partial(MLP, (784, 64, 10)), jax.ShapeDtypeStruct((1, 784), np.float32))


def stepper(algorithm, world, model, rounds):
    """`step()` runs a block of `rounds` rounds of jaxfl and waits; its first call compiles.

    The data go to the devices beforehand, as they do once in a run of many rounds.
    """
    from jaxfl.engine.place import node_mesh, place
    from jaxfl.engine.run import run

    if jax.device_count() > 1:
        world = world._replace(data=place(node_mesh(), world.data))
    carry = None

    def step():
        nonlocal carry
        if carry is not None:
            carry = (0, carry[1])
        result = run(algorithm, world, model, rounds, every=rounds, carry=carry)
        carry = result.carry
        jax.block_until_ready(carry[1])

    return step


def bound_stepper(run, params, x, y):
    """The same of a program of `bound.py`."""
    state = params

    def step():
        nonlocal state
        state = jax.block_until_ready(run(state, 0, x, y))

    return step


def cpu_seconds() -> float:
    """User and system time of this process."""
    use = resource.getrusage(resource.RUSAGE_SELF)
    return use.ru_utime + use.ru_stime


def race(ours, bound, rounds):
    """Seconds a round of both, taking turns, and the median ratio of a turn."""
    spent = []
    for _ in range(3):
        cpu = cpu_seconds()
        ours()
        spent.append(cpu_seconds() - cpu)
    bound()
    times = {"ours": [], "bound": []}
    for _ in range(TURNS):
        for name, step in (("ours", ours), ("bound", bound)):
            begin = time.perf_counter()
            step()
            times[name].append((time.perf_counter() - begin) / rounds)
    a, b = np.array(times["ours"]), np.array(times["bound"])
    return {
        "seconds": float(np.median(a)),
        "bound_seconds": float(np.median(b)),
        "ratio": float(np.median(a / b)),
        "ratio_low": float(np.min(a / b)),
        "ratio_high": float(np.max(a / b)),
        "compile_cpu_seconds": spent[0] - spent[2],
    }


def w1():
    """A federated round against the bound."""
    import bound

    from jaxfl.algorithms.fedavg import fedavg
    from jaxfl.world import cohort
    from jaxfl.world.scenario import scenario

    x, y, name = images()
    task, rounds = mlp(), 20
    world = scenario(even_shards(x, y, 1000, 60), cohort=cohort.uniform(1000, 100))
    ours = stepper(fedavg(task, lr=0.05, steps=3, batch=20), world, task.init, rounds)
    hand = bound.fedavg(clients=1000, samples=60, cohort=100, steps=3, batch=20, lr=0.05, rounds=rounds)
    theirs = bound_stepper(hand, bound.init(jax.random.key(0)), *_on_mesh(world.data))
    yield {"workload": "W1", "nodes": 1000, "data": name} | race(ours, theirs, rounds) | {"peak_mb": peak_mb()}


def _on_mesh(data):
    import bound
    from jax.sharding import NamedSharding, PartitionSpec

    return jax.device_put((data.x, data.y), NamedSharding(bound.mesh(), PartitionSpec()))


def w3():
    """A gossip round on a ring against the bound."""
    import bound
    from jax.sharding import NamedSharding, PartitionSpec

    from jaxfl.algorithms.dsgd import dsgd
    from jaxfl.world import graph, mixing
    from jaxfl.world.scenario import scenario

    x, y, name = images()
    task = mlp()
    for n in (64, 256, 1024):
        rounds, m = max(16, 10240 // n), 60000 // n if n > 300 else 200
        world = scenario(even_shards(x, y, n, m), topology=mixing.metropolis(graph.ring(n)))
        ours = stepper(dsgd(task, lr=0.05, steps=1, batch=20), world, task.init, rounds)
        hand = bound.ring_gossip(nodes=n, samples=m, batch=20, lr=0.05, rounds=rounds)
        rows = jax.tree.map(lambda a, n=n: np.broadcast_to(a, (n, *a.shape)), bound.init(jax.random.key(0)))
        rows = jax.device_put(rows, NamedSharding(bound.mesh(), PartitionSpec(bound.AXIS)))
        theirs = bound_stepper(hand, rows, *_on_mesh(world.data))
        yield {"workload": "W3", "nodes": n, "data": name} | race(ours, theirs, rounds) | {"peak_mb": peak_mb()}


def w8(n=None):
    """A round of a million clients against one of a thousand, each in a process of its own."""
    if n is None:
        small, large = (json.loads(_child("w8", str(size))[-1]) for size in (1000, 1_000_000))
        yield large | {"ratio": large["seconds"] / small["seconds"], "bound_seconds": small["seconds"]}
        return
    from jaxfl.algorithms.fedavg import fedavg
    from jaxfl.learn import data, partition, task
    from jaxfl.world import cohort
    from jaxfl.world.scenario import scenario

    n, rng = int(n), np.random.default_rng(0)
    samples = max(n, 4000)
    known = data.from_arrays(
        rng.normal(size=(samples, 32)).astype(np.float32),
        rng.integers(0, 10, samples),
        rng.normal(size=(10, 32)).astype(np.float32),
        rng.integers(0, 10, 10),
        classes=10,
    )
    shards = partition.iid(known, n)
    world = scenario(shards, cohort=cohort.uniform(n, 100, weight=shards.size))
    model, rounds = task.logistic_regression(32, 10), 200
    begin = time.perf_counter()
    step = stepper(fedavg(model, lr=0.1, steps=3, batch=1), world, model.init, rounds)
    step()
    first, times = time.perf_counter() - begin, []
    for _ in range(TURNS):
        begin = time.perf_counter()
        step()
        times.append((time.perf_counter() - begin) / rounds)
    yield {
        "workload": "W8",
        "nodes": n,
        "data": "random numbers",
        "seconds": float(np.median(times)),
        "first_seconds": first,
        "peak_mb": peak_mb(),
    }


def g10k(n=None):
    """Gossip at three sizes, each in a process of its own: memory must grow linearly."""
    if n is None:
        for size in (2500, 5000, 10000):
            yield json.loads(_child("g10k", str(size))[-1])
        return
    from jaxfl.algorithms.dsgd import dsgd
    from jaxfl.learn import data, partition, task
    from jaxfl.world import graph, mixing
    from jaxfl.world.scenario import scenario

    n = int(n)
    world = scenario(
        partition.resampled(data.digits(), n, alpha=0.3), topology=mixing.metropolis(graph.random_regular(n, 8, seed=0))
    )
    model, rounds, before = task.logistic_regression(64, 10), 10, peak_mb()
    step = stepper(dsgd(model, lr=0.1, steps=1, batch=4), world, model.init, rounds)
    step()
    times = []
    for _ in range(TURNS):
        begin = time.perf_counter()
        step()
        times.append((time.perf_counter() - begin) / rounds)
    yield {
        "workload": "G10k",
        "nodes": n,
        "data": "digits",
        "seconds": float(np.median(times)),
        "peak_mb": peak_mb(),
        "run_mb": peak_mb() - before,
        "state_mb": n * 650 * 4 / 2**20,
    }


WORKLOADS = {"w1": w1, "w3": w3, "w8": w8, "g10k": g10k}


def _child(*args: str) -> list[str]:
    command = [sys.executable, str(Path(__file__).resolve()), *args]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()


def render(rows: list[dict], machine: dict) -> str:
    """The results page."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `python benchmarks/suite.py`; what each workload is stands at the top of that file. The bound",
        "is `benchmarks/bound.py`, the same work by hand in plain JAX (W8: the same federation with 1,000 clients).",
        "",
        "| workload | nodes | ms a round | bound, ms | ratio (lowest, highest turn) | compile, CPU s | peak MB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        spread = f" ({r['ratio_low']:.2f}, {r['ratio_high']:.2f})" if "ratio_low" in r else ""
        cells = (
            r["workload"],
            f"{r['nodes']:,}",
            f"{1e3 * r['seconds']:.2f}",
            f"{1e3 * r['bound_seconds']:.2f}" if "bound_seconds" in r else "",
            f"{r['ratio']:.2f}{spread}" if "ratio" in r else "",
            f"{r['compile_cpu_seconds']:.1f}" if "compile_cpu_seconds" in r else "",
            f"{r['peak_mb']:,.0f}" + (f" ({r['run_mb']:.0f} by the run)" if "run_mb" in r else ""),
        )
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Compile is the CPU time of the first block of rounds less that of a later one. W1 and W3, and their"]
    lines += ["bounds, run on one CPU device a core, the others on one device.", ""]
    lines += ["Machine and versions: " + ", ".join(f"{k} {v}" for k, v in machine.items()) + "."]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> None:
    """Run what `argv` names, or everything."""
    if argv:
        from jaxfl.engine.place import use_cores

        if jax.config.jax_platforms in (None, "cpu") and argv[0] in ("w1", "w3"):
            use_cores(os.cpu_count() or 1)
        for row in WORKLOADS[argv[0]](*argv[1:]):
            print(json.dumps(row), flush=True)
        return
    from jaxfl.measure.report import machine

    rows = []
    for name in WORKLOADS:
        for line in _child(name):
            print(line, flush=True)
            rows.append(json.loads(line))
    here = Path(__file__).resolve().parent
    (here / "README.md").write_text(render(rows, machine()))


if __name__ == "__main__":
    main(sys.argv[1:])
