"""The zoo: every system by name, found by looking into the folders `algorithms` and `programs`.

A file there holds its paper and its systems (`jaxfl.paper`). Its folder is the kind of world they live in, the claim of
its `PAPER` is the file of the same name in `claims`. Systems of users come in by `jaxfl.plugins`. What there is, is
read from the text of the files; a system's file runs when it is made, and JAX starts no sooner.
"""

import ast
import importlib
import importlib.util
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


class Entry(NamedTuple):
    """What the text of its file says of a system."""

    kind: str
    module: str
    paper: Paper | None


def _papers(module: str) -> tuple[dict[str, Paper], dict[str, str | None]]:
    """The papers in a file by the name of their variable, and this name, or None, by system."""
    source = importlib.util.find_spec(module)
    papers, made = {}, {}
    shape = f"{module} must say `NAME = Paper(...)` in literals, and `SYSTEMS = {{'name': System(make, NAME), ...}}`."
    assert source is not None
    assert source.origin is not None
    for node in ast.parse(Path(source.origin).read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign([ast.Name(name)], ast.Call(ast.Name("Paper"), args, keywords)):
                facts = {str(k.arg): ast.literal_eval(k.value) for k in keywords}
                papers[name] = Paper(*map(ast.literal_eval, args), **facts)
            case ast.Assign([ast.Name("SYSTEMS")], ast.Dict(keys, values)):
                for key, value in zip(keys, values, strict=True):
                    match key, value:
                        case ast.Constant(str(name)), ast.Call(ast.Name("System"), [_]):
                            made[name] = None
                        case ast.Constant(str(name)), ast.Call(ast.Name("System"), [_, ast.Name(paper), *_]):
                            made[name] = paper
                        case _:
                            raise InputError(shape)
    if not made or not set(made.values()) <= {*papers, None}:
        raise InputError(shape)
    return papers, made


@cache
def entries() -> dict[str, Entry]:
    """Every system of the package by name, kind by kind.

    Raises:
        InputError: two files have a system of one name, or one does not say in literals what it has.
    """
    found: dict[str, Entry] = {}
    for kind, file in _files():
        module = f"{FOLDERS[kind]}.{file}"
        papers, made = _papers(module)
        for name, paper in made.items():
            if name in found:
                raise InputError(f"{module} has a system {name!r}, but there is one of that name.")
            found[name] = Entry(kind, module, None if paper is None else papers[paper])
    return found


@cache
def _made(name: str) -> System:
    entry = entries()[name]
    return importlib.import_module(entry.module).SYSTEMS[name]._replace(kind=entry.kind)


def systems() -> dict[str, System]:
    """Every system of the package by name, kind by kind; all their files run. Raises InputError as `entries`."""
    return {name: _made(name) for name in entries()}


@cache
def claims_by_name() -> dict[str, Claim]:
    """The claims by the name of their file."""
    tested = {file.name for file in pkgutil.iter_modules(claims.__path__)}
    papers = {file: _papers(f"{FOLDERS[kind]}.{file}")[0] for kind, file in _files() if file in tested}
    return {file: Claim(file, known["PAPER"]) for file, known in papers.items()}


def paper_of(name: str) -> Paper | None:
    """The paper of the system `find` finds. Raises InputError as `find`."""
    key = plugins.spelt(name)
    return entries()[key].paper if key in entries() else find(name).paper


def find(name: str) -> System:
    """The system called `name`: of the package, of a user by `register` or an entry point, or `FILE.py:NAME`.

    Raises:
        InputError: an unknown name (with the nearest ones), or a file that cannot be loaded.
    """
    known, key = entries(), plugins.spelt(name)
    if key in known:
        return _made(key)
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
    short = f"{Path(where).stem}_{short}" if plugins.spelt(short) in entries() else short
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
    paper = paper_of(name)
    for claim in known.values():
        if paper is not None and claim.paper == paper:
            return claim
    raise InputError(f"system {name!r} has no claim: those that do are {', '.join(known)}.")
