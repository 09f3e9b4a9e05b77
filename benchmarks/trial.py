"""One trial of a fault: a job in a process of its own or in this one, how it ended, and the table of all trials."""

import contextlib
import io
import os
import re
import signal
import sys
import time
import traceback
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

EQUAL, BACK, SENTENCE = "the same result", "the same result, from the checkpoint before", "refused in a sentence"
RAN, STOPPED = "ran", "ran until it was stopped"
FINE = EQUAL, BACK, RAN, STOPPED, SENTENCE
WRONG = TRACEBACK, SILENT, HUNG, FAILED = "traceback", "another result", "hung", "not ended"
PATIENCE = 120  # seconds
ENDS = "log.jsonl", "history.csv", "best.toml"
PROGRESS = re.compile(r"\d+/\d+ |round \d")  # lines of a run under way


def patience(seconds: float) -> float:
    """So many seconds, and on a machine that others use too as many more as its load says."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def forked(job: Callable[[], int | None], out: Path, err: Path | None = None, after: float | None = None) -> int | None:
    """The exit code of a job in a process of its own; None if it was killed, after so many seconds.

    Args:
        job: returns its exit code, 0 if it returns None.
        out: the file to which what it prints is added.
        err: that of its standard error; None: the same.
        after: seconds; None: when it must have hung.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for descriptor, file in ((1, out), (2, out if err is None else err)):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
            code = job() or 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    ends = time.monotonic() + (patience(PATIENCE) if after is None else after)
    while time.monotonic() < ends:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def ends_of(folder: Path) -> dict[str, bytes]:
    """What a run leaves that must not depend on whether it was killed; of archives what is in them, without dates."""
    found = [f for f in folder.rglob("*") if f.name in ENDS or f.suffix in (".npy", ".npz")]
    ends = {}
    for file in (f for f in found if "checkpoints" not in f.parts):
        name = str(file.relative_to(folder))
        ends[name] = file.read_bytes()
        if file.suffix == ".npz":
            with zipfile.ZipFile(file) as archive:
                ends[name] = b"".join(archive.read(member) for member in archive.namelist())
    return ends


def tried(job: Callable[[], bool]) -> str:
    """How a job ends in this process, which says whether its result is the same."""
    from jaxfl.errors import InputError

    def hung(*_):
        raise TimeoutError

    said, before = io.StringIO(), signal.signal(signal.SIGALRM, hung)
    signal.alarm(round(patience(PATIENCE)))
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


def table(rows: Sequence[dict]) -> str:
    """Markdown: what, how often, how it ended; under it machine, versions, day."""
    from jaxfl.report.tables import machine

    columns = ["what", "tried", *(o for o in (*FINE, *WRONG) if any(row.get(o) for row in rows))]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    lines += [f"| {' | '.join(str(row.get(c, 0)) for c in columns)} |" for row in rows]
    m = machine()
    made = f"{m['cpus']} CPUs ({m['processor']}, {m['system']}), python {m['python']}, jax {m['jax']}, {m['date']}"
    return "\n".join([*lines, "", f"{made}."])
