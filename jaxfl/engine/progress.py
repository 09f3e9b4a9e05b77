"""A progress bar with rounds, the newest score and the time left."""

import contextlib
import sys
from collections.abc import Callable, Iterator

import numpy as np


@contextlib.contextmanager
def bar(rounds: int, done: int, show: bool | None) -> Iterator[Callable]:
    """Yields `advance(t, scores)`; `show=None` draws only on a terminal.

    Beside the bar stands the mean over runs of their accuracy or test loss: nan once a run has diverged.
    """
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda t, scores: None
        return
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

        def advance(t: int, scores: dict) -> None:
            shown = [
                f"{k.replace('_', ' ')} {np.mean(scores[k]):.3f}" for k in ("accuracy", "test_loss") if k in scores
            ]
            progress.update(task, completed=t, score="".join(shown[:1]))

        yield advance
