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
from jaxfl.report import plots, tables


def main(command: Reproduce) -> int:
    """Test the claims; exit code 1 if one does not hold.

    Raises:
        InputError: a bad option.
    """
    if (command.name is None) != command.all:
        raise InputError(
            "name is missing or comes with --all: reproduce needs a system, the number of a paper, or --all."
        )
    if command.seeds < 1:
        raise InputError(f"seeds is {command.seeds}, but must be a whole number of at least 1.")
    found = list(zoo.claims_by_name().values()) if command.all else [zoo.find_claim(str(command.name))]
    folder, held = new_folder(command.out, f"reproduce-{'all' if command.all else found[0].name}"), []
    for claim in found:
        began = time.perf_counter()
        evidence = claim.reproduce(seeds=command.seeds)
        here = folder / claim.name if command.all else folder
        held.append(_testify(claim, evidence, time.perf_counter() - began, here))
    return 0 if all(held) else 1


def _testify(claim: zoo.Claim, evidence: Evidence, seconds: float, folder: Path) -> bool:
    """Print and keep what a claim measured; whether it holds."""
    terminal, paper = console(), claim.paper
    _show_frame(terminal, evidence.table, f"{paper.title} ({paper.venue})")
    checks = Table("check", "measured", "", "required", "holds", title=f"claim {claim.name}", title_justify="left")
    for c in evidence.checks:
        holds = "[green]yes[/]" if c.holds else "[red]no[/]"
        checks.add_row(c.what, f"{c.measured:.4g}", c.relation, f"{c.required:.4g}", holds)
    terminal.print(checks)
    row = {
        "number": paper.number,
        "paper": f"{paper.authors}. {paper.title}. {paper.venue}",
        "holds": bool(evidence.holds),
        "checks": [c._asdict() | {"holds": bool(c.holds)} for c in evidence.checks],
        "seconds": seconds,
        "machine": tables.machine(),
    }
    read = json.loads(tables.json_line(claim.name, row))
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
