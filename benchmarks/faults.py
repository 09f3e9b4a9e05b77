"""What a run survives: killed at random instants, its checkpoints, logs and configs damaged. Prints what was counted.

    python benchmarks/faults.py               # 100 kills, 200 damaged files, 500 changed configs, 800 odd command lines
    python benchmarks/faults.py --share 0.1   # a tenth of that; --tiny: a few
    python benchmarks/faults.py --only disk   # or kills, lines, files, configs

A killed run is resumed until it ends and must then be, byte for byte, the one that was not: history, log, models. So
must one whose disk was full, when there is space again. Of what is damaged or odd every outcome must be a sentence or
the same result. Needs `fork`; exit code 1 if anything went wrong.
"""

import argparse
import contextlib
import io
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # which the command line sets too, but before JAX is imported

import flax.nnx
import full_disk
import jax
import numpy as np
import odd_lines
import optax
import pandas as pd
import sklearn.datasets
from matplotlib import pyplot
from matplotlib.backends import backend_agg
from trial import EQUAL, FAILED, HUNG, SILENT, TRACEBACK, WRONG, ends_of, forked, table, tried

from jaxfl import cli
from jaxfl.commands import plan, predict, reproduce, sweep

SMALL = ["--nodes", "8", "--data", "digits", "--model", "logistic", "--every", "1", "--seeds", "2"]
KINDS = {
    "fedavg": ["run", "fedavg"],
    "scaffold": ["run", "scaffold"],
    "dsgd with error feedback": ["run", "dsgd", "--codec", "int4"],
    "fedbuff": ["run", "fedbuff", "--concurrency", "4", "--goal", "2"],
    "modest": ["run", "modest", "--cohort", "3"],
    "sweep": ["sweep", "dsgd", "--grid", "lr=0.1,0.3"],
}
PARTS = ["kills", "lines", "disk", "files", "configs"]
FULL = 100, 800, 200, 500  # kills, lines, files, configs
LOADED = flax.nnx, backend_agg, pyplot, optax, pd, sklearn.datasets, plan, predict, reproduce, sweep  # for the forked


def command(kind: str, folder: Path, rounds: int) -> Callable[[], int | None]:
    """What begins a run in `folder`, or goes on with it."""
    if (folder / "config.toml").exists():
        return partial(cli.main, [KINDS[kind][0], "--resume", str(folder)])
    return partial(cli.main, [*KINDS[kind], *SMALL, "--rounds", str(rounds), "--checkpoints", "--out", str(folder)])


def kills(count: int, kinds: list[str], rounds: int, rng: random.Random, place: Path) -> list[dict]:
    """A row a kind: killed runs, kills, how they ended. One or two kills a run, at any instant of it."""
    rows = []
    for k, kind in enumerate(kinds):
        whole, log = place / f"whole{k}", place / f"log{k}"
        forked(command(kind, whole, rounds), log)  # which compiles
        shutil.rmtree(whole)
        began = time.monotonic()
        if forked(command(kind, whole, rounds), log) != 0:
            raise SystemExit(f"{kind} does not run: {log.read_text()[-2000:]}")
        lasts, want = time.monotonic() - began, ends_of(whole)
        share = count // len(kinds) + (k < count % len(kinds))
        outcomes, killed, runs = Counter(), 0, 0
        while killed < share:
            folder, code, runs = place / f"run{k}-{runs}", None, runs + 1
            log.write_text("")
            for _ in range(rng.choice((1, 1, 2))):
                code = forked(command(kind, folder, rounds), log, after=rng.uniform(0, lasts))
                if code is not None:
                    break
                killed += 1
            code = forked(command(kind, folder, rounds), log) if code is None else code
            ended = HUNG if code is None else FAILED if code else EQUAL if ends_of(folder) == want else SILENT
            outcomes[TRACEBACK if "Traceback" in log.read_text() else ended] += 1
            if ended != EQUAL:
                got = ends_of(folder)
                others = [name for name in {**want, **got} if want.get(name) != got.get(name)]
                print(f"{kind}, run {runs}: {ended}: {others}: {log.read_text()[-500:]}", file=sys.stderr)
            shutil.rmtree(folder, ignore_errors=True)
        rows.append({"what": f"{kind}: runs with {killed} kills", "tried": runs, **outcomes})
    return rows


def changed(data: bytes, rng: random.Random) -> bytes:
    """Bytes damaged in one of the ways disks, copies and hands do it."""
    i, n = rng.randrange(max(1, len(data))), rng.randrange(1, 200)
    lines = data.splitlines(keepends=True) or [b""]
    a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
    numbers = list(re.finditer(rb"\d+(\.\d+)?", data))
    start, end = rng.choice(numbers).span() if numbers else (0, 0)
    new = rng.choice((b"0", b"-1", b"7", b"1e9", b"nan", b"null", b'"x"', str(rng.randrange(10)).encode()))
    return rng.choice(
        (
            lambda: data[:i] + bytes([data[i] ^ 1 << rng.randrange(8)]) + data[i + 1 :] if data else b"x",
            lambda: data[:i] + bytes(min(n, len(data) - i)) + data[i + n :],
            lambda: data[:i],
            lambda: data[:i] + data[i + n :],
            lambda: data[:i] + data[i : i + n] + data[i:],
            lambda: b"".join(lines[:a] + lines[a + 1 :]),
            lambda: b"".join([*lines[: a + 1], *lines[a:]]),
            lambda: b"".join(lines[b] if j == a else lines[a] if j == b else line for j, line in enumerate(lines)),
            lambda: data[:start] + new + data[end:],
            lambda: b"",
        )
    )()


def damaged(count: int, rng: random.Random, place: Path) -> list[dict]:
    """A row a kind of file: checkpoints, log and archives of a run that is then resumed."""
    import jaxfl as fl
    from jaxfl.algorithms import dsgd

    rows = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    shards = fl.partition.iid(fl.data.from_arrays(rows, rows[:, 0], rows[:1], rows[:1, 0], task="regression"), 6)
    task = fl.linear_regression(3)
    world = fl.scenario(shards, topology=fl.mixing.metropolis(fl.graph.ring(6)))
    size = fl.Metric(lambda _, x: {"size": (x**2).sum(1), "inverse": 1 / (x[0, 0] - x[0, 0])})
    net = fl.Network(codec=fl.codecs.error_feedback(fl.codecs.quantize(4)))
    go = partial(fl.run, dsgd(task, net, batch=1), world, np.zeros(3, np.float32), every=2, seeds=2, evaluate=size)
    whole, base = go(8), place / "damaged"
    go(6, out=base, checkpoints=True)

    def same(folder: Path) -> bool:
        got = go(8, out=folder, resume=True)
        trees = jax.tree.leaves((got.state, got.nodes)), jax.tree.leaves((whole.state, whole.nodes))
        alike = all(np.array_equal(a, b, equal_nan=True) for a, b in zip(*trees, strict=True))
        return alike and got.history.equals(whole.history) and (folder / "log.jsonl").read_bytes().count(b"\n") == 18

    files = {"checkpoints": "checkpoints/*/*", "logs": "log.jsonl", "archives by node": "nodes/*.npz"}
    counts: dict[str, Counter] = {what: Counter() for what in files}
    for i in range(count):
        folder = place / f"damaged{i}"
        shutil.copytree(base, folder)
        what = rng.choice(list(files))
        file = rng.choice(sorted(folder.glob(files[what])))
        if rng.random() < 0.1:
            file.unlink()
        else:
            file.write_bytes(changed(file.read_bytes(), rng))
        counts[what][tried(partial(same, folder))] += 1
        shutil.rmtree(folder)
    return [{"what": f"damaged {what}", "tried": sum(c.values()), **c} for what, c in counts.items()]


def configs(count: int, rng: random.Random, place: Path) -> list[dict]:
    """One row: changed configs of a run that is then resumed."""
    base, log = place / "configs", io.StringIO()
    kind = ["run", "dsgd", *SMALL, "--rounds", "2", "--checkpoints", "--out", str(base)]
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log), contextlib.suppress(SystemExit):
        cli.main(kind)
    want, counts = ends_of(base), Counter()
    for i in range(count):
        folder = place / f"config{i}"
        shutil.copytree(base, folder)
        file = folder / "config.toml"
        file.write_bytes(changed(file.read_bytes(), rng))

        def same(folder: Path = folder) -> bool:
            from jaxfl.errors import InputError

            try:
                cli.main(["run", "--resume", str(folder)])
            except SystemExit as stop:
                if stop.code == 2:
                    raise InputError("the command line has said it") from None
                return stop.code == 0 and ends_of(folder) == want
            return False

        counts[tried(same)] += 1
        shutil.rmtree(folder)
    return [{"what": "changed configs", "tried": count, **counts}]


def main(args: list[str]) -> int:
    """Print the table; 1 if something went wrong."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--share", type=float, default=1.0, help="of what is tried (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of instants, damages and lines (default: 0)")
    parser.add_argument("--tiny", action="store_true", help="a kill, a few of the others, no disk")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; may come again (default: all)")
    asked = parser.parse_args(args)
    share, parts = asked.share, asked.only or ([p for p in PARTS if p != "disk"] if asked.tiny else PARTS)
    kills_, lines, files, changes = (1, 4, 9, 2) if asked.tiny else (max(1, round(share * n)) for n in FULL)
    kinds, rounds = (["fedavg"], 3) if asked.tiny else (list(KINDS), 24)
    os.environ |= {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    rows = []
    with tempfile.TemporaryDirectory(prefix="faults [1] ") as folder:
        place = Path(folder)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(place / "cache")
        do = {  # processes are forked before JAX starts in this one
            "kills": lambda rng: kills(kills_, kinds, rounds, rng, place),
            "lines": lambda rng: odd_lines.lines(lines, rng, place),
            "disk": lambda _: full_disk.disks(share, 3, place),
            "files": lambda rng: damaged(files, rng, place),
            "configs": lambda rng: configs(changes, rng, place),
        }
        for part in (part for part in PARTS if part in parts):
            rows += do[part](random.Random(f"{part} {asked.seed}"))
    print(table(rows))
    return int(bool(LOADED) and any(row.get(outcome) for row in rows for outcome in WRONG))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
