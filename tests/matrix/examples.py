"""What the matrix finds out about systems; a process of its own for a dozen of them, with eight devices.

    python tests/matrix/examples.py fedavg dsgd tests/world/test_stratified.py

prints one JSON line a system. Those of the zoo are built as the command line builds them, from their names; a test
file brings worlds by `small()`.
"""

import gc
import importlib
import json
import sys
import time
from pathlib import Path

import jax

NODES, ROUNDS, EVERY = 16, 4, 2
SETTING = {"nodes": NODES, "data": "digits", "model": "logistic", "topology": "ring", "cohort": 8, "concurrency": 8}
SETTING |= {"goal": 4, "rounds": ROUNDS, "every": EVERY, "seeds": 1, "test_samples": 50, "batch": 16, "steps": 4}
LINKS = {"mbit": 1.0, "latency_ms": 10.0, "step_ms": 1.0}
PROTOCOL = ("data", "model", "test_samples", "batch", "steps")  # what protocols do not read


def world_of(name, **changes):
    """The setup of the matrix for a system, and its arm."""
    from jaxfl import zoo
    from jaxfl.options.build import build, prepare
    from jaxfl.options.config import Setup

    known = SETTING | changes
    if zoo.find(name).kind == "protocol":
        known = {key: value for key, value in known.items() if key not in PROTOCOL}
    return build(prepare(Setup(**known), [name]), name, {})


def scores(history):
    """The first of the columns that says how good a system is, at the first and the last evaluation."""
    column = next(c for c in ("test_loss", "error", "loss") if c in history)
    values = history[column].dropna().to_numpy()
    return column, float(values[0]), float(values[-1])


def look(algorithm, world, model, rounds, every, metric=None):
    """Whether a run goes on bit for bit and compiles once, and where eight devices and one are apart; and its table."""
    import numpy as np

    from jaxfl.engine import run as engine
    from jaxfl.engine.run import run
    from jaxfl.engine.sharding import node_mesh

    before = engine._chunk._cache_size()
    one = {"every": every, "evaluate": metric, "mesh": node_mesh(1)}
    whole = run(algorithm, world, model, rounds, **one)
    half = run(algorithm, world, model, every, **one)
    rest = run(algorithm, world, model, rounds, carry=half.carry, **one)
    programs = engine._chunk._cache_size() - before
    wide = run(algorithm, world, model, rounds, every=every, mesh=node_mesh(8))
    leaves = lambda result: [np.asarray(a) for a in jax.tree.leaves((result.state, algorithm.read(result.state)))]
    floats = lambda a: np.issubdtype(a.dtype, np.floating)
    apart = [
        f"leaf {i}"
        for i, (a, b) in enumerate(zip(leaves(whole), leaves(wide), strict=True))
        if not (np.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True) if floats(a) else np.array_equal(a, b))
    ]
    apart += [c for c in wide.history if not np.allclose(whole.history[c], wide.history[c], 1e-3, 1e-4, equal_nan=True)]
    found = {
        "resumed": all(np.array_equal(a, b, equal_nan=True) for a, b in zip(leaves(rest), leaves(whole), strict=True)),
        "programs": programs,
        "finite": all(bool(np.isfinite(a).all()) for a in leaves(whole) if floats(a)),
        "apart": apart,
    }
    return found, whole.history


def of_the_zoo(name):
    """Everything about one system of the zoo."""
    began = time.process_time()
    algorithm, world, model, metric, _ = world_of(name, **LINKS)
    found, history = look(algorithm, world, model, ROUNDS, EVERY, metric)
    log, costs = history.iloc[1:], ("up_bits", "down_bits", "gradients", "seconds")
    found |= {"score": scores(history), "costs": {c: float(log[c].sum()) for c in costs if c in log}}
    return {"name": name} | found | {"cpu_seconds": time.process_time() - began}


def of_a_file(path):
    """The same of the worlds that `small()` of a test file holds, by name: `(algorithm, scenario, model, rounds)`."""
    sys.path[:0] = [str(path.parents[1]), str(path.parent)]
    for name, (algorithm, world, model, rounds) in importlib.import_module(path.stem).small().items():
        yield {"name": f"{path}: {name}"} | look(algorithm, world, model, rounds, rounds // 2)[0]
        jax.clear_caches()


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    gc.set_threshold(200_000)  # as in `conftest.py`
    for word in sys.argv[1:]:
        for row in of_a_file(Path(word)) if word.endswith(".py") else [of_the_zoo(word)]:
            print(json.dumps(row), flush=True)
        jax.clear_caches()
