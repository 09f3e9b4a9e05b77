"""What nodes keep for their own test: never trained on, by node, and by the natural key of the test set."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.data import partition, text
from jaxfl.data.cut import owned
from jaxfl.data.sets import digits, from_arrays
from jaxfl.errors import InputError

RNG = np.random.default_rng(0)


def make(count=300, **kw):
    return from_arrays(np.arange(count)[:, None], RNG.integers(0, 5, count), test_fraction=0, **kw)


def by_node(shards):
    """The samples of each node as sorted lists."""
    node, sample = owned(shards)
    return [sorted(sample[node == i].tolist()) for i in range(shards.size.shape[0])]


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5, 0.9])
def test_every_nodes_samples_are_cut_in_two(fraction):
    shards = partition.dirichlet(make(), 20, 0.2)
    train, test = partition.hold_out(shards, fraction, seed=3)
    assert train.x is shards.x
    assert test.y is shards.y
    for mine, kept, tested in zip(by_node(shards), by_node(train), by_node(test), strict=True):
        assert sorted(kept + tested) == mine
        assert len(kept) >= 1
        assert len(tested) == min(int(fraction * len(mine) + 0.5), len(mine) - 1)
    for part in (train, test):
        assert np.asarray(part.size).max() <= part.longest <= 2 * np.asarray(part.size).max()
        assert part.order.shape == shards.order.shape  # other seeds of a deal have the same programs
    again, other = (partition.hold_out(shards, fraction, seed=s)[1].order for s in (3, 4))
    np.testing.assert_array_equal(again, test.order)
    assert not np.array_equal(other, test.order)


def test_nodes_with_too_few_samples_have_an_empty_test():
    owner = np.repeat(np.arange(4), [1, 2, 3, 294])
    train, test = partition.hold_out(partition.shards(make(), owner), 0.2)
    assert test.size.tolist() == [0, 0, 1, 59]
    assert train.size.tolist() == [1, 2, 2, 235]


def test_every_sample_of_a_node_is_held_out_alike_often():
    """Of 10 samples 2 are drawn: each 1 time in 5, 60 of 300 nodes-times; 5 standard deviations are 35."""
    shards, count = partition.iid(make(), 30), np.zeros(300)
    for seed in range(300):
        np.add.at(count, owned(partition.hold_out(shards, 0.2, seed)[1])[1], 1)
    assert count.sum() == 300 * 60
    assert np.abs(count - 60).max() < 35


def test_a_sample_that_several_nodes_own_is_tested_by_all_of_them_or_by_none():
    data = make(40)
    shards = partition.resampled(data, 200, size=6)
    train, test = partition.hold_out(shards, 0.5)
    trained, tested = (set(owned(part)[1].tolist()) for part in (train, test))
    assert not trained & tested
    assert len(tested) > 5
    assert np.asarray(train.size).min() >= 1
    assert sorted(owned(train)[1].tolist() + owned(test)[1].tolist()) == sorted(owned(shards)[1].tolist())


@pytest.mark.parametrize(
    ("kw", "words"),
    [
        ({"fraction": 0}, "fraction is 0"),
        ({"fraction": 1.0}, "fraction is 1"),
        ({"fraction": 0.01}, "leaves no node a test sample, the largest has 10 samples"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_arguments_of_hold_out(kw, words):
    with pytest.raises(InputError, match=words):
        partition.hold_out(partition.iid(make(), 30), **kw)


def test_a_data_set_that_nobody_dealt_is_named():
    with pytest.raises(InputError, match="data is a Dataset, but must be Shards"):
        partition.hold_out(digits())  # type: ignore[arg-type]


def test_test_samples_of_a_nodes_own_client():
    """Client "c" has no test sample, client "d" no train sample and no node; nodes are as large clients alone."""
    clients, tests = list("abacaabe" * 3), list("bdaabe")
    data = from_arrays(
        np.ones((24, 2)), np.zeros(24, int), np.arange(12).reshape(6, 2), np.zeros(6, int),
        clients=clients, test_clients=tests,
    )  # fmt: skip
    assert data.client_names == list("abcde")
    np.testing.assert_array_equal(data.test_clients, [1, 3, 0, 0, 1, 4])
    assert by_node(partition.own_tests(data, partition.by_client(data))) == [[2, 3], [0, 4], [], [5]]
    large = partition.own_tests(data, partition.by_client(data, min_size=4))
    assert by_node(large) == [[2, 3], [0, 4]]
    assert large.longest == 2
    np.testing.assert_array_equal(large.x, np.arange(12).reshape(6, 2))
    with pytest.raises(InputError, match="samples of several clients in 2 nodes"):
        partition.own_tests(data, partition.iid(data, 2))
    with pytest.raises(InputError, match="test_clients=None"):
        partition.own_tests(data._replace(test_clients=None), partition.by_client(data))
    with pytest.raises(InputError, match="shards of data"):
        partition.own_tests(data, partition.iid(make(), 2))


def test_loaders_know_whose_a_test_sample_is(tmp_path):
    texts = {"low": "abc" * 50, "high": "XYZ" * 100}
    data = text.from_texts(texts, length=5, min_chars=10)
    low = np.isin(data.test_x, text.encode("abc")).all(1)
    np.testing.assert_array_equal(data.test_clients, np.where(low, 0, 1))
    from jaxfl.data.sets import movielens

    lines = [f"{7 + u}\t{i}\t{1 + i % 5}\t{i}" for u in range(3) for i in range(5 + 5 * u)]
    (tmp_path / "u.data").write_text("\n".join(lines))
    rated = movielens(tmp_path)
    np.testing.assert_array_equal(rated.test_clients, rated.test_x[:, 0])
    assert partition.own_tests(rated, partition.by_client(rated)).size.tolist() == [1, 2, 3]


def test_the_split_of_a_data_set_keeps_the_keys_of_its_test_samples():
    x, keys = np.arange(50)[:, None], np.arange(50) % 3
    data = from_arrays(x, np.zeros(50), clients=keys)
    np.testing.assert_array_equal(data.test_clients, data.test_x[:, 0] % 3)
    given: dict[str, Any] = {"test_x": x[:2], "test_y": np.zeros(2)}
    for kw, words in (
        ({"test_clients": [0, 1]}, "must come with test_x and clients"),
        ({"clients": keys, "test_clients": [0]} | given, r"test_clients has shape \(1,\), it must be \(2,\)"),
        ({"clients": keys, "test_clients": [0, None]} | given, "test_clients has no key for 1 samples"),
        ({"clients": keys, "test_clients": [0, 3], "client_names": [*"abc"]} | given, "test_clients holds keys from"),
    ):
        with pytest.raises(InputError, match=words):
            from_arrays(x, np.zeros(50), **kw)


def test_a_label_histogram_of_a_test_shard_that_is_empty():
    owner = np.repeat(np.arange(2), [1, 299])
    _, test = partition.hold_out(partition.shards(make(), owner), 0.2)
    counts = partition.label_histogram(test, 5)
    assert counts.sum(1).tolist() == [0, 60]
    assert counts[1].tolist() == np.bincount(np.asarray(test.y)[jnp.asarray(test.order)[:60]], minlength=5).tolist()
