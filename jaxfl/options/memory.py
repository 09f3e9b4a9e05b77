"""What cannot fit into this machine is refused before it is tried: bounds from below, in bytes. Needs no JAX."""

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from jaxfl.errors import InputError
from jaxfl.options.config import DEGREE, GROUPS, Setup

SLOT = 8  # of a neighbour table: neighbour and weight
DRAWN = 16  # of a sample that `resampled` deals, in blocks and then at once
ROW = 500  # of a history, a seed and round
MODEL = 61 * 10 * 8  # by which a node of `synthetic` draws its labels
LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container
OUT = ("RESOURCE_EXHAUSTED", "Out of memory")


def of_machine() -> float:
    """Bytes of memory that this process may have at most; infinity where the system does not tell."""
    most = float("inf")
    with contextlib.suppress(ValueError, OSError, AttributeError):
        most = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(ValueError, OSError):
        most = min(most, float(LIMIT.read_text()))
    return most


def check(setup: Setup, kinds: Collection[str]) -> None:
    """Raise InputError for a world that systems of these kinds could not have on this machine."""
    n, k, where = setup.nodes, setup.degree, setup.topology
    if "protocol" not in kinds:
        if setup.partition == "resampled":
            require(f"nodes is {n} and shard_size {setup.shard_size}: the samples", DRAWN * n * setup.shard_size)
        if setup.data == "synthetic":
            require(f"nodes is {n}: data synthetic", MODEL * n)
    if {"gossip", "protocol"} & set(kinds):
        slots = n if where == "complete" else k if where in (*DEGREE, *GROUPS) else 1
        require(f"nodes is {n}: the neighbours of topology {where}", SLOT * n * slots)
    require(f"rounds is {setup.rounds} and seeds {setup.seeds}: the history", ROW * setup.rounds * setup.seeds)


def require(what: str, needed: float) -> None:
    """Raise InputError where `what` needs more bytes than there are."""
    if needed > (most := of_machine()):
        raise InputError(
            f"{what} would take at least {needed / 1e9:,.1f} GB of memory, but this machine has {most / 1e9:,.1f} GB."
        )


@contextlib.contextmanager
def said() -> Iterator[None]:
    """Memory that is not there, of NumPy or of JAX, becomes one sentence, an InputError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(word in str(error) for word in OUT):
            raise
        says = (str(error).splitlines() or ["nothing is left"])[0].rstrip(".")
        raise InputError(
            f"memory: {says}; fewer nodes, seeds or samples of a batch need less, and `jaxfl plan` says how much."
        ) from error
