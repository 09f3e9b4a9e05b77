"""Disks that are full or read-only, for real: a run ends in a sentence that names the file, and goes on when it can.

A small file system in memory is mounted, once for every page and every file that a run needs: there is one page, or one
file, less than that. Needs the right to mount; without it only folders without rights are tried.
"""

import ctypes
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import trial

from jaxfl import cli

PAGE = 4096  # bytes
AMPLE = "size=64m,nr_inodes=4096"
RUN = "run dsgd --nodes 8 --data digits --model logistic --codec int4 --hold-out 0.2 --every 1 --seeds 2 --checkpoints"


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[bool]:
    """Whether an empty file system could be mounted at a folder, which is made."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "-l", folder], check=True)


def remount(folder: Path, options: str) -> None:
    """Give a mounted file system other options."""
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def names_of(folder: Path) -> list[str]:
    """All that a run leaves, by name."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))


def begun(folder: Path, rounds: int) -> Callable[[], None]:
    """What begins a run in `folder`, or goes on with it."""
    if (folder / "config.toml").exists() and (folder / "dsgd" / "log.jsonl").exists():
        return partial(cli.main, ["run", "--resume", str(folder)])
    return partial(cli.main, [*RUN.split(), "--rounds", str(rounds), "--out", str(folder)])


def said(code: int | None, says: str, where: Path) -> str | None:
    """What is wrong with how a command ended; None where one sentence names a place on the disk."""
    told = [row for row in says.splitlines() if not trial.PROGRESS.match(row)]
    if "Traceback" in says:
        return trial.TRACEBACK
    if code is None:
        return trial.HUNG
    return (
        None if code == 2 and len(told) == 1 and told[0].startswith("jaxfl: ") and str(where) in says else trial.FAILED
    )


def filled(disk: Path, options: str, rounds: int, whole: Path, place: Path) -> str:
    """How a run ends whose disk was full and then has space; first it must have said so."""
    folder, out, err = disk / "x", place / "out", place / "err"
    want = trial.ends_of(whole), names_of(whole)
    with mounted(disk, options):
        for file in (out, err):
            file.write_text("")
        code = trial.forked(begun(folder, rounds), out, err)
        if code == 0:
            wrong = None if (trial.ends_of(folder), names_of(folder)) == want else trial.SILENT
        else:
            wrong = said(code, err.read_text(), folder)
        if wrong is None:
            remount(disk, AMPLE)
            code = trial.forked(begun(folder, rounds), out, err)
            same = (trial.ends_of(folder), names_of(folder)) == want
            wrong = trial.HUNG if code is None else trial.FAILED if code else None if same else trial.SILENT
            wrong = trial.TRACEBACK if "Traceback" in err.read_text() else wrong
        if wrong:
            others = set(want[1]) ^ set(names_of(folder)) if folder.exists() else "all"
            print(f"disk of {options}: {wrong}, code {code}: {others}: {err.read_text()[-3000:]}", file=sys.stderr)
    return wrong or trial.EQUAL


def unprivileged(job: Callable[[], int | None]) -> int | None:
    """Do a job as a user who may do what the modes of files say, and no more: also root, by giving up capabilities."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # the third version of the call, this process
    if libc.capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capabilities cannot be given up")
    return job()


def refused(disk: Path, place: Path, wrap: Callable = lambda job: job) -> Counter:
    """How commands end that would write to a disk that is read-only."""
    done, own = (
        disk / "done",
        ["--nodes", "8", "--data", "digits", "--model", "logistic", "--rounds", "2", "--seeds", "1"],
    )
    commands = [
        ["run", "fedavg", *own, "--out", str(disk / "x")],
        ["run", "fedavg", *own, "--out", str(disk)],
        ["compare", "fedavg", "dsgd", *own, "--out", str(disk / "x")],
        ["sweep", "fedavg", *own, "--grid", "lr=0.1,0.2", "--out", str(disk / "x" / "y")],
        ["reproduce", "fedprox", "--out", str(disk / "x")],
        ["run", "--resume", str(done)],
        ["run", "--resume", str(disk / "half")],
        ["predict", str(done)],
        ["predict", str(done), "--out", str(disk / "said.csv")],
        ["run", "fedavg", *own],
    ]
    counts, out, err = Counter(), place / "out", place / "err"

    def there(line: Sequence[str]) -> None:
        os.chdir(disk)
        cli.main(line)

    for line in commands:
        for file in (out, err):
            file.write_text("")
        code = trial.forked(wrap(partial(there, line)), out, err)
        wrong = said(code, err.read_text(), disk if str(disk) in " ".join(line) else Path("runs"))
        if wrong:
            print(f"read-only: {line}: {wrong}, code {code}: {err.read_text()[-3000:]}", file=sys.stderr)
        counts[wrong or trial.SENTENCE] += 1
    return counts


def furnish(disk: Path, whole: Path) -> None:
    """A run that ended, and one that did not."""
    for name in ("done", "half"):
        shutil.copytree(whole, disk / name)
    for name in ("summary.csv", "comparison.png", "history.csv"):
        (disk / "half" / name).unlink()


def disks(share: float, rounds: int, place: Path) -> list[dict]:
    """A row a kind of disk: full by pages, full by files, no place for compiled programs, read-only, without rights."""
    disk, whole, out, rows = place / "disk", place / "whole", place / "out", []
    for _ in range(2):  # the first one compiles
        shutil.rmtree(whole, ignore_errors=True)
        if trial.forked(begun(whole, rounds), out) != 0:
            raise SystemExit(f"no run ends: {out.read_text()[-2000:]}")
    with mounted(disk, AMPLE) as can:
        if can:
            shutil.copytree(whole, disk / "x")
            used = os.statvfs(disk)
            pages, files = used.f_blocks - used.f_bfree, used.f_files - used.f_ffree
    step = max(1, round(1 / share))
    if can:
        with mounted(disk, AMPLE):
            furnish(disk, whole)
            remount(disk, "ro")
            counts = refused(disk, place)
        rows.append({"what": "read-only disk", "tried": sum(counts.values()), **counts})
        for what, sizes in (
            ("disk full, page by page", [f"size={n * PAGE}" for n in range(1, pages + 2, step)]),
            ("disk full, file by file", [f"nr_inodes={n}" for n in range(2, files + 2, step)]),
        ):
            counts = Counter(filled(disk, options, rounds, whole, place) for options in sizes)
            rows.append({"what": what, "tried": len(sizes), **counts})
    if os.getuid() == 0:
        place.chmod(0o755)
        furnish(disk, whole)
        folders = [disk, *(path for path in disk.rglob("*") if path.is_dir())]
        for folder in folders:
            folder.chmod(0o555)
        counts = refused(disk, place, lambda job: partial(unprivileged, job))
        rows.append({"what": "folder without rights", "tried": sum(counts.values()), **counts})
        for folder in folders:
            folder.chmod(0o755)
        shutil.rmtree(disk)
    return rows
