"""Checkpoints of a run with orbax: written whole or not at all, read back bit for bit."""

from pathlib import Path

import jax
import numpy as np

from jaxfl.core import InputError, Tree


def _manager(folder: Path):
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    return ocp.CheckpointManager(folder.resolve() / "checkpoints", options=options)


def save(folder: Path, t: int, carry: Tree) -> None:
    """Write `carry` after round `t` under `folder/checkpoints`; the two newest are kept."""
    import orbax.checkpoint as ocp

    leaves = {str(i): a for i, a in enumerate(jax.tree.leaves(carry))}
    with _manager(folder) as manager:
        manager.save(t, args=ocp.args.StandardSave(leaves))


def latest(folder: Path) -> int | None:
    """The newest checkpointed round, None without one."""
    if not (folder / "checkpoints").is_dir():
        return None
    with _manager(folder) as manager:
        return manager.latest_step()


def load(folder: Path, like: Tree) -> tuple[int, Tree]:
    """The newest checkpoint, in the structure and placement of `like`.

    Raises:
        InputError: if there is none, or it is damaged or of another run (other shapes, another system).
    """
    import orbax.checkpoint as ocp

    t = latest(folder)
    if t is None:
        raise InputError(f"resume: {folder} holds no checkpoint to go on from.")
    leaves, structure = jax.tree.flatten(like)
    want = {str(i): jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for i, a in enumerate(leaves)}
    with _manager(folder) as manager:
        try:
            found = manager.item_metadata(t)
            have = {name: (tuple(a.shape), np.dtype(a.dtype)) for name, a in found.items()}
        except Exception as error:
            raise InputError(f"resume: the checkpoint of round {t} in {folder} is damaged: {_first(error)}.") from error
        if have != {name: (a.shape, np.dtype(a.dtype)) for name, a in want.items()}:
            raise InputError(f"resume: the checkpoint in {folder} is of another run: its arrays have other shapes.")
        try:
            read = manager.restore(t, args=ocp.args.StandardRestore(want))
        except Exception as error:
            raise InputError(f"resume: the checkpoint of round {t} in {folder} is damaged: {_first(error)}.") from error
    return t, jax.tree.unflatten(structure, [read[str(i)] for i in range(len(leaves))])


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120].rstrip(".")
