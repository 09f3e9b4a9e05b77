"""Several runs as one program: the points of a grid of hyper-parameters, and seeds.

Runs are numbered point by point, the seeds of a point side by side. What a seed decides alone, the world, who is in the
cohort and which samples a batch holds, is the same at every point and computed once: keys and the state of the world
have an axis of seeds, hyper-parameters one of points, and only the state of the algorithm one of runs.

Runs have nothing to tell each other. Where the devices divide the points (or, of a single point, the seeds) each
device therefore takes runs of its own, whole; else all devices share the nodes of every run.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from jaxfl.core import Array, Tree
from jaxfl.engine import keys
from jaxfl.errors import InputError

RUNS = "runs"  # the axis of a mesh over which runs are spread
SIDE_BYTES = 2**21  # on a CPU, runs whose whole state is smaller than this advance side by side, larger ones in turn


class Runs(NamedTuple):
    """How many runs there are, and how many of them a device advances side by side."""

    points: int
    seeds: int
    together: int

    @property
    def count(self) -> int:
        """All runs."""
        return self.points * self.seeds


def grid(**values: Sequence[float]) -> dict[str, list[float]]:
    """All combinations of the values given, as lists that go together: `hyper=grid(lr=(0.1, 0.3), mu=(0, 1))`."""
    return dict(zip(values, map(list, zip(*itertools.product(*values.values()), strict=True)), strict=True))


def lay_out(seed: int, seeds: int | None, hyper: dict) -> tuple[list[dict], Runs | None, Array, dict[str, Array]]:
    """A row of labels a run, the runs (None: one, without an axis of runs), keys `[seeds]` and numbers `[points]`.

    Raises:
        InputError: lists of unlike lengths, or what is no number.
    """
    given = {}
    for name, v in hyper.items():
        try:
            given[name] = np.asarray(v, np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"hyper has {name} = {v!r}, but needs numbers or lists of numbers.") from error
    lengths = {name: v.size for name, v in given.items() if v.ndim}
    if any(v.ndim > 1 or not v.size for v in given.values()) or len(set(lengths.values())) > 1:
        raise InputError(f"hyper has lists of {lengths} values, but needs single numbers or equally long lists.")
    points, each = max(lengths.values(), default=1), seeds or 1
    labels = [
        {name: float(given[name][p]) for name in lengths} | {"seed": s}
        for p in range(points)
        for s in range(seed, seed + each)
    ]
    if seeds is None and not lengths:
        return labels, None, keys.run_key(seed), {name: jnp.asarray(v, jnp.float32) for name, v in given.items()}
    values = {name: jnp.asarray(np.broadcast_to(v, points), jnp.float32) for name, v in given.items()}
    key = jax.vmap(jax.random.key)(np.arange(seed, seed + each, dtype=np.int32))
    return labels, Runs(points, each, points * each), key, values


def side_by_side(runs: Runs | None, state: Tree, want: int | None = None) -> Runs | None:
    """`runs` with `want` of them together; None: all on an accelerator, on a CPU as many as stay in cache."""
    if runs is None:
        return None
    if want is None:
        size = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(state))
        want = runs.count if jax.default_backend() != "cpu" else SIDE_BYTES * runs.count // max(1, size)
    return runs._replace(together=max(1, min(runs.count, want)))


def run_mesh(runs: Runs | None) -> Mesh | None:
    """All devices with the one axis `runs`, if they divide the runs."""
    devices = jax.device_count()
    if runs is None or (runs.points % devices and (runs.points > 1 or runs.seeds % devices)):
        return None
    return jax.make_mesh((devices,), (RUNS,), axis_types=(AxisType.Auto,))


def of_a_seed(mesh: Any, runs: Runs | None) -> P:
    """Where what every seed has, `[seeds, ...]`, lives on `mesh`: with the seeds if these are spread."""
    return P(RUNS) if RUNS in mesh.shape and runs is not None and runs.points == 1 else P()


def over_runs(f: Callable, runs: Runs | None, common: Tree, by_seed: Tree, by_point: Tree, by_run: Tree) -> tuple:
    """`f(common, of a seed, of a point, of a run) -> (the seed's, the run's)` for every run, `[seeds]` and `[runs]`.

    What `f` returns of a seed must not depend on the point or the run.
    """
    if runs is None:
        return f(common, by_seed, by_point, by_run)
    points, seeds, together = runs
    beside = min(points, together)

    def everything(common: Tree, by_seed: Tree, by_point: Tree, by_run: Tree) -> tuple:
        def at_point(row: Tree) -> tuple:
            (_, point), mine = row
            one = lambda row: f(common, row[0][1], point, row[1])
            return _map(one, (by_seed, mine), max(1, together // beside))

        once, each = _map(at_point, (by_point, by_run), beside)
        return jax.tree.map(lambda a: a[0], once), each

    mesh = jax.sharding.get_abstract_mesh()
    if RUNS in mesh.shape:
        of_seeds = of_a_seed(mesh, runs)
        of_points, of_runs = (P(), P(None, RUNS)) if points == 1 else (P(RUNS), P(RUNS))
        everything = jax.shard_map(
            everything, in_specs=(P(), of_seeds, of_points, of_runs), out_specs=(of_seeds, of_runs), check_vma=False
        )
    split = jax.tree.map(lambda a: a.reshape(points, seeds, *a.shape[1:]), by_run)
    # numbers, as the other rows may have no arrays
    once, each = everything(common, (jnp.arange(seeds), by_seed), (jnp.arange(points), by_point), split)
    return once, jax.tree.map(lambda a: a.reshape(runs.count, *a.shape[2:]), each)


def _map(f: Callable, rows: Tree, together: int) -> Tree:
    """`f` of every row, `together` as one vmap and those in turn."""
    count = jax.tree.leaves(rows)[0].shape[0]
    return (
        jax.vmap(f)(rows) if together >= count else jax.lax.map(f, rows, batch_size=together if together > 1 else None)
    )
