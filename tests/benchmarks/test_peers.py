import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

PEERS = Path(__file__).resolve().parents[2] / "benchmarks" / "peers"
sys.path[:0] = [str(PEERS.parent)]
from peers import common, install, run  # noqa: E402


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """`worker(text)` makes `text` the worker of torch, run by this Python."""
    python = run.python("torch", tmp_path)
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(run, "HERE", tmp_path)
    return lambda text: (tmp_path / "with_torch.py").write_text(textwrap.dedent(text))


def test_every_peer_has_a_worker_and_pinned_versions_that_run_here_too():
    assert {path.stem for path in PEERS.glob("*.txt")} == set(run.WORKLOADS)
    assert {path.stem.removeprefix("with_") for path in PEERS.glob("with_*.py")} == set(run.WORKLOADS)
    torch = set()
    for name in run.WORKLOADS:
        lines = (PEERS / f"{name}.txt").read_text().splitlines()
        parts = [line.split("==") for line in lines]
        assert all(len(part) == 2 and part[0] and part[1][0].isdigit() for part in parts), name
        assert not any(sign in line for sign in "/@+* " for line in lines), name
        assert len({part[0].lower() for part in parts}) == len(parts), name
        torch |= {line for line in lines if line.startswith("torch==")}
    assert len(torch) == 1
    assert all(name in run.WORKLOADS and load in run.WORKLOADS[name] for name, load in run.VARIANTS)


def test_the_environment_takes_torch_with_its_own_and_the_rest_as_listed():
    first, second = install.commands("pfl")
    assert first[-1].startswith("torch==")
    assert "--no-deps" not in first
    assert "--no-deps" in second
    assert len(install.commands("fedjax")) == 1
    assert install.main(["nobody"]) == 1


def test_installed_are_those_with_a_python(tmp_path):
    assert run.installed(tmp_path) == []
    python = run.python("pfl", tmp_path)
    python.parent.mkdir(parents=True)
    assert run.installed(tmp_path) == []
    python.touch()
    assert run.installed(tmp_path) == ["pfl"]


def test_rows_of_a_worker(worker, tmp_path):
    worker("""
        import json, sys, time
        print("chatter")
        print(json.dumps({"seconds": 2.5, "said": sys.argv[1:], "first_round_at": time.time() + 1e6}))
    """)
    rows = run.measure("torch", "w3", "d.npz", nodes=64, rounds=7, venvs=tmp_path)
    assert [row["variant"] for row in rows] == ["loop", "vmap"]
    for row in rows:
        options = dict(zip(row["said"][::2], row["said"][1::2], strict=True))
        assert options == {
            "--workload": "w3",
            "--nodes": "64",
            "--rounds": "7",
            "--data": "d.npz",
            "--variant": row["variant"],
        }
        assert row["startup_seconds"] == pytest.approx(1e6, rel=0.01)
        assert "first_round_at" not in row
        assert row["seconds"] == 2.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise SystemExit('first\\nno luck')", "no luck"),
        ("raise ValueError('odd shape')", "ValueError: odd shape"),
        ("raise SystemExit(3)", "exit status 3"),
        ("import time; time.sleep(3600)", "stopped after 0.5 s"),
        ("pass", "printed no row"),
    ],
)
def test_a_worker_that_fails_is_a_row(worker, tmp_path, text, said):
    worker(text)
    (row,) = run.measure("torch", "w2", nodes=500, cohort=50, timeout=0.5 if "sleep" in text else 600, venvs=tmp_path)
    assert row == {"peer": "torch", "variant": "loop", "workload": "W2", "nodes": 500, "cohort": 50, "error": said}


def test_a_peer_that_is_not_installed_is_a_row(tmp_path):
    (row,) = run.measure("gossipy", "w3", nodes=64, venvs=tmp_path)
    assert "No such file" in row["error"]
    with pytest.raises(ValueError, match="gossipy does not take part in w1"):
        run.measure("gossipy", "w1", nodes=64, venvs=tmp_path)


def test_data_come_back_as_written(tmp_path):
    rng = np.random.default_rng(0)
    x, y, test_x, test_y = rng.random((5, 3)), np.arange(5), rng.random((2, 3)), np.arange(2)
    run.save_data(tmp_path / "d.npz", x, y, test_x, test_y)
    data = common.load(tmp_path / "d.npz")
    np.testing.assert_array_equal(data.x, x.astype(np.float32))
    np.testing.assert_array_equal(data.test_y, test_y)
    assert (data.x.dtype, data.y.dtype) == (np.float32, np.int32)


@pytest.mark.parametrize(("workload", "nodes"), [("w1", 1000), ("w2", 500), ("w3", 64), ("w3", 256), ("w3", 4096)])
def test_every_node_owns_samples(workload, nodes):
    todo = common.work(workload, nodes)
    assert 0 < todo.samples * nodes <= 60_000


def ticking(monkeypatch, seconds):
    """A clock of 12 rounds by which a round under setting s takes `seconds(s, number)`; marks and the settings."""
    used, now = [], [0.0]
    monkeypatch.setattr(common.time, "perf_counter", lambda: now[0])
    mark, marks = common.clock(12, (1, 2), used.append, cpu=lambda: 3 * now[0])

    def step():
        now[0] += seconds(used[-1], len(marks))

    common.take(step, 12, mark)
    return marks, used


def test_the_clock_keeps_to_the_faster_setting(monkeypatch, capsys):
    # The first round is slow whatever its setting.
    marks, used = ticking(monkeypatch, lambda setting, number: {1: 5.0, 2: 3.0}[setting] + 100 * (number == 1))
    assert used[:12] == [1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    args = common.argparse.Namespace(workload="w1", nodes=10, cohort=2)
    common.report(args, "Peer", "numpy", marks, 0.5, extra="x")
    row = common.json.loads(capsys.readouterr().out)
    assert (row["seconds"], row["seconds_low"], row["seconds_high"], row["cpu_seconds"]) == (3, 3, 3, 9)
    assert (row["threads"], row["rounds"], row["workload"], row["extra"]) == (2, 12, "W1", "x")
    assert row["version"] == np.__version__


def test_one_setting_is_never_changed(monkeypatch):
    _, used = ticking(monkeypatch, lambda setting, number: float(setting))
    assert used[-6:] == [1] * 6


def test_cpu_and_memory_of_the_whole_family():
    before = common.family_cpu()
    text = "import sys\na = bytearray(200_000_000)\nsum(range(10_000_000))\nprint(flush=True)\nsys.stdin.read()"
    child = run.subprocess.Popen([sys.executable, "-c", text], stdin=-1, stdout=-1)
    try:
        child.stdout.readline()
        assert child.pid in common.family()
        assert common.family_cpu() - before > 0.1
        assert common.family_peak_mb() > 200
    finally:
        child.communicate()
    assert child.pid not in common.family()


def test_the_stand_in_imports(monkeypatch):
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    common.stand_in("nosuch", "nosuch.deep", "nosuch.deep.deeper")
    scope = {}
    exec("import nosuch\nfrom nosuch.deep import deeper, Thing\nclass Mine(Thing): pass\nMine(1, two=2)", scope)
    assert scope["nosuch"].deep.deeper is scope["deeper"]
    assert not hasattr(scope["deeper"], "__file__")
