"""A command as a process: signals end it with a line, streams take what they can. Needs no JAX.

Ctrl-C and SIGTERM, by which schedulers and containers stop, end it at once before anything was computed; from `gently`
on they let the rounds under way end (`engine.callbacks`). The exit code is 130 or 143.
"""

import codecs
import contextlib
import io
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

from jaxfl.errors import InputError

USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
PLAIN = {"•": "*", "±": "+-", "–": "-", "…": "...", "→": "->", "×": "x"}
_ours: dict[int, Any] = {}  # signals this command takes, with their handlers before
_came: list[socket.socket] = []  # says which signals came, whoever handled them


@contextlib.contextmanager
def signals() -> Iterator[None]:
    """While a command lasts its signals end it. Handlers of others and threads but the main one are left alone."""
    if threading.current_thread() is not threading.main_thread() or _ours:
        yield
        return
    here, there = socket.socketpair()
    here.setblocking(False)
    there.setblocking(False)
    before = signal.set_wakeup_fd(there.fileno(), warn_on_full_buffer=False)
    _came.append(here)
    _ours.update({number: usual for number, usual in USUAL.items() if signal.getsignal(number) is usual})
    for number in _ours:
        signal.signal(number, _at_once)
    try:
        yield
    finally:
        for number, handler in _ours.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        _ours.clear()
        _came.clear()
        here.close()
        there.close()


def gently() -> None:
    """From now on both signals are what Ctrl-C is to Python: the engine takes them over, else KeyboardInterrupt."""
    for number in _ours:
        signal.signal(number, signal.default_int_handler)


def exit_code() -> int:
    """That of the newest signal: 130 after Ctrl-C, 143 after SIGTERM."""
    came = b""
    with contextlib.suppress(OSError, IndexError):
        came = _came[0].recv(1000)
    return 128 + next((number for number in reversed(came) if number in USUAL), signal.SIGINT)


def _at_once(number: int, _: Any) -> None:
    """Not by an exception, which imports and compilers would meet at any place."""
    line = f"jaxfl: interrupted by {signal.Signals(number).name}; what was finished before is kept.\n"
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
    os._exit(128 + number)


class _Output:
    """A stream that a command outlives: what cannot be written is dropped, and `failed` says why."""

    def __init__(self, stream: Any):
        self.stream, self.failed = stream, None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self.stream.write(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, do: Any) -> None:
        if self.failed is None:
            try:
                do()
            except OSError as error:
                self.failed = error


@contextlib.contextmanager
def streams() -> Iterator[None]:
    """Standard streams while a command lasts: those that are closed lead nowhere, letters a terminal has not are spelt.

    Whoever stops reading, as `head` does, ends the output but not the command.

    Raises:
        InputError: standard output could not be written for another reason.
    """
    _open_three()
    before = sys.stdout, sys.stderr
    codecs.register_error("jaxfl", _spelt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(errors="jaxfl")
    ours = out, _ = _Output(before[0]), _Output(before[1])
    sys.stdout, sys.stderr = ours
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in ours:
            stream.flush()
            if stream.failed is not None:  # or Python says so again at its end
                _forget(stream.stream)
    if out.failed is not None and not isinstance(out.failed, BrokenPipeError):
        raise InputError(f"standard output cannot be written ({out.failed.strerror or out.failed}).")


def _open_three() -> None:
    """Descriptors 0 to 2 and the streams on them, which a service may have closed: no file may get one of them."""
    while (file := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(file)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def _forget(stream: Any) -> None:
    """Lead a stream nowhere, with what it still holds."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _spelt(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(PLAIN.get(c, "?") for c in error.object[error.start : error.end]), error.end
