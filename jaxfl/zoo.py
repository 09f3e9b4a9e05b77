"""The zoo: every system by name, found by looking into the folders `algorithms` and `programs`.

A file there holds its paper and its systems (`jaxfl.paper`). Its folder is the kind of world they live in, the claim of
its `PAPER` is the file of the same name in `claims`. Systems of users come in by `jaxfl.plugins`.
"""

import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from jaxfl import algorithms, claims, plugins, programs
from jaxfl.errors import InputError, nearest
from jaxfl.paper import KINDS, Paper, System

FOLDERS = {kind: f"{algorithms.__name__}.{kind}" for kind in KINDS if kind != "protocol"}
FOLDERS |= {"protocol": programs.__name__}


class Claim(NamedTuple):
    """The headline of a paper, as `jaxfl.claims.<name>` tests it."""

    name: str
    paper: Paper

    @property
    def module(self) -> ModuleType:
        """The file that tests it."""
        return importlib.import_module(f"{claims.__name__}.{self.name}")

    @property
    def headline(self) -> str:
        """What the paper says, in a line: the first of the file."""
        return " ".join((self.module.__doc__ or "").split("\n\n")[0].split())

    def read_files(self) -> None:
        """Raise InputError unless the files of its data, which its `DATA` reads, are there and whole."""
        for read in getattr(self.module, "DATA", ()):
            read()

    def reproduce(self, seeds: int = 3, *, small: bool = False) -> Any:
        """The `Evidence`, of so many seeds; `small` only shows that it runs."""
        from jaxfl.claims import study

        return study.reproduce(self.module, seeds, small=small)


def _files() -> Iterator[tuple[str, str]]:
    """Kind and name of every file of systems."""
    for kind, folder in FOLDERS.items():
        path = importlib.import_module(folder).__path__
        yield from ((kind, file.name) for file in pkgutil.iter_modules(path))


@cache
def systems() -> dict[str, System]:
    """Every system of the package by name, kind by kind.

    Raises:
        InputError: two files have a system of one name.
    """
    found: dict[str, System] = {}
    for kind, file in _files():
        for name, system in importlib.import_module(f"{FOLDERS[kind]}.{file}").SYSTEMS.items():
            if name in found:
                raise InputError(f"{FOLDERS[kind]}.{file} has a system {name!r}, but there is one of that name.")
            found[name] = system._replace(kind=kind)
    return found


@cache
def claims_by_name() -> dict[str, Claim]:
    """The claims by the name of their file."""
    tested = {file.name for file in pkgutil.iter_modules(claims.__path__)}
    papers = {file: importlib.import_module(f"{FOLDERS[kind]}.{file}") for kind, file in _files() if file in tested}
    return {file: Claim(file, module.PAPER) for file, module in papers.items()}


def find(name: str) -> System:
    """The system called `name`: of the package, of a user by `register` or an entry point, or `FILE.py:NAME`.

    Raises:
        InputError: an unknown name (with the nearest ones), or a file that cannot be loaded.
    """
    known, key = systems(), plugins.spelt(name)
    if key in known and not plugins.is_place(name):
        return known[key]
    found = plugins.find("system", name)
    if found is None:
        raise InputError(f"system {name!r} is unknown: {nearest(key, [*known, *plugins.known('system')])}")
    system = found if isinstance(found, System) else System(found)
    if system.kind and system.kind not in KINDS:
        raise InputError(f"system {name!r} has kind {system.kind!r}: {nearest(system.kind, KINDS)}")
    return system if system.kind else system._replace(kind="server")


def adopt(name: str) -> str:
    """The name under which the system goes from here on: its own, or of `FILE.py:NAME` the NAME, registered.

    Where the package has a system of that name, `FILE_NAME`.

    Raises:
        InputError: as `find`.
    """
    if not plugins.is_place(name):
        return plugins.spelt(name)
    where, _, short = name.rpartition(":")
    short = f"{Path(where).stem}_{short}" if plugins.spelt(short) in systems() else short
    plugins.register("system", short, find(name))
    return plugins.spelt(short)


def find_claim(name: str) -> Claim:
    """The claim of a system or of a paper's three-digit number.

    Raises:
        InputError: for an unknown name (with the nearest ones) or a system without a claim.
    """
    known = claims_by_name()
    numbered = {claim.paper.number: claim for claim in known.values()}
    if name.isdigit():
        if name not in numbered:
            raise InputError(f"paper {name!r} has no claim here: known are {', '.join(sorted(map(str, numbered)))}.")
        return numbered[name]
    if name in known:
        return known[name]
    paper = find(name).paper
    for claim in known.values():
        if paper is not None and claim.paper == paper:
            return claim
    raise InputError(f"system {name!r} has no claim: those that do are {', '.join(known)}.")
