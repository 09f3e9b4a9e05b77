"""A model to take home: one file of named layers that loads without running code, with NumPy alone if need be.

The file is an npz: an array a layer, named by its path ("conv1/kernel"), as `numpy.load` reads it (16-bit floats of
`ml_dtypes` as their bits), and `model.json` with names, shapes, type and what else was said of the model.
"""

import io
import json
import math
import zipfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array
from jaxfl.engine.checkpoint import as_bits
from jaxfl.engine.disk import disk_error
from jaxfl.errors import InputError
from jaxfl.learn.layers import Layer, layers
from jaxfl.learn.task import Task

HEADER = "model.json"
FORMAT = "jaxfl model 1"


class Model(NamedTuple):
    """What `load_model` reads."""

    row: np.ndarray  # [d], or [n, d] one a node; to a tree by `task.unravel(row)`
    layers: list[Layer]  # where each layer is in the row
    about: dict[str, Any]  # version of jaxfl, and what was given to `save_model`

    def named(self) -> dict[str, np.ndarray]:
        """The layers by path, each of its shape, with a leading axis of nodes where the row has one."""
        lead = self.row.shape[:-1]
        return {a.path: self.row[..., a.start : a.stop].reshape(*lead, *a.shape) for a in self.layers}


def save_model(path: str | Path, model: Task | Sequence[Layer], row: Array | np.ndarray, **about: Any) -> None:
    """Write a model row; a file of that name is replaced when the new one is whole.

    Args:
        path: the file, by custom `.npz`.
        model: the task of the model, or the places of its layers, `learn.layers.layers(task)`.
        row: `[d]`, or `[n, d]` for models of many nodes; floats of any type, which come back bit for bit.
        about: what else to keep: system, round, seed, ...; strings, numbers, lists and dicts of such.

    Raises:
        InputError: `model` is neither, `row` is of another shape or of integers, `about` is no JSON, two layers of one
            path, or a full disk.
    """
    places = layers(model) if isinstance(model, Task) else list(model)
    if not places or not all(isinstance(place, Layer) for place in places):
        raise InputError("model must be a Task, or the list of its layers, `learn.layers.layers(task)`.")
    rows, dim = np.asarray(row), places[-1].stop
    if rows.ndim not in (1, 2) or rows.shape[-1] != dim or not jnp.issubdtype(rows.dtype, jnp.floating):
        raise InputError(f"row is {rows.dtype}{list(rows.shape)}, but must be floats [{dim}], or [n, {dim}].")
    if len({place.path for place in places}) < len(places):
        raise InputError(f"model has two layers of one path: {', '.join(place.path for place in places)}.")
    header = {
        "format": FORMAT,
        "jaxfl": version("jaxfl"),
        "dtype": str(rows.dtype),
        "nodes": rows.shape[0] if rows.ndim == 2 else None,
        "layers": [{"path": place.path, "shape": list(place.shape)} for place in places],
        "about": about,
    }
    try:
        text = json.dumps(header, indent=1)
    except (TypeError, ValueError) as error:
        raise InputError(f"about is {about}, but must be strings, numbers, lists and dicts ({error}).") from error
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    try:
        with zipfile.ZipFile(part, "w") as file:
            file.writestr(HEADER, text)
            for name, layer in Model(rows, places, {}).named().items():
                made = io.BytesIO()
                np.lib.format.write_array(made, as_bits(layer), allow_pickle=False)
                file.writestr(_entry(name), made.getbuffer())
        part.replace(path)
    except OSError as error:
        raise disk_error(path, error) from error


def load_model(path: str | Path) -> Model:
    """Read a file of `save_model`, bit for bit what was saved.

    Raises:
        InputError: there is no such file, or it is another one, or damaged.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as file:
            header = json.loads(file.read(HEADER))
            dtype, places, parts, start = jnp.dtype(header["dtype"]), [], [], 0
            if header["format"] != FORMAT or not jnp.issubdtype(dtype, jnp.floating):
                raise ValueError(f"its format is {header['format']!r}, its type {dtype}")
            lead = () if header["nodes"] is None else (int(header["nodes"]),)
            for layer in header["layers"]:
                shape = tuple(map(int, layer["shape"]))
                a = np.lib.format.read_array(io.BytesIO(file.read(_entry(layer["path"]))), allow_pickle=False)
                parts.append(a.view(dtype).reshape(*lead, math.prod(shape)))
                places.append(Layer(layer["path"], start, start + math.prod(shape), shape))
                start = places[-1].stop
            return Model(np.concatenate(parts, -1), places, {"jaxfl": header["jaxfl"]} | header["about"])
    except OSError as error:
        raise InputError(f"path: {path} cannot be read ({error.strerror or error}).") from error
    except Exception as error:  # of a file of any bytes
        says = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(f"path: {path} is no model of `save_model`, or damaged ({says}).") from error


def _entry(path: str) -> str:
    return f"{path or 'row'}.npy"  # a task of one bare array has one layer without a path
