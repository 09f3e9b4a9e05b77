import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxfl.data.cut import in_order
from jaxfl.data.partition import (
    _repair,
    by_client,
    dirichlet,
    feature_shift,
    iid,
    label_histogram,
    pathological,
    pooled,
    quantity_skew,
    resampled,
    rotate,
    shards,
)
from jaxfl.data.sets import digits, from_arrays
from jaxfl.errors import InputError


def make(count=400, classes=10, side=4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.random((count, side, side), np.float32)
    y = rng.permutation(np.arange(count) % classes)
    return from_arrays(x, y, x[:1], y[:1], classes=classes, clients=rng.integers(0, 7, count))


PARTITIONERS = {
    "iid": lambda d, n, s: iid(d, n, s),
    "dirichlet 0.01": lambda d, n, s: dirichlet(d, n, 0.01, s),
    "dirichlet 1, min 2": lambda d, n, s: dirichlet(d, n, 1.0, s, min_size=2),
    "dirichlet 100": lambda d, n, s: dirichlet(d, n, 100.0, s),
    "pathological 2": lambda d, n, s: pathological(d, n, 2, s),
    "lognormal": lambda d, n, s: quantity_skew(d, n, "lognormal", s, sigma=2.0),
    "power": lambda d, n, s: quantity_skew(d, n, "power", s, exponent=1.2, min_size=2),
    "rotation": lambda d, n, s: feature_shift(d, n, "rotation", s),
    "noise": lambda d, n, s: feature_shift(d, n, "noise", s),
}


def sizes(s):
    return np.asarray(s.size)


def owners(s):
    return np.repeat(np.arange(len(s.size)), sizes(s))[np.argsort(np.asarray(s.order))]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(PARTITIONERS)), st.integers(1, 200), st.integers(0, 2**32))
def test_every_sample_is_in_exactly_one_shard(name, n, seed):
    data = make()
    s = PARTITIONERS[name](data, n, seed)
    assert {a.dtype.name for a in (s.order, s.start, s.size)} == {"int32"}
    np.testing.assert_array_equal(np.sort(s.order), np.arange(400))
    np.testing.assert_array_equal(s.start, np.cumsum(sizes(s)) - sizes(s))
    assert s.start.shape == (n,)
    assert sizes(s).min() >= (2 if "min" in name or name == "power" else 1)
    assert type(s.longest) is int
    assert sizes(s).max() <= s.longest <= max(2 * sizes(s).max() - sizes(s).min(), sizes(s).max())
    np.testing.assert_array_equal(s.y, data.y)
    np.testing.assert_array_equal(label_histogram(s, 10).sum(0), np.bincount(data.y, minlength=10))


@pytest.mark.parametrize("name", sorted(PARTITIONERS))
def test_a_seed_fixes_the_shards_and_another_changes_them(name):
    data = make()
    one, same, other = (PARTITIONERS[name](data, 13, seed) for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(same), strict=True))
    assert not np.array_equal(owners(one), owners(other))


def test_shards_by_hand():
    data = from_arrays(np.arange(5.0)[:, None], [0, 1, 0, 1, 1], [[0.0]], [0])
    s = shards(data, np.array([1, 0, -1, 1, 0]))
    assert np.asarray(s.order).tolist() == [1, 4, 0, 3]
    assert np.asarray(s.start).tolist() == [0, 2]
    assert sizes(s).tolist() == [2, 2]
    assert s.longest == 2
    assert label_histogram(s, 3).tolist() == [[0, 2, 0], [1, 1, 0]]
    for owner, n in (([0, 1, 0, 1, 1], 3), ([0, 2, 0, 2, 2], None), ([0, 1, 0, 1, -2], 2), ([0, 1, 0, 1, 5], 2)):
        with pytest.raises(InputError, match="owner"):
            shards(data, np.array(owner), n)
    with pytest.raises(InputError, match="owner has shape"):
        shards(data, np.zeros(4, int))
    with pytest.raises(InputError, match="labels from 0 to 0"):
        label_histogram(s, 1)


def test_shards_keep_their_own_copy_of_the_samples():
    x = np.ones((4, 2), np.float32)
    data = from_arrays(x, [0, 1, 0, 1], x[:1], [0])
    s = iid(data, 2)
    x[:] = 7
    assert np.asarray(s.x).max() == 1


def test_iid_sizes_are_even_and_labels_close_to_the_marginal():
    data = make(4003)
    s = iid(data, 10, seed=1)
    assert set(sizes(s)) == {400, 401}
    # counts of a label are hypergeometric with mean 40 and standard deviation 5.7
    assert np.abs(label_histogram(s, 10) - 40).max() < 4.5 * 5.7


@pytest.mark.parametrize(("alpha", "low", "high"), [(0.01, 1, 2), (0.1, 2.5, 6), (100.0, 10, 10)])
def test_dirichlet_alpha_sets_how_many_labels_a_node_has(alpha, low, high):
    data = make(4000)
    h = np.stack([label_histogram(dirichlet(data, 20, alpha, seed), 10) for seed in range(5)])
    assert low <= (h > 0).sum(-1).mean() <= high
    if alpha == 100:
        assert np.abs(h / 20 - 1).max() < 0.5  # a share has relative standard deviation alpha^-0.5 = 0.1


def test_dirichlet_shares_have_the_moments_of_the_law():
    n, alpha = 10, 0.5
    data = make(4000, classes=4)
    share = np.concatenate([label_histogram(dirichlet(data, n, alpha, seed), 4) for seed in range(100)]) / 1000
    variance = (1 / n) * (1 - 1 / n) / (n * alpha + 1)  # of a Dirichlet(alpha 1_n) component
    assert share.mean() == pytest.approx(1 / n)
    assert share.var() == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize("alpha", [5e-324, 0.01, 0.3, 1.0, 100.0, 1e9])
def test_dirichlet_with_a_thousand_nodes_neither_hangs_nor_leaves_a_node_empty(alpha):
    data = make(4000, side=1)
    s = dirichlet(data, 1000, alpha, seed=2)
    assert sizes(s).sum() == 4000
    assert sizes(s).min() == 1
    full = dirichlet(data, 1000, alpha, seed=2, min_size=4)
    assert set(sizes(full)) == {4}


def test_repair_takes_from_the_largest_node_again_and_again():
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = int(rng.integers(2, 12))
        size = rng.integers(0, 30, n)
        size[0] += 40
        least = int(rng.integers(1, size.sum() // n + 1))
        owner = rng.permutation(np.repeat(np.arange(n), size))
        repaired = _repair(owner, n, least, rng.permutation(len(owner)))
        expected = size.copy()
        for i in np.flatnonzero(size < least):
            while expected[i] < least:
                expected[np.argmax(expected)] -= 1
                expected[i] += 1
        np.testing.assert_array_equal(np.bincount(repaired, minlength=n), expected)
        assert (repaired != owner).sum() == np.maximum(least - size, 0).sum()


def test_pathological_nodes_see_few_labels():
    data = make(4000)
    h = label_histogram(pathological(data, 50, 2, seed=3), 10)  # slices of 40, labels of 400: no slice has two
    assert (h > 0).sum(1).max() == 2
    assert set(h[h > 0].tolist()) == {40, 80}
    h = label_histogram(pathological(make(4003), 30, 3, seed=3), 10)  # nine borders between labels at most
    assert ((h > 0).sum(1) - 3).clip(0).sum() <= 9


def test_quantity_skew_laws():
    data = make(20_000, side=1)
    assert set(sizes(quantity_skew(data, 100, sigma=0.0))) == {200}
    logs = np.log(sizes(quantity_skew(data, 200, "lognormal", 1, sigma=0.8)) - 1.0 + 1e-9)
    assert logs.std() == pytest.approx(0.8, rel=0.2)
    heavy, light = (sizes(quantity_skew(data, 200, "power", 1, exponent=e)) for e in (1.5, 4.0))
    assert heavy.max() > 5 * light.max()
    # P(w > m) = m^(1 - exponent): the median weight is 2^(1 / (exponent - 1)), the smallest about 1
    assert np.median(light) / light.min() == pytest.approx(2 ** (1 / 3), rel=0.1)
    assert sizes(quantity_skew(data, 200, "power", 1, exponent=1.01, min_size=50)).min() == 50


def test_by_group_follows_the_natural_key():
    data = make()
    s = by_client(data)
    np.testing.assert_array_equal(owners(s), data.clients)
    counts = np.bincount(data.clients)
    least = int(np.sort(counts)[3])
    part = by_client(data, min_size=least)
    memory = np.flatnonzero(counts >= least)
    np.testing.assert_array_equal(sizes(part), counts[memory])
    np.testing.assert_array_equal(data.clients[np.asarray(part.order)[np.asarray(part.start)]], memory)
    gap = data._replace(clients=data.clients * 2)
    np.testing.assert_array_equal(owners(by_client(gap)), data.clients)
    with pytest.raises(InputError, match="clients=None"):
        by_client(data._replace(clients=None))
    with pytest.raises(InputError, match="leaves no group"):
        by_client(data, min_size=401)
    with pytest.raises(InputError, match="min_size=0"):
        by_client(data, min_size=0)


def test_pooled_is_one_node_with_every_owned_sample():
    data = make()
    part = by_client(data, min_size=int(np.sort(np.bincount(data.clients))[3]))
    one = jax.jit(pooled)(part)
    assert (one.start.tolist(), one.size.tolist(), one.longest) == ([0], [int(sizes(part).sum())], len(part.order))
    np.testing.assert_array_equal(label_histogram(one, 10)[0], label_histogram(part, 10).sum(0))


def test_rotation_turns_the_images_of_a_node():
    data = make()
    s = feature_shift(data, 5, "rotation", seed=1, turns=3)
    owner = owners(s)
    np.testing.assert_array_equal(owner, owners(iid(data, 5, seed=1)))
    for i in range(0, 400, 7):
        np.testing.assert_array_equal(s.x[i], np.rot90(data.x[i], owner[i] % 3))
    flat = data._replace(x=data.x.reshape(400, 16))
    np.testing.assert_array_equal(feature_shift(flat, 5, seed=1, turns=3).x, np.asarray(s.x).reshape(400, 16))
    colour = np.stack([data.x, 2 * data.x], -1)
    np.testing.assert_array_equal(rotate(colour, owner)[..., 1], 2 * rotate(data.x, owner))
    np.testing.assert_array_equal(rotate(rotate(data.x, owner), -owner), data.x)


def test_noise_grows_with_the_node():
    data = make(4000, side=8)
    s = feature_shift(data, 4, "noise", seed=1, noise=2.0)
    added, owner = np.asarray(s.x) - data.x, owners(s)
    for i in range(4):
        assert added[owner == i].std() == pytest.approx(2.0 * (i + 1) / 4, rel=0.02)
        assert abs(added[owner == i].mean()) < 0.03
    np.testing.assert_array_equal(feature_shift(data, 4, "noise", seed=1, noise=0.0).x, data.x)


def test_a_shard_can_be_read_inside_jit():
    data = digits()
    s = dirichlet(data, 10, 0.3)

    @jax.jit
    def first_label(s, i):
        return s.y[s.order[s.start[i]]]

    assert int(first_label(s, 3)) == data.y[np.flatnonzero(owners(s) == 3)[0]]


def test_a_million_nodes_have_a_sample_each():
    y = np.arange(1_000_000) % 10
    data = from_arrays(y[:, None], y, [[0]], [0])
    s = iid(data, 1_000_000)
    assert s.longest == 1
    assert s.size.shape == (1_000_000,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: iid(d, 401), "n=401 nodes need 401 samples, the data set has 400"),
        (lambda d: iid(d, 0), "n=0"),
        (lambda d: iid(d, 2.5), "n=2.5"),
        (lambda d: iid(d, 4, seed=-1), "seed=-1"),
        (lambda d: dirichlet(d, 401, 1.0), "n=401"),
        (lambda d: dirichlet(d, 10, 0.0), "alpha=0"),
        (lambda d: dirichlet(d, 10, float("inf")), "alpha=inf"),
        (lambda d: dirichlet(d, 10, float("nan")), "alpha is nan"),
        (lambda d: dirichlet(d, 10, 1.0, min_size=0), "min_size=0"),
        (lambda d: dirichlet(d, 10, 1.0, min_size=41), "min_size=41 asks for 410 samples"),
        (lambda d: dirichlet(d._replace(classes=None), 10, 1.0), "one label a sample"),
        (lambda d: pathological(d, 10, 0), "k=0"),
        (lambda d: pathological(d, 201, 2), "k=2 asks for 402"),
        (lambda d: pathological(d._replace(y=d.y[:, None]), 10, 2), "one label a sample"),
        (lambda d: quantity_skew(d, 10, "zipf"), "law='zipf'"),
        (lambda d: quantity_skew(d, 10, sigma=-1.0), "sigma=-1"),
        (lambda d: quantity_skew(d, 10, "power", exponent=1.0), "exponent=1.0"),
        (lambda d: quantity_skew(d, 10, min_size=100), "min_size=100"),
        (lambda d: feature_shift(d, 10, "blur"), "kind='blur'"),
        (lambda d: feature_shift(d, 10, turns=5), "turns=5"),
        (lambda d: feature_shift(d, 10, "noise", noise=-1.0), "noise=-1"),
        (lambda d: feature_shift(d._replace(x=d.x.astype(np.int32)), 10, "noise"), "int32"),
        (lambda d: feature_shift(d._replace(x=d.x[:, :3]), 10), r"shape \(400, 3, 4\)"),
        (lambda d: feature_shift(d._replace(x=d.x.reshape(400, 16)[:, :15]), 10), r"shape \(400, 15\)"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call(make())


@pytest.mark.parametrize("alpha", [None, 0.05, 100.0])
def test_resampled_deals_more_nodes_than_samples(alpha, monkeypatch):
    monkeypatch.setattr("jaxfl.data.partition.BLOCK", 700)
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), [40, 80, 120, 160])
    data = from_arrays(rng.normal(size=(400, 2)), labels, np.zeros((4, 2)), np.arange(4))
    got = resampled(data, 2000, alpha, seed=1, size=8)
    assert got.longest == 8
    np.testing.assert_array_equal(got.size, 8)
    np.testing.assert_array_equal(got.start, 8 * np.arange(2000))
    counts = label_histogram(got, 4)
    np.testing.assert_allclose(counts.sum(0) / counts.sum(), [0.1, 0.2, 0.3, 0.4], atol=0.03)
    used = np.bincount(got.order, minlength=400)
    assert used.min() > 0
    commonest = (counts.max(1) / 8).mean()
    assert commonest > 0.85 if alpha == 0.05 else commonest < 0.65
    again, other = (resampled(data, 2000, alpha, seed=s, size=8).order for s in (1, 2))
    np.testing.assert_array_equal(got.order, again)
    assert not np.array_equal(got.order, other)


@pytest.mark.parametrize("alpha", [0.2, 2.0, 30.0])
def test_resampled_has_the_moments_of_dirichlet_alpha_times_the_shares(alpha):
    """Counts are Dirichlet-multinomial: mean `m p`, covariance `m (diag(p) - p p') (m + alpha) / (1 + alpha)`."""
    labels, n, m = np.repeat(np.arange(4), [40, 80, 120, 160]), 20_000, 8
    p = np.array([0.1, 0.2, 0.3, 0.4])
    data = from_arrays(np.zeros((400, 1)), labels, np.zeros((4, 1)), np.arange(4))
    counts = np.asarray(label_histogram(resampled(data, n, alpha, seed=3, size=m), 4), np.float64)
    want = m * (np.diag(p) - np.outer(p, p)) * (m + alpha) / (1 + alpha)
    np.testing.assert_allclose(counts.mean(0), m * p, atol=4.5 * np.sqrt(want.max() / n))
    np.testing.assert_allclose(np.cov(counts.T), want, atol=0.04 * want.max())


def test_resampled_refuses_numbers_out_of_range():
    data = from_arrays(np.zeros((4, 2)), np.arange(4) % 2, np.zeros((2, 2)), np.arange(2))
    for kw, words in (({"n": 0}, "n is 0"), ({"n": 2, "size": 0}, "size is 0"), ({"n": 2, "alpha": 0.0}, "alpha is 0")):
        with pytest.raises(InputError, match=words):
            resampled(data, **kw)


def test_a_cpu_reads_samples_where_they_are_unless_their_owner_may_write_to_them():
    known = from_arrays(np.random.default_rng(0).normal(size=(50, 33)), np.arange(50) % 3)
    assert iid(known, 5).x.unsafe_buffer_pointer() == known.x.ctypes.data
    with pytest.raises(ValueError, match="read-only"):
        known.x[0] = 1
    mine = known._replace(x=known.x.copy())
    shards = iid(mine, 5)
    mine.x[:] = 0
    np.testing.assert_array_equal(shards.x, known.x)


def test_samples_in_order_are_dealt_node_by_node():
    """Six samples of three nodes are two each, without a copy or another order; a rest is refused."""
    y = np.arange(12.0, dtype=np.float32).reshape(6, 2)
    found = in_order(y, 3, (y[:, :1], y))
    for i in range(3):
        own = found.order[found.start[i] : found.start[i] + found.size[i]]
        np.testing.assert_array_equal(found.y[own], y[2 * i : 2 * i + 2])
    np.testing.assert_array_equal(found.x[1], y)
    assert (found.longest, in_order(y, 6).x.shape) == (2, (6, 0))
    with pytest.raises(InputError, match="n = 4: a number that divides the 6 samples"):
        in_order(y, 4)
