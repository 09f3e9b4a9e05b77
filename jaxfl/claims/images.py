"""Fashion-MNIST for claims: a part of it that a CPU gets through, and what stands in where its files are not."""

from functools import cache

import numpy as np

from jaxfl.data.sets import Dataset, fashion_mnist, from_arrays, generator

SIZE = 28 * 28  # values of an image

everything = cache(fashion_mnist)


def fashion(train: int, test: int, seed: int) -> Dataset:
    """Of Fashion-MNIST `train` random images, others each seed, and the first `test` test images.

    Raises:
        InputError: its files are missing.
    """
    data = everything()
    mine = np.sort(generator(seed).choice(len(data.y), train, replace=False))
    return data._replace(x=data.x[mine], y=data.y[mine], test_x=data.test_x[:test], test_y=data.test_y[:test])


def stand_in(train: int, test: int, seed: int) -> Dataset:
    """Noise of the shape of `fashion`, every class as often."""
    x = generator(seed).random((train + test, SIZE))
    y = np.arange(train + test) % 10
    return from_arrays(x[:train], y[:train], x[train:], y[train:], classes=10, name="stand-in")
