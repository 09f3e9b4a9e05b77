"""jaxfl: federated and decentralized machine learning in JAX.

    import jaxfl as fl
    from jaxfl.algorithms import fedavg, dsgd

What a script needs is here by name and loaded when it is first used: `fl.run`, `fl.scenario`, `fl.data`,
`fl.partition`, `fl.graph`, `fl.mixing`, `fl.cohort`, `fl.shared_test`, `fl.plots`, ... (`__init__.pyi` has them all).
The contract for systems of your own is `fl.Algorithm`, `fl.State` and their verbs `fl.at` and `fl.Network`.
"""

import importlib
from functools import cache
from pathlib import Path
from typing import Any


def __getattr__(name: str) -> Any:
    """What the stub imports under this name: of a module, or the module itself."""
    if name == "__version__":
        from importlib.metadata import version

        return version("jaxfl")
    if (
        name.startswith("__") and name != "__all__"
    ):  # Python asks; reading the stub takes longer than `jaxfl --help` has
        raise AttributeError(name)
    homes = _homes()
    if name == "__all__":
        return [*homes]
    if name not in homes:
        raise AttributeError(f"jaxfl has no {name!r}.")
    home = homes[name]
    module = None if home == __name__ else importlib.import_module(home)
    found = getattr(module, name, None)
    globals()[name] = importlib.import_module(f"{home}.{name}") if found is None else found
    return globals()[name]


def __dir__() -> list[str]:
    return [*globals(), "__version__", *_homes()]


@cache
def _homes() -> dict[str, str]:
    """The module that each name of the stub is imported from."""
    import ast

    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    return {
        alias.name: f"{__name__}.{node.module}" if node.module else __name__
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
