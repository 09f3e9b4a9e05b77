"""Models in files: bit for bit, readable by NumPy alone, damaged ones refused in a sentence."""

import json
import pickle
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.engine.saved import load_model, save_model
from jaxfl.errors import InputError
from jaxfl.learn.layers import layers
from jaxfl.learn.task import logistic_regression, quadratic

TASK = logistic_regression(3, 2)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("lead", [(), (4,)])
def test_a_model_comes_back_bit_for_bit(tmp_path, dtype, lead):
    bits = np.random.default_rng(0).integers(0, 256, (*lead, 8 * jnp.dtype(dtype).itemsize), np.uint8)
    row = bits.view(jnp.dtype(dtype))  # NaN with their payloads too
    save_model(tmp_path / "m.npz", TASK, row, system="fedavg", round=7)
    got = load_model(tmp_path / "m.npz")
    assert got.row.dtype == row.dtype
    assert got.row.tobytes() == row.tobytes()
    assert got.row.shape == (*lead, 8)
    assert got.layers == layers(TASK)
    assert got.about | {"jaxfl": ""} == {"jaxfl": "", "system": "fedavg", "round": 7}
    assert [p.name for p in tmp_path.iterdir()] == ["m.npz"]


def test_layers_have_their_names_also_for_numpy_alone(tmp_path):
    row = jax.random.normal(jax.random.key(0), (8,))
    save_model(tmp_path / "m.npz", layers(TASK), row)
    params, got = TASK.unravel(row), load_model(tmp_path / "m.npz").named()
    with np.load(tmp_path / "m.npz", allow_pickle=False) as plain:
        assert sorted(got) == sorted(params) == sorted(name for name in plain.files if name != "model.json")
        for name, layer in params.items():
            np.testing.assert_array_equal(plain[name], layer)
            np.testing.assert_array_equal(got[name], layer)
    with zipfile.ZipFile(tmp_path / "m.npz") as file:
        assert json.loads(file.read("model.json"))["layers"][1] == {"path": "kernel", "shape": [3, 2]}
    save_model(tmp_path / "m.npz", quadratic(3), jnp.ones(3))  # a bare array replaces it
    assert load_model(tmp_path / "m.npz").named().keys() == {""}


def test_no_damage_passes_unseen(tmp_path):
    path, row = tmp_path / "m.npz", np.arange(8, dtype=np.float32)
    save_model(path, TASK, row, note="x" * 40)
    whole, refused = path.read_bytes(), []
    tried = [whole[:i] + bytes([whole[i] ^ 255]) + whole[i + 1 :] for i in range(0, len(whole), 7)]
    tried += [whole[: len(whole) // 2], b"", whole[:-1]]
    for bad in tried:
        path.write_bytes(bad)
        try:
            got = load_model(path)
        except InputError as error:
            refused.append(str(error))
        else:  # what the damage hit is no part of the model: a date, an attribute of the archive
            np.testing.assert_array_equal(got.row, row)
            assert got.about["note"] == "x" * 40
    assert all(says.startswith(f"path: {path} ") and "\n" not in says for says in refused)
    assert len(refused) > len(tried) / 2


def test_another_file_and_pickled_code_are_refused(tmp_path):
    path = tmp_path / "m.npz"
    with pytest.raises(InputError, match="cannot be read"):
        load_model(path)
    np.savez(path, row=np.ones(8))
    with pytest.raises(InputError, match="is no model of `save_model`"):
        load_model(path)
    save_model(path, TASK, np.ones(8))
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}

    class Runs:
        def __reduce__(self):
            return (pytest.fail, ("code of a file was run",))

    with zipfile.ZipFile(path, "w") as file:
        for name, part in parts.items():
            odd = np.lib.format.magic(1, 0) + b"v\x00{'descr': '|O', 'fortran_order': False, 'shape': (2,), }"
            file.writestr(name, part if name != "bias.npy" else odd.ljust(127) + b"\n" + pickle.dumps(Runs()))
    with pytest.raises(InputError, match="damaged"):
        load_model(path)
    changed = ("nodes", 3), ("dtype", "float32"), ("dtype", "int64"), ("format", "other"), ("layers", 1), ("about", [1])
    for key, value in changed:
        with zipfile.ZipFile(path, "w") as file:
            for name, part in parts.items():
                text = json.dumps(json.loads(part) | {key: value}) if name == "model.json" else part
                file.writestr(name, text)
        with pytest.raises(InputError, match="damaged"):
            load_model(path)


@pytest.mark.parametrize(
    ("model", "row", "about", "says"),
    [
        (TASK, np.ones(7), {}, r"row is float64\[7\], but must be floats \[8\], or \[n, 8\]"),
        (TASK, np.ones(8, int), {}, "row is int64"),
        (TASK, np.ones((1, 2, 8)), {}, "row is float64"),
        ([], np.ones(8), {}, "model must be a Task"),
        ([*layers(TASK), *layers(TASK)], np.ones(8), {}, "two layers of one path"),
        (TASK, np.ones(8), {"note": {1, 2}}, "about is"),
    ],
)
def test_what_cannot_be_saved_is_a_sentence(tmp_path, model, row, about, says):
    with pytest.raises(InputError, match=says):
        save_model(tmp_path / "m.npz", model, row, **about)
    assert not list(tmp_path.iterdir())
