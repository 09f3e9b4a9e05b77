"""What a run spends and keeps is counted once, however it is cut: carried on, cut off and resumed, or in one piece."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from common import digits_world, ring, same

from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.engine import checkpoint
from jaxfl.engine.history import TOTALS, Recorder
from jaxfl.engine.rollout import rollout_from
from jaxfl.engine.run import Carry, run
from jaxfl.errors import InputError
from jaxfl.report import plots, tables

NAN = float("nan")
KW = {"lr": 0.2, "steps": 2, "batch": 8}


def noting(algorithm):
    """`algorithm` that logs odd costs, a loss that is missing every third round, and a number by node."""

    def round(key, env, s):
        s, log = algorithm.round(key, env, s)
        loss = jnp.where(env.t % 3 == 1, jnp.nan, log["loss"])
        norm = jnp.linalg.norm(s.nodes, axis=1)
        return s, dict(log) | {"loss": loss, "seconds": 0.1 + env.t / 7, "up_bits": log["up_bits"] + 0.3, "file": norm}

    return algorithm._replace(round=round)


@pytest.fixture(scope="module")
def gossip():
    task, world = digits_world(n=6, topology=ring(6))
    return noting(dsgd(task, **KW)), world, task.init


def totals(history):
    return history[list(TOTALS.values())].to_numpy()


@pytest.mark.parametrize("seeds", [None, 2])
def test_six_runs_of_five_rounds_spend_what_one_of_thirty_spends(gossip, seeds):
    whole = run(*gossip, 30, every=10, seeds=seeds)
    carry, parts = None, []
    for rounds in range(5, 31, 5):
        part = run(*gossip, rounds, every=2, seeds=seeds, carry=carry)
        carry = part.carry
        parts.append(part)
    joined = pd.concat([part.history for part in parts]).sort_values(["seed", "round"])
    np.testing.assert_array_equal(totals(joined), totals(whole.history))
    ends = whole.history[whole.history["round"] == 30]
    for name in TOTALS.values():
        np.testing.assert_array_equal(carry.spent[name], ends[name])
    exact = whole.history[["seconds", "up_bits"]].fillna(0.0).to_numpy().reshape(seeds or 1, 31, 2)
    np.testing.assert_array_equal(whole.history[["time", "total_up_bits"]], exact.cumsum(1).reshape(-1, 2))
    by_node = np.concatenate([part.nodes["file"] for part in parts], 1)
    np.testing.assert_array_equal(by_node, whole.nodes["file"])


def test_a_resumed_run_returns_the_whole_run(gossip, tmp_path):
    """Rows, totals and what was logged by node, also where the run that was cut off went on from another."""
    early = run(*gossip, 3, every=2)
    go = lambda rounds, **kw: run(*gossip, rounds, every=2, seeds=None, carry=early.carry, **kw)
    whole = go(9)
    go(5, out=tmp_path, checkpoints=True)
    run(*gossip, 7, every=1, out=tmp_path / "other", carry=early.carry)  # what a crash leaves beyond the checkpoint
    (tmp_path / "other" / "nodes" / "5-6.npz").rename(tmp_path / "nodes" / "5-6.npz")
    resumed = run(*gossip, 9, every=3, out=tmp_path, resume=True)
    assert same(whole.state, resumed.state)
    np.testing.assert_array_equal(whole.history, resumed.history)
    np.testing.assert_array_equal(totals(whole.history), totals(resumed.history))
    np.testing.assert_array_equal(whole.nodes["file"], resumed.nodes["file"])
    assert same(whole.carry, resumed.carry)
    assert sorted(p.name for p in (tmp_path / "nodes").iterdir()) == ["3-5.npz", "5-8.npz", "8-9.npz"]
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["loss"] != row["loss"] for row in rows] == [t % 3 == 1 for t in range(3, 9)]
    np.testing.assert_array_equal([row["time"] for row in rows], whole.history["time"])


def test_a_carry_is_a_tree_that_every_door_takes(gossip, tmp_path):
    algorithm, world, _ = gossip
    result = run(*gossip, 2, out=tmp_path, checkpoints=True)
    assert isinstance(jax.tree.map(lambda a: a, result.carry), Carry)
    (t, (_, state)), logs = rollout_from(algorithm, world, result.carry, 1)
    assert t == 3
    np.testing.assert_allclose(state.nodes, run(*gossip, 3, carry=result.carry).state.nodes, atol=1e-6)
    assert logs["loss"].shape == (1,)
    t, read = checkpoint.load(str(tmp_path), result.carry.state)
    assert t == 2
    assert same(read, result.carry.state)
    with pytest.raises(InputError, match="like has leaves of type int, but arrays are needed"):
        checkpoint.load(tmp_path, result.carry)
    with pytest.raises(InputError, match="holds no checkpoint"):
        checkpoint.load("nowhere", result.carry.state)
    with pytest.raises(InputError, match="carry has leaves of type int"):
        checkpoint.save(tmp_path, 3, result.carry)


def test_a_carry_of_another_run_is_refused(gossip):
    carry = run(*gossip, 2).carry
    for bad in ((2, carry.state), carry.state, 2):
        with pytest.raises(InputError, match=r"carry must be `Result\.carry`"):
            run(*gossip, 4, carry=bad)
    task, server = digits_world(n=6, c=3)
    with pytest.raises(InputError, match="carry is of another run"):
        run(*gossip, 4, carry=carry, seeds=2)
    with pytest.raises(InputError, match="carry is of another run"):
        run(fedavg(task, **KW), server, task.init, 4, carry=carry)


def test_running_totals_are_added_in_float64_and_pass_over_nan():
    """In float32 a sum of 1e15 would take no step smaller than 6e7."""
    rng = np.random.default_rng(0)
    bits = rng.integers(1, 2**31, (2, 60)).astype(np.float32)
    bits[1, 7] = NAN
    recorder = Recorder([{"seed": 0}, {"seed": 1}], None, spent={"total_up_bits": np.array([1e15, 0.0])})
    for start in range(0, 60, 20):
        recorder.add(start, {"up_bits": bits[:, start : start + 20]}, {})
    want = np.nancumsum(bits.astype(np.float64), 1) + [[1e15], [0.0]]
    np.testing.assert_array_equal(recorder.frame()["total_up_bits"].to_numpy().reshape(2, 60), want)
    np.testing.assert_array_equal(recorder.spent["total_up_bits"], want[:, -1])


def test_megabytes_count_both_directions_by_node():
    """A federated member receives and sends one model a round; on a ring a node sends two and receives two."""
    task, server = digits_world(n=6, c=3)
    _, peers = digits_world(n=6, topology=ring(6))
    histories = {
        "server": run(fedavg(task, **KW), server, task.init, 4).history,
        "ring": run(dsgd(task, **KW), peers, task.init, 4).history,
    }
    table = tables.summary(histories, nodes=6)
    model = 4 * 650 / 1e6  # megabytes
    np.testing.assert_allclose(table["megabytes"], [4 * 2 * model * 3 / 6, 4 * 4 * model])
    line = plots.learning_curves(histories, "loss", "megabytes", nodes=6).axes[0].lines[0]
    np.testing.assert_allclose(line.get_xdata(), model * np.arange(1, 5))
