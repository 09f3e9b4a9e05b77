"""One object for all that are made alike, also where threads make them at once."""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from jaxfl.mapping import canonical


class Slow(dict):
    """Between looking for the oldest and taking it away others have their turn."""

    def __iter__(self):
        for key in list(self.keys()):
            time.sleep(1e-4)
            yield key


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Few objects are remembered."""
    monkeypatch.setattr(canonical, "MOST", 3)
    monkeypatch.setattr(canonical, "_known", Slow())


def test_threads_forget_the_oldest_one_after_the_other():
    ask = lambda start: [canonical.canonical(partial(max, start + i)).args for i in range(50)]
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(ask, (0, 100, 200, 300)))
    assert made == [[(start + i,) for i in range(50)] for start in (0, 100, 200, 300)]
    assert len(canonical._known) == canonical.MOST


def test_what_is_remembered_is_the_first_of_its_kind_until_there_are_too_many():
    first = canonical.canonical(partial(max, 0))
    assert [canonical.canonical(partial(max, i)) is first for i in (0, 1, 2, 0)] == [True, False, False, True]
    canonical.canonical(partial(max, 3))
    assert canonical.canonical(partial(max, 0)) is not first
