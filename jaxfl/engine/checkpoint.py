"""Checkpoints of a run: written whole or not at all, read back bit for bit on any number of devices and processes.

`checkpoints/40/0.npz` is that of round 40, a file a process (0, 1, ...). It holds the process's parts of all arrays,
`LEAF-PART.npy` as `numpy.load` reads them (types that NumPy's files do not know as their bits), and `run.json`: the
round, what decides the run's numbers (`engine.identity`), versions, and where the log stood. Damage is seen by the
checksums of the archive.
"""

import json
import math
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import Tree, is_key
from jaxfl.engine import identity
from jaxfl.engine.disk import PART, disk_error, sync, sync_names, writing
from jaxfl.engine.history import LOG, DamagedError, Recorder, unused
from jaxfl.engine.sharding import wait_for_all
from jaxfl.errors import InputError

KEEP = 2
HEADER = "run.json"
FORMAT = "jaxfl checkpoint 1"


def folder_of(folder: Path) -> Path:
    """Where the checkpoints of a run are."""
    return folder / "checkpoints"


def rounds_of(folder: Path) -> list[int]:
    """The rounds checkpointed under `folder`, oldest first; a write that was cut off has no plain number as name."""
    where = folder_of(folder)
    names = os.listdir(where) if where.is_dir() else []
    return sorted(int(name) for name in names if name.isascii() and name.isdigit() and name == str(int(name)))


def _arrays(name: str, tree: Tree) -> tuple[list, Any]:
    leaves, structure = jax.tree.flatten(tree)
    odd = sorted({type(a).__name__ for a in leaves if not (hasattr(a, "shape") and hasattr(a, "dtype"))})
    if odd:
        raise InputError(f"{name} has leaves of type {', '.join(odd)}, but arrays are needed: `Result.carry.state`.")
    return leaves, structure


def _parts(a: Any) -> list[tuple[list[int], Any]]:
    """Where each part of an array begins and the part, still on its device, of those that this process writes."""
    if not isinstance(a, jax.Array):
        return [([0] * np.ndim(a), np.asarray(a))] if jax.process_index() == 0 else []
    a = jax.random.key_data(a) if is_key(a) else a
    mine = [part for part in a.addressable_shards if part.replica_id == 0]
    return [([s.start or 0 for s in part.index], part.data) for part in mine]


def check_new(folder: Path, resume: bool) -> None:
    """Raise InputError where a run that begins in `folder` would take the place of one that is there."""
    begun = bool(rounds_of(folder)) or not unused(folder / LOG)
    if not begun or (resume and folder_of(folder).is_dir()):
        return
    if resume:
        raise InputError(f"resume: {folder} holds a run without checkpoints, so there is nothing to go on from.")
    raise InputError(f"out: {folder} holds a run already; choose another folder or resume it.")


def begin(
    folder: Path, recorder: Recorder, carry: Tree, run: Mapping[str, Any] | None, *, resume: bool, keep: bool
) -> tuple[int, Tree] | None:
    """Go on from the newest checkpoint, as `load`; None: there is none yet, and the record begins anew.

    Args:
        folder: of the run, which has it alone.
        recorder: which has nothing yet.
        carry: arrays like those of the checkpoint.
        run: `identity.of_run`.
        resume: go on.
        keep: checkpoints will be written.

    Raises:
        InputError: as `load` and `check_new`.
    """
    first = jax.process_index() == 0
    if first:
        check_new(folder, resume)
        for name in os.listdir(folder_of(folder)) if folder_of(folder).is_dir() else ():
            if name.endswith(PART):  # a write that was cut off
                shutil.rmtree(folder_of(folder) / name, ignore_errors=True)
    if resume and rounds_of(folder):
        return load(folder, carry, run, recorder.go_on)
    wait_for_all("nothing to go on from")
    recorder.begin()
    if keep and first:
        with writing(folder):
            folder_of(folder).mkdir(exist_ok=True)
    return None


def save(folder: str | Path, t: int, carry: Tree, run: Mapping[str, Any] | None = None) -> None:
    """Write `carry`, a tree of arrays, after round `t` under `folder/checkpoints`; the two newest are kept.

    Args:
        folder: of the run.
        t: rounds finished.
        carry: what `Result.carry.state` is.
        run: what is kept beside them, words of JSON: `load` hands it back.

    Raises:
        InputError: a leaf is no array, or the disk is full. Earlier checkpoints are kept.
    """
    folder = Path(folder)
    leaves, _ = _arrays("carry", carry)
    rank, whole = jax.process_index(), folder_of(folder) / str(t)
    part, parts = whole.with_name(f"{t}{PART}"), [_parts(a) for a in leaves]
    header = {
        "format": FORMAT,
        "round": t,
        "files": jax.process_count(),
        "versions": identity.versions(),
        "run": dict(run or {}),
        "leaves": [{"dtype": str(a.dtype), "shape": list(a.shape)} for a in leaves],
        "parts": [[[start, list(data.shape)] for start, data in of_leaf] for of_leaf in parts],
    }
    try:
        if rank == 0:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        wait_for_all("checkpoint begun")
        with (part / f"{rank}.npz").open("wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr(HEADER, json.dumps(header))
                for i, of_leaf in enumerate(parts):
                    for j, (_, data) in enumerate(of_leaf):
                        with archive.open(f"{i}-{j}.npy", "w", force_zip64=True) as out:
                            np.lib.format.write_array(out, as_bits(np.asarray(data)), allow_pickle=False)
            sync(file)
        wait_for_all("checkpoint written")
        if rank == 0:
            sync_names(part)
            shutil.rmtree(whole, ignore_errors=True)
            part.rename(whole)
            sync_names(whole.parent)
            for old in rounds_of(folder)[:-KEEP]:
                shutil.rmtree(folder_of(folder) / str(old), ignore_errors=True)
    except OSError as error:
        if rank == 0:
            shutil.rmtree(part, ignore_errors=True)
        raise disk_error(whole, error) from error


def load(
    folder: str | Path,
    like: Tree,
    run: Mapping[str, Any] | None = None,
    take_up: Callable[[int, dict], None] = lambda t, kept: None,
) -> tuple[int, Tree]:
    """The round of the newest checkpoint, and its arrays in the structure and placement of `like`.

    What `run` saves is `Result.carry.state`, `(state of the world, State)`, of which `like` may be another one. Where
    the newest checkpoint is damaged the one before is taken; a line on stderr says so, and one where versions differ.

    Args:
        folder: of the run.
        like: arrays, or their shapes, which may say where to put what is read.
        run: `identity.of_run`, which must be that of the checkpoint; None: not compared.
        take_up: called with the round and what `save` was given beside the arrays; it may raise `DamagedError`.

    Raises:
        InputError: there is none, or all are damaged, or of another run; a leaf of `like` is no array.
    """
    folder, first = Path(folder), None
    leaves, structure = _arrays("like", like)
    for t in reversed(rounds_of(folder)):
        path, error = folder_of(folder) / str(t), None
        try:
            header, read = _open(path)
            if header["round"] != t:
                raise DamagedError(f"resume: {path} is a checkpoint of round {header['round']}.")
            if run is not None:
                identity.compare(str(path), header["run"]["identity"], run)
            if header["leaves"] != [{"dtype": str(a.dtype), "shape": list(a.shape)} for a in leaves]:
                raise InputError(f"resume: {path} is of another run: its arrays have other shapes.")
            arrays = [_placed(a, part) for a, part in zip(leaves, read, strict=True)]
            take_up(t, header["run"])
        except DamagedError as damage:
            error = damage
        except InputError:
            raise
        except Exception as damage:  # of files of any bytes
            error = DamagedError(f"resume: the checkpoint {path} is damaged: {_line(damage)}.")
        if _all_of_us(error is None):
            if jax.process_index() == 0:
                _tell(path, header["versions"], first)
            return t, jax.tree.unflatten(structure, arrays)
        first = first or error or DamagedError(f"resume: the checkpoint {path} is damaged: another process says so.")
    raise first or InputError(f"resume: {folder} holds no checkpoint to go on from.")


def check_origin(folder: Path, origin: Mapping[str, Any]) -> None:
    """Raise InputError where the newest checkpoint that can be read is of another `origin`, as `run` was given it."""
    for t in reversed(rounds_of(folder)):
        path = folder_of(folder) / str(t)
        try:
            then = dict(_open(path)[0]["run"]["identity"]["origin"])
        except Exception:  # of files of any bytes; `load` says what is wrong
            continue
        identity.compare(str(path), {"origin": then}, {"origin": origin})
        return


def _all_of_us(well: bool) -> bool:
    """Whether it is so in every process, each of which reads its own parts."""
    if jax.process_count() == 1:
        return well
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.array(well))))


def _tell(path: Path, versions: Mapping[str, str], damage: InputError | None) -> None:
    """Say on stderr what is not as one would think."""
    if damage is not None:
        print(f"jaxfl: {damage} Goes on from round {path.name}, the checkpoint before.", file=sys.stderr)
    others = [
        f"{name} {versions.get(name)} (now {v})" for name, v in identity.versions().items() if versions.get(name) != v
    ]
    if others:
        says = f"was written by {', '.join(others)}: further numbers may differ in rounding"
        print(f"jaxfl: {path} {says}.", file=sys.stderr)


def _open(path: Path) -> tuple[dict[str, Any], list["_Leaf"]]:
    """What is said of a checkpoint, and its arrays to be read."""
    headers, count = [], 1
    while len(headers) < count:
        with zipfile.ZipFile(path / f"{len(headers)}.npz") as archive:
            headers.append(json.loads(archive.read(HEADER)))
        count = headers[0]["files"]
    said = lambda header: [header[name] for name in ("round", "files", "leaves")]
    if headers[0]["format"] != FORMAT or any(said(header) != said(headers[0]) for header in headers):
        raise ValueError(f"its files are not those of one {FORMAT}")
    leaves = []
    for i, leaf in enumerate(headers[0]["leaves"]):
        where = [(path / f"{rank}.npz", f"{i}-{j}.npy", start, shape) for rank, header in enumerate(headers)
                 for j, (start, shape) in enumerate(header["parts"][i])]  # fmt: skip
        leaves.append(_Leaf(where, leaf["dtype"]))
    return headers[0], leaves


class _Leaf:
    """One array in its parts, of which only those are read that are asked for, each once."""

    def __init__(self, where: list[tuple[Path, str, list[int], list[int]]], dtype: str):
        self.where, self.dtype, self.read = where, dtype, {}

    def region(self, starts: list[int], shape: list[int], like: np.ndarray) -> np.ndarray:
        """The values of `shape` from `starts` on, of the type of `like`."""
        out, filled = np.empty(shape, like.dtype), 0
        for i, (path, name, start, size) in enumerate(self.where):
            low = [max(a, b) for a, b in zip(starts, start, strict=True)]
            high = [min(a + m, b + n) for a, m, b, n in zip(starts, shape, start, size, strict=True)]
            if all(a < b for a, b in zip(low, high, strict=True)):
                if i not in self.read:
                    self.read[i] = _part(path, name, size, like.dtype)
                inside = lambda of: tuple(slice(a - o, b - o) for a, b, o in zip(low, high, of, strict=True))  # noqa: B023
                out[inside(starts)] = self.read[i][inside(start)]
                filled += math.prod(b - a for a, b in zip(low, high, strict=True))
        if filled != out.size:
            raise ValueError("a part of it is missing")
        return out


def _part(path: Path, name: str, shape: list[int], dtype: np.dtype) -> np.ndarray:
    with zipfile.ZipFile(path) as archive, archive.open(name) as file:
        a = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1) or list(a.shape) != shape:  # the checksum is compared at the end
            raise ValueError(f"{name} of {path.name} is not of shape {shape}")
    return a.view(dtype)


def _placed(like: Any, leaf: _Leaf) -> Any:
    """An array as `like` is: on its devices, in NumPy, a key."""
    if is_key(like):
        data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(like.shape, like.dtype))
        whole = leaf.region([0] * data.ndim, list(data.shape), np.empty(0, data.dtype))
        key = jax.random.wrap_key_data(
            jnp.asarray(whole), impl=jax.random.key_impl(like) if isinstance(like, jax.Array) else None
        )
        where = getattr(like, "sharding", None)
        return key if where is None else jax.device_put(key, where)
    shape, empty, where = like.shape, np.empty(0, like.dtype), getattr(like, "sharding", None)
    if where is None:
        whole = leaf.region([0] * len(shape), list(shape), empty)
        return whole if isinstance(like, np.ndarray | np.generic) else jnp.asarray(whole)

    def one(index: tuple[slice, ...] | None) -> np.ndarray:
        ends = [s.indices(m) for s, m in zip(index or (), shape, strict=True)]
        return leaf.region([a for a, *_ in ends], [b - a for a, b, _ in ends], empty)

    return jax.make_array_from_callback(shape, where, one)


def as_bits(a: np.ndarray) -> np.ndarray:
    """As it is, or the bits of a type that NumPy's files do not know."""
    return a if a.dtype.kind in "biufc" else a.view(f"u{a.dtype.itemsize}")


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120].rstrip(".")
