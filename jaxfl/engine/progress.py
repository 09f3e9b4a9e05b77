"""How far a run is: rounds, the newest score and the time left, as a bar or in lines."""

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np


@contextlib.contextmanager
def bar(rounds: int, done: int, show: bool | None) -> Iterator[Callable]:
    """Yields `advance(t, scores)`, which draws a bar on a terminal and in a notebook.

    Elsewhere `show=True` writes a line to standard error whenever a tenth of the rounds is done, `show=None` nothing.
    A notebook without ipywidgets, which rich draws with, is such a place, as it is where nobody looks on.

    Beside the bar stands the mean over runs of their accuracy or test loss: nan once a run has diverged.
    """
    drawn = sys.stderr.isatty() or _notebook()
    if show is False or not (show or drawn):
        yield lambda t, scores: None
    elif drawn:
        with _drawn(rounds, done) as advance:
            yield advance
    else:
        yield _lines(rounds, done)


def _notebook() -> bool:
    if "ipykernel" not in sys.modules or importlib.util.find_spec("ipywidgets") is None:
        return False
    from rich.console import Console

    return Console().is_jupyter


@contextlib.contextmanager
def _drawn(rounds: int, done: int) -> Iterator[Callable]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.fields[score]}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("rounds", total=rounds, completed=done, score="")
        yield lambda t, scores: progress.update(task, completed=t, score=_score(scores), refresh=True)


def _lines(rounds: int, done: int) -> Callable:
    began = time.monotonic()

    def advance(t: int, scores: dict) -> None:
        nonlocal done
        tenth, done = 10 * t // rounds > 10 * done // rounds, t
        if tenth:
            score = f"{_score(scores)}, " * bool(_score(scores))
            print(f"round {t:,} of {rounds:,}, {score}{time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)

    return advance


def _score(scores: dict) -> str:
    shown = [f"{k.replace('_', ' ')} {np.mean(scores[k]):.3f}" for k in ("accuracy", "test_loss") if k in scores]
    return "".join(shown[:1])
