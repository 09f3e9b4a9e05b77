"""What a run survives: killed at random instants, its checkpoints, logs and configs damaged. Prints what was counted.

    python benchmarks/faults.py               # 100 kills, 200 damaged checkpoints and logs, 500 changed configs
    python benchmarks/faults.py --share 0.1   # a tenth of that; --tiny: a few

A killed run is resumed until it ends and must then be, byte for byte, the one that was not: history, log, models. Of
what is damaged every outcome must be a sentence or the same result. Needs `fork`; exit code 1 if anything went wrong.
"""

import argparse
import contextlib
import io
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import flax.nnx
import jax
import matplotlib.pyplot
import numpy as np
import optax
import pandas as pd

from jaxfl import cli

SMALL = ["--nodes", "8", "--data", "digits", "--model", "logistic", "--every", "1", "--seeds", "2"]
KINDS = {
    "fedavg": ["run", "fedavg"],
    "scaffold": ["run", "scaffold"],
    "dsgd with error feedback": ["run", "dsgd", "--codec", "int4"],
    "fedbuff": ["run", "fedbuff", "--concurrency", "4", "--goal", "2"],
    "modest": ["run", "modest", "--cohort", "3"],
    "sweep": [],  # from Python
}
EQUAL, BACK, SENTENCE = "the same result", "the same result, from the checkpoint before", "refused in a sentence"
WRONG = TRACEBACK, SILENT, HUNG, FAILED = "traceback", "another result", "hung", "not ended"
PATIENCE = 120  # seconds


def sweep(folder: Path, rounds: int) -> int:
    """Four runs of D-SGD, which go on from what is there; their history and state as files at the end."""
    import jaxfl as fl
    from jaxfl.algorithms import dsgd

    shards = fl.partition.dirichlet(fl.data.digits(), 8, 0.5, seed=0, min_size=4)
    task = fl.logistic_regression(64, 10)
    world = fl.scenario(shards, topology=fl.mixing.metropolis(fl.graph.ring(8)))
    kw = {"hyper": {"lr": [0.1, 0.3]}, "seeds": 2, "every": 1, "progress": False}
    got = fl.run(
        partial(dsgd, task, steps=2), world, task.init, rounds, out=folder, checkpoints=True, resume=True, **kw
    )
    (folder / "models").mkdir(exist_ok=True)
    np.save(folder / "models" / "end.npy", np.asarray(got.state.nodes))
    (folder / "history.csv").write_text(got.history.to_csv())
    return 0


def command(kind: str, folder: Path, rounds: int) -> Callable[[], int | None]:
    """What begins a run in `folder`, or goes on with it."""
    if not KINDS[kind]:
        return partial(sweep, folder, rounds)
    if (folder / "config.toml").exists():
        return partial(cli.main, ["run", "--resume", str(folder)])
    return partial(cli.main, [*KINDS[kind], *SMALL, "--rounds", str(rounds), "--checkpoints", "--out", str(folder)])


def forked(job: Callable[[], int | None], log: Path, after: float | None) -> int | None:
    """The exit code of a job in a process of its own, killed after so many seconds: None. It writes to `log`."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(out, 1)
            os.dup2(out, 2)
            code = job() or 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    ends = time.monotonic() + (PATIENCE if after is None else after)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= ends:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.002)


def ends_of(folder: Path) -> dict[str, bytes]:
    """What a run leaves that must not depend on whether it was killed; of archives what is in them, without dates."""
    found = [f for f in folder.rglob("*") if f.name in ("log.jsonl", "history.csv") or f.suffix in (".npy", ".npz")]
    ends = {}
    for file in (f for f in found if "checkpoints" not in f.parts):
        name = str(file.relative_to(folder))
        ends[name] = file.read_bytes()
        if file.suffix == ".npz":
            with zipfile.ZipFile(file) as archive:
                ends[name] = b"".join(archive.read(member) for member in archive.namelist())
    return ends


def kills(count: int, kinds: list[str], rounds: int, rng: random.Random, place: Path) -> list[dict]:
    """A row a kind: killed runs, kills, how they ended. One or two kills a run, at any instant of it."""
    rows = []
    for k, kind in enumerate(kinds):
        whole, log = place / f"whole{k}", place / f"log{k}"
        forked(command(kind, whole, rounds), log, None)  # which compiles
        shutil.rmtree(whole)
        began = time.monotonic()
        if forked(command(kind, whole, rounds), log, None) != 0:
            raise SystemExit(f"{kind} does not run: {log.read_text()[-2000:]}")
        lasts, want = time.monotonic() - began, ends_of(whole)
        share = count // len(kinds) + (k < count % len(kinds))
        outcomes, killed, runs = Counter(), 0, 0
        while killed < share:
            folder, code, runs = place / f"run{k}-{runs}", None, runs + 1
            log.write_text("")
            for _ in range(rng.choice((1, 1, 2))):
                code = forked(command(kind, folder, rounds), log, rng.uniform(0, lasts))
                if code is not None:
                    break
                killed += 1
            code = forked(command(kind, folder, rounds), log, None) if code is None else code
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


def tried(job: Callable[[], bool]) -> str:
    """How a job ends, which says whether its result is the same."""
    from jaxfl.errors import InputError

    def hung(*_):
        raise TimeoutError

    said, before = io.StringIO(), signal.signal(signal.SIGALRM, hung)
    signal.alarm(PATIENCE)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            same = job()
    except InputError as error:
        return TRACEBACK if "\n" in str(error) else SENTENCE
    except TimeoutError:
        return HUNG
    except Exception:
        traceback.print_exc()
        return TRACEBACK
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    if "Traceback" in said.getvalue():
        print(said.getvalue(), file=sys.stderr)
        return TRACEBACK
    return SILENT if not same else BACK if "Goes on from" in said.getvalue() else EQUAL


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


def table(rows: list[dict]) -> str:
    """Markdown: what, how often, how it ended; under it machine, versions, day."""
    from jaxfl.report.tables import machine

    columns = ["what", "tried", *(o for o in (EQUAL, BACK, SENTENCE, *WRONG) if any(row.get(o) for row in rows))]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    lines += [f"| {' | '.join(str(row.get(c, 0)) for c in columns)} |" for row in rows]
    m = machine()
    made = f"{m['cpus']} CPUs ({m['processor']}, {m['system']}), python {m['python']}, jax {m['jax']}, {m['date']}"
    return "\n".join([*lines, "", f"{made}."])


def main(args: list[str]) -> int:
    """Print the table; 1 if something went wrong."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the kills, damages and changes (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of instants and damages (default: 0)")
    parser.add_argument("--tiny", action="store_true", help="a kill, a few damages and changes")
    asked = parser.parse_args(args)
    share, rng = asked.share, random.Random(asked.seed)
    how_many = (1, 9, 2) if asked.tiny else [max(1, round(share * n)) for n in (100, 200, 500)]
    kinds, rounds = (["sweep"], 3) if asked.tiny else (list(KINDS), 24)
    os.environ |= {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    loaded = flax.nnx, matplotlib.pyplot, optax, pd  # before a process is forked, which then need not
    rows = []
    with tempfile.TemporaryDirectory(prefix="faults [1] ") as folder:
        place = Path(folder)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(place / "cache")
        rows += kills(how_many[0], kinds, rounds, rng, place)
        rows += damaged(how_many[1], rng, place)
        rows += configs(how_many[2], rng, place)
    print(table(rows))
    return int(bool(loaded) and any(row.get(outcome) for row in rows for outcome in WRONG))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
