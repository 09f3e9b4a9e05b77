"""What the suite must show, judged from its rows. The numbers here are targets; nothing is a result."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from results import ours, over_held, peers

MOST = 1.5  # times FedAvg's round, beside what a system computes more
LOOPS = ("plain PyTorch loop", "torch.func.vmap")  # peers that are no framework


class Check(NamedTuple):
    """A target, what was measured, and whether that meets it (None: it was not measured)."""

    target: str
    measured: str = "not measured"
    met: bool | None = None


def _below(target: str, values: Sequence[float], limit: float, unit: str = "") -> Check:
    """The largest value is at most `limit`."""
    return Check(target, f"{max(values):.3g}{unit}", max(values) <= limit) if values else Check(target)


def _above(target: str, values: Sequence[float], limit: float, unit: str = " times") -> Check:
    """The smallest value is at least `limit`."""
    return Check(target, f"{min(values):.3g}{unit}", min(values) >= limit) if values else Check(target)


def _ahead(rows: list[dict], workload: str, wanted: Callable[[str], bool], **where) -> list[float]:
    """Seconds a round of the peers that are wanted over those of jaxfl."""
    mine = ours(rows, workload, **where)
    return [r["seconds"] / mine[0]["seconds"] for r in peers(rows, workload, **where) if mine and wanted(r["peer"])]


def _framework(peer: str) -> bool:
    return peer not in LOOPS


def _growth(rows: list[dict], workload: str, column: str, least: int) -> list[float]:
    """How much more than linear `column` grows with the nodes, per doubling, between neighbouring sizes."""
    found = sorted((r["nodes"], r[column]) for r in ours(rows, workload) if column in r and r["nodes"] >= least)
    return [(b / a * n / m) ** (1 / math.log2(m / n)) for (n, a), (m, b) in pairwise(found)]


def _column(rows: list[dict], column: str, *workloads: str, **where) -> list[float]:
    return [r[column] for w in workloads for r in ours(rows, w, **where) if column in r]


def _memory(rows: list[dict], of: str, column: str) -> Check:
    target = f"memory of {of} at most 3 times the stacked state and the data set, every workload"
    name = lambda r: f"{r['workload']}, {r['nodes']:,}" + (f", {r['cohort']:,} a round" if r.get("cohort") else "")
    workloads = dict.fromkeys(r.get("workload", "") for r in rows)
    times = {name(r): over_held(r, column) for w in workloads for r in ours(rows, w)}
    found = {name: value for name, value in times.items() if value is not None}
    if not found:
        return Check(target)
    worst = max(found, key=lambda name: found[name])
    return Check(target, f"{found[worst]:.2f} times ({worst})", found[worst] <= 3)


def _further(rows: list[dict], workload: str) -> list[float]:
    """What memory grows by, from the fewest to the most nodes, over what state and data grow by."""
    found = sorted((r for r in ours(rows, workload) if "run_mb" in r), key=lambda r: r["nodes"])
    if len(found) < 2:
        return []
    grown = {column: found[-1][column] - found[0][column] for column in ("run_mb", "state_mb", "data_mb")}
    return [grown["run_mb"] / (grown["state_mb"] + grown["data_mb"])]


def _compilation(rows: list[dict]) -> Check:
    target = "every system compiles its round in under 10 CPU seconds"
    found = {r["compile"]: r["cpu_seconds"] for r in rows if "compile" in r}
    if not found:
        return Check(target)
    worst = max(found, key=lambda name: found[name])
    return Check(target, f"{found[worst]:.1f} s (`{worst}`, of {len(found)})", found[worst] < 10)


def beyond(row: dict) -> float:
    """A round over FedAvg's, less what it computes more."""
    return row["ratio"] - max(0.0, row["arithmetic"] - 1)


def _rounds(rows: list[dict]) -> Check:
    target = f"round: every system at most {MOST} times FedAvg's round and its own further arithmetic"
    found = {r["round"]: beyond(r) for r in rows if "round" in r and "ratio" in r}
    if not found:
        return Check(target)
    worst = max(found, key=lambda name: found[name])
    return Check(target, f"{found[worst]:.2f} times (`{worst}`, of {len(found)})", found[worst] <= MOST)


def _even(rows: list[dict]) -> Check:
    target = "shapes: a member and round at most 1.1 times that at the next multiple of 64, beside whole members"
    found = {
        f"{r['workload']}, {r['nodes']:,} nodes, {r['devices']} devices": r["ratio"] / max(1, r["least"])
        for r in rows
        if "least" in r
    }
    if not found:
        return Check(target)
    worst = max(found, key=lambda name: found[name])
    over = sum(ratio > 1.1 for ratio in found.values())
    return Check(target, f"{found[worst]:.2f} times ({worst}); above in {over} of {len(found)}", over == 0)


def checks(rows: list[dict]) -> Iterator[Check]:
    """Every target."""
    for c in (10, 100, 1000):
        at = {"cohort": c}
        yield _below(f"W1, {c:,} a round: at most 1.15 times the bound", _column(rows, "ratio", "W1", **at), 1.15)
        ahead = _ahead(rows, "W1", _framework, **at)
        yield _above(f"W1, {c:,} a round: at least 5 times as fast as the fastest framework", ahead, 5)
        ahead = _ahead(rows, "W1", lambda peer: peer.startswith("Flower"), **at)
        yield _above(f"W1, {c:,} a round: at least 100 times as fast as Flower", ahead, 100)
        ahead = _ahead(rows, "W1", lambda peer: peer == "torch.func.vmap", **at)
        yield _above(f"W1, {c:,} a round: ahead of torch.func.vmap", ahead, 1)
    yield _below("W2: at most 1.15 times the bound", _column(rows, "ratio", "W2"), 1.15)
    yield _below("W3, 16 to 4,096 nodes: at most 1.15 times the bound", _column(rows, "ratio", "W3"), 1.15)
    yield _below("W5: at most 1.15 times the bound", _column(rows, "ratio", "W5"), 1.15)
    yield _below("W5 with medians: at most 1.15 times the bound", _column(rows, "ratio", "W5 median"), 1.15)
    yield _below("W6: at most 1.15 times a round of FedAvg of as many", _column(rows, "ratio", "W6"), 1.15)
    yield _above("W2: at least 2.2 times as fast as the fastest framework", _ahead(rows, "W2", _framework), 2.2)
    ahead = _ahead(rows, "W3", lambda peer: peer == "gossipy", nodes=64)
    yield _above("W3, 64 nodes: at least 10 times as fast as gossipy", ahead, 10)
    ahead = _ahead(rows, "W3", lambda peer: peer == "plain PyTorch loop", nodes=64)
    yield _above("W3, 64 nodes: at least 5 times as fast as a plain PyTorch loop", ahead, 5)
    linear = "over linear in nodes, per doubling: at most 1.1 times"
    yield _below(f"W3 from 64 to 4,096 nodes, seconds {linear}", _growth(rows, "W3", "seconds", 64), 1.1)
    yield _below("W5: at most 2 s a round", _column(rows, "seconds", "W5", nodes=10_000), 2, " s")
    yield _below("W8: at most 1.5 times the round of 1,000 clients", _column(rows, "ratio", "W8"), 1.5)
    yield _below("W8: under 4,000 MB", _column(rows, "peak_mb", "W8"), 4000, " MB")
    yield _memory(rows, "a run", "run_mb")
    yield _memory(rows, "the arrays of a run", "arrays_mb")
    further = _further(rows, "W3") + _further(rows, "G10k")
    yield _below("W3 and G10k, memory of further nodes: at most 3 times their state and data", further, 3, " times")
    memory = _growth(rows, "W3", "run_mb", 64) + _growth(rows, "G10k", "run_mb", 0)
    yield _below(f"W3 and G10k, memory of a run {linear}", memory, 1.1)
    yield _below(
        "W1 and W3: start-up under 12 s without a cache", _column(rows, "startup_seconds", "W1", "W3"), 12, " s"
    )
    warm = _column(rows, "startup_warm_seconds", "W1", "W3")
    yield _below("W1 and W3: start-up under 6 s with a warm compilation cache", warm, 6, " s")
    yield _compilation(rows)
    yield _rounds(rows)
    yield _even(rows)
    sweep = [1 / ratio for ratio in _column(rows, "ratio", "sweep")]
    yield _above("sweep: at least 3 times the throughput of running its points one by one", sweep, 3)
    waves = [1 / ratio for ratio in _column(rows, "ratio", "waves, lognormal, 30%")]
    yield _above("waves: with 256 jobs in flight at least 8 times as fast as one job at a time", waves, 8)
