"""How `--availability` is spelt, `LAW`, `LAW:KEY=VALUE,...` or a CSV file, and the process that it names."""

from collections.abc import Callable
from functools import partial
from typing import Any

from jaxfl.core import Process
from jaxfl.errors import InputError
from jaxfl.options import spelling
from jaxfl.world.availability import diurnal, markov
from jaxfl.world.availability_files import from_csv
from jaxfl.world.churn import sessions

# of each law an example of each number, which says what it may be (`spelling.spelt`)
LAWS: dict[str, tuple[Callable, dict[str, Any]]] = {
    "markov": (markov, {"up": 0.8, "memory": -0.1, "corr": 0.0, "groups": 1}),
    "diurnal": (diurnal, {"up": 0.5, "swing": -0.4, "period": 24, "zones": 1}),
    "sessions": (partial(sessions, up=10.0, down=5.0), {"up": 10.0, "down": 5.0}),
}


def availability(text: str, n: int) -> Process:
    """The availability of `n` nodes that a text names.

    Raises:
        InputError: an unknown law or number (with the nearest), a number twice or out of range; see `from_csv`.
    """
    if text.endswith(".csv"):
        return from_csv(text, n)
    law, given = spelling.spelt("availability", "law", text, {name: keys for name, (_, keys) in LAWS.items()})
    try:
        return LAWS[law][0](n, **given)
    except InputError as error:
        raise InputError(f"availability is {text!r}: {error}") from error
