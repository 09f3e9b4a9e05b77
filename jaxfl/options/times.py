"""How `--durations` and `--deadline` are spelt. Needs no JAX; `options.jobs` makes laws and clocks of them."""

import math
from typing import Any, NamedTuple

from jaxfl.errors import InputError
from jaxfl.options import spelling

# the numbers of each law, with their defaults, as in `world.durations`
LAWS: dict[str, dict[str, Any]] = {
    "fixed": {"seconds": 1.0},
    "uniform": {"low": 0.5, "high": 1.5},
    "lognormal": {"median": 1.0, "sigma": 1.0},
    "exponential": {"mean": 1.0},
    "shifted_exponential": {"shift": 1.0, "mean": 1.0},
    "gamma": {"mean": 1.0, "shape": 2.0},
    "pareto": {"least": 1.0, "shape": 2.0},
    "half_normal": {"scale": 1.0},
    "tiers": {"seconds": 1.0, "shares": (0.5, 0.5), "factors": (1.0, 10.0)},
    "trace": {"play": ("random", "order")},
}
# what every law takes: seconds of a job or of a step, the power of the number of samples, own speeds and how jobs vary
# around them, the longest job, bursts in which jobs are slower
OF_ALL: dict[str, Any] = {"per": ("job", "step"), "samples": 0.0, "jitter": 0.0, "timeout": 0.0}
OF_ALL |= {"begin": 0.0, "end": 0.2, "slower": 10.0}
LATE = ("drop", "partial")
DEADLINE: dict[str, Any] = {"late": LATE, "keep": 1, "least": 1}


class Deadline(NamedTuple):
    """How a round of a system with a server ends; as in `world.deadline`."""

    limit: float
    keep: int | None
    least: int
    late: str


def durations(text: str | None, trace: str | None) -> tuple[str, dict[str, Any]]:
    """The law of `LAW` or `LAW:KEY=VALUE,...`, and its numbers; those of `OF_ALL` as far as they are given.

    Without a text it is that of the trace, or else log-normal.

    Raises:
        InputError: as `spelling.spelt`; a law beside a trace, or that of a trace without one; bursts without a begin.
    """
    if text is None:
        text = "lognormal" if trace is None else "trace"
    law, found = spelling.spelt("durations", "law", text, {name: keys | OF_ALL for name, keys in LAWS.items()})
    if (law == "trace") != (trace is not None):
        other = "is missing: --trace names a file" if trace is None else f"{trace} says how long jobs take"
        raise InputError(f"durations is {text!r}, but trace {other}.")
    late = [key for key in ("end", "slower") if key in found and "begin" not in found]
    if late:
        raise InputError(f"durations is {text!r}, but {late[0]} is of bursts, which need begin, a probability a round.")
    defaults = {key: value[0] if key == "play" else value for key, value in LAWS[law].items()}
    return law, defaults | found


def deadline(text: str) -> Deadline:
    """How a round ends, of `SECONDS` or `SECONDS:KEY=VALUE,...`.

    Raises:
        InputError: seconds that are not above 0, or what `spelling.values` refuses.
    """
    seconds, colon, settings = text.partition(":")
    try:
        limit = float(seconds)
    except ValueError:
        limit = math.nan
    if not limit >= 1e-37:  # of less float32 makes 0
        raise InputError(f"deadline is {text!r}, but must begin with seconds above 0, as in 10 or 10:late=partial.")
    found = {"late": "drop", "keep": None, "least": 1}
    found |= spelling.values("deadline", text, "it", settings if colon else None, DEADLINE)
    if limit == math.inf and found["least"] > 1:
        raise InputError(f"deadline is {text!r}, but a round with too few answers, which is void, must end some day.")
    return Deadline(limit, **found)
