"""What is said about a run that says nothing. No test waits: the event, the clock and the processors are given."""

import threading

import pytest

from jaxfl.engine import watch

STILL = "no processor is busy", "stands still", "py-spy", "NPROC=16", "JAX_NUM_CPU_DEVICES=1"


class World(threading.Event):
    """An event and a clock. A look is two waits, which take their `timeout` at once: a silence, then a sample.

    `busy` processors work all through a sample, and two before it; `steps` are called in the midst of silences, by
    number of the look. `idle` says that the looks are over.
    """

    def __init__(self, busy):
        super().__init__()
        self.busy, self.steps, self.pauses, self.idle = list(busy), {}, [], threading.Event()
        self.seconds = self.used = 100.0

    def wait(self, timeout=None):
        (look, sampled), timeout = divmod(len(self.pauses), 2), timeout or 0.0
        self.pauses.append(timeout)
        if look == len(self.busy):
            self.idle.set()
            return super().wait(60)
        self._pass(timeout / 2, self.busy[look] if sampled else 2)
        if not sampled:
            self.steps.get(look, lambda: None)()
        self._pass(timeout / 2, self.busy[look] if sampled else 2)
        return False

    def _pass(self, seconds, processors):
        self.seconds, self.used = self.seconds + seconds, self.used + seconds * processors


def heard(capsys, busy, names=()):
    """The lines of a block in such a world, and the silences; `names` are what is said to come next, by look."""
    world, now = World(busy), []
    world.steps = {look: lambda what=what: now[0](what) for look, what in dict(names).items()}
    ready = threading.Event()
    clock = lambda: (threading.current_thread().name != "jaxfl watch" or ready.wait(60)) and world.seconds
    with watch.over("rounds 1 to 4", ended=world, clock=clock, used=lambda: world.used) as call:
        now.append(call)
        ready.set()
        assert world.idle.wait(60)
    assert world.is_set()
    assert set(world.pauses[1::2]) <= {watch.SAMPLE}
    return capsys.readouterr().err.splitlines(), [p + watch.SAMPLE for p in world.pauses[::2]]


def test_a_block_that_ends_in_time_says_nothing(capsys):
    lines, pauses = heard(capsys, [])
    assert (lines, pauses) == ([], [watch.PATIENCE])
    assert watch.PATIENCE >= 60


def test_one_line_a_look_at_doubling_pauses(capsys):
    """What is busy in the sample alone counts: a run that computed for minutes and then stands still is found out."""
    lines, pauses = heard(capsys, [1.3, 0.0, 0.002])
    assert pauses == [watch.PATIENCE * k for k in (1, 2, 4, 8)]
    assert [line.split(";")[0] for line in lines] == [
        f"jaxfl: rounds 1 to 4: nothing came back for {m} minutes" for m in (5, 15, 35)
    ]
    for words, line in zip((("still computing (1.3 processors busy)", "`every`"), STILL, STILL), lines, strict=True):
        assert [w for w in words if w not in line] == []


def test_what_comes_next_ends_a_silence(capsys):
    """Renamed half-way through the first and the third silence: the patience starts anew from there."""
    lines, pauses = heard(capsys, [1, 1, 1, 1], {0: "rounds 5 to 8", 2: "rounds 9 to 12"})
    p, s = watch.PATIENCE, watch.SAMPLE
    first, third = (p - s) / 2, (2 * p - s) / 2  # from a new name to the next sample
    assert pauses == [p, p - (first + s), 2 * p, s, 3 * p - (third + 2 * s)]
    assert [line.split(": nothing")[0] for line in lines] == ["jaxfl: rounds 5 to 8", "jaxfl: rounds 9 to 12"]


def test_the_thread_ends_with_the_block_also_after_an_error():
    before = set(threading.enumerate())

    def lose():
        with watch.over("rounds 1 to 2"):
            threads.extend(set(threading.enumerate()) - before)
            raise RuntimeError("lost")

    threads: list[threading.Thread] = []
    with pytest.raises(RuntimeError, match="lost"):
        lose()
    (thread,) = threads
    assert thread.daemon
    thread.join(60)
    assert not thread.is_alive()


def test_who_waits_for_others_is_not_told_that_it_stands_still(monkeypatch):
    line = watch.word("rounds 1 to 2", 300, 0.0, lone=False)
    assert "accelerator or another process" in line
    assert "stands still" not in line
    ended = World([])
    monkeypatch.setattr(watch.jax, "process_index", lambda: 1)
    with watch.over("rounds 1 to 2", ended=ended):
        pass
    assert ended.pauses == []
