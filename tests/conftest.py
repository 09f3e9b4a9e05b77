"""Settings of the whole suite."""

import importlib.metadata
import os
from pathlib import Path

# Programs of tests are small: to compile them takes longer than to run them. Half as long at level 0 and without the
# emitters that fuse; XLA refuses to start with a flag it does not know, and newer ones may drop the second.
FLAGS = ["--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS += ["--xla_cpu_use_fusion_emitters=false"]
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))

import jax
import pytest
from hypothesis import settings

from jaxfl import zoo

settings.register_profile("jaxfl", deadline=None, max_examples=20, derandomize=True)
settings.load_profile("jaxfl")


DOZEN = 12  # systems of the matrix that one worker takes together
FILES = sorted(str(p) for p in Path(__file__).parent.glob("*/test_*.py") if "\ndef small():" in p.read_text())
BATCHED = 2  # parts of these files, of which a worker takes one


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    """A file stays on one worker, where its tests share what is compiled; of the matrix, a dozen systems do."""
    place = {name: i for i, name in enumerate(zoo.systems())}
    for item in items:
        group = str(item.path)
        params = getattr(getattr(item, "callspec", None), "params", {})
        if item.path.parent.name == "matrix" and params.get("name") in place:
            group = f"matrix {place[params['name']] // DOZEN}"
        elif item.path.parent.name == "matrix" and "file" in params:
            group = f"files {FILES.index(params['file']) % BATCHED}"
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Forget a module's compiled programs: a process that keeps a thousand of them runs out of memory maps and dies."""
    yield
    jax.clear_caches()
