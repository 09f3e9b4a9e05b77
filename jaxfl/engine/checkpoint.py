"""Checkpoints of a run with orbax: written whole or not at all, read back bit for bit on any number of devices."""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array, Tree
from jaxfl.engine.history import disk_error
from jaxfl.errors import InputError

KEEP = 2


def _rounds(folder: Path) -> list[int]:
    """The rounds checkpointed under `folder`, oldest first; a write that was cut off has no plain number as name."""
    return sorted(int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit())


@jax.jit
def _digest(leaves: list) -> Array:
    """A checksum of all leaves that does not depend on where their parts live: sum of `bits * odd place` mod 2^32."""

    def one(a: Array) -> Array:
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a = jax.random.key_data(a)
        if a.dtype == bool:
            a = a.astype(jnp.uint8)
        bits = jax.lax.bitcast_convert_type(a, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[min(a.dtype.itemsize, 4)])
        bits = bits.reshape(-1).astype(jnp.uint32)
        return (bits * (2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1)).sum(dtype=jnp.uint32)

    return sum(((2 * i + 1) * one(a) for i, a in enumerate(leaves)), jnp.uint32(0))


def _arrays(name: str, tree: Tree) -> tuple[list, Any]:
    leaves, structure = jax.tree.flatten(tree)
    odd = sorted({type(a).__name__ for a in leaves if not (hasattr(a, "shape") and hasattr(a, "dtype"))})
    if odd:
        raise InputError(f"{name} has leaves of type {', '.join(odd)}, but arrays are needed: `Result.carry.state`.")
    return leaves, structure


def save(folder: str | Path, t: int, carry: Tree) -> None:
    """Write `carry`, a tree of arrays, after round `t` under `folder/checkpoints`; the two newest are kept.

    Raises:
        InputError: a leaf is no array, or the disk is full. Earlier checkpoints are kept.
    """
    import orbax.checkpoint as ocp

    folder = Path(folder)
    leaves, _ = _arrays("carry", carry)
    path = folder.resolve() / "checkpoints" / str(t)
    try:
        with ocp.StandardCheckpointer() as writer:
            digest = np.uint32(_digest(leaves))
            writer.save(path, {"digest": digest} | {str(i): a for i, a in enumerate(leaves)}, force=True)
    except OSError as error:
        raise disk_error(path, error) from error
    for old in _rounds(folder)[:-KEEP] if jax.process_index() == 0 else ():
        shutil.rmtree(folder / "checkpoints" / str(old))


def load(folder: str | Path, like: Tree) -> tuple[int, Tree]:
    """The round of the newest checkpoint, and its arrays in the structure and placement of `like`.

    What `run` saves is `Result.carry.state`, `(state of the world, State)`, of which `like` may be another one.

    Raises:
        InputError: if there is none, or it is damaged or of another run (other shapes, another system), or a leaf of
            `like` is no array.
    """
    import orbax.checkpoint as ocp

    folder = Path(folder)
    leaves, structure = _arrays("like", like)
    saved = _rounds(folder)
    if not saved:
        raise InputError(f"resume: {folder} holds no checkpoint to go on from.")
    t = saved[-1]
    path = folder.resolve() / "checkpoints" / str(t)
    damaged = f"resume: the checkpoint of round {t} in {folder} is damaged"
    want = {
        str(i): jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=getattr(a, "sharding", None))
        for i, a in enumerate(leaves)
    }
    want["digest"] = jax.ShapeDtypeStruct((), np.uint32)
    with ocp.StandardCheckpointer() as reader:
        try:
            metadata = reader.metadata(path).item_metadata
            have = {name: (tuple(metadata[name].shape), np.dtype(metadata[name].dtype)) for name in metadata}
        except Exception as error:
            raise InputError(f"{damaged}: {_first(error)}.") from error
        if have != {name: (a.shape, np.dtype(a.dtype)) for name, a in want.items()}:
            raise InputError(f"resume: the checkpoint in {folder} is of another run: its arrays have other shapes.")
        try:
            read = reader.restore(path, want)
        except Exception as error:
            raise InputError(f"{damaged}: {_first(error)}.") from error
    leaves = [read[str(i)] for i in range(len(leaves))]
    if np.uint32(read["digest"]) != np.uint32(_digest(leaves)):
        raise InputError(f"{damaged}: its numbers do not add up to their checksum.")
    return t, jax.tree.unflatten(structure, leaves)


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120].rstrip(".")
