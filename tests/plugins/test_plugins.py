"""Papers of a user, outside the package: right by their equations, and served by every command."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from common import quadratics
from ditto import ditto
from extra import extra
from feddyn import feddyn
from qfedavg import qfedavg

import jaxfl as fl
from jaxfl import plugins, zoo
from jaxfl.algorithms import dsgd, fedavg
from jaxfl.cli import main
from jaxfl.engine.keys import init_key, round_key, run_key
from jaxfl.options import config

HERE = Path(__file__).parent
N, D, LR, WEIGHT = 6, 3, 0.03, np.array([1.0, 2, 4, 8, 3, 5])
LOCAL = {"lr": LR, "steps": 2, "batch": None}
Q, TASK, DATA = quadratics(n=N, d=D)


def world():
    """Three of six members, unlike weights, the third of the three absent."""
    who = fl.cohort.uniform(N, 3, weight=WEIGHT)

    def step(key, arrays, s, t):
        s, c = who.step(key, arrays, s, t)
        return s, c._replace(weight=c.weight.at[2].set(0.0))

    return fl.scenario(DATA, cohort=who._replace(step=step))


def cohorts(w, rounds):
    s = w.init(init_key(run_key(0), "world"), w.arrays)
    for t in range(rounds):
        s, now = w.step(round_key(run_key(0), jnp.int32(t), "world"), w.arrays, s, jnp.int32(t))
        yield [(int(i), float(p)) for i, p in zip(now.cohort.ids, now.cohort.weight, strict=True) if p > 0]


WORLD = world()
MEMBERS = list(cohorts(WORLD, 3))


def grad(i, w):
    return Q.A[i].astype(float) @ (w - Q.b[i])


def loss(i, w):
    return (w - Q.b[i]) @ Q.A[i].astype(float) @ (w - Q.b[i]) / 2


def descend(i, w, force=lambda w: 0.0):
    for _ in range(2):
        w = w - LR * (grad(i, w) + force(w))
    return w


def after(system, **options):
    return fl.run(system(TASK, **LOCAL, **options), WORLD, jnp.ones(D), 3).state


def test_feddyn():
    x, h, dual, alpha = np.ones(D), np.zeros(D), np.zeros((N, D)), 0.3
    for members in MEMBERS:
        move, total = np.zeros(D), sum(p for _, p in members)
        for i, p in members:
            y = descend(i, x, lambda w, i=i, x=x: alpha * (w - x) - dual[i])
            dual[i] -= alpha * (y - x)
            move += p / total * (y - x)
        h -= alpha * len(members) / N * move
        x = x + move - h / alpha
    s = after(feddyn, alpha=alpha)
    for got, want in ((s.shared["x"], x), (s.shared["h"], h), (s.nodes, dual)):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_ditto_and_its_global_model_is_that_of_fedavg():
    x, v, lam = np.ones(D), np.ones((N, D)), 0.5
    for members in MEMBERS:
        new, total = np.zeros(D), sum(p for _, p in members)
        for i, p in members:
            new += p / total * descend(i, x)
            v[i] = descend(i, v[i], lambda w, x=x: lam * (w - x))
        x = new
    s = after(ditto, lam=lam)
    np.testing.assert_allclose(s.shared["x"], x, atol=1e-5)
    np.testing.assert_allclose(s.nodes, v, atol=1e-5)
    np.testing.assert_allclose(after(fedavg).shared["x"], x, atol=1e-5)


def test_qfedavg():
    x, q = np.ones(D), 1.5
    for members in MEMBERS:
        above, below = np.zeros(D), 0.0
        for i, p in members:
            move, f = (x - descend(i, x)) / LR, loss(i, x)
            above, below = above + p * f**q * move, below + p * (q * f ** (q - 1) * move @ move + f**q / LR)
        x = x - above / below
    np.testing.assert_allclose(after(qfedavg, q=q).shared["x"], x, rtol=1e-4)
    np.testing.assert_allclose(after(qfedavg, q=0.0).shared["x"], after(fedavg).shared["x"], atol=1e-5)


def test_extra_by_its_matrices_and_at_the_optimum():
    where = fl.mixing.metropolis(fl.graph.star(N))
    w, there = fl.mixing.matrix(where), fl.scenario(DATA, topology=where)
    x, before, g = w @ np.ones((N, D)), np.ones((N, D)), lambda x: np.stack([grad(i, x[i]) for i in range(N)])
    x -= 0.1 * g(before)
    for _ in range(2):
        x, before = x + w @ x - (before + w @ before) / 2 - 0.1 * (g(x) - g(before)), x
    np.testing.assert_allclose(fl.run(extra(TASK, lr=0.1), there, jnp.ones(D), 3).state.nodes["x"], x, atol=1e-5)
    best = np.linalg.solve(Q.A.astype(float).sum(0), np.einsum("nij,nj->i", Q.A.astype(float), Q.b))
    far = lambda rows: np.abs(np.asarray(rows) - best).max()
    assert far(fl.run(extra(TASK, lr=0.1), there, jnp.ones(D), 600, every=600).state.nodes["x"]) < 1e-4
    gossip = dsgd(TASK, lr=0.1, steps=1, batch=None)
    assert far(fl.run(gossip, there, jnp.ones(D), 600, every=600).state.nodes) > 1e-2


SMALL = ["--nodes", "8", "--data", "digits", "--model", "logistic", "--rounds", "2", "--every", "1", "--seeds", "1"]
SMALL += ["--cohort", "4", "--steps", "2", "--topology", "ring", "--mbit", "1", "--latency-ms", "30", "--step-ms", "5"]


def jaxfl(*args):
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in args])
    return stopped.value.code


def test_the_command_line_compares_them_with_the_zoo_and_goes_on(tmp_path, capsys, monkeypatch):
    """Seconds and bits are those of the equations' messages, without a word from the authors."""
    monkeypatch.chdir(HERE)
    files = [f"./{name}.py:{name}" for name in ("feddyn", "ditto", "qfedavg", "extra")]
    out = tmp_path / "o"
    assert jaxfl("compare", "fedavg", *files, *SMALL, "--codec", "half", "--checkpoints", "--json", "--out", out) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    rows = {row["name"]: row for row in map(json.loads, lines)}
    assert list(rows) == ["fedavg", "feddyn", "ditto", "qfedavg", "extra"]
    d, way = 650, lambda numbers, bits: 0.03 + numbers * bits / 1e6
    round_trip = lambda up: 2 * (way(d, 32) + 2 * 0.005 + way(up, 16))
    seconds = {name: row["simulated_s"] for name, row in rows.items()}
    np.testing.assert_allclose([seconds["fedavg"], seconds["feddyn"]], round_trip(d), rtol=1e-5)
    np.testing.assert_allclose(seconds["ditto"], round_trip(d) + 2 * 2 * 0.005, rtol=1e-5)
    np.testing.assert_allclose(seconds["qfedavg"], round_trip(d + 1), rtol=1e-5)
    np.testing.assert_allclose(seconds["extra"], 2 * (0.005 + 0.03 + 2 * d * 16 / 1e6), rtol=1e-5)
    systems, setup = config.load(out / "config.toml")
    assert systems == ["fedavg", *(str(HERE / f"{name}.py:{name}") for name in ("feddyn", "ditto", "qfedavg", "extra"))]
    assert setup.codec == "half"
    monkeypatch.chdir(tmp_path)  # files were recorded from the root on
    before = (out / "history.csv").read_text()
    assert jaxfl("compare", "--resume", out) == 0
    assert (out / "history.csv").read_text() == before


MINE = """
import jax.numpy as jnp
import jaxfl as fl
from functools import partial

calls = []
def my_rule():
    calls.append("rule")
    return fl.rules.median()
def my_attack():
    calls.append("attack")
    return fl.attacks.alie()
def my_codec():
    calls.append("codec")
    return fl.codecs.half()
def my_data():
    calls.append("data")
    d = fl.data.digits()
    return d._replace(x=d.x[:400], y=d.y[:400])
def my_model(shape, classes):
    calls.append("model")
    return partial(fl.networks.MLP, (shape[0], 7, classes))
broken = 3
"""


def test_data_models_rules_attacks_and_codecs_of_a_user(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    slots = [word for what in plugins.GROUPS if what != "system" for word in (f"--{what}", f"{file}:my_{what}")]
    common = ["--nodes", 8, "--rounds", 1, "--seeds", 1, "--cohort", 8, "--byzantine", 2, "--out", tmp_path / "o"]
    assert jaxfl("run", "fedavg", *slots, *common) == 0
    module = plugins._file("rule", "", file)
    assert {"rule", "attack", "codec", "data", "model"} == set(module.calls)
    systems, setup = config.load(tmp_path / "o" / "config.toml")
    assert (systems, setup.rule, setup.data) == (["fedavg"], f"{file}:my_rule", f"{file}:my_data")
    file.write_text(MINE + "\n")
    assert jaxfl("run", "--config", tmp_path / "o" / "config.toml", "--out", tmp_path / "p") == 2
    assert "is not the file that" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("./none.py:f", "there is no file none.py"),
        ("{mine}:my_rull", "has no 'my_rull', did you mean my_rule"),
        ("{mine}:broken", "is a int, but must be a function"),
        ("{bad}:f", "does not run (ZeroDivisionError: division by zero, line 2 of bad.py)"),
        ("{wrong}:f", "does not run (SyntaxError"),
        ("no_such_module:f", "no_such_module cannot be imported (ModuleNotFoundError"),
    ],
)
def test_what_cannot_be_loaded_gets_one_sentence(place, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = {"mine": MINE, "bad": "\n1 / 0\n", "wrong": "def f(:\n"}
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    place = place.format(**{name: tmp_path / f"{name}.py" for name in texts})
    assert jaxfl("run", place, *SMALL) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_registered_names_are_known_everywhere(monkeypatch, capsys):
    for what in plugins.GROUPS:
        monkeypatch.setitem(plugins._registered, what, {})
    fl.register("system", "Feddyn-Mine", feddyn)
    fl.register("system", "extra", fl.System(extra, kind="gossip"))
    assert zoo.find("feddyn_mine").make is feddyn
    assert (zoo.find("feddyn-mine").kind, zoo.find("extra").kind) == ("server", "gossip")
    assert jaxfl("list") == 0
    assert "feddyn_mine" in capsys.readouterr().out
    wrong = {"what is 'rules'": ("rules", "x", print), "letters": ("rule", "a b", print), "is a int": ("rule", "a", 3)}
    for says, bad in wrong.items():
        with pytest.raises(fl.InputError, match=says):
            fl.register(*bad)


def test_a_name_of_the_zoo_stays_the_zoos(tmp_path):
    (tmp_path / "mine.py").write_text("import jaxfl as fl\nfrom jaxfl.algorithms import fedprox as fedavg\n")
    assert zoo.adopt(f"{tmp_path}/mine.py:fedavg") == "mine_fedavg"
    assert zoo.find("mine_fedavg").make is not zoo.find("fedavg").make
