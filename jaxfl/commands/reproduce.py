"""`jaxfl reproduce`: a paper's claim, its evidence, the verdict."""

import json
import time
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from jaxfl import zoo
from jaxfl.claims import record
from jaxfl.claims.evidence import HOLDS, Evidence
from jaxfl.commands.results import new_folder, write
from jaxfl.commands.show import console
from jaxfl.errors import InputError
from jaxfl.options.commands import Reproduce
from jaxfl.report import plots


def main(command: Reproduce) -> int:
    """Test the claims; exit code 1 unless the headlines of all hold.

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
    if command.keep:
        record.check()
    verdicts = []
    with new_folder(command.out, f"reproduce-{'all' if command.all else found[0].name}") as folder:
        for claim in found:
            claim.read_files()  # before the first one works for an hour
        for claim in found:
            began = time.perf_counter()
            evidence = claim.reproduce(seeds=command.seeds)
            row = record.row_of(claim, evidence, command.seeds, time.perf_counter() - began)
            _testify(claim, evidence, row, folder / claim.name if command.all else folder)
            if command.keep:
                record.keep(row, evidence.figures)
            verdicts.append(evidence.verdict)
    return 0 if all(verdict == HOLDS for verdict in verdicts) else 1


def _testify(claim: zoo.Claim, evidence: Evidence, row: dict[str, Any], folder: Path) -> None:
    """Print and write what a claim measured."""
    terminal, paper = console(), claim.paper
    _show_frame(terminal, evidence.table, f"{paper.title} ({paper.venue})")
    checks = Table("check", "role", "measured", "", "bound", "holds", title=claim.headline, title_justify="left")
    for c in evidence.checks:
        holds = "[green]yes[/]" if c.holds else "[red]no[/]"
        measured = f"{c.measured:.4g}" + (f" ± {c.noise:.2g}" if c.noise else "")
        checks.add_row(c.what, c.role, measured, c.relation, f"{c.required:.4g}", holds)
    terminal.print(checks)
    for note in evidence.notes:
        terminal.print(Text(note))
    terminal.print(Text(f"{claim.name}: {evidence.verdict}"))
    line = json.dumps(row)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "table.csv", evidence.table.to_csv())
    write(folder / "evidence.json", line + "\n")
    for i, figure in enumerate(evidence.figures):
        plots.save(figure, folder / f"figure{'' if i == 0 else f'_{i + 1}'}.png")
    print(line, flush=True)


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
