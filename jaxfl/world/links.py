"""How fast nodes and their links are."""

import math
from typing import Any

import numpy as np

from jaxfl.core import Links, constant
from jaxfl.errors import InputError


def links(n: int, *, up: Any = math.inf, down: Any = None, latency: Any = 0.0, step: Any = 0.0) -> Links:
    """Links of `n` nodes; each argument is one number for all or one a node `[n]`.

    Args:
        n: number of nodes.
        up: bits a second a node can send; infinite by default.
        down: bits a second a node can receive; None: as `up`.
        latency: seconds until a message's first bit arrives.
        step: seconds of one local step.

    Raises:
        InputError: another shape, a rate that is not above 0, or a time that is negative or infinite.
    """

    def each(name: str, value: Any, rate: bool) -> Any:
        values = np.asarray(value, np.float64)
        sound = values > 0 if rate else (values >= 0) & np.isfinite(values)
        if values.shape not in ((), (n,)) or not sound.all():
            kind = "a rate above 0" if rate else "a finite time of at least 0"
            raise InputError(f"{name} = {value}: {kind}, or one a node [{n}], is needed.")
        return constant(np.broadcast_to(values, n), np.float32)

    down = up if down is None else down
    return Links(
        each("up", up, True), each("down", down, True), each("latency", latency, False), each("step", step, False)
    )
