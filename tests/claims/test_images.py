"""Claims on images: another part each seed, noise in their place where small, one sentence without the files."""

from functools import partial

import numpy as np
import pytest

from jaxfl.claims import dfedsam, images, momentum_fl, study
from jaxfl.data.sets import fashion_mnist, from_arrays
from jaxfl.errors import InputError


def test_seeds_take_other_images_and_the_same_test_images(monkeypatch):
    x, y = np.arange(40.0)[:, None], np.arange(40) % 10
    monkeypatch.setattr(images, "everything", lambda: from_arrays(x, y, x[:20], y[:20], classes=10))
    one, two = (images.fashion(12, 5, seed) for seed in (0, 1))
    assert (len(set(one.x[:, 0])), one.test_x[:, 0].tolist()) == (12, [0, 1, 2, 3, 4])
    assert not np.array_equal(one.x, two.x)
    np.testing.assert_array_equal(one.y, one.x[:, 0] % 10)
    np.testing.assert_array_equal(one.test_y, two.test_y)


def test_the_stand_in_has_the_shapes_of_the_images():
    made = images.stand_in(30, 10, 0)
    assert (made.x.shape, made.test_x.shape, made.classes) == ((30, images.SIZE), (10, images.SIZE), 10)
    assert np.bincount(made.y).tolist() == [3] * 10


@pytest.mark.parametrize("claim", [dfedsam, momentum_fl])
def test_without_the_files_there_is_one_sentence_before_any_run(claim, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "everything", partial(fashion_mnist, tmp_path))
    monkeypatch.setattr(study, "run", lambda *a, **kw: pytest.fail("it ran"))
    with pytest.raises(InputError, match="install the Debian package dataset-fashion-mnist"):
        study.reproduce(claim, 1)
