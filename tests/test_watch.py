"""What is said about a run that says nothing. No test waits: the event, the clock and the processors are given."""

import threading

import pytest

from jaxfl.engine import watch

STILL = "no processor is busy", "stands still", "py-spy", "NPROC=16", "JAX_NUM_CPU_DEVICES=1"


class World(threading.Event):
    """An event and a clock: each of the first waits takes its `timeout` at once and `busy` processors all the while.

    `steps` are called in the midst of waits, by number. `idle` says that the waits are over.
    """

    def __init__(self, busy):
        super().__init__()
        self.busy, self.steps, self.pauses, self.idle = list(busy), {}, [], threading.Event()
        self.seconds = self.used = 100.0

    def wait(self, timeout=None):
        turn, timeout = len(self.pauses), timeout or 0.0
        self.pauses.append(timeout)
        if turn == len(self.busy):
            self.idle.set()
            return super().wait(60)
        self._pass(timeout / 2, self.busy[turn])
        self.steps.get(turn, lambda: None)()
        self._pass(timeout / 2, self.busy[turn])
        return False

    def _pass(self, seconds, busy):
        self.seconds, self.used = self.seconds + seconds, self.used + seconds * busy


def heard(capsys, busy, names=()):
    """The lines of a block in such a world, and its pauses; `names` are what is said to come next, by wait."""
    world, now = World(busy), []
    world.steps = {turn: lambda what=what: now[0](what) for turn, what in dict(names).items()}
    ready = threading.Event()
    clock = lambda: (threading.current_thread().name != "jaxfl watch" or ready.wait(60)) and world.seconds
    with watch.over("rounds 1 to 4", ended=world, clock=clock, used=lambda: world.used) as call:
        now.append(call)
        ready.set()
        assert world.idle.wait(60)
    assert world.is_set()
    return capsys.readouterr().err.splitlines(), world.pauses


def test_a_block_that_ends_in_time_says_nothing(capsys):
    lines, pauses = heard(capsys, [])
    assert (lines, pauses) == ([], [watch.PATIENCE])
    assert watch.PATIENCE >= 60


def test_one_line_a_look_at_doubling_pauses(capsys):
    lines, pauses = heard(capsys, [1.3, 0.0, 0.002])
    assert pauses == [watch.PATIENCE * k for k in (1, 2, 4, 8)]
    assert [line.split(";")[0] for line in lines] == [
        f"jaxfl: rounds 1 to 4: nothing came back for {m} minutes" for m in (5, 15, 35)
    ]
    for words, line in zip((("still computing (1.3 processors busy)", "`every`"), STILL, STILL), lines, strict=True):
        assert [w for w in words if w not in line] == []


def test_what_comes_next_ends_a_silence(capsys):
    """Renamed half-way through the first and the third wait: each time the patience starts anew from there."""
    lines, pauses = heard(capsys, [1, 1, 1, 1], {0: "rounds 5 to 8", 2: "rounds 9 to 12"})
    p = watch.PATIENCE
    assert pauses == [p, p / 2, 2 * p, 0, 2 * p]
    assert [line.split(": nothing")[0] for line in lines] == ["jaxfl: rounds 5 to 8", "jaxfl: rounds 9 to 12"]
    assert [line.split(" for ")[1].split(";")[0] for line in lines] == ["5 minutes", "5 minutes"]


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
