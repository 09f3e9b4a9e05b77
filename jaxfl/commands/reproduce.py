"""`jaxfl reproduce`: a paper's claim, its evidence, whether it holds."""

import json
import time
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from jaxfl import zoo
from jaxfl.claims.evidence import Evidence
from jaxfl.commands.results import new_folder, write
from jaxfl.commands.show import console
from jaxfl.errors import InputError
from jaxfl.options.commands import Reproduce
from jaxfl.papers import Paper
from jaxfl.report import plots, tables


def main(command: Reproduce) -> int:
    """Test the claims; exit code 1 if one does not hold.

    Raises:
        InputError: a bad option.
    """
    if (command.name is None) != command.all:
        raise InputError("name is missing or comes with --all: reproduce needs a system, a card, or --all.")
    if command.seeds < 1:
        raise InputError(f"seeds is {command.seeds}, but must be a whole number of at least 1.")
    found = [zoo.find_claim(name) for name in (zoo.claims() if command.all else [str(command.name)])]
    folder = new_folder(command.out, f"reproduce-{'all' if command.all else found[0][0]}")
    papers, held = zoo.claims(), []
    for module, reproduce in found:
        began = time.perf_counter()
        evidence = reproduce(seeds=command.seeds)
        here = folder / module if command.all else folder
        held.append(_testify(module, papers[module], evidence, time.perf_counter() - began, here))
    return 0 if all(held) else 1


def _testify(module: str, paper: Paper, evidence: Evidence, seconds: float, folder: Path) -> bool:
    """Print and keep what a claim measured; whether it holds."""
    terminal = console()
    _show_frame(terminal, evidence.table, f"{paper.title} ({paper.venue})")
    checks = Table("check", "measured", "", "required", "holds", title=f"claim {module}", title_justify="left")
    for c in evidence.checks:
        holds = "[green]yes[/]" if c.holds else "[red]no[/]"
        checks.add_row(c.what, f"{c.measured:.4g}", c.relation, f"{c.required:.4g}", holds)
    terminal.print(checks)
    row = {
        "card": paper.card,
        "paper": f"{paper.authors}. {paper.title}. {paper.venue}",
        "holds": bool(evidence.holds),
        "checks": [c._asdict() | {"holds": bool(c.holds)} for c in evidence.checks],
        "seconds": seconds,
        "machine": tables.machine(),
    }
    read = json.loads(tables.json_line(module, row))
    line = json.dumps({"claim": read.pop("name")} | read)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "table.csv", evidence.table.to_csv())
    write(folder / "evidence.json", line + "\n")
    if evidence.figure is not None:
        plots.save(evidence.figure, folder / "figure.png")
    print(line, flush=True)
    return bool(evidence.holds)


def _show_frame(terminal: Any, frame: Any, title: str) -> None:
    """A pandas frame as it is, its index first unless it only counts the rows."""
    counted = list(frame.index) == list(range(len(frame)))
    rows = frame if counted else frame.reset_index()
    out = Table(title=Text(title), title_justify="left")
    for c in rows.columns:
        out.add_column(Text(str(c)))
    for _, row in rows.iterrows():
        out.add_row(*(Text(f"{v:.4g}" if isinstance(v, float) else str(v)) for v in row))
    terminal.print(out)
