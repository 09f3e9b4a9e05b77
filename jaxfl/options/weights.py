"""How `--weights` is spelt: a rule, and numbers of its own behind it. Needs no JAX."""

from typing import Any

from jaxfl.options import spelling

MEASURES = ("kl", "l1", "l2", "cosine")
RULES: dict[str, dict[str, Any]] = {"size": {}, "uniform": {}, "disco": {"a": 0.5, "b": 0.1, "measure": "kl"}}


def spelt(text: str) -> tuple[str, dict[str, Any]]:
    """The rule in `RULE` or `RULE:KEY=VALUE,KEY=VALUE`, and all its numbers.

    Raises:
        InputError: another rule or key (with the nearest), a key twice, or a value out of range.
    """
    kinds = {name: keys | ({"measure": MEASURES} if "measure" in keys else {}) for name, keys in RULES.items()}
    rule, found = spelling.spelt("weights", "rule", text, kinds)
    return rule, RULES[rule] | found
