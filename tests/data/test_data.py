import gzip
import struct
import zipfile

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxfl import data
from jaxfl.data import sets, synthetic
from jaxfl.errors import InputError

# from_arrays and split


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0, 0.9), st.integers(0, 99))
def test_a_split_is_stratified_complete_and_deterministic(labels, fraction, seed):
    y = np.array(labels)
    train, test = sets.split(y, fraction, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(len(y)))
    assert len(test) == min(int(np.ceil(fraction * len(y) - 1e-9)), len(y) - 1)
    share = np.bincount(y, minlength=5) * len(test) / len(y)
    assert np.abs(np.bincount(y[test], minlength=5) - share).max() < 1
    np.testing.assert_array_equal(test, sets.split(y, fraction, seed)[1])


def test_splits_of_two_seeds_differ_and_real_targets_are_split_at_random():
    y = np.arange(100) % 2
    assert not np.array_equal(sets.split(y, seed=0)[1], sets.split(y, seed=1)[1])
    train, test = sets.split(y.astype(float), 0.25, 3)
    assert (len(train), len(test)) == (75, 25)


def test_from_arrays_types_groups_and_order():
    x = np.arange(20, dtype=np.float64).reshape(10, 2)
    y = [0, 1] * 5
    d = data.from_arrays(x, y, clients=list("ccaabbccaa"), test_fraction=0.4, seed=3, name="mine")
    assert (d.x.dtype, d.y.dtype, d.clients.dtype) == (np.float32, np.int32, np.int32)
    assert (d.x.shape, d.test_x.shape, d.classes, d.name) == ((6, 2), (4, 2), 2, "mine")
    assert d.client_names == ["a", "b", "c"]
    row = (d.x[:, 0] / 2).astype(int)  # every sample kept its label and its key
    np.testing.assert_array_equal(d.y, np.array(y)[row])
    assert [d.client_names[g] for g in d.clients] == ["ccaabbccaa"[i] for i in row]
    assert not np.array_equal(d.x, data.from_arrays(x, y, test_fraction=0.4, seed=4).x)

    real = data.from_arrays(x, np.ones(10), x[:3], np.ones(3))
    assert (real.classes, real.y.dtype, len(real.test_x)) == (None, np.float32, 3)
    ids = data.from_arrays(x.astype(int), y, x[:1].astype(int), [1], classes=5, tokens=True)
    assert (ids.x.dtype, ids.test_x.dtype, ids.classes) == (np.int32, np.int32, 5)
    arguments = data.from_arrays(x, y, x, y, clients=[2] * 10, client_names=["p", "q", "r"])
    assert (arguments.client_names, set(arguments.clients)) == (["p", "q", "r"], {2})
    assert len(data.from_arrays(x, y, test_fraction=0).test_x) == 0


X, Y = np.ones((6, 2)), np.array([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": np.where(X * [[1, 0]] == 0, np.nan, X)}, "x holds .* NaN or infinite"),
        ({"x": X * 1e300}, "x holds .* NaN or infinite"),
        ({"test_x": X * np.inf, "test_y": Y}, "test_x holds 12 NaN"),
        ({"y": Y * np.nan}, "y holds .* NaN"),
        ({"y": Y - 1}, "y holds labels from -1 to 1, allowed are 0"),
        ({"classes": 2}, "labels from 0 to 2, allowed are 0 to 1"),
        ({"classes": 0}, "classes=0"),
        ({"test_x": X, "test_y": Y + 1, "classes": 3}, "test_y holds labels from 1 to 3"),
        ({"y": Y + 0.5, "classes": 3}, "labels must be integers"),
        ({"y": Y[:5]}, "x has 6 samples and y has 5"),
        ({"test_x": X, "test_y": Y[:5]}, "test_x has 6 samples and test_y has 5"),
        ({"test_x": X[:, :1], "test_y": Y}, r"sample shape \(1,\)"),
        ({"test_x": X}, "given together"),
        ({"x": X[:0], "y": Y[:0]}, "neither may be empty"),
        ({"x": X[:, :0]}, "neither may be empty"),
        ({"x": [[1, 2], [3]], "y": [0, 1]}, "differ in shape"),
        ({"y": list("abcdef")}, "must hold numbers"),
        ({"x": 3.0}, "leading axis"),
        ({"tokens": True}, "tokens=True"),
        ({"x": -X.astype(int), "tokens": True}, "tokens from -1 to -1"),
        ({"clients": [0, 1]}, r"clients has shape \(2,\)"),
        ({"clients": [0, 1, 2, 0, 1, 2], "client_names": ["a", "b"]}, "keys from 0 to 2, allowed are 0 to 1"),
        ({"clients": list("abcabc"), "client_names": ["a", "b", "c"]}, "must hold integers"),
        ({"clients": ["a", None, "b", None, "a", "b"]}, "no key for 2 samples, the first is sample 1"),
        ({"clients": [0.0, 1.0, 2.0, np.nan, 1.0, 2.0]}, "no key for 1 samples, the first is sample 3"),
        ({"clients": np.array(["a", 1, "b", 1, "a", "b"], object)}, "types int, str, they must be sortable"),
        ({"test_fraction": 1.0}, "test_fraction=1.0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_arrays_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        data.from_arrays(**({"x": X, "y": Y} | arguments))


# Hugging Face stand-in


class Columns(dict):
    class Label:
        num_classes = 7

    @property
    def features(self):
        return {"label": Columns.Label(), "image": None}


def test_from_hugging_face_reads_columns():
    pixels = np.arange(10 * 4, dtype=np.uint8).reshape(10, 2, 2)
    ds = Columns(image=list(pixels), label=[0, 1] * 5, writer=list("ababababab"), ids=[[1, 2]] * 10, score=[0.5] * 10)
    d = data.from_hugging_face(ds, clients="writer", test_fraction=0.3, seed=1, name="hf")
    assert (d.x.shape, d.test_x.shape, d.classes, d.name) == ((7, 2, 2), (3, 2, 2), 7, "hf")
    np.testing.assert_array_equal(d.clients, d.y)
    np.testing.assert_allclose(np.sort(np.concatenate([d.x, d.test_x])[:, 0, 0]), np.arange(0, 40, 4) / 255, rtol=1e-6)
    given = data.from_hugging_face(ds, test=ds)
    np.testing.assert_allclose(given.test_x, pixels / 255, rtol=1e-6)
    tokens = data.from_hugging_face(ds, x="ids", y="score", tokens=True)
    assert (tokens.x.dtype, tokens.classes) == (np.int32, None)
    assert data.from_hugging_face(dict(ds)).classes == 2
    for missing in (None, float("nan"), pd.NA):
        frame = pd.DataFrame({"image": [0.5] * 4, "label": [0, 1] * 2, "writer": ["a", missing, "b", "a"]})
        with pytest.raises(InputError, match="no key for 1 samples, the first is sample 1"):
            data.from_hugging_face(frame, clients="writer")
    with pytest.raises(InputError, match="no column 'picture'"):
        data.from_hugging_face(ds, x="picture")
    with pytest.raises(InputError, match="'image' must hold rows of one shape"):
        data.from_hugging_face({"image": [[1], [1, 2]], "label": [0, 1]})


# bundled images


def test_digits_and_mnist5k_have_the_promised_sizes():
    for d, train, test, features in ((data.digits(), 1437, 360, 64), (data.mnist5k(), 4000, 1000, 784)):
        assert (d.x.shape, d.test_x.shape, d.classes) == ((train, features), (test, features), 10)
        assert (d.x.dtype, d.x.min(), d.x.max()) == (np.float32, 0, 1)
        share = np.bincount(d.test_y) / np.bincount(np.concatenate([d.y, d.test_y]))
        assert np.abs(share - 0.2).max() < 0.01
        assert d.clients is None
    np.testing.assert_array_equal(np.bincount(d.y), 400)


# IDX


def idx(code, shape, body):
    return bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + body


def test_idx_files_by_hand(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(idx(8, (2, 1, 3), bytes([1, 2, 3, 4, 5, 255])))
    np.testing.assert_array_equal(sets.read_idx(path), [[[1, 2, 3]], [[4, 5, 255]]])
    path.write_bytes(gzip.compress(idx(0x0C, (2,), struct.pack(">2i", -7, 70000))))
    np.testing.assert_array_equal(sets.read_idx(path), [-7, 70000])
    path.write_bytes(idx(0x0D, (2,), struct.pack(">2f", 0.5, -2.0)))
    assert sets.read_idx(path).tolist() == [0.5, -2.0]
    for raw, message in (
        (idx(8, (2, 2), b"abc"), r"holds 3 bytes of data, its header of shape \(2, 2\) asks for 4"),
        (b"\x89PNG....", "not an IDX file"),
        (b"", "missing"),
        (bytes([0, 0, 8, 3, 0]), "not an IDX file"),
        (gzip.compress(idx(8, (1,), b"a"))[:-6], "damaged gzip"),
    ):
        path.write_bytes(raw)
        with pytest.raises(InputError, match=message):
            sets.read_idx(path)


def test_fashion_mnist_reads_four_files_plain_or_gzipped(tmp_path):
    images, labels = bytes(range(24)), bytes([9, 0, 3])
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(8, (3, 2, 4), images)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(8, (3,), labels))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(8, (1, 2, 4), images[:8]))
    with pytest.raises(InputError, match=r"no t10k-labels-idx1-ubyte.*install the Debian package"):
        data.fashion_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(8, (1,), b"\x02")))
    d = data.fashion_mnist(tmp_path)
    np.testing.assert_allclose(d.x, np.arange(24).reshape(3, 8) / 255, rtol=1e-6)
    assert (d.y.tolist(), d.test_y.tolist(), d.test_x.shape, d.classes) == ([9, 0, 3], [2], (1, 8), 10)


# MovieLens

RATINGS = [(7, 30, 5, 3), (7, 20, 4, 1), (7, 10, 1, 2), (3, 20, 2, 9), (7, 11, 3, 4), (7, 12, 3, 5)]


def test_movielens_by_user_in_both_formats(tmp_path):
    plain = "\n".join("\t".join(map(str, row)) for row in RATINGS)
    recbole = "item_id:token\tuser_id:token\trating:float\ttimestamp:float\n"
    recbole += "\n".join(f"{i}\t{u}\t{r}\t{t}" for u, i, r, t in RATINGS)
    (tmp_path / "ml-100k").mkdir()
    (tmp_path / "ml-100k" / "u.data").write_text(plain)
    wheel = tmp_path / "r.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("recbole/ml-100k/ml-100k.inter", recbole)
        archive.writestr("recbole/code.py", "raise SystemExit")
    for source in (tmp_path / "ml-100k", tmp_path / "ml-100k" / "u.data", wheel):
        d = data.movielens(source)  # the latest of user 7's five ratings is the test set
        assert (d.test_x.tolist(), d.test_y.tolist(), d.client_names) == ([[1, 2]], [3.0], [3, 7])
        assert d.x.tolist() == [[0, 3], [1, 3], [1, 0], [1, 4], [1, 1]]
        assert (d.y.tolist(), d.y.dtype, d.x.dtype) == ([2, 4, 1, 5, 3], np.float32, np.int32)
        assert (d.clients.tolist(), d.classes) == ([0, 1, 1, 1, 1], None)
    assert len(data.movielens(wheel, test_fraction=0.6).test_x) == 3
    for raw in ("", "1\t2\t3", "1\t2\t3\tx", "1\t2\tnan\t4", "1\t2\t3\t4\n5"):
        (tmp_path / "u.data").write_text(raw)
        with pytest.raises(InputError, match=r"u.data"):
            data.movielens(tmp_path / "u.data")
    (tmp_path / "ml-100k.inter").write_text("user_id\trating")
    with pytest.raises(InputError, match="must have user_id, item_id, rating, timestamp"):
        data.movielens(tmp_path / "ml-100k.inter")
    with pytest.raises(InputError, match="test_fraction=1"):
        data.movielens(wheel, test_fraction=1)
    with pytest.raises(InputError, match="must be a folder, a zip"):
        data.movielens(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"neither u.data nor ml-100k.inter"):
        data.movielens(tmp_path / "empty")


# synthetic


def test_quadratics_have_the_stated_curvature_and_optimum():
    q = synthetic.gaussian_quadratics(200, 6, mu=0.7, L=3.0, spread=2.0, seed=4)
    A, b = q.A.astype(np.float64), q.b.astype(np.float64)
    assert (q.A.dtype, q.b.dtype, q.optimum.dtype) == (np.float32, np.float32, np.float64)
    np.testing.assert_array_equal(q.A, q.A.transpose(0, 2, 1))
    np.testing.assert_allclose(np.einsum("nij,nj->i", A, q.optimum - b) / 200, 0, atol=1e-12)
    values = np.linalg.eigvalsh(A)
    assert 0.7 - 1e-5 < values.min() < 0.72
    assert 2.98 < values.max() < 3.0 + 1e-5
    assert values.mean() == pytest.approx((0.7 + 3.0) / 2, rel=0.02)
    assert values.var() == pytest.approx((3.0 - 0.7) ** 2 / 12, rel=0.05)
    assert b.std() == pytest.approx(2.0, rel=0.05)
    np.testing.assert_allclose(A.mean(0), 1.85 * np.eye(6), atol=0.12)  # bases are uniform
    assert not np.array_equal(q.A, synthetic.gaussian_quadratics(200, 6, mu=0.7, L=3.0, seed=5).A)
    assert not synthetic.gaussian_quadratics(3, 2, spread=0.0).optimum.any()
    for arguments, message in (({"n": 0}, "n=0"), ({"d": 0}, "d=0"), ({"mu": 0.0}, "mu=0.0"), ({"L": 0.1}, "L=0.1")):
        with pytest.raises(InputError, match=message):
            synthetic.gaussian_quadratics(**({"n": 3, "d": 2} | arguments))
    with pytest.raises(InputError, match="spread=-1"):
        synthetic.gaussian_quadratics(3, 2, spread=-1)


def dissimilarity(d):
    """Mean squared distance of the nodes' softmax gradients at 0 from their mean."""
    grads = []
    for g in range(len(d.client_names)):
        x, y = d.x[d.clients == g].astype(np.float64), d.y[d.clients == g]
        grads.append(x.T @ (1 / d.classes - np.eye(d.classes)[y]) / len(y))
    grads = np.array(grads)
    return ((grads - grads.mean(0)) ** 2).sum((1, 2)).mean()


def test_fedprox_sizes_and_means():
    d = synthetic.synthetic_fedprox(0.5, 2.0, 200, 1, cap=100, test_fraction=0.1)
    size = np.bincount(d.clients)
    assert len(size) == 200
    assert size.min() >= 45  # int(lognormal) + 50, a tenth of it held out
    assert size.max() == 90
    assert len(d.test_y) == pytest.approx(len(d.y) / 9, rel=0.15)
    free = synthetic.synthetic_fedprox(0.5, 2.0, 200, 1)
    drawn = np.bincount(free.clients) / 0.9 - 50
    assert np.log(np.median(drawn)) == pytest.approx(4, abs=0.5)  # of lognormal(4, 2)
    assert np.bincount(free.clients).max() > 1000
    means = np.array([d.x[d.clients == g].mean(0) for g in range(200)])
    assert means.mean(1).std() == pytest.approx(2.0, rel=0.15)  # B_k
    assert means.std(1).mean() == pytest.approx(1.0, rel=0.1)  # v_k within a node
    residual = d.x - means[d.clients]
    np.testing.assert_allclose(residual.var(0), np.arange(1, 61) ** -1.2, rtol=0.1)


def test_fedprox_heterogeneity_grows_with_beta_and_alpha_cancels():
    made = [synthetic.synthetic_fedprox(v, v, seed=2, cap=300) for v in (0.0, 0.5, 1.0, 3.0)]
    same = synthetic.synthetic_fedprox(0.0, 0.0, seed=2, iid=True, cap=300)
    values = [dissimilarity(d) for d in (same, *made)]
    assert values == sorted(values)
    assert values[1] > 5 * values[0]
    assert same.name == "synthetic(0, 0, iid)"
    np.testing.assert_allclose(same.x.mean(0), 0, atol=0.06)
    # u_k adds the same to the logits of all classes
    other = synthetic.synthetic_fedprox(5.0, 1.0, seed=2, cap=300)
    np.testing.assert_array_equal(other.x, made[2].x)
    np.testing.assert_array_equal(other.y, made[2].y)
    small = synthetic.synthetic_fedprox(nodes=3, dim=4, classes=3, test_fraction=0.0, seed=1)
    assert (small.x.shape[1], small.classes, len(small.test_x), len(small.client_names)) == (4, 3, 0, 3)
    for name, value in (("alpha", -1), ("beta", -1), ("nodes", 0), ("dim", 0), ("classes", 0), ("cap", 0)):
        with pytest.raises(InputError, match=f"{name}={value}"):
            synthetic.synthetic_fedprox(**{name: value})
    with pytest.raises(InputError, match="test_fraction=1"):
        synthetic.synthetic_fedprox(test_fraction=1)


def test_sparse_features_are_sparse_rescaled_and_topical():
    d = synthetic.sparse_features(400, 30, 10, seed=1)
    assert (d.x.shape, d.test_x.shape, d.classes) == ((12000, 210), (4000, 210), 5)
    np.testing.assert_array_equal(np.bincount(d.clients), 30)
    assert d.x[:, :10].std() == pytest.approx(2.0, rel=0.02)
    binary = d.x[:, 10:]
    np.testing.assert_allclose((binary**2).sum(1), 1, rtol=1e-5)
    frequency = (binary > 0).mean(0)
    assert frequency[:5].mean() > 0.4
    assert frequency[-50:].mean() < 0.02
    by_node = np.array([(binary[d.clients == g] > 0).mean(0) for g in range(400)])[:, 20:40]
    independent = (by_node.mean(0) * (1 - by_node.mean(0)) / 30).mean()
    assert by_node.var(0).mean() > 2 * independent  # nodes differ by more than sampling
    assert set(d.y) == set(range(5))
    control = synthetic.sparse_features(5, 6, 0, 2, dense=False, features=50, classes=3, topics=2)
    assert (control.x.shape, control.test_x.shape, control.classes) == ((30, 50), (0, 50), 3)
    assert control.name == "sparse_features, no dense"
    for name, value in (("n", 0), ("samples", 0), ("test_samples", -1), ("features", 0), ("classes", 0), ("topics", 0)):
        with pytest.raises(InputError, match=f"{name}={value}"):
            synthetic.sparse_features(**{name: value})


def test_linear_regression_clients_have_their_own_models():
    d = synthetic.linear_regression_clients(200, 80, 5, spread=1.5, noise=0.3, seed=1, test_samples=7)
    assert (d.x.shape, d.test_x.shape, d.classes) == ((16000, 5), (1400, 5), None)
    fits, rests = [], []
    for g in range(200):
        x, y = d.x[d.clients == g], d.y[d.clients == g]
        w, rest, *_ = np.linalg.lstsq(x, y)
        fits.append(w)
        rests.append(rest[0] / (80 - 5))
    assert np.std(fits, axis=0).mean() == pytest.approx(1.5, rel=0.06)
    assert np.sqrt(np.mean(rests)) == pytest.approx(0.3, rel=0.03)
    same = synthetic.linear_regression_clients(3, 20, 5, 0.0, 0.0)
    w = np.linalg.lstsq(same.x, same.y)[0]
    np.testing.assert_allclose(same.x @ w, same.y, atol=1e-5)
    for name, value in (("n", 0), ("samples", 0), ("d", 0), ("spread", -1), ("noise", -1), ("test_samples", -1)):
        with pytest.raises(InputError, match=f"{name}={value}"):
            synthetic.linear_regression_clients(**{name: value})
