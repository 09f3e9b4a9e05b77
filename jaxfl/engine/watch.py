"""A word about a run that says nothing: what it is at, whether it computes, what to try."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax

PATIENCE = 300.0  # seconds until the first word
SAMPLE = 10.0  # the last of them, in which the busy processors are counted
IDLE = 0.01  # busy processors, below which a process stands still


class _At(NamedTuple):
    what: str
    since: float


@contextlib.contextmanager
def over(
    what: str,
    *,
    patience: float = PATIENCE,
    ended: threading.Event | None = None,
    clock: Callable[[], float] = time.monotonic,
    used: Callable[[], float] = time.process_time,
) -> Iterator[Callable[[str], None]]:
    """A line to standard error after `patience` seconds of silence, again after twice as many more, and so on.

    Yields `now(what)`, which ends a silence and says what comes next. Of several processes the first one speaks. One
    thread waits for the whole block: it needs nothing of XLA and does not keep the process alive.

    Args:
        what: what comes first, as in "rounds 1 to 10".
        patience: seconds until the first line.
        ended: what the thread waits on; set at the end.
        clock: seconds of the world.
        used: seconds of processors that this process has used.
    """
    ended, newest = ended or threading.Event(), [_At(what, clock())]
    speaks, lone = jax.process_index() == 0, jax.default_backend() == "cpu" and jax.process_count() == 1

    def look() -> None:
        seen, due = None, patience
        while True:
            at = newest[0]
            if at is not seen:
                seen, due = at, patience
            if ended.wait(max(0.0, at.since + due - SAMPLE - clock())):
                return
            then, before = clock(), used()
            if ended.wait(SAMPLE):
                return
            if newest[0] is at:
                now, busy = clock(), used() - before
                print(word(at.what, now - at.since, busy / (now - then), lone), file=sys.stderr, flush=True)
                due = 2 * due + patience

    if speaks:
        threading.Thread(target=look, name="jaxfl watch", daemon=True).start()
    try:
        yield lambda what: newest.__setitem__(0, _At(what, clock()))
    finally:
        ended.set()


def word(what: str, seconds: float, processors: float, lone: bool) -> str:
    """The line of a process that was silent for `seconds` and lately keeps so many `processors` busy.

    `lone` is one that computes on CPUs and has no other processes to wait for.
    """
    head = f"jaxfl: {what}: nothing came back for {seconds / 60:.0f} minutes; "
    dump = f"`py-spy dump --native --pid {os.getpid()}` shows where"
    if processors >= IDLE:
        return head + (
            f"still computing ({processors:.1f} processors busy). A smaller `every` lets you hear of it sooner, fewer "
            "nodes or seeds make it shorter, and `jaxfl plan` tells what a round costs."
        )
    if not lone:
        return head + f"no processor is busy here: it waits for an accelerator or another process ({dump})."
    return head + (
        f"no processor is busy: it stands still and is not likely to go on ({dump}). Stop it and try more threads "
        "(NPROC=16 in the environment: a pool no longer waits for itself) or one device (JAX_NUM_CPU_DEVICES=1)."
    )
