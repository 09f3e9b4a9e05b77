"""`jaxfl list` and `jaxfl cite`: what is in the zoo."""

from rich.console import Console
from rich.table import Table

from jaxfl import zoo
from jaxfl.options.commands import Cite, List


def main(command: List | Cite) -> int:
    """Print the table of all systems, or the reference of one.

    Raises:
        InputError: an unknown system.
    """
    if isinstance(command, Cite):
        print(zoo.cite(command.name))
        return 0
    out = Table("system", "kind", "paper", "card", "claim")
    for name, entry in zoo.ZOO.items():
        p = entry.paper
        paper = "–" if p is None else f"{p.title} ({p.venue})"
        out.add_row(name, entry.kind, paper, (p and p.card) or "–", "yes" if p and p.claim else "–")
    console().print(out)
    return 0


def console() -> Console:
    """Standard output; as wide as its tables where it is no terminal."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=200)
