"""`jaxfl list` and `jaxfl cite`: what is in the zoo."""

from rich.console import Console
from rich.table import Table

from jaxfl import plugins, zoo
from jaxfl.claims import record
from jaxfl.errors import InputError
from jaxfl.options.commands import Cite, List


def main(command: List | Cite) -> int:
    """Print the table of all systems, or the reference of one in BibTeX.

    Raises:
        InputError: an unknown system, or one without a paper.
    """
    if isinstance(command, Cite):
        paper = zoo.paper_of(command.name)
        if paper is None:
            raise InputError(f"system {command.name!r} has no paper: it is a line to compare with.")
        print(paper.bibtex)
        return 0
    kept = record.kept()
    claims = {c.paper: kept[name]["verdict"] if name in kept else "not run" for name, c in zoo.claims_by_name().items()}
    out = Table("system", "kind", "paper", "number", "claim")
    listed = {name: (entry.kind, entry.paper) for name, entry in zoo.entries().items()}
    for name in plugins.known("system"):
        listed.setdefault(name, ((system := zoo.find(name)).kind, system.paper))
    for name, (kind, paper) in listed.items():
        title = "–" if paper is None else f"{paper.title} ({paper.venue})"
        out.add_row(
            name, kind, title, (paper and paper.number) or "–", "–" if paper is None else claims.get(paper, "–")
        )
    console().print(out)
    return 0


def console() -> Console:
    """Standard output; as wide as its tables where it is no terminal."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=200)
