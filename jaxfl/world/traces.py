"""Measured durations: a CSV file with the seconds of jobs by node. Reading one runs no code that is in it.

The columns are `node,seconds`, in any order, one line a job; the jobs of a node stand in the order in which they were
measured, and the lines of several nodes may be mixed. Nodes are the numbers 0..n-1, and every one has a job.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array, Process, constant
from jaxfl.errors import InputError, require
from jaxfl.world.csv_files import number, rows, whole
from jaxfl.world.durations import Seconds
from jaxfl.world.process import process

MOST = 2**28  # cells of the table that holds a trace


class Trace(NamedTuple):
    """Measured jobs by node."""

    seconds: np.ndarray  # [n, most] float32, in order; what is beyond `jobs` is 0
    jobs: np.ndarray  # [n] int32, how many of each node, at least 1


def load_trace(path: str | Path, nodes: int | None = None) -> Trace:
    """The trace in a CSV file.

    >>> from pathlib import Path
    >>> from jaxfl.world import traces
    >>> _ = Path("jobs.csv").write_text("node,seconds\\n0,1.5\\n0,2\\n1,9\\n")
    >>> traces.load_trace("jobs.csv").jobs.tolist()
    [2, 1]

    Args:
        path: the file.
        nodes: nodes of the world; None: as many as the file names.

    Raises:
        InputError: what `csv_files.rows` says; with its line a node that is unknown, a duration that is missing,
            negative or not finite; a node of which no line tells.
    """
    if nodes is not None:
        require("nodes", nodes, least=1, whole=True)
    ids, values, at = [], [], 1
    for at, row in rows(path, ("node", "seconds")):
        ids.append(whole(path, at, "node", row["node"], nodes or 2**24))
        values.append(number(path, at, "seconds", row["seconds"]))
    node, taken = np.array(ids), np.array(values, np.float32)
    n = int(node.max()) + 1 if nodes is None else nodes
    jobs = np.bincount(node, minlength=n)
    if not jobs.all():
        silent = int(np.argmin(jobs))
        raise InputError(f"{path}, line {at}, the last: node {silent} of {n} has no job, and every one needs a line.")
    if n * jobs.max() > MOST:
        most = int(np.argmax(jobs))
        raise InputError(f"{path}: node {most} has {jobs.max():,} jobs, too many beside {n:,} nodes: cut it.")
    order = np.argsort(node, kind="stable")
    place = np.arange(node.size) - np.repeat(np.cumsum(jobs) - jobs, jobs)
    table = np.zeros((n, int(jobs.max())), np.float32)
    table[node[order], place] = taken[order]
    return Trace(table, jobs.astype(np.int32))


def drawn(trace: Trace) -> Seconds:
    """Every job takes as long as one that was measured of its node, drawn anew each time."""
    return Seconds(_drawn, {"trace": constant(trace.seconds, np.float32), "jobs": constant(trace.jobs, np.int32)})


def _drawn(key: Array, arrays: dict, i: Array) -> Array:
    return arrays["trace"][i, jax.random.randint(key, (), 0, arrays["jobs"][i])]


def played(trace: Trace) -> Process:
    """Factors `[n]` for `pace.varied`: in round `t` the `t`-th job of every node, and after its last the first again.

    With a law `pace.by_round(durations.fixed(1.0), n)` a job that begins in round `t` takes just that long. A node that
    is not at work in a round passes over the job of that round, as it would have in the time of the trace.
    """

    def step(key: Array, arrays: dict, s: tuple, t: Array) -> tuple[tuple, Array]:
        place = t % arrays["jobs"]
        return s, jnp.take_along_axis(arrays["trace"], place[:, None], 1)[:, 0]

    return process(step, {"trace": constant(trace.seconds, np.float32), "jobs": constant(trace.jobs, np.int32)})
