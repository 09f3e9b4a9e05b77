"""Checkpoints: whole, of this run, taken up bit for bit; what is damaged or another's is refused in a sentence."""

import json
import random
import shutil
import threading
import zipfile
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from common import quadratics, ring, same

from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.core import Metric
from jaxfl.engine import checkpoint, identity
from jaxfl.engine.disk import held
from jaxfl.engine.run import run
from jaxfl.engine.sharding import Border
from jaxfl.errors import InputError
from jaxfl.world.scenario import scenario

ROUNDS, EVERY = 6, 2


@pytest.fixture(scope="module")
def world():
    _, task, data = quadratics(n=6)
    return partial(dsgd, task, steps=1, batch=1), scenario(data, topology=ring(6)), jnp.ones(3)


@pytest.fixture(scope="module")
def go(world):
    """Two seeds with a metric that is by node and sometimes not finite."""
    norm = Metric(lambda a, x: {"far": a / (1 - x[:, 0].round(1)), "size": jnp.abs(x).sum()}, jnp.float32(1))
    return partial(run, *world, hyper={"lr": 0.1}, seeds=2, every=EVERY, evaluate=norm)


@pytest.fixture(scope="module")
def whole(go):
    return go(ROUNDS)


@pytest.fixture
def cut(go, tmp_path):
    """A run that ended after round 4, with checkpoints of rounds 2 and 4, in a folder of an odd name."""
    folder = tmp_path / "lr=[0.1] \\ * mine?"
    go(4, out=folder, checkpoints=True)
    return folder


def resumed_is(whole, go, folder):
    again = go(ROUNDS, out=folder, resume=True)
    assert same(again.state, whole.state)
    np.testing.assert_array_equal(again.history, whole.history)
    assert again.nodes.keys() == whole.nodes.keys()
    for name, a in whole.nodes.items():
        np.testing.assert_array_equal(again.nodes[name], a)
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert len(rows) == len(whole.history)
    return again


def refused(go, folder, **kw):
    with pytest.raises(InputError) as error:
        go(ROUNDS, out=folder, resume=True, **kw)
    assert str(error.value).count("\n") == 0
    return str(error.value)


def test_what_checkpoints_callbacks_and_the_result_see_is_copied_once_a_chunk(go, whole, tmp_path):
    with mock.patch.object(Border, "out", autospec=True, side_effect=Border.out) as copied:
        seen = []
        got = go(ROUNDS, out=tmp_path, checkpoints=True, callback=lambda p: seen.append(np.asarray(p.state.nodes)))
    assert copied.call_count == 1 + ROUNDS // EVERY  # at the start too
    assert same(got.state, whole.state)
    np.testing.assert_array_equal(seen[-1], whole.state.nodes)
    assert not np.array_equal(seen[-1], seen[-2])


def test_any_array_comes_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    some = lambda dtype, *shape: rng.integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8).view(dtype)[..., 0]
    tree = {
        "jax": [jnp.asarray(some(t, 3, 2)) for t in (np.float32, np.float16, np.int32, np.uint8, ml_dtypes.bfloat16)],
        "numpy": [some(np.float64, 5), some(np.complex64, 0, 2), some(ml_dtypes.float8_e4m3fn, 4), np.float32(3)],
        "bool": jnp.array([True, False]),
        "keys": jax.random.split(jax.random.key(3), 4),
        "number": jnp.int32(7),
    }
    checkpoint.save(tmp_path, 3, tree, {"note": [1, None, "x"]})
    told = []
    t, read = checkpoint.load(tmp_path, tree, take_up=lambda t, kept: told.append((t, kept)))
    assert (t, told) == (3, [(3, {"note": [1, None, "x"]})])
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(read), strict=True):
        assert (a.dtype, a.shape, type(a)) == (b.dtype, b.shape, type(b) if b.ndim else type(a))
        bits = lambda a: np.asarray(jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a)
        assert bits(a).tobytes() == bits(b).tobytes()
    with np.load(tmp_path / "checkpoints" / "3" / "0.npz", allow_pickle=False) as plain:  # without this package
        assert plain["0-0"].tolist() == [True, False]


def test_only_parts_that_are_asked_for_are_read_and_a_missing_one_is_seen(tmp_path):
    """As several processes leave them: parts in any number of files, cut otherwise than they are read."""
    a = np.arange(24.0).reshape(6, 4)
    checkpoint.save(tmp_path, 1, [a])
    file = tmp_path / "checkpoints" / "1" / "0.npz"
    with zipfile.ZipFile(file) as archive:
        header = json.loads(archive.read("run.json")) | {"files": 2}
    for rank, rows in enumerate(([(0, 3)], [(3, 1), (4, 2)])):  # first row and how many
        header["parts"] = [[[[first, 0], [count, 4]] for first, count in rows]]
        with zipfile.ZipFile(file.with_name(f"{rank}.npz"), "w") as archive:
            archive.writestr("run.json", json.dumps(header))
            for j, (first, count) in enumerate(rows):
                with archive.open(f"0-{j}.npy", "w") as out:
                    np.lib.format.write_array(out, a[first : first + count])
    np.testing.assert_array_equal(checkpoint.load(tmp_path, [a])[1][0], a)
    file.with_name("1.npz").unlink()
    with pytest.raises(InputError, match="damaged"):
        checkpoint.load(tmp_path, [a])


def test_a_run_goes_on_bit_for_bit_in_a_folder_of_any_name(go, whole, cut):
    assert whole.history["far_spread"].isna().any() or np.isinf(whole.history["far"]).any()
    again = resumed_is(whole, go, cut)
    assert checkpoint.rounds_of(cut) == [2, 4]  # `checkpoints` was not asked for again
    kept = []
    checkpoint.load(cut, again.carry.state, take_up=lambda t, run: kept.append(run["seconds"]))
    assert again.seconds > kept[0] > 0


def test_killed_before_the_first_checkpoint_it_begins_anew(go, whole, tmp_path):
    go(ROUNDS, out=tmp_path, checkpoints=True)
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "2.part").mkdir(parents=True)
    resumed_is(whole, go, tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())
    resumed_is(whole, go, tmp_path / "new")


def test_a_folder_without_a_finished_round_blocks_nothing(go, whole, tmp_path):
    go(ROUNDS, out=tmp_path, checkpoints=True, callback=lambda p: True)
    kept = go(ROUNDS, out=tmp_path, checkpoints=True)
    np.testing.assert_array_equal(kept.history, whole.history)
    with pytest.raises(InputError, match="holds a run already"):
        go(ROUNDS, out=tmp_path)
    (tmp_path / "log.jsonl").unlink()
    with pytest.raises(InputError, match="holds a run already"):
        go(ROUNDS, out=tmp_path)


def test_a_run_without_checkpoints_is_not_written_over(go, tmp_path):
    go(2, out=tmp_path)
    before = (tmp_path / "log.jsonl").read_bytes()
    assert "holds a run without checkpoints" in refused(go, tmp_path)
    assert (tmp_path / "log.jsonl").read_bytes() == before


def test_what_was_written_after_the_checkpoint_is_dropped(go, whole, cut):
    with (cut / "log.jsonl").open("ab") as log:
        log.write((cut / "log.jsonl").read_bytes()[-300:] + b'{"seed": 0, "rou')
    (cut / "checkpoints" / "6.part").mkdir()
    (cut / "nodes" / "4-6.npz").write_bytes(b"half")
    resumed_is(whole, go, cut)
    assert not (cut / "checkpoints" / "6.part").exists()


@pytest.mark.parametrize("harm", ["zeros", "cut", "gone", "bit", "swapped", "renamed"])
def test_a_damaged_newest_checkpoint_falls_back_and_says_so(go, whole, cut, harm, capsys):
    newest = cut / "checkpoints" / "4"
    file, data = newest / "0.npz", (newest / "0.npz").read_bytes()
    {
        "zeros": lambda: file.write_bytes(bytes(len(data))),
        "cut": lambda: file.write_bytes(data[:-40]),
        "gone": file.unlink,
        "bit": lambda: file.write_bytes(data[:-500] + bytes([data[-500] ^ 1]) + data[-499:]),
        "swapped": lambda: shutil.copy(cut / "checkpoints" / "2" / "0.npz", file),
        "renamed": lambda: newest.rename(newest.with_name("100")),
    }[harm]()
    resumed_is(whole, go, cut)
    told = capsys.readouterr()
    (line,) = told.err.splitlines()
    assert line.startswith("jaxfl: resume: ")
    assert line.endswith("Goes on from round 2, the checkpoint before.")
    assert told.out == ""


def test_no_damage_of_a_checkpoint_passes_unseen(tmp_path, capsys):
    """Any byte changed: refused, or read as it was."""
    tree = [np.arange(6, dtype=np.float32).reshape(2, 3), np.int32(4)]
    checkpoint.save(tmp_path, 5, tree, {"identity": {"origin": {"lr": 0.1}}})
    file, refusals = tmp_path / "checkpoints" / "5" / "0.npz", []
    data = file.read_bytes()
    rng = random.Random(0)
    for i in range(0, len(data), 3):
        file.write_bytes(data[:i] + bytes([data[i] ^ rng.randrange(1, 256)]) + data[i + 1 :])
        try:
            t, read = checkpoint.load(tmp_path, tree, {"origin": {"lr": 0.1}})
        except InputError as error:
            refusals.append(str(error))
        else:
            assert t == 5
            assert same(read, tree)
    assert all("damaged" in says and "\n" not in says for says in refusals)
    assert len(refusals) > len(data) / 6


OTHERS = {
    "seed": ({"seed": 1}, "seeds was [0, 1] there, and is [1, 2] here."),
    "rate": ({"hyper": {"lr": 0.2}}, "lr was 0.1 there, and is 0.2 here."),
    "origin": ({"origin": {"codec": "int8"}}, "codec was nothing there, and is int8 here."),
    "metric": ({"evaluate": None}, "the metric is not the same."),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_checkpoint_of_another_run_is_refused_and_says_what_differs(go, cut, case):
    kw, says = OTHERS[case]
    before = (cut / "log.jsonl").read_bytes()
    assert refused(go, cut, **kw).endswith(f"checkpoints/4 is of another run: {says}")
    assert (cut / "log.jsonl").read_bytes() == before


def test_another_system_world_data_or_model_of_equal_shapes_is_refused(go, world, cut):
    make, where, model = world
    _, task, data = quadratics(n=6, seed=1)
    full = go.keywords
    others = {
        "algorithm": (partial(dsgd, task, steps=2, batch=1), where, model),
        "world": (make, scenario(where.data, topology=ring(6), byz=1), model),
        "data": (make, where._replace(data=data), model),
        "model": (make, where, 2 * model),
    }
    for what, parts in others.items():
        with pytest.raises(InputError, match=f"another run: the {what} is not the same"):
            run(*parts, ROUNDS, out=cut, resume=True, **full)
    with pytest.raises(InputError, match="of another run"):
        checkpoint.load(cut, [jnp.ones(3)])


def test_settings_that_change_numbers_are_compared_and_versions_told(go, whole, cut, monkeypatch, capsys):
    now = identity.settings()
    monkeypatch.setattr(identity, "settings", lambda: now | {"jax_threefry_partitionable": "other"})
    assert "jax_threefry_partitionable was" in refused(go, cut)
    monkeypatch.undo()
    monkeypatch.setattr(identity, "versions", lambda: {"jax": "9.9"})
    resumed_is(whole, go, cut)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"was written by jax {jax.__version__} (now 9.9): further numbers may differ in rounding.")


def test_a_fingerprint_is_of_what_a_function_does_and_holds():
    """Two of one make are one; another number, array, code or order in it is another."""

    def made(rate, table, twice=False):
        held = {"table": table, "rate": rate}
        f = (lambda x: 2 * x * held["rate"]) if twice else (lambda x: x * held["rate"])
        return partial(f, rate), jax.jit(f), (held,)

    table = np.arange(4)
    again, one = identity.fingerprint(made(0.1, table.copy())), identity.fingerprint(made(0.1, table))
    assert one == again
    others = [made(0.2, table), made(0.1, table[::-1]), made(0.1, table.astype(np.int32)), made(0.1, table, True)]
    assert len({one, *map(identity.fingerprint, others)}) == 5
    around: list = [1]
    around.append(around)
    assert identity.fingerprint(around) == identity.fingerprint(around)


def test_one_run_at_a_time_has_a_folder(go, cut):
    with held(cut):
        assert f"another run is writing to {cut}" in refused(go, cut)
    (cut / ".lock").write_text("of a process that was killed")
    go(ROUNDS, out=cut, resume=True)


def test_fewer_rounds_than_are_finished_are_refused(go, cut):
    with pytest.raises(InputError, match="rounds is 2, but 4 are finished already"):
        go(2, out=cut, resume=True)
    with pytest.raises(InputError, match="rounds is 1, but 2 are finished already"):
        go(1, carry=go(2).carry)


def test_runs_in_three_threads_are_the_run_alone(world, tmp_path):
    """With checkpoints, each of its own seed, compiled and cut anew; the numbers are those of one after the other."""
    make, where, model = world

    def one(seed, folder):
        kw = {"hyper": {"lr": 0.1 + seed}, "every": 1, "seed": seed, "out": folder, "checkpoints": True}
        run(make, where, model, 3, **kw)
        return run(make, where, model, 5 + seed, resume=True, **kw)

    alone, together = [one(seed, tmp_path / f"a{seed}") for seed in range(3)], {}
    jax.clear_caches()
    threads = [threading.Thread(target=lambda s=s: together.update({s: one(s, tmp_path / f"b{s}")})) for s in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(3):
        assert same(alone[seed].state, together[seed].state)
        np.testing.assert_array_equal(alone[seed].history, together[seed].history)
