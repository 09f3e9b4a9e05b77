"""The benchmark suite measures what it says, and its page says what was measured."""

import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxfl.data.sets import from_arrays
from jaxfl.engine.plan import _flops

HERE = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(HERE))

import checks  # noqa: E402
import machine  # noqa: E402
import picture  # noqa: E402
import results  # noqa: E402
import table  # noqa: E402
import timing  # noqa: E402
import workloads  # noqa: E402
from workloads import accelerator, formulations, rounds, shapes, systems, work  # noqa: E402


def suite(*args: str) -> list[dict]:
    """The rows of a run of the command."""
    done = subprocess.run([sys.executable, str(HERE / "suite.py"), *args], stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    return [json.loads(line) for line in done.stdout.splitlines()]


def row(workload: str, **more) -> dict:
    """A row of the file, made up."""
    made = {
        "suite": workload.split()[0].lower(),
        "workload": workload,
        "date": "2020-02-02",
        "machine": {"device": "x"},
    }
    return made | {"nodes": 1000, "cohort": None, "rounds": 3} | more


ROWS = [
    row("W1", cohort=10, seconds=0.001, bound_seconds=0.00095, ratio=1.05, ratio_low=1.0, ratio_high=1.2),
    row("W1", cohort=100, seconds=0.010, bound_seconds=0.008, ratio=1.25, ratio_low=1.2, ratio_high=1.3),
    row("W1", cohort=100, peer="FedJAX", version="9.8", seconds=0.08),
    row("W1", cohort=100, peer="Flower", version="7.6", seconds=0.9),
    row("W1", cohort=100, peer="torch.func.vmap", version="5.4", seconds=0.012),
    row("W1", cohort=100, peer="pfl", error="no such thing"),
    row("W3", nodes=64, seconds=0.005, floor_seconds=0.002, startup_seconds=7.0, startup_warm_seconds=6.5),
    row("W3", nodes=256, seconds=0.020),
    row("W3", nodes=1024, seconds=0.160),
    row("mixing", formulation="plain", seconds=0.02, seconds_low=0.01, seconds_high=0.03, apart=2e-7, suite="gpu"),
    row("W9", suite="gpu", left_out="9 s were over"),
    row("W8", suite="gpu", error="no memory"),
    {"suite": "gpu", "system": "fedavg", "tolerance": 1e-3, "apart": 1e-6, "date": "x", "machine": {"device": "x"}},
    {"suite": "gpu", "system": "dsgd", "tolerance": 1e-3, "error": "no", "date": "x", "machine": {"device": "x"}},
    {"suite": "gpu", "system": "mifa", "tolerance": 1e-3, "left_out": "late", "date": "x", "machine": {"device": "x"}},
    row("W3", nodes=257, devices=2, beside=320, members=257, members_beside=320, least=1.0055, suite="shapes")
    | {"member_seconds": 190e-6, "member_seconds_beside": 95e-6, "ratio": 2.0, "ratio_low": 1.9, "ratio_high": 2.1},
]


def test_the_command_measures_and_keeps(tmp_path):
    """A tiny run: figures that hang together, the rows of other workloads kept, the page made from all."""
    memory = row("W2", seconds=1.0)
    before = (memory, row("W5", seconds=5.0))
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in before))
    (found,) = suite("w5", "--tiny", "--turns", "2", "--out", str(tmp_path))
    assert all(math.isfinite(v) for v in found.values() if isinstance(v, float))
    assert found["floor_seconds"] > 0
    assert found["seconds_low"] <= found["seconds"] <= found["seconds_high"]
    assert found["floor_seconds"] == max(found["arithmetic_seconds"], found["memory_seconds"])
    assert found["state_mb"] == pytest.approx(64 * 2410 * 4e-6)  # 64 nodes, MLP 64-32-10
    assert found["data_mb"] == pytest.approx(1797 * 65 * 4e-6, rel=0.1)  # digits, shards and graph
    assert found["run_mb"] < found["peak_mb"]
    assert 0 < found["arrays_mb"] < found["run_mb"]
    assert {"startup_warm_seconds", "startup_seconds"} <= set(found)
    assert found["date"]
    assert results.read(tmp_path / "results.jsonl") == [memory, found]
    page = (tmp_path / "README.md").read_text()
    assert "| W5 | 64 |" in page
    assert "| W2 | 1,000 |" in page
    assert "5,000" not in page


@pytest.fixture
def few_images(monkeypatch):
    """Ten noisy prototypes in the place of Fashion-MNIST, which may not be installed."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, 3000)
    x = (rng.random((10, 784)) > 0.7)[y] * 0.5 + 0.3 * rng.random((3000, 784))
    known = from_arrays(x[:2500].astype(np.float32), y[:2500], x[2500:], y[2500:], classes=10)
    monkeypatch.setattr(work, "images", lambda: known)


@pytest.mark.parametrize("name", ["w1", "w2", "w3", "w4", "w6", "w7", "w8"])
def test_every_workload_runs(name, few_images):
    """Both sides of a race learn something, times and costs are positive and finite."""
    made = workloads.load(workloads.TINY[name][0])
    program = made.build()
    sides = {"": made.ours(program) if made.ours else work.ours(program, made.rounds, made.scored)}
    if made.rival is not None:
        sides["bound_"] = made.rival(program)
    test = (program.data.test_x, program.data.test_y) if made.scored else None
    found = timing.race(sides, made.rounds, 1, test)
    cost = made.cost(program)
    assert ("ratio" in found) == (made.rival is not None)
    assert all(math.isfinite(v) and v >= 0 for v in found.values())
    assert cost.bytes > 0
    if made.scored:
        assert min(found["accuracy"], found["bound_accuracy"]) > 0.2


@pytest.mark.parametrize("name", ["robust", "scaffold"])
def test_odd_shapes_run_beside_even_ones(name):
    (row,) = shapes.pairs(shapes.SYSTEMS[name], [9], 64, 2, True)
    assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    assert (row["members"], row["members_beside"]) == ((1, 8) if name == "scaffold" else (9, 64))
    assert min(row["member_seconds"], row["member_seconds_beside"]) > 0
    assert ("bound_ratio" in row) == (name == "robust")


def test_sizes_of_odd_shapes():
    """Cohorts are odd, those beside them multiples of 8; the least ratio is that of the fullest device."""
    assert set(workloads.PARTS["shapes"]) == set(shapes.SYSTEMS)
    fedavg = shapes.SYSTEMS["w1"]
    assert [shapes.beside(n) for n in shapes.NODES] == [64, 128, 256, 256, 320, 1024, 1024, 4096]
    assert all(shapes.members(fedavg, n) % 2 for n in shapes.NODES)
    assert [shapes.members(fedavg, n) for n in (64, 320, 1024, 4096)] == [8, 32, 104, 408]
    assert shapes.members(shapes.SYSTEMS["w3"], 63) == 63
    assert shapes.least(7, 8, 1) == 1
    assert shapes.least(7, 8, 2) == pytest.approx(8 / 7)
    assert shapes.least(257, 320, 8) == pytest.approx(33 * 320 / (40 * 257))


def test_a_part_replaces_its_own_rows(tmp_path):
    path = tmp_path / "results.jsonl"
    old = [{"suite": "shapes", "workload": w, "nodes": 1} for w in ("W1", "W3")]
    results.replace(path, "shapes", old)
    new = [{"suite": "shapes", "workload": "W3", "nodes": 2}]
    assert results.replace(path, "shapes", new, parts=True) == [old[0], *new]
    assert results.replace(path, "shapes", new) == new
    for some in (
        [{"suite": "round", "round": r} for r in ("admm", "fedprox")],
        [{"suite": "round", "round": "admm", "x": 1}],
    ):
        found = results.replace(path, "round", some, parts=True)
    assert [row.get("x") for row in found if row["suite"] == "round"] == [None, 1]
    other = [{"suite": "w1", "workload": "W1", "peer": "FedJAX"}, {"suite": "w1", "workload": "W1", "seconds": 1}]
    results.replace(path, "w1", other)
    assert results.replace(path, "w1", other[1:], alone=True)[:2] == other
    assert other[0] not in results.replace(path, "w1", other[1:])


def test_sizes_of_an_accelerator_exist():
    """W1 to W7 first; up to 100,000 nodes and in 16 bits after that; the bound where both fit."""
    made = [workloads.load(case) for case in workloads.CASES["gpu"]]
    name = lambda w: w.workload.split()[0]
    assert {name(w) for w in made[: workloads.GPU_FIRST]} == {f"W{i}" for i in range(1, 8)}
    assert {name(w) for w in made if w.nodes == 100_000} == {"W1", "W3", "W5"}
    assert {w.workload for w in made if "bfloat16" in w.workload} == {"W1 bfloat16", "W2 bfloat16", "W7 bfloat16"}
    assert [w.rival is not None for w in made if w.workload == "W3"] == [True, True, False]


def test_time_ends_what_an_accelerator_does(monkeypatch):
    """A job that fails is a row, and the others go on; what is not begun in time is named."""

    def broken():
        raise ValueError("no such thing")
        yield

    now = [100.0]
    monkeypatch.setattr(accelerator.time, "time", lambda: now[0])
    slow = lambda: iter([now.__setitem__(0, 200.0) or {"workload": "slow"}])
    other = ("scale", "other", 4, broken)
    jobs = [("systems", "broken", 1, broken), other, ("systems", "slow", 2, slow), ("systems", "late", 3, broken)]
    monkeypatch.setattr(accelerator, "jobs", lambda *_: iter(jobs))
    failed, done, late = accelerator.rows(1, True, 50, only=["systems"])
    assert failed == {"workload": "broken", "nodes": 1, "error": "ValueError: no such thing"}
    assert done == {"workload": "slow", "took_seconds": 100}
    assert late == {"workload": "late", "nodes": 3, "left_out": "50 s were over"}


def test_what_an_accelerator_does_is_in_order():
    names = [name for _, name, _, _ in accelerator.jobs(1, False, 0.0, 0.0)]
    assert names.index("formulations: mixings") == workloads.GPU_FIRST
    assert names[workloads.GPU_FIRST + 3] == "systems"
    assert len(names) == len(workloads.CASES["gpu"]) + 4


@pytest.mark.parametrize("name", ["mixings", "convolutions", "robust"])
def test_formulations_agree(name):
    rows = list(getattr(formulations, name)(1, True))
    assert all(r["seconds_low"] <= r["seconds"] <= r["seconds_high"] for r in rows)
    assert all(r["apart"] < (1e-5 if "bfloat16" not in r["formulation"] else 0.3) for r in rows)
    assert {r["formulation"] for r in rows} >= {"jaxfl"}


def test_systems_are_compared_with_the_cpu(tmp_path):
    """Files of the same system agree; another number, shape or place of what is not finite does not."""
    systems.save(["gossip_averaging", "no such system"], tmp_path)
    assert "no such system" in (tmp_path / "no such system.txt").read_text()
    path = tmp_path / "gossip_averaging.npz"
    assert systems.apart(path, path) == 0
    known = np.load(path)
    for change, want in ((lambda a: a * 1.01, 0.01), (lambda a: a[1:], np.inf), (lambda a: a / 0, np.inf)):
        with np.errstate(all="ignore"):
            np.savez(tmp_path / "other.npz", *(change(known[key]) for key in known.files))
        assert systems.apart(tmp_path / "other.npz", path) == pytest.approx(want, rel=1e-3)


def test_a_round_of_a_system_beside_that_of_fedavg(few_images):
    """SCAFFOLD's messages are twice as long and it remembers; the zoo says which systems there are."""
    found = rounds.system("scaffold", 1, True)
    assert (found["gradients"], found["bits"]) == (1, 2)
    assert 1 < found["arithmetic"] < 1.5
    assert found["state_mb"] == pytest.approx(4e-6 * 50890 * (20 + 2), rel=0.01)
    assert np.isfinite(found["ratio"])  # of runs so short it may be anything
    assert {"fedopt", "fedavg"}.isdisjoint(rounds.names())
    assert {"fedprox", "heterofl"} <= set(rounds.names())


def test_the_page_names_what_a_round_does_more():
    """Above 1.5 times FedAvg's round what is more is named; in bold, and no target met, where it is not arithmetic."""
    made = {"clients": 10_000, "members": 100, "cpu_seconds": 0.1, "fedavg_cpu_seconds": 0.05, "state_mb": 1.0}
    made |= {"short": 10, "long": 60, "ends_cpu_seconds": 0.2}
    made |= {"suite": "round", "date": "2020-02-02", "machine": {"device": "x"}, "bits": 1.0}
    of = lambda ratio: {"ratio": ratio, "ratio_low": ratio, "ratio_high": ratio}
    rows = [
        made | of(2.1) | {"round": "twice", "gradients": 2.0, "arithmetic": 2.0},
        made | of(1.6) | {"round": "slow", "gradients": 1.0, "arithmetic": 1.0},
        made | {"round": "own", "left_out": "it brings a world of its own"},
        {"suite": "round", "round": "broken", "error": "no", "date": "x", "machine": {"device": "x"}},
    ]
    page = table.render(rows, [])
    assert "| 2.10 (2.10, 2.10) | 2.00 | 1.00 | 2.00 | 200 | 1.0 | 2.0 times the gradients, 2.0 times the" in page
    assert "| **1.60 (1.60, 1.60)** | 1.00 | 1.00 | 1.00 | 200 | 1.0 | no more than FedAvg |" in page
    assert "Left out: `own` (it brings a world of its own)." in page
    assert "| `broken` |  |  | failed: no |" in page
    (target,) = (c for c in checks.checks(rows) if c.target.startswith("round:"))
    assert (target.measured, target.met) == ("1.60 times (`slow`, of 2)", False)
    assert next(c for c in checks.checks(rows[:1]) if c.target.startswith("round:")).met


def test_missing_packages_are_named(monkeypatch):
    assert results.missing() == []
    monkeypatch.setattr(results, "_installed", lambda name: name not in ("scikit-learn", "rich"))
    assert results.missing() == ["scikit-learn", "rich"]


def test_arithmetic_of_the_workloads(few_images):
    """FLOPs a sample: 204.6 k of the MLP and 5.96 M of the CNN, forward and backward."""
    w1, w2 = (workloads.load(workloads.CASES[name][0]) for name in ("w1", "w2"))
    program = work.Program(None, None, work.mlp((784, 64, 10)), work.images())
    assert w1.cost(program).flops == 10 * 3 * 20 * 2 * (2 * 784 * 64 + 3 * 64 * 10)
    per_sample = 2 * (2 * 784 * 9 * 16 + 3 * 196 * 144 * 32 + 3 * 1568 * 10)
    assert w2.cost(program).flops == 50 * 6 * 20 * per_sample


def test_rates_are_what_was_computed_a_second(monkeypatch):
    """The FLOPs that the timed program has by its own text, were each to take a nanosecond; bytes in two seconds."""
    count = lambda f, *args: _flops(jax.make_jaxpr(f)(*args).jaxpr)
    monkeypatch.setattr(machine, "_fastest", lambda f, *args: count(f, *args) / 1e9)
    for shape in ((256, 256, 256), (20, 784, 64)):
        assert machine.matmul_rate.__wrapped__(*shape) == pytest.approx(1e9, rel=0.05)
    monkeypatch.setattr(machine, "_fastest", lambda f: f().nbytes)
    for each in (2**20, 2**24):
        assert machine._bandwidth.__wrapped__(each) == pytest.approx(2 * 4e8 / each, rel=0.05)  # sweeps, twice each


def test_overlapping_shards_stay_inside(few_images):
    data = work.images()
    shards = work.even_shards(data, 100, 60)
    assert int(shards.start.max()) + 60 <= len(data.y)
    assert int(work.even_shards(data, 40, 60).start[39]) == 39 * 60


def test_checks_follow_the_rows():
    """Every verdict is that of the rows above, by hand; what has no row is not judged."""
    found = {c.target.split(":")[0] + ":" + c.target.split(":")[-1]: c for c in checks.checks(ROWS)}
    met = {name: c.met for name, c in found.items()}
    assert met["W1, 10 a round: at most 1.15 times the bound"] is True
    assert met["W1, 100 a round: at most 1.15 times the bound"] is False
    assert met["W1, 1,000 a round: at most 1.15 times the bound"] is None
    assert met["W1, 100 a round: at least 5 times as fast as the fastest framework"] is True  # 8 times; vmap is none
    assert met["W1, 100 a round: at least 100 times as fast as Flower"] is False  # 90 times
    assert met["W1, 100 a round: ahead of torch.func.vmap"] is True
    assert found["W1, 100 a round: ahead of torch.func.vmap"].measured == "1.2 times"
    assert met["W5: at most 2 s a round"] is None
    growth = next(c for c in found.values() if "seconds over linear" in c.target)
    assert growth.measured == f"{2**0.5:.3g}"  # 256 to 1,024 nodes take twice more than four times as long
    assert growth.met is False
    even = next(c for name, c in found.items() if name.startswith("shapes"))
    assert even.measured == "1.99 times (W3, 257 nodes, 2 devices); above in 1 of 1"
    assert even.met is False
    assert met["W1 and W3: start-up under 12 s without a cache"] is True
    assert met["W1 and W3: start-up under 6 s with a warm compilation cache"] is False


def test_page_and_pictures(tmp_path):
    drawn = picture.draw(ROWS, tmp_path / "figures")
    assert [path for _, path in drawn] == ["figures/speed.png", "figures/scaling.png"]
    assert all((tmp_path / path).stat().st_size > 5000 for _, path in drawn)
    page = table.render(ROWS, drawn)
    assert "| W1 | 1,000 | 100 | 10 | 8 | 1.25 (1.20, 1.30) |" in page
    assert "| W3 | 64 |  | 5 |  |  | 2 | 40% |" in page
    assert "| W1 | 1,000 | 100 | FedJAX 9.8 | 80 | 8 |" in page
    assert "failed: pfl: no such thing" in page
    assert "| W3 | 2 | 257 | 257 | 190 | 320 | 320 | 95 | 2.00 (1.90, 2.10) | 1.01 |  |" in page
    assert page.count("| W3 |") == 4  # a row of shapes is in its own table only
    assert "| W8 | 1,000 |  | failed: no memory |" in page
    assert "| mixing | 1,000 | plain | 20 | 10 | 30 | 2e-07 |" in page
    assert "Left out: W9 (1,000: 9 s were over)." in page
    assert "Left out, as the time was over: `mifa`." in page
    assert "1 of 2 systems give the numbers of the CPU to 1e-03." in page
    assert "- `dsgd`: no" in page
    assert "install.py" not in page
    assert "install.py" in table.render([r for r in ROWS if "peer" not in r], [])
    assert page.index("torch.func.vmap 5.4") < page.index("FedJAX 9.8") < page.index("Flower 7.6")


def test_bad_arguments_say_what_is_allowed(tmp_path):
    for args, said in (
        (["w99"], "w1, w2"),
        (["w1", "--tiny"], "--out"),
        (["gpu", "--out", str(tmp_path)], "accelerator"),
        (["shapes", "--only", "w2"], "w1, w3"),
        (["round", "--only", "w2"], "fedprox"),
        (["w1", "--only", "w1"], "for shapes, round or gpu alone"),
    ):
        done = subprocess.run([sys.executable, str(HERE / "suite.py"), *args], stderr=subprocess.PIPE, text=True)
        assert done.returncode == 2
        assert said in done.stderr
