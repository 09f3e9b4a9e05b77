"""The results page, from the rows."""

from collections.abc import Callable, Iterable, Sequence

from checks import MOST, beyond, checks
from results import ours, over_held, peers

HEAD = """# Benchmarks

Made by `python benchmarks/suite.py` from `results.jsonl`; what each workload is stands at the top of that file. The
bound is `benchmarks/bound*.py`, the same work by hand in plain JAX (W6: FedAvg with cohorts of as many members; W8: the
same federation with 1,000 clients; sweep: its points one by one, without compilation). jaxfl and the bound take turns
in one process; a time is the median of warm blocks of rounds, the ratio the median of the turns' ratios.

The floor is the machine's own limit: the larger of FLOPs over the rate measured for batched matrix products of the
workload's shapes in cache, and of bytes over the bandwidth measured in arrays of the workload's size, on as many
devices in the same process. FLOPs are those of the products of forward and backward pass. Bytes are the mini-batches,
and of the models one reading and one writing a local step (in gossip: a round). "Of the limit" is the floor over our
time.
"""
MEMORY = """Start-up runs from the start of the process to the end of the first round: imports, data, compilation.
Memory is in MB of 10^6 bytes, of a process that runs jaxfl alone: its peak, without a compilation cache, and what a run
adds to the process after the imports, with a warm cache (the compiler's own memory is in the peak only). Data are train
and test set, shards and graph. "Over both" is over state and data. Arrays are what a further run in that process takes,
which loads no library or program: those take 110 to 130 MB, whatever the workload: more than 3 times state and data
where these are a few MB (G10k, W7), and with its arrays in W5.
"""
PEERS = """Rounds of other libraries on the same work, each in a virtual environment of its own (`benchmarks/peers`);
what was measured on one date was so in one run. CPU is that of all processes of a round; accuracy is taken after as
many rounds.
"""
ODD = """Microseconds a member and round at numbers of nodes nobody tuned for and at the next multiple of 64, in turns,
in one process for each system and number of devices. Members are all nodes; in W1 and SCAFFOLD a cohort of a tenth, odd
or a multiple of 8. "W5 median" is W5 with the median of a neighbourhood; SCAFFOLD and DiLoCo take 5 steps of 8 with its
model and data. "Least" is the ratio that whole members leave: a device cannot train half of one. Eight devices on fewer
cores show only that none is lost; on one and eight devices, and for W3 above 1,009, sizes are left out for time, as are
systems that the table does not have.
"""
ROUNDS = """CPU milliseconds of a round of every system with a server beside FedAvg's, in turns, the least of all: a
run of {long} rounds less one of {short}, over the rounds between. What a run costs at its ends, where the nodes' memory
is made and handed back, stands apart. {clients:,} clients, {members} a round, model and data of W1, 3 steps of 20,
options as they are by default. Gradients, bits (up and down) and arithmetic (FLOPs of the whole round) are over those
of FedAvg. What is above {most} times FedAvg's round and is not arithmetic is in bold.
"""
FORMULATIONS = """Ways of writing the same, in turns; "apart" is the largest difference from the first over its largest
value.
"""
EXTRA = {"gradients": "gradients", "arithmetic": "arithmetic", "bits": "message"}
MISSING = "No other library was measured: `python benchmarks/peers/install.py` installs them.\n"


def _number(value: float | None, form: str = ",.3g", scale: float = 1.0) -> str:
    return "" if value is None else f"{value * scale:{form}}"


def _ms(value: float | None) -> str:
    """Milliseconds to three digits."""
    if value is None:
        return ""
    value *= 1e3
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(row: dict) -> str:
    return f"{row['ratio']:.2f} ({row['ratio_low']:.2f}, {row['ratio_high']:.2f})" if "ratio" in row else ""


def _limit(row: dict) -> str:
    return f"{row['floor_seconds'] / row['seconds']:.0%}" if "floor_seconds" in row else ""


def _accuracy(row: dict) -> str:
    return " / ".join(f"{row[k]:.3f}" for k in ("accuracy", "bound_accuracy") if row.get(k) is not None)


def _table(columns: Sequence[tuple[str, Callable[[dict], str]]], rows: Iterable[dict]) -> str:
    """A Markdown table of `rows`; a row with an error says so instead of its numbers."""
    lines = ["| " + " | ".join(name for name, _ in columns) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        cells = [show(row) for _, show in columns if "error" not in row]
        if "error" in row:
            cells = [*(show(row) for _, show in columns[:3]), f"failed: {row['error'][:120]}"]
            cells += [""] * (len(columns) - len(cells))
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


WHAT = [
    ("workload", lambda r: r["workload"]),
    ("nodes", lambda r: f"{r['nodes']:,}" if "nodes" in r else ""),
    ("a round", lambda r: f"{r['cohort']:,}" if r.get("cohort") else ""),
]
SPEED = [
    *WHAT,
    ("ms a round", lambda r: _ms(r["seconds"])),
    ("bound, ms", lambda r: _ms(r.get("bound_seconds"))),
    ("ratio (lowest, highest turn)", _ratio),
    ("floor, ms", lambda r: _ms(r.get("floor_seconds"))),
    ("of the limit", _limit),
    ("CPU ms", lambda r: _ms(r.get("cpu_seconds"))),
    ("compile, CPU s", lambda r: _number(r.get("compile_cpu_seconds"), ".1f")),
    ("accuracy / bound's", _accuracy),
]
SHAPES = [
    ("workload", lambda r: r["workload"]),
    ("devices", lambda r: f"{r['devices']}"),
    ("nodes", lambda r: f"{r['nodes']:,}"),
    ("a round", lambda r: f"{r['members']:,}"),
    ("us a member", lambda r: _number(r["member_seconds"], ",.3g", 1e6)),
    ("beside", lambda r: f"{r['beside']:,}"),
    ("a round", lambda r: f"{r['members_beside']:,}"),
    ("us a member", lambda r: _number(r["member_seconds_beside"], ",.3g", 1e6)),
    ("ratio (lowest, highest turn)", _ratio),
    ("least", lambda r: f"{r['least']:.2f}"),
    ("over the bound", lambda r: _number(r.get("bound_ratio"), ".2f")),
]
ROUND = [
    ("system", lambda r: f"`{r['round']}`"),
    ("CPU ms", lambda r: _ms(r.get("cpu_seconds"))),
    ("FedAvg", lambda r: _ms(r.get("fedavg_cpu_seconds"))),
    ("ratio (lowest, highest turn)", lambda r: f"**{_ratio(r)}**" if beyond(r) > MOST else _ratio(r)),
    ("gradients", lambda r: _number(r.get("gradients"), ".2f")),
    ("bits", lambda r: _number(r.get("bits"), ".2f")),
    ("arithmetic", lambda r: _number(r.get("arithmetic"), ".2f")),
    ("ends, ms", lambda r: _ms(r.get("ends_cpu_seconds"))),
    ("state, MB", lambda r: _number(r.get("state_mb"), ",.1f")),
    ("above 1.5", lambda r: _extra(r)),
]
FORMS = [
    ("what", lambda r: r["workload"]),
    ("nodes", lambda r: f"{r['nodes']:,}"),
    ("formulation", lambda r: r["formulation"]),
    ("ms", lambda r: _ms(r["seconds"])),
    ("lowest", lambda r: _ms(r["seconds_low"])),
    ("highest", lambda r: _ms(r["seconds_high"])),
    ("apart", lambda r: f"{r['apart']:.0e}"),
]
USE = [
    *WHAT,
    ("start-up, s", lambda r: _number(r["startup_seconds"], ".1f")),
    ("with a warm cache, s", lambda r: _number(r["startup_warm_seconds"], ".1f")),
    ("peak MB", lambda r: _number(r["peak_mb"], ",.0f")),
    ("run MB", lambda r: _number(r["run_mb"], ",.0f")),
    ("state MB", lambda r: _number(r["state_mb"], ",.1f")),
    ("data MB", lambda r: _number(r["data_mb"], ",.1f")),
    ("run over both", lambda r: _number(over_held(r, "run_mb"), ".2f")),
    ("arrays MB", lambda r: _number(r.get("arrays_mb"), ",.0f")),
    ("arrays over both", lambda r: _number(over_held(r, "arrays_mb"), ".2f")),
]
BESIDE = [
    *WHAT,
    ("library", lambda r: r.get("peer", "**jaxfl**") + (f" {r['version']}" if "version" in r else "")),
    ("ms a round", lambda r: _ms(r["seconds"])),
    ("times jaxfl's", lambda r: _number(r.get("times"), ",.3g")),
    ("CPU ms", lambda r: _ms(r.get("cpu_seconds"))),
    ("start-up, s", lambda r: _number(r.get("startup_seconds"), ".1f")),
    ("peak MB", lambda r: _number(r.get("peak_mb"), ",.0f")),
    ("accuracy", lambda r: _number(r.get("accuracy"), ".3f")),
    ("rounds", lambda r: f"{r['rounds']:,}" if "rounds" in r else ""),
    ("measured", lambda r: r["date"]),
]


def _beside(rows: list[dict]) -> Iterable[dict]:
    """Ours and then the peers of every case that a peer ran, the fastest first."""
    cases = dict.fromkeys((r["workload"], r["nodes"], r.get("cohort")) for r in rows if "peer" in r and "seconds" in r)
    for workload, nodes, cohort in cases:
        where = {"nodes": nodes, "cohort": cohort}
        mine = ours(rows, workload, **where)[:1]
        yield from mine
        for row in sorted(peers(rows, workload, **where), key=lambda r: r["seconds"]):
            yield row | ({"times": row["seconds"] / mine[0]["seconds"]} if mine else {})
    yield from (r | {"error": f"{r['peer']}: {r['error']}"} for r in rows if "peer" in r and "error" in r)


def _compile_table(rows: list[dict]) -> str:
    """Systems and the CPU seconds their round takes to compile, the slowest first, four a line."""
    slow = sorted((r for r in rows if "compile" in r), key=lambda r: -r["cpu_seconds"])
    cells = [f"`{r['compile']}` {r['cpu_seconds']:.1f}" for r in slow]
    lines = ["| " + " | ".join(cells[i : i + 4]) + " |" for i in range(0, len(cells), 4)]
    return "\n".join(["| | | | |", "| --- | --- | --- | --- |", *lines]) + "\n"


def _extra(row: dict) -> str:
    """What a round that takes long does more than FedAvg's."""
    if row["ratio"] <= MOST:
        return ""
    parts = [f"{row[key]:.1f} times the {name}" for key, name in EXTRA.items() if row[key] >= 1.1]
    return ", ".join(parts) or "no more than FedAvg"


def _rounds(rows: list[dict]) -> Iterable[str]:
    """Systems by their ratio, and what was left out."""
    done = sorted((r for r in rows if "ratio" in r), key=lambda r: -r["ratio"])
    if done:
        yield ROUNDS.format(most=MOST, **{k: done[0][k] for k in ("clients", "members", "short", "long")})
    yield _table(ROUND, [*done, *(r for r in rows if "error" in r)])
    left = [f"`{r['round']}` ({r['left_out']})" for r in rows if "left_out" in r]
    if left:
        yield f"Left out: {', '.join(left)}.\n"


def _machines(rows: list[dict]) -> str:
    """What ran where, and when."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        text = ", ".join(f"{k} {v}" for k, v in row["machine"].items() if k != "devices") + f", on {row['date']}"
        found.setdefault(text, {})[row["suite"]] = None
    return "\n".join(f"- {', '.join(names)}: {text}." for text, names in found.items()) + "\n"


def _agreement(rows: list[dict]) -> str:
    """Systems on an accelerator against the CPU."""
    left, done = [r["system"] for r in rows if "left_out" in r], [r for r in rows if "left_out" not in r]
    good = [r for r in done if r.get("apart", float("inf")) <= r["tolerance"]]
    lines = [f"{len(good)} of {len(done)} systems give the numbers of the CPU to {rows[0]['tolerance']:.0e}.\n"]
    lines += [f"- `{r['system']}`: {r.get('error') or format(r['apart'], '.1e')}" for r in done if r not in good]
    lines += [f"\nLeft out, as the time was over: {', '.join(f'`{name}`' for name in left)}."] if left else []
    return "\n".join(lines) + "\n"


def _targets(rows: list[dict]) -> str:
    said = {True: "yes", False: "**no**", None: ""}
    lines = [f"| {c.target} | {c.measured} | {said[c.met]} |" for c in checks(rows)]
    return "\n".join(["| target | measured | met |", "| --- | --- | --- |", *lines]) + "\n"


def render(rows: list[dict], pictures: Sequence[tuple[str, str]]) -> str:
    """The page, with `pictures` (caption, path)."""
    own = [r for r in rows if "workload" in r and "peer" not in r and r["suite"] != "shapes"]
    odd = [r for r in rows if r["suite"] == "shapes"]
    here, there = ([r for r in own if (r["suite"] == "gpu") is on] for on in (False, True))
    parts = [HEAD, "## Speed\n", _table(SPEED, here)]
    parts += ["On a CPU, W4, W8, G10k and sweep run on one device, the others and their bounds on one device a core.\n"]
    parts += [f"![{caption}]({path})\n" for caption, path in pictures]
    parts += ["## Any number of nodes\n", ODD, _table(SHAPES, odd)] if odd else []
    parts += ["## Start-up and memory\n", MEMORY, _table(USE, [r for r in here if "run_mb" in r])]
    parts += ["## Other libraries\n"]
    parts += [PEERS, _table(BESIDE, _beside(rows))] if any("peer" in r for r in rows) else [MISSING]
    if any("compile" in r for r in rows):
        parts += ["## Compilation\n", "CPU seconds of start and round of a system (8 nodes, digits, MLP 64-16-10).\n"]
        parts += [_compile_table(rows)]
    beside = [r for r in rows if "round" in r]
    parts += ["## A round of every system\n", *_rounds(beside)] if beside else []
    forms, systems = ([r for r in rows if key in r] for key in ("formulation", "system"))
    left = [f"{r['workload']} ({r['nodes']:,}: {r['left_out']})" for r in there if "left_out" in r]
    there = [r for r in there if "formulation" not in r and "left_out" not in r]
    if there:
        devices = ", ".join(dict.fromkeys(f"{r['machine']['device']}" for r in there))
        parts += [f"## On an accelerator: {devices}\n", _table(SPEED, there)]
        held = [r for r in there if "run_mb" in r]
        parts += [_table(USE, held)] if held else []
    if left:
        parts += [f"Left out: {', '.join(left)}.\n"]
    if forms:
        parts += [FORMULATIONS, _table(FORMS, forms)]
    if systems:
        parts += [_agreement(systems)]
    parts += ["## Targets\n", _targets(rows), "## Machines\n", _machines(rows)]
    return "\n".join(parts)
