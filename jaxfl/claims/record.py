"""Results that are kept beside the claims, `results/NAME.json` with a picture, and the page made of them."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxfl import zoo
from jaxfl.claims.evidence import VERDICTS, Evidence
from jaxfl.engine.disk import write_whole
from jaxfl.errors import InputError
from jaxfl.report import tables

FOLDER = Path(__file__).parent
MARKS = "<!-- claims -->", "<!-- /claims -->"  # around what the project's README says of them


def row_of(claim: zoo.Claim, evidence: Evidence, seeds: int, seconds: float) -> dict[str, Any]:
    """What is kept of a claim, in words of JSON; what is not finite is null."""
    row = {
        "number": claim.paper.number,
        "paper": f"{claim.paper.authors}. {claim.paper.title}. {claim.paper.venue}",
        "headline": claim.headline,
        "verdict": evidence.verdict,
        "missing": evidence.missing,
        "checks": [c._asdict() | {"noise": c.noise, "holds": c.holds} for c in evidence.checks],
        "notes": evidence.notes,
        "table": evidence.table.reset_index().to_dict("records"),
        "pictures": len(evidence.figures),
        "seeds": seeds,
        "seconds": round(seconds, 1),
        "machine": tables.machine(),
    }
    read = json.loads(tables.json_line(claim.name, row))
    return {"claim": read.pop("name")} | read


def check(folder: Path = FOLDER) -> None:
    """Raise `InputError` where nothing can be kept, before hours of work."""
    try:
        (folder / "results").mkdir(exist_ok=True)
        for where in (folder, folder / "results"):
            with tempfile.TemporaryFile(dir=where):
                pass
    except OSError as error:
        raise InputError(f"keep: {folder} cannot be written ({error.strerror or error}).") from error


def keep(row: Mapping[str, Any], figures: tuple, folder: Path = FOLDER) -> None:
    """Write the results of a claim into `folder` and the page anew. Raises `InputError` for a full disk."""
    from jaxfl.report import plots  # imports JAX, which `jaxfl list` does without

    results = folder / "results"
    results.mkdir(exist_ok=True)
    for old in pictures(kept(folder).get(row["claim"], {"claim": "", "pictures": 0})):
        (results / old).unlink(missing_ok=True)
    for figure, name in zip(figures, pictures(row), strict=True):
        plots.save(figure, results / name)
    write_whole(results / f"{row['claim']}.json", (json.dumps(row, indent=1, ensure_ascii=False) + "\n").encode())
    write_whole(folder / "README.md", page(folder).encode())
    front = folder.parents[1] / "README.md"
    if front.exists() and MARKS[0] in (text := front.read_text(encoding="utf-8")):
        before, rest = text.split(MARKS[0])
        write_whole(front, f"{before}{MARKS[0]}\n{counts(folder)}\n{MARKS[1]}{rest.split(MARKS[1])[1]}".encode())


def pictures(row: Mapping[str, Any]) -> list[str]:
    """The names of a claim's pictures in the folder `results`."""
    return [f"{row['claim']}{'' if i == 0 else f'_{i + 1}'}.png" for i in range(row["pictures"])]


def kept(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """The results that are kept, by claim, in the order of the papers' numbers."""
    rows = [json.loads(p.read_text(encoding="utf-8")) for p in (folder / "results").glob("*.json")]
    return {row["claim"]: row for row in sorted(rows, key=lambda row: row["number"])}


def counts(folder: Path = FOLDER) -> str:
    """How many claims have which verdict, in a sentence."""
    verdicts = [row["verdict"] for row in kept(folder).values()]
    hold, part, fail = (verdicts.count(v) for v in VERDICTS)
    return f"Of {len(verdicts)} headlines {hold} hold here, {part} hold in part and {fail} do not hold here."


def page(folder: Path = FOLDER) -> str:
    """`claims/README.md`, of the results alone."""
    rows = kept(folder)
    lines = [
        "# Headlines of papers, tested",
        "",
        "Written by `jaxfl reproduce --all --keep`; do not edit. Every system of a claim meets the same data,",
        "cohorts and grid. A headline is asked at the paper's point and at the best point of each system, against",
        "baselines and against the method without its own idea, at no more gradients or bits, and must be true by more",
        "than the standard error over seeds (±). **holds**: all of it; **in part**: some, what is missing is named;",
        "**does not hold here**: nothing of it, the file says why.",
        "",
        counts(folder),
        "",
        "| paper | claim | headline | verdict | seconds |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {r['number']} | [{n}](#{n}) | {r['headline']} | **{r['verdict']}** | {r['seconds']:.0f} |"
            for n, r in rows.items()
        ),
    ]
    for name, row in rows.items():
        lines += ["", *_section(name, row)]
    return "\n".join(lines) + "\n"


def _section(name: str, row: Mapping[str, Any]) -> list[str]:
    m = row["machine"]
    made = f"{m['cpus']} CPUs ({m['processor']}), {m['backend']}, jax {m['jax']}, {m['date']}"
    lines = [f"## {name}", "", f"{row['paper']} ([code]({name}.py))", ""]
    lines += [f"**{row['verdict']}**: {row['headline']}", ""]
    lines += [f"- not true here: {what}" for what in row["missing"]] + [f"- {note}" for note in row["notes"]]
    lines += [""] * bool(row["missing"] or row["notes"])
    lines += [part for p in pictures(row) for part in (f"![{name}](results/{p})", "")]
    lines += ["| check | role | measured | bound | bound from | holds |", "| --- | --- | --- | --- | --- | --- |"]
    for c in row["checks"]:
        bound, holds = f"{c['relation']} {_number(c['required'])}", "yes" if c["holds"] else "no"
        measured = _number(c["measured"]) + (f" ± {c['noise']:.2g}" if c["noise"] else "")
        lines.append(f"| {c['what']} | {c['role']} | {measured} | {bound} | {c['source']} | {holds} |")
    columns = list(row["table"][0])
    lines += ["", f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    lines += [f"| {' | '.join(_number(r.get(c)) for c in columns)} |" for r in row["table"]]
    return [*lines, "", f"{row['seeds']} seeds, {row['seconds']:.0f} seconds; {made}."]


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else str(value)
