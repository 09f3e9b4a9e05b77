"""Every system that brings a small world of its own: compiles once, goes on bit for bit, the same on 8 devices."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from common import same

from jaxfl.engine import run as engine
from jaxfl.engine.run import run

HERE = Path(__file__).parents[1]
MODULES = sorted(p.stem for p in HERE.glob("test_[!c]*.py") if "\ndef small():" in p.read_text())


def worlds():
    """`small()` of each test module, by `module.system`."""
    parts = {m: importlib.import_module(m).small() for m in MODULES}
    return {f"{m.removeprefix('test_')}.{name}": world for m, found in parts.items() for name, world in found.items()}


WORLDS = worlds()


@pytest.mark.parametrize("name", list(WORLDS))
def test_goes_on_bit_for_bit_and_compiles_once(name):
    algorithm, world, model, rounds = WORLDS[name]
    half = rounds // 2
    before = engine._chunk._cache_size()
    whole = run(algorithm, world, model, rounds, every=half)
    first = run(algorithm, world, model, half, every=half)
    rest = run(algorithm, world, model, rounds, every=half, carry=first.carry)
    assert same(rest.state, whole.state)
    run(algorithm, world, model, rounds, every=half, seed=1)
    assert engine._chunk._cache_size() == before + 1


SHARDED = """
import sys, jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
sys.path.insert(0, sys.argv[3])
import numpy as np
from test_devices import WORLDS
from jaxfl.engine.run import run
leaves = {}
for name, (algorithm, world, model, rounds) in WORLDS.items():
    result = run(algorithm, world, model, rounds, every=rounds)
    for i, a in enumerate(jax.tree.leaves((result.state, algorithm.read(result.state)))):
        leaves[f"{name} leaf {i}"] = np.asarray(a)
    for column in result.history:
        leaves[f"{name} {column}"] = result.history[column].to_numpy()
np.savez(sys.argv[2], **leaves)
"""


def test_the_same_numbers_on_one_and_eight_devices(tmp_path):
    paths = {devices: tmp_path / f"{devices}.npz" for devices in (1, 8)}
    quick = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}  # programs of seconds to compile
    command = [sys.executable, "-W", "error", "-c", SHARDED]
    jobs = [subprocess.Popen([*command, str(k), str(path), str(HERE)], env=quick) for k, path in paths.items()]
    assert [job.wait() for job in jobs] == [0, 0]
    got = [np.load(path) for path in paths.values()]
    for name in got[0].files:
        one, eight = got[0][name], got[1][name]
        if np.issubdtype(one.dtype, np.floating):
            np.testing.assert_allclose(one, eight, rtol=1e-4, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(one, eight, err_msg=name)


def test_the_small_worlds_divide_eight_devices():
    for name, (_, world, *_) in WORLDS.items():
        assert world.byz.shape[0] % 8 == 0, name
    assert jax.device_count() >= 1
