"""The command line: `jaxfl run`, `compare`, `sweep` and so on, each in a file of `jaxfl.commands`.

JAX starts only after the options are parsed. Bad input is one sentence on stderr and exit code 2; a reproduction that
does not hold exits with 1, an interrupted run with 130 after writing what is there. Compiled programs are kept in the
user's cache folder; JAX_COMPILATION_CACHE_DIR names another, JAX_ENABLE_COMPILATION_CACHE=0 keeps none.
"""

import importlib
import sys
from collections.abc import Sequence

from jaxfl.commands.start import cache_folder, start_jax
from jaxfl.errors import InputError
from jaxfl.options.commands import (
    ABOUT,
    Cite,
    Command,
    Compare,
    Experiment,
    List,
    Plan,
    Predict,
    Reproduce,
    Run,
    Sweep,
    parse,
)

MODULES = {Run: "experiment", Compare: "experiment", Sweep: "sweep", Plan: "plan"}
MODULES |= {Predict: "predict", Reproduce: "reproduce", List: "show", Cite: "show"}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command line and raise SystemExit with its exit code."""
    args = sys.argv[1:] if argv is None else list(argv)
    where = cache_folder()
    stored = "in memory only" if where is None else f"in {where}"
    about = f"{ABOUT} Compiled programs are kept {stored}; JAX_ENABLE_COMPILATION_CACHE=0 keeps none."
    try:
        code = _dispatch(parse(args, about))
    except KeyboardInterrupt:
        code = 130
    except InputError as error:
        print(f"jaxfl: {error}", file=sys.stderr)
        code = 2
    raise SystemExit(code)


def _dispatch(command: Command) -> int:
    """JAX starts before a command's module is imported, which may compile."""
    if isinstance(command, Experiment):
        start_jax(command.setup.devices)
    elif isinstance(command, Predict | Reproduce):
        start_jax(None)
    return importlib.import_module(f"jaxfl.commands.{MODULES[type(command)]}").main(command)
