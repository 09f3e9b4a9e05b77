"""What hangs on a run: functions called after every evaluation, Ctrl-C, TensorBoard and Weights & Biases.

A callback is any function of a `Progress`. Returning True ends the run, which then returns what it has; whatever else
it returns is passed over. One with a method `close` has it called when the run ends, however it ends:

    run(..., callback=lambda p: p.rows[0]["accuracy"] > 0.9)
    run(..., callback=[callbacks.tensorboard("logs"), callbacks.wandb(project="mine")])
"""

import contextlib
import importlib
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxfl.core import State
from jaxfl.errors import InputError


class Progress(NamedTuple):
    """What a callback is given."""

    round: int  # rounds finished; 0 at the start
    rounds: int  # rounds in all
    rows: list[dict]  # the newest row of the history of every run
    labels: list[dict]  # what tells these apart: their seed and swept values
    state: State  # as in `Result`; the next rounds replace its arrays, so copy what is kept: `jax.device_get`


Callback = Callable[[Progress], Any]


class CallbackError(RuntimeError):
    """A callback raised an error, which is the cause of this one.

    Attributes:
        result: the `Result` of all rounds finished before, which can be gone on from by its `carry`.
    """

    def __init__(self, callback: Callback, error: Exception, result: Any):
        name = getattr(callback, "__qualname__", type(callback).__qualname__)
        says = (str(error).splitlines() or ["nothing"])[0]
        super().__init__(
            f"callback {name} raised {type(error).__name__}: {says}; what was computed is this error's `result`, in a "
            "notebook `sys.last_value.result`."
        )
        self.result = result


class Calls:
    """The callbacks of one run, and Ctrl-C while it lasts.

    The first Ctrl-C lets the rounds under way end, a second one stops at once by KeyboardInterrupt. So does SIGTERM
    after `signal.signal(signal.SIGTERM, signal.default_int_handler)`. A handler of the user's own, threads other than
    the main one and several processes are left alone.

    Attributes:
        over: a callback returned True, or Ctrl-C was pressed.
        interrupted: Ctrl-C was pressed.

    Raises:
        InputError: `callback` is no function, nor a list or tuple of functions.
    """

    def __init__(self, callback: Callback | Sequence[Callback] | None):
        given: list[Any] = [callback] * (callback is not None)
        given = list(callback) if isinstance(callback, list | tuple) else given
        for one in given:
            if not callable(one) or isinstance(one, type):
                raise InputError(f"callback is {one!r}, but must be a function of a Progress, or a list of such.")
        self.callbacks, self.over, self.interrupted = given, False, False
        self._taken: list[int] = []  # signals

    def tell(self, progress: Progress, result: Callable[[], Any]) -> None:
        """Call all of them; `result` makes what the run would return now.

        Raises:
            CallbackError: one raised an error.
        """
        for one in self.callbacks:
            try:
                said = one(progress)
                self.over = self.over or _is_true(said)
            except KeyboardInterrupt:
                self._interrupt()
            except Exception as error:
                raise CallbackError(one, error, result()) from error

    def close(self, result: Callable[[], Any]) -> None:
        """Call the `close` of those that have one.

        Raises:
            CallbackError: one raised an error; the others are closed all the same.
        """
        failed = None
        for one in self.callbacks:
            try:
                getattr(one, "close", lambda: None)()
            except Exception as error:
                failed = failed or (one, error)
        self.callbacks = []
        if failed is not None:
            raise CallbackError(*failed, result()) from failed[1]

    def _interrupt(self, *_: Any) -> None:
        if self._taken:  # the second one is Python's own
            self._give_back()
            print("jaxfl: stops when these rounds are done; Ctrl-C again stops at once.", file=sys.stderr, flush=True)
        self.over, self.interrupted = True, True

    def _give_back(self) -> None:
        while self._taken:
            signal.signal(self._taken.pop(), signal.default_int_handler)

    def __enter__(self) -> "Calls":
        """Take over Ctrl-C."""
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            both = signal.SIGINT, signal.SIGTERM
            self._taken = [s for s in both if signal.getsignal(s) is signal.default_int_handler]
            for number in self._taken:
                signal.signal(number, self._interrupt)
        return self

    def __exit__(self, *_: Any) -> None:
        """After an error, which outweighs what closing may raise."""
        self._give_back()
        with contextlib.suppress(CallbackError):
            self.close(lambda: None)


def _is_true(said: Any) -> bool:
    """Whether it is True, of Python, NumPy or JAX; a number of bytes written, say, is not."""
    an_array = isinstance(said, np.generic | np.ndarray | jax.Array) and said.dtype == np.dtype(bool)
    return said is True or (an_array and said.shape == () and bool(said))


def _needs(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        says = f"callbacks.{extra} needs {module}, which is not installed: pip install 'jaxfl[{extra}]'."
        raise InputError(says) from error


def _name(label: dict) -> str:
    return ",".join(f"{k}={v:g}" for k, v in label.items())


class _TensorBoard:
    def __init__(self, folder: Path, writer: Any):
        self.folder, self.writer, self.open = folder, writer, {}

    def __call__(self, p: Progress) -> None:
        for label, row in zip(p.labels, p.rows, strict=True):
            name = _name(label)
            if name not in self.open:
                self.open[name] = self.writer(str(self.folder / name if len(p.labels) > 1 else self.folder))
            for column in (c for c in row if c not in label and c != "round"):
                self.open[name].add_scalar(column, row[column], p.round)
            self.open[name].flush()

    def close(self) -> None:
        while self.open:
            self.open.popitem()[1].close()


def tensorboard(folder: str | Path) -> Callback:
    """A callback that writes every column of the newest rows for TensorBoard, by the package tensorboardX.

    Several runs (seeds, swept values) go to one folder each below `folder`, so that TensorBoard lays them over each
    other. Of several processes the first one writes.

    Raises:
        InputError: tensorboardX is not installed.
    """
    return _first_process(_TensorBoard(Path(folder), _needs("tensorboardX", "tensorboard").SummaryWriter))


class _Wandb:
    def __init__(self, module: Any, arguments: dict):
        self.module, self.arguments, self.run = module, arguments, None

    def __call__(self, p: Progress) -> None:
        if self.run is None:
            self.run = self.module.init(**self.arguments)
        named = {}
        for label, row in zip(p.labels, p.rows, strict=True):
            end = f"/{_name(label)}" if len(p.labels) > 1 else ""
            named |= {f"{column}{end}": v for column, v in row.items() if column not in label and column != "round"}
        self.run.log(named, step=p.round)

    def close(self) -> None:
        run, self.run = self.run, None
        if run is not None:
            run.finish()


def wandb(**arguments: Any) -> Callback:
    """A callback that logs every column of the newest rows to one run of Weights & Biases, opened at the first call.

    Several runs (seeds, swept values) are told apart as `accuracy/seed=0`. Of several processes the first one logs.

    Args:
        arguments: what `wandb.init` takes: `project`, `name`, `config`, `mode="offline"`, ...

    Raises:
        InputError: wandb is not installed.
    """
    return _first_process(_Wandb(_needs("wandb", "wandb"), arguments))


def _first_process(callback: Any) -> Callback:
    return callback if jax.process_index() == 0 else lambda p: None
