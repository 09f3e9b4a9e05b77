import numpy as np
import pandas as pd
import pytest

from jaxfl.data.holdings import strata
from jaxfl.data.partition import (
    dirichlet,
    label_histogram,
    labels_per_sample,
    pathological,
    primary_labels,
    resampled,
    shards,
    value_histogram,
)
from jaxfl.data.sets import from_arrays
from jaxfl.errors import InputError


def labelled():
    return from_arrays(np.zeros((40, 1)), np.arange(40) % 4, [[0.0]], [0])


def by_node(s, values):
    order, start, size = (np.asarray(a) for a in (s.order, s.start, s.size))
    return [values[order[a : a + k]].mean() for a, k in zip(start, size, strict=True)]


def test_real_targets_are_dealt_by_quantile_bins():
    rng = np.random.default_rng(0)
    y = np.append(rng.lognormal(size=1997), [1.0] * 403)  # skewed, with ties that no cut can part
    data = from_arrays(np.arange(2400.0)[:, None], y, [[0.0]], [0.0])
    bins = strata(data, 8)
    np.testing.assert_array_equal(bins, pd.qcut(data.y.astype(float), 8, labels=False, duplicates="drop"))
    quarter = strata(data._replace(y=np.arange(100, dtype=np.float32)), 4)
    np.testing.assert_array_equal(quarter, pd.qcut(np.arange(100), 4, labels=False))
    for deal in (
        lambda alpha: dirichlet(data, 20, alpha, bins=8),
        lambda alpha: primary_labels(data, 20, 1, max(0, 1 / alpha - 1), bins=8),
        lambda alpha: resampled(data, 20, 8 * alpha, bins=8),
    ):
        means = [np.std(by_node(deal(alpha), np.log(data.y))) for alpha in (0.02, 20.0)]
        assert means[0] > 2 * means[1]
    assert np.std(by_node(pathological(data, 20, 1, bins=20), np.log(data.y))) > 0.5


def test_several_labels_a_sample_are_dealt_by_the_rarest_and_counted():
    y = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1], [1, 1, 0], [0, 1, 1]])
    data = from_arrays(np.arange(6.0)[:, None], y, [[0.0]], y[:1])
    assert (data.task, data.classes) == ("multilabel", 3)
    assert strata(data).tolist() == [1, 0, 3, 2, 1, 2]  # label 2 has two samples, 1 three, 0 four
    s = shards(data, np.array([0, 0, 1, 1, 0, 1]))
    assert label_histogram(s, 3).tolist() == [[3, 2, 0], [1, 1, 2]]
    assert labels_per_sample(s).tolist() == [[0, 1, 2, 0], [1, 0, 2, 0]]
    assert dirichlet(data, 3, 1.0).size.shape == (3,)
    with pytest.raises(InputError, match="labels from 0 to 3"):
        label_histogram(s, 4)
    with pytest.raises(InputError, match="must be a table of 0 and 1"):
        labels_per_sample(shards(labelled(), np.zeros(40, int)))


def test_values_by_node_are_histograms_of_numpy():
    y = np.random.default_rng(1).normal(size=300)
    data = from_arrays(np.zeros((300, 1)), y, [[0.0]], [0.0])
    owner = np.arange(300) % 7 - 1  # of one sample in seven nobody is the owner
    counts, edges = value_histogram(shards(data, owner), 9)
    held = data.y[owner >= 0].astype(float)
    for i in range(6):
        want, bounds = np.histogram(data.y[owner == i], 9, (held.min(), held.max()))
        np.testing.assert_array_equal(counts[i], want)
    np.testing.assert_allclose(edges, bounds)
    with pytest.raises(InputError, match="must be numbers"):
        value_histogram(shards(labelled(), np.zeros(40, int)))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda d: dirichlet(d, 10, 1.0), "regression without labels: bins=10 cuts"),
        (lambda d: dirichlet(d, 10, 1.0, bins=1), "bins is 1, but must be at least 2"),
        (lambda d: dirichlet(labelled(), 4, 1.0, bins=4), "bins is 4, but data 'arrays' is a classification"),
        (lambda d: dirichlet(d._replace(y=d.y[:, None]), 10, 1.0, bins=4), "one label a sample"),
    ],
)
def test_what_has_no_labels_is_refused(call, says):
    with pytest.raises(InputError, match=says):
        call(from_arrays(np.zeros((40, 1)), np.arange(40.0), [[0.0]], [0.0]))
