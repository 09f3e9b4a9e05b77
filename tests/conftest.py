"""Settings of the whole suite."""

import gc
import importlib.metadata
import os
import signal

# Programs of tests are small: to compile them takes longer than to run them. Half as long at level 0 and without the
# emitters that fuse; XLA refuses to start with a flag it does not know, and newer ones may drop the second.
FLAGS = ["--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS += ["--xla_cpu_use_fusion_emitters=false"]
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # no places of source code in programs: quicker to trace
gc.set_threshold(200_000)  # tracing makes many small objects that live: to look for dead ones takes a tenth of the time

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a suite in the background; tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax
import pytest
from hypothesis import settings
from workers import together

from jaxfl.engine import identity
from jaxfl.engine import run as engine

settings.register_profile("jaxfl", deadline=None, max_examples=20, derandomize=True)
settings.load_profile("jaxfl")


IN_MATRIX, IN_FILE = 6, 10  # CPU seconds that a system may take in the matrix, and a paper's file of tests


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling  # where there are workers, it is there

    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = together
    return scheduler


def pytest_terminal_summary(terminalreporter):
    """Name the papers that take more than their share; a busy machine takes longer, so nothing fails."""
    spent: dict = {}
    for report in (r for reports in terminalreporter.stats.values() for r in reports if hasattr(r, "duration")):
        file, _, call = report.nodeid.partition("::")
        for name, value in report.user_properties * (report.when == "call"):
            if name == "cpu_seconds":
                spent[call] = value, IN_MATRIX
        if file.startswith("tests/papers/"):
            spent[file] = spent.get(file, (0, 0))[0] + report.duration, IN_FILE
    for what, (took, share) in spent.items():
        if took > share:
            terminalreporter.line(f"{what} takes {took:.1f} s of the {share} it should")


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Forget a module's compiled programs: a process that keeps a thousand of them runs out of memory maps and dies."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def settings_stay():
    """What a test sets of JAX's numbers is of that test: the next one in its process computes as it would alone."""
    before = identity.settings()
    yield
    assert identity.settings() == before


@pytest.fixture
def nothing_compiled():
    """A test during which the engine compiles no program of a run."""
    programs = engine._start, engine._chunk, engine._evaluate
    before = [f._cache_size() for f in programs]
    yield
    assert [f._cache_size() for f in programs] == before
