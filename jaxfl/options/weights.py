"""How `--weights` is spelt: a rule, and numbers of its own behind it. Needs no JAX."""

import math
from typing import Any

from jaxfl.errors import InputError, nearest

MEASURES = ("kl", "l1", "l2", "cosine")
RULES: dict[str, dict[str, Any]] = {"size": {}, "uniform": {}, "disco": {"a": 0.5, "b": 0.1, "measure": "kl"}}


def spelt(text: str) -> tuple[str, dict[str, Any]]:
    """The rule in `RULE` or `RULE:KEY=VALUE,KEY=VALUE`, and all its numbers.

    Raises:
        InputError: another rule or key (with the nearest), a key twice, or a value out of range.
    """
    rule, colon, settings = text.partition(":")
    if rule not in RULES:
        raise InputError(f"weights is {text!r}, but the rule {rule!r} is unknown: {nearest(rule, RULES)}")
    known, found = RULES[rule], {}
    for setting in settings.split(",") if colon else ():
        key, _, value = (part.strip() for part in setting.partition("="))
        if key not in known or key in found:
            raise InputError(f"weights is {text!r}, but {rule} has {', '.join(known) or 'no number'}, each once.")
        if key == "measure":
            if value not in MEASURES:
                raise InputError(f"weights is {text!r}, but measure is {value!r}: {nearest(value, MEASURES)}")
            found[key] = value
            continue
        try:
            found[key] = float(value)
        except ValueError:
            found[key] = math.nan
        if not 0 <= found[key] < math.inf:
            raise InputError(f"weights is {text!r}, but {key} must be a finite number of at least 0.")
    return rule, known | found
