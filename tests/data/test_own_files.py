"""Files, folders of images, and the data sets of other libraries by what they look like."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from jaxfl import data
from jaxfl.errors import InputError

RNG = np.random.default_rng(0)


def picture(path, size=(6, 4), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    image = Image.fromarray(RNG.integers(0, 256, shape, np.uint8), mode)
    image.save(path)
    return image


# npz


def test_arrays_come_with_their_own_test_set_and_keys(tmp_path):
    x, y = RNG.integers(0, 256, (6, 2, 2), np.uint8), np.arange(6) % 2
    np.savez(tmp_path / "a.npz", x=x, y=y, test_x=x[:2], test_y=y[:2], clients=list("aabbcc"), test_clients=["c", "a"])
    d = data.from_file(tmp_path / "a.npz")
    np.testing.assert_allclose(d.x, x / 255, rtol=1e-6)
    assert (d.task, d.name, d.client_names, d.test_clients.tolist()) == (
        "classification",
        "a.npz",
        ["a", "b", "c"],
        [2, 0],
    )
    np.savez(tmp_path / "t.npz", x=RNG.integers(0, 9, (10, 4)), y=RNG.integers(0, 9, (10, 4)))
    assert data.from_file(tmp_path / "t.npz").task == "language_model"
    np.savez(tmp_path / "n.npz", x=x, y=np.arange(6) * 1000)
    with pytest.raises(InputError, match=r"n.npz: y holds labels from . to 5000, .* numbers need task='regression'"):
        data.from_file(tmp_path / "n.npz")
    assert data.from_file(tmp_path / "n.npz", task="regression").y.dtype == np.float32


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": [[1.0]]}, "bad.npz has no array 'y', only x"),
        ({"x": [[1.0]], "y": [0], "labels": [0]}, "has an array 'labels', allowed are x, y, test_x"),
        ({"x": [[1.0]], "y": np.array([{}], object)}, "cannot be read as arrays of numbers"),
        ({"x": [[np.nan]], "y": [0]}, "bad.npz: x holds 1 NaN"),
        (None, "cannot be read as arrays of numbers"),
    ],
)
def test_bad_arrays(arrays, says, tmp_path):
    path = tmp_path / "bad.npz"
    path.write_bytes(b"PK of nothing") if arrays is None else np.savez(path, **arrays)
    with pytest.raises(InputError, match=says):
        data.from_file(path)


# tables


def test_lines_of_a_csv_are_named(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("\ufeffa,b,y\n1,u,0.5\n2,v,1.5\nx,u,2.5\n4,v,0.5\n")
    with pytest.raises(InputError, match=r"t.csv: column 'a' holds 'x' in line 4, among numbers"):
        data.from_file(path, "y")
    assert data.from_file(path, "y", features=["b"]).x.shape == (3, 2)
    path.write_text('a,y\n"1\n2",0.5\n,1.5\n')
    with pytest.raises(InputError, match="column 'a' has no value in 1 of 2 rows, first in row 2"):
        data.from_file(path, "y")
    path.write_text("a,a,y\n1,2,3\n2,3,4\n")
    with pytest.raises(InputError, match="has two columns 'a'"):
        data.from_file(path, "y")
    for text, says in (("", "cannot be read as a table"), ('a,y\n"1,2\n', "cannot be read as a table")):
        path.write_text(text)
        with pytest.raises(InputError, match=says):
            data.from_file(path, "y")
    path.write_text("a,y\n1,2\n")
    with pytest.raises(InputError, match=r"target is missing: it names a column of t.csv: a, y"):
        data.from_file(path)


def test_a_parquet_file_is_a_table(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    path.write_bytes(b"no parquet")
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0], "y": [0.5, 1.5, 2.5]}, index=[7, 8, 9])
    monkeypatch.setattr(pd, "read_parquet", lambda path: frame)
    assert data.from_file(path, "y").x.shape == (2, 1)

    def missing(path):
        raise ImportError("Unable to find a usable engine")

    monkeypatch.setattr(pd, "read_parquet", missing)
    with pytest.raises(
        InputError, match=r"^t.parquet needs pyarrow, which is not installed: pip install 'jaxfl\[data\]'.$"
    ):
        data.from_file(path, "y")


def test_what_a_file_does_not_read_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=[[1.0]], y=[0])
    for path, arguments, says in (
        ("a.npz", {"target": "y"}, "target is y, but a.npz has no columns"),
        ("a.npz", {"size": 8}, "size is 8, but a.npz holds no image files"),
        ("b.npz", {}, "there is no file"),
        ("b.txt", {}, "neither a folder nor a file"),
        ("", {"task": "regression"}, "is a folder of classes"),
    ):
        with pytest.raises(InputError, match=says):
            data.from_file(tmp_path / path, **arguments)


# images


def test_images_are_those_of_pillow(tmp_path):
    kept = [picture(tmp_path / c / f"{i}.png") for c in ("b", "a") for i in range(3)]
    (tmp_path / "notes.txt").write_text("beside the classes")
    (tmp_path / "a" / ".hidden.png").write_text("left out")
    d = data.from_image_folder(tmp_path, test_fraction=0)
    want = np.stack([np.asarray(i) for i in kept[3:] + kept[:3]]) / 255
    np.testing.assert_allclose(d.x, want, rtol=1e-6)
    assert (d.x.shape, d.class_names, d.y.tolist()) == ((6, 4, 6, 3), ["a", "b"], [0, 0, 0, 1, 1, 1])
    small = data.from_image_folder(tmp_path, (2, 3), test_fraction=0).x[0]
    np.testing.assert_allclose(small, np.asarray(kept[3].resize((3, 2), Image.Resampling.BILINEAR)) / 255, rtol=1e-6)
    picture(tmp_path / "a" / "9.png", (5, 4), "L")
    with pytest.raises(InputError, match=r"9.png has 4 x 5 pixels, but .*0.png has 4 x 6: .*--image-size"):
        data.from_image_folder(tmp_path)
    assert data.from_image_folder(tmp_path, 4).x.shape[1:] == (4, 4, 3)
    (tmp_path / "a" / "9.png").write_text("no image")
    with pytest.raises(InputError, match=r"9.png cannot be read as an image"):
        data.from_image_folder(tmp_path)


def test_folders_of_train_and_test(tmp_path):
    for split, names in (("train", "aabb"), ("test", "b")):
        for i, c in enumerate(names):
            picture(tmp_path / split / c / f"{i}.png", mode="L")
    d = data.from_image_folder(tmp_path)
    assert (d.x.shape, d.test_x.shape, d.test_y.tolist()) == ((4, 4, 6, 1), (1, 4, 6, 1), [1])
    picture(tmp_path / "test" / "c" / "0.png")
    with pytest.raises(InputError, match="holds the class 'c', which the train folder does not have"):
        data.from_image_folder(tmp_path)
    (tmp_path / "train" / "empty").mkdir()
    (tmp_path / "test" / "c" / "0.png").unlink()
    (tmp_path / "test" / "c").rmdir()
    with pytest.raises(InputError, match="empty holds no image"):
        data.from_image_folder(tmp_path)
    with pytest.raises(InputError, match="holds 1 class folders"):
        data.from_image_folder(tmp_path / "test")
    with pytest.raises(InputError, match="no such folder"):
        data.from_image_folder(tmp_path / "nowhere")


# other libraries


class Label:
    num_classes, names = 3, ["cat", "dog", "eel"]


class Columns(dict):
    @property
    def features(self):
        return {"label": Label()}


def test_hugging_face_splits_images_and_tables(tmp_path):
    images = [picture(tmp_path / f"{i}.png") for i in range(4)]
    undecoded = [{"bytes": (tmp_path / f"{i}.png").read_bytes(), "path": None} for i in range(4)]
    rows = Columns(image=images, label=[0, 1, 2, 0], who=list("abab"))
    ds = {"validation": rows, "train": Columns(rows, image=undecoded)}
    d = data.from_hugging_face(ds, clients="who")
    np.testing.assert_array_equal(d.x, d.test_x)
    np.testing.assert_allclose(d.x, np.stack(images) / 255, rtol=1e-6)
    assert (d.class_names, d.test_clients.tolist()) == (["cat", "dog", "eel"], [0, 1, 0, 1])
    table = {"age": [1, 2, 3, 4], "job": list("aabc"), "pay": [0.5, 1.5, 2.5, 3.5], "who": list("abab")}
    t = data.from_hugging_face({"train": table, "test": table}, ["age", "job"], "pay", clients="who")
    want = data.from_pandas(pd.DataFrame(table), "pay", "who", ["age", "job"], test=pd.DataFrame(table))
    np.testing.assert_array_equal(t.x, want.x)
    assert (t.task, t.client_names) == ("regression", ["a", "b"])
    for source, arguments, says in (
        ({"test": rows}, {}, "ds has the splits test, but no train"),
        (rows, {"x": "imag"}, "ds has no column 'imag': did you mean image"),
        (Columns(rows, image=[*images[:3], picture(tmp_path / "x.png", (3, 3))]), {}, "sample 3 has .*; size= resizes"),
        (Columns(rows, image=[{"bytes": b"no"}] * 4), {}, "2 bytes is no image"),
        (Columns(rows, image=list("abcd")), {}, "column 'image' holds 'a' in sample 0, it must hold numbers"),
        (rows, {"y": ["label", "who"]}, "several targets need a table"),
    ):
        with pytest.raises(InputError, match=says):
            data.from_hugging_face(source, **arguments)


class Tensor:
    """A tensor in a graph on a device, which NumPy cannot read before it is detached and copied."""

    def __init__(self, a, ready=False):
        self.a, self.ready = np.asarray(a), ready

    def detach(self):
        return Tensor(self.a, True)

    cpu = detach

    def numpy(self):
        assert self.ready
        return self.a


class Pairs:
    def __init__(self, *pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        return self.pairs[i]


def test_torch_by_what_it_looks_like():
    x = RNG.random((5, 3, 4, 6), np.float32)
    d = data.from_torch(Pairs(*[(Tensor(a), Tensor(i % 2)) for i, a in enumerate(x)]), test_fraction=0)
    np.testing.assert_array_equal(d.x, np.moveaxis(x, 1, 3))
    assert (d.y.tolist(), d.task) == ([0, 1, 0, 1, 0], "classification")
    picture = Image.fromarray(np.full((2, 2), 51, np.uint8))
    grey = data.from_torch(Pairs((picture, 0.5)), Pairs((picture, 1.5)))
    assert (grey.x.shape, grey.task, grey.test_y.tolist()) == ((1, 2, 2, 1), "regression", [1.5])
    np.testing.assert_allclose(grey.x, 0.2, rtol=1e-6)
    for ds, says in (
        (iter([1]), "must have a length"),
        (Pairs(1), r"ds\[0\] is a int, but must be a pair"),
        (Pairs(), "has no samples"),
        (Pairs((np.zeros(2), 0), (np.zeros(3), 0)), r"sample 0 has \[2\] and sample 1 has \[3\]"),
    ):
        with pytest.raises(InputError, match=says):
            data.from_torch(ds)


def test_bytes_are_decoded_by_pillow_alone():
    buffer = io.BytesIO()
    Image.fromarray(np.full((2, 2, 4), 255, np.uint8), "RGBA").save(buffer, "png")
    d = data.from_hugging_face({"image": [{"bytes": buffer.getvalue()}] * 2, "label": [0, 1]}, test_fraction=0)
    assert d.x.shape == (2, 2, 2, 3)
