"""How many compiled programs a process keeps: each holds some megabytes of code and constants for good."""

from typing import Any

MOST = 64  # programs of one kind; about 10 MB each on a CPU


def bounded(*jitted: Any) -> None:
    """Forget all programs of each function of `jax.jit` that has `MOST`: one that is asked for again is compiled again.

    Worlds of as many shapes as one likes then take no more memory than so many. A compilation cache, where there is
    one, still has what was forgotten.
    """
    for f in jitted:
        if f._cache_size() >= MOST:
            f.clear_cache()
