"""Callbacks, Ctrl-C, loggers and the progress display: nothing that was computed is lost."""

import io
import json
import os
import signal
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from common import quadratics, ring, same

from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.engine import callbacks
from jaxfl.engine.progress import bar
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.measure.metrics import distance_to
from jaxfl.world.scenario import scenario

HYPER = {"lr": [0.1, 0.2]}


@pytest.fixture(scope="module")
def world():
    q, task, data = quadratics(n=6)
    make = lambda lr: dsgd(task, lr=lr, steps=1, batch=1)
    metric = distance_to(jnp.asarray(q.b.mean(0)))
    return make, scenario(data, topology=ring(6)), task.init, metric


def go(world, rounds=6, **kw):
    """Four runs: two values, two seeds, evaluated every two rounds."""
    make, where, model, metric = world
    kw = {"hyper": HYPER, "seeds": 2, "every": 2, "evaluate": metric} | kw
    return run(make, where, model, rounds, **kw)


@pytest.fixture(scope="module")
def whole(world):
    return go(world)


def test_a_callback_is_given_the_newest_row_of_every_run(world, whole):
    told, error = [], whole.history.set_index(["lr", "seed", "round"])
    go(world, callback=[lambda p: told.append(p._replace(state=jax.device_get(p.state))), lambda p: None])
    assert [(p.round, p.rounds) for p in told] == [(0, 6), (2, 6), (4, 6), (6, 6)]
    for p in told:
        assert p.labels == [{"lr": lr, "seed": s} for lr in (0.1, 0.2) for s in (0, 1)]
        for label, row in zip(p.labels, p.rows, strict=True):
            there = error.loc[(*label.values(), p.round)]
            assert "error" in row
            assert all(there[c] == v for c, v in row.items() if c not in ("lr", "seed", "round"))
    assert same(told[-1].state, whole.state)
    go(world, hyper={"lr": 0.1}, seeds=None, callback=told.append)
    assert [len(p.rows) for p in told[4:]] == [1] * 4
    assert told[-1].labels == [{"seed": 0}]


def test_a_run_in_pieces_has_the_rows_totals_and_calls_of_the_whole(world, whole):
    calls, pieces, carry = [], [], None
    for rounds in (2, 3, 6):
        part = go(world, rounds, carry=carry, callback=lambda p: calls.extend(p.rows))
        pieces, carry = [*pieces, part.history], part.carry
    keys = ["lr", "seed", "round"]
    joined = pd.concat(pieces).sort_values(keys).reset_index(drop=True)
    totals = [c for c in joined if c.startswith("total_")]
    assert totals
    pd.testing.assert_frame_equal(joined[keys + totals], whole.history[keys + totals], check_exact=True)
    assert same(part.state, whole.state)
    at = whole.history.set_index(keys)
    assert sorted({row["round"] for row in calls}) == [0, 2, 3, 5, 6]
    assert all(row[c] == at.loc[tuple(row[k] for k in keys), c] for row in calls if row["round"] for c in totals)


@pytest.mark.parametrize("yes", [True, np.True_, jnp.array(True)])
def test_true_ends_a_run_which_can_go_on(world, whole, yes):
    stopped = go(world, callback=(lambda p: 17, lambda p: yes if p.round == 4 else False))
    pd.testing.assert_frame_equal(
        stopped.history, whole.history[whole.history["round"] <= 4].reset_index(drop=True), check_exact=True
    )
    assert (stopped.carry.t, stopped.interrupted) == (4, False)
    assert same(go(world, carry=stopped.carry).state, whole.state)


def test_a_run_may_end_before_its_first_round(world):
    assert set(go(world, callback=lambda p: True).history["round"]) == {0}


def test_ctrl_c_returns_the_rounds_that_are_done(world, whole, tmp_path, capsys):
    press = lambda p: os.kill(os.getpid(), signal.SIGINT) if p.round == 2 else None
    got = go(world, callback=press, out=tmp_path, checkpoints=True)
    assert (got.carry.t, got.interrupted, whole.interrupted) == (2, True, False)
    assert "Ctrl-C again stops at once" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = go(world, out=tmp_path, resume=True)
    pd.testing.assert_frame_equal(again.history, whole.history, check_exact=True)
    assert same(again.state, whole.state)


def test_ctrl_c_twice_stops_at_once_and_a_handler_of_the_user_is_left_alone(world):
    class Twice:
        closed = False

        def __call__(self, p):
            os.kill(os.getpid(), signal.SIGINT)

        def close(self):
            Twice.closed = True
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        go(world, callback=Twice())
    assert Twice.closed
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    try:
        assert go(world, callback=Twice()).carry.t == 6
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(heard) == 5


def test_an_error_in_a_callback_carries_the_result(world, whole):
    closed = []

    class Fails:
        def __call__(self, p):
            assert p.round < 4, "no disk"

        def close(self):
            closed.append(1)
            raise OSError("gone")

    with pytest.raises(callbacks.CallbackError, match=r"Fails raised AssertionError: no disk.*`result`") as failed:
        go(world, callback=Fails())
    kept = failed.value.result
    assert isinstance(failed.value.__cause__, AssertionError)
    assert set(kept.history["round"]) == {0, 1, 2, 3, 4}
    assert same(go(world, carry=kept.carry).state, whole.state)
    with pytest.raises(callbacks.CallbackError, match="OSError: gone") as failed:
        go(world, 2, callback=[Fails()])
    assert failed.value.result.carry.t == 2
    assert closed == [1, 1]


@pytest.mark.parametrize("bad", [3, "tensorboard", [print, None], {"a": print}, OSError])
def test_what_is_no_callback_is_refused_before_anything_is_compiled(bad):
    with pytest.raises(InputError, match=r"callback is .* must be a function of a Progress"):
        callbacks.Calls(bad)


class Writer:
    """What tensorboardX has, as far as it is used."""

    made: dict = {}  # noqa: RUF012

    def __init__(self, folder):
        self.made[folder] = self
        self.scalars, self.flushed, self.closed = [], 0, False

    def add_scalar(self, tag, value, step):
        self.scalars.append((tag, value, step))

    def flush(self):
        self.flushed += 1

    def close(self):
        self.closed = True


def test_tensorboard_gets_every_column_of_every_run(world, whole, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=Writer))
    log = callbacks.tensorboard(tmp_path)
    go(world, callback=log)
    names = {(lr, s): str(tmp_path / f"lr={lr},seed={s}") for lr in HYPER["lr"] for s in (0, 1)}
    assert set(Writer.made) == set(names.values())
    for (lr, seed), name in names.items():
        writer, h = Writer.made[name], whole.history
        assert writer.closed
        assert writer.flushed == 4
        mine = h[(h["lr"] == lr) & (h["seed"] == seed)].set_index("round")
        columns = [c for c in mine if c not in ("lr", "seed")]
        assert {tag for tag, *_ in writer.scalars} == set(columns)
        np.testing.assert_array_equal([v for tag, v, _ in writer.scalars if tag == "error"], mine["error"].dropna())
        assert [t for tag, _, t in writer.scalars if tag == "error"] == [0, 2, 4, 6]
    Writer.made.clear()
    go(world, 2, hyper={"lr": 0.1}, seeds=None, callback=log)  # it can be used again
    assert set(Writer.made) == {str(tmp_path)}


def test_wandb_opens_one_run_and_finishes_it(world, whole, monkeypatch):
    seen = SimpleNamespace(opened=[], logged=[], finished=0)

    def init(**arguments):
        seen.opened.append(arguments)
        finish = lambda: setattr(seen, "finished", seen.finished + 1)
        return SimpleNamespace(log=lambda row, step: seen.logged.append((step, row)), finish=finish)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    log = callbacks.wandb(project="mine", mode="offline")
    assert not seen.opened
    go(world, callback=[log, lambda p: p.round == 4])
    assert (seen.opened, seen.finished) == ([{"project": "mine", "mode": "offline"}], 1)
    assert [step for step, _ in seen.logged] == [0, 2, 4]
    at = whole.history.set_index(["lr", "seed", "round"])["error"]
    assert seen.logged[1][1]["error/lr=0.2,seed=1"] == at.loc[0.2, 1, 2]
    assert not any(name.startswith(("round", "seed", "lr/")) for name in seen.logged[1][1])
    json.dumps(seen.logged)  # plain numbers
    go(world, 2, hyper={"lr": 0.1}, seeds=None, callback=log)
    assert "error" in seen.logged[-1][1]
    assert seen.finished == 2


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_package_that_is_missing_is_one_sentence(name, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"needs {module}, which is not installed: pip install 'jaxfl\[{name}\]'"):
        getattr(callbacks, name)(*["x"] * (name == "tensorboard"))


def test_off_a_terminal_there_is_a_line_a_tenth_of_the_rounds_if_asked(capsys):
    for show, lines in ((True, 10), (None, 0), (False, 0)):
        with bar(40, 0, show) as advance:
            for t in range(1, 41):
                advance(t, {"accuracy": np.array([0.5, 0.75])})
        told = capsys.readouterr().err.splitlines()
        assert len(told) == lines
    with bar(40, 20, True) as advance:
        advance(40, {})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("round 40 of 40, ")
    with bar(1000, 0, True) as advance:
        advance(500, {"test_loss": np.array([0.5, 0.75])})
    assert capsys.readouterr().err.startswith("round 500 of 1,000, test loss 0.625, ")


def test_on_a_terminal_and_in_a_notebook_there_is_a_bar(monkeypatch):
    terminal = type("Terminal", (io.StringIO,), {"isatty": lambda self: True})()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    for show, shown in ((None, True), (True, True), (False, False)):
        with bar(4, 0, show) as advance:
            advance(4, {"accuracy": np.array([0.25])})
        assert ("4/4" in terminal.getvalue()) == ("accuracy 0.250" in terminal.getvalue()) == shown
        terminal.truncate(0)
