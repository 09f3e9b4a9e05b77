import numpy as np
import pytest

from jaxfl.errors import InputError
from jaxfl.report import plots


@pytest.mark.parametrize("n", [6, 60])
def test_values_are_a_column_of_shades_a_node(n):
    counts, edges = np.random.default_rng(0).random((n, 5)), np.linspace(-1, 1, 6)
    ax = plots.value_histogram(counts, edges, label="rent").axes[0]
    share = counts / counts.sum(1, keepdims=True)
    mean = (share * [-0.8, -0.4, 0, 0.4, 0.8]).sum(1)
    order = np.argsort(mean, kind="stable") if n > 40 else np.arange(n)
    np.testing.assert_allclose(ax.collections[0].get_array(), share[order].T)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), mean[order], atol=1e-12)
    assert ax.get_ylabel() == "rent"


def test_labels_a_sample_end_with_the_most_there_are():
    counts = np.array([[1, 2, 0, 0], [0, 3, 1, 0]])
    ax = plots.labels_per_sample(counts).axes[0]
    assert (len(ax.containers), ax.get_ylabel()) == (3, "samples")
    assert plots.label_histogram(counts, of="labels").axes[0].get_ylabel() == "labels"
    assert ax.get_legend().get_title().get_text() == "number of labels"


@pytest.mark.parametrize(("counts", "edges"), [([1, 2], [0, 1, 2]), ([[1, 2]], [0, 1]), ([[1, -2]], [0, 1, 2])])
def test_what_is_no_histogram_is_refused(counts, edges):
    with pytest.raises(InputError, match="a table"):
        plots.value_histogram(counts, edges)
