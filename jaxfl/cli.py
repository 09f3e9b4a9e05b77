"""The command line: `jaxfl run`, `compare`, `sweep` and so on, each in a file of `jaxfl.commands`.

JAX starts only after the options are parsed. Bad input is one sentence on stderr and exit code 2; a reproduction that
does not hold exits with 1; Ctrl-C and SIGTERM with 130 and 143 after writing what is there. Compiled programs are kept
in the user's cache folder; JAX_COMPILATION_CACHE_DIR names another, JAX_ENABLE_COMPILATION_CACHE=0 keeps none.
"""

import contextlib
import importlib
import sys
from collections.abc import Sequence

from jaxfl.commands import process
from jaxfl.commands.start import cache_folder, start_jax
from jaxfl.errors import InputError

MODULES = {"Run": "experiment", "Compare": "experiment", "Sweep": "sweep", "Plan": "plan"}
MODULES |= {"Predict": "predict", "Reproduce": "reproduce", "List": "show", "Cite": "show"}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command line and raise SystemExit with its exit code."""
    with process.signals():
        try:
            with process.streams():
                code = _code(sys.argv[1:] if argv is None else list(argv))
        except InputError as error:  # of standard output itself
            with contextlib.suppress(OSError):
                print(_line(str(error)), file=sys.stderr, flush=True)
            code = 2
    raise SystemExit(code)


def _code(args: list[str]) -> int:
    where = cache_folder()
    stored = "in memory only" if where is None else f"in {where}"
    try:
        return _dispatch(args, f"Compiled programs are kept {stored}; JAX_ENABLE_COMPILATION_CACHE=0 keeps none.")
    except KeyboardInterrupt:
        print("jaxfl: interrupted; what was written is kept.", file=sys.stderr)
        return process.exit_code()
    except InputError as error:
        print(_line(str(error)), file=sys.stderr)
        return 2
    except OSError as error:
        print(_line(_sentence(error)), file=sys.stderr)
        return 2


def _dispatch(args: list[str], stored: str) -> int:
    """JAX starts before a command's module is imported, which may compile."""
    if args == ["--version"]:
        from jaxfl import __version__

        print(f"jaxfl {__version__}")
        return 0
    from jaxfl.options import commands, memory  # takes a while, in which Ctrl-C is heard

    command = commands.parse(args, f"{commands.ABOUT} {stored}")
    if isinstance(command, commands.Experiment):
        start_jax(command.setup.devices)
    elif isinstance(command, commands.Predict | commands.Reproduce):
        start_jax(None)
    with memory.said():
        return importlib.import_module(f"jaxfl.commands.{MODULES[type(command).__name__]}").main(command)


def _sentence(error: OSError) -> str:
    """An error of the system that nobody foresaw: which file, and why."""
    where = f"{error.filename} " if error.filename else ""
    return f"{where}cannot be read or written ({error.strerror or error})."


def _line(sentence: str) -> str:
    """What is said, on one line: newlines and control characters of the names in it are spelt."""
    return f"jaxfl: {''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in sentence)}"
