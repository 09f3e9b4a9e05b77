"""Published systems, one file a paper; the folder is the kind of world: `from jaxfl.algorithms import fedavg, dsgd`."""

from typing import Any


def __getattr__(name: str) -> Any:
    """The constructor of the system called `name`."""
    from jaxfl import zoo

    if name.startswith("_") or name not in zoo.entries():
        raise AttributeError(f"jaxfl.algorithms has no system {name!r}: see jaxfl list.")
    return zoo.find(name).make


def __dir__() -> list[str]:
    from jaxfl import zoo

    return list(zoo.entries())
