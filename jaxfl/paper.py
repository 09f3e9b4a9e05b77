"""What the file of a paper says of itself: its `PAPER`, and by name its `SYSTEMS`. Needs no JAX."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from jaxfl.core import Graph, Metric, Process, Tree


class Paper(NamedTuple):
    """Where a system was published."""

    title: str
    authors: str  # surnames, separated by commas
    venue: str  # ends with the year
    link: str
    number: str | None = None  # three digits, its number in the list of papers that jaxfl reproduces
    journal: bool = False  # the venue is a journal

    @property
    def reference(self) -> str:
        """One line."""
        return f"{self.authors}. {self.title}. {self.venue}. {self.link}"

    @property
    def bibtex(self) -> str:
        """An entry for a bibliography, keyed by the first author, the year and the first long word of the title."""
        where, _, year = f" {self.venue}".rpartition(" ")
        plain = lambda text: unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
        author = re.sub(r"\W", "", plain(self.authors.split(",")[0])).lower()
        word = next((w for w in re.findall(r"[a-z]+", plain(self.title).lower()) if len(w) > 3), "")
        kind = "article" if self.journal else "inproceedings" if where.strip() else "misc"
        field = {"article": "journal", "inproceedings": "booktitle"}.get(kind)
        fields = {"title": f"{{{self.title}}}", "author": " and ".join(self.authors.split(", "))}
        fields |= ({field: where.strip()} if field else {}) | {"year": year, "url": self.link}
        escaped = {k: v if k == "url" else v.replace("&", r"\&") for k, v in fields.items()}
        lines = ",\n".join(f"  {k} = {{{v}}}" for k, v in escaped.items())
        return f"@{kind}{{{author}{year}{word},\n{lines}\n}}"


class Given(NamedTuple):
    """What an example may be made of: the world as options describe it."""

    nodes: int
    rounds: int
    seed: int
    dataset: Any  # data.Dataset; None for protocols
    data: Tree  # Shards, or the values [n, m] of a protocol
    task: Any  # learn.task.Task; None for protocols
    topology: Any  # Graph or Process, of gossip systems and protocols


class Workers(NamedTuple):
    """What the clock of an asynchronous system may be made of: how many work, and how long, as options say it."""

    nodes: int
    concurrency: int  # clients at work at any time
    goal: int  # arrivals that make a round
    seconds: Any  # world.durations.Seconds of a job, with its transfers and steps
    steps: Any = 1  # local steps of a job, one number or [n]


class Example(NamedTuple):
    """A world that a system brings itself. What is None is as for every system of its kind."""

    arguments: tuple | None = None  # what `make` takes first: otherwise the task, or nothing for protocols
    data: Tree = None  # what rounds read
    topology: Graph | Process | None = None
    model: Any = None  # what `run` starts from
    metric: Metric | None = None
    weights: str | None = None  # the rule of `--weights` by which members count; its numbers are the option's
    cohort: Callable[[int], Process] | None = None  # who takes part in a round with a server, of so many members
    clock: Callable[[Workers], Process] | None = None  # whose work arrives when; None: `world.clock.buffered`


KINDS = ("server", "gossip", "asynchronous", "reference", "protocol")


class System(NamedTuple):
    """One system, as it stands in the `SYSTEMS` of its file.

    `kind` is that of its world. In the package the folder says it (`algorithms/gossip`, `programs` for protocols).

    server: a cohort of the clients takes part in a round. gossip: all nodes, over a topology. asynchronous: a clock
    says who arrives. reference: all nodes, no messages. protocol: node programs, over a topology.
    """

    make: Callable  # (task, [net,] **options) -> Algorithm; protocols: ([net,] **options) -> Algorithm
    paper: Paper | None = None
    example: Callable[[Given], Example] | None = None  # the system's own world, or a part of it
    kind: str = ""  # of KINDS; "" is that of the folder, and "server" outside the package
