"""Looking into traced programs."""

from typing import Any


def programs_in(eqn: Any) -> list[Any]:
    """The programs inside one operation of a traced program: the body of a loop, the branches of a choice."""
    parts = [v for p in eqn.params.values() for v in (p if isinstance(p, tuple | list) else [p])]
    return [getattr(v, "jaxpr", v) for v in parts if hasattr(v, "eqns")]
