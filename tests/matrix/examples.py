"""What the matrix finds out about systems; a process of its own for a dozen of them, with eight devices.

    python tests/matrix/examples.py fedavg dsgd

prints one JSON line a system. Each is built as the command line builds it, from its name alone.
"""

import json
import sys
import time

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


def look(name):
    """Everything about one system."""
    import numpy as np

    from jaxfl.engine import run as engine
    from jaxfl.engine.run import run
    from jaxfl.engine.sharding import node_mesh

    began = time.process_time()
    algorithm, world, model, metric, _ = world_of(name, **LINKS)
    before = engine._chunk._cache_size()
    one = {"every": EVERY, "evaluate": metric, "mesh": node_mesh(1)}
    whole = run(algorithm, world, model, ROUNDS, **one)
    half = run(algorithm, world, model, EVERY, **one)
    rest = run(algorithm, world, model, ROUNDS, carry=half.carry, **one)
    programs = engine._chunk._cache_size() - before
    wide = run(algorithm, world, model, ROUNDS, every=EVERY, mesh=node_mesh(8))
    leaves = lambda result: [np.asarray(a) for a in jax.tree.leaves((result.state, algorithm.read(result.state)))]
    floats = lambda a: np.issubdtype(a.dtype, np.floating)
    apart = [
        f"leaf {i}"
        for i, (a, b) in enumerate(zip(leaves(whole), leaves(wide), strict=True))
        if not (np.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True) if floats(a) else np.array_equal(a, b))
    ]
    column, first, last = scores(whole.history)
    apart += [c for c in wide.history if not np.allclose(whole.history[c], wide.history[c], 1e-3, 1e-4, equal_nan=True)]
    log = whole.history.iloc[1:]
    costs = ("up_bits", "down_bits", "gradients", "seconds")
    return {
        "name": name,
        "resumed": all(np.array_equal(a, b, equal_nan=True) for a, b in zip(leaves(rest), leaves(whole), strict=True)),
        "programs": programs,
        "finite": all(bool(np.isfinite(a).all()) for a in leaves(whole) if floats(a)),
        "apart": apart,
        "score": [column, first, last],
        "costs": {c: float(log[c].sum()) for c in costs if c in log},
        "cpu_seconds": time.process_time() - began,
    }


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    for system in sys.argv[1:]:
        print(json.dumps(look(system)), flush=True)
        jax.clear_caches()
