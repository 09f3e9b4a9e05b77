"""Papers of a user, outside the package: right by their equations, and served by every command."""

import json
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from common import jaxfl, quadratics
from ditto import ditto
from extra import extra
from my_mifa import my_mifa

import jaxfl as fl
from jaxfl import plugins, zoo
from jaxfl.algorithms import dsgd, fedavg
from jaxfl.engine.keys import init_key, round_key, run_key
from jaxfl.options import kept

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """What a test registers is forgotten after it."""
    for what in plugins.GROUPS:
        monkeypatch.setitem(plugins._registered, what, {})


N, D, LR, WEIGHT = 6, 3, 0.03, np.array([1.0, 2, 4, 8, 3, 5])
LOCAL = {"lr": LR, "steps": 2, "batch": None}
Q, TASK, DATA = quadratics(n=N, d=D)
SHARE = WEIGHT / WEIGHT.sum()
LINKS = fl.links.links(N, up=[100, 200, 50, 400, 80, 160], down=320, latency=0.5, step=[1, 2, 3, 4, 5, 6])


def world():
    """Three of six members, unlike weights and links, one of the three absent, in the third round all of them."""
    who = fl.cohort.uniform(N, 3, weight=WEIGHT)

    def step(key, arrays, s, t):
        s, c = who.step(key, arrays, s, t)
        return s, c._replace(weight=jnp.where((jnp.arange(3) == t % 3) | (t == 2), 0, c.weight))

    return fl.scenario(DATA, cohort=who._replace(step=step), links=LINKS)


def cohorts(w, rounds):
    s = w.init(init_key(run_key(0), "world"), w.arrays)
    for t in range(rounds):
        s, now = w.step(round_key(run_key(0), jnp.int32(t), "world"), w.arrays, s, jnp.int32(t))
        yield [(int(i), float(p)) for i, p in zip(now.cohort.ids, now.cohort.weight, strict=True) if p > 0]


WORLD = world()
ALL = list(cohorts(WORLD, 4))
MEMBERS = [members for members in ALL if members]  # a round in which nobody answers changes nothing


def grad(i, w):
    return Q.A[i].astype(float) @ (w - Q.b[i])


def loss(i, w):
    return (w - Q.b[i]) @ Q.A[i].astype(float) @ (w - Q.b[i]) / 2


def descend(i, w, force=lambda w: 0.0):
    for _ in range(2):
        w = w - LR * (grad(i, w) + force(w))
    return w


def after(system, up=D, steps=2, **options):
    """The state after four rounds, whose bits and seconds are those of `up` numbers a member and its `steps`."""
    found = fl.run(partial(system, TASK, **LOCAL), WORLD, jnp.ones(D), 4, every=1, hyper=options)
    table, ids = found.history.iloc[1:], [[i for i, _ in members] for members in ALL]
    np.testing.assert_array_equal(table["down_bits"], [len(here) * 32 * D for here in ids])
    np.testing.assert_array_equal(table["up_bits"], [len(here) * 32 * up for here in ids])
    way = lambda bits, rate: 0.5 + bits / np.asarray(rate, float)
    each = way(32 * D, LINKS.down) + steps * np.asarray(LINKS.step) + way(32 * up, LINKS.up)
    np.testing.assert_allclose(table["seconds"], [max(each[here], default=0) for here in ids], rtol=1e-5)
    return found.state


def optimum(share):
    A = Q.A.astype(float)
    return np.linalg.solve(np.einsum("n,nij->ij", share, A), np.einsum("n,nij,nj->i", share, A, Q.b))


def test_mifa():
    x, v, last = np.ones(D), np.zeros(D), np.zeros((N, D))
    for members in MEMBERS:
        for i, _ in members:
            new = descend(i, x) - x
            v, last[i] = v + SHARE[i] * (new - last[i]), new
        x = x + v
    s = after(my_mifa)
    for got, want in ((s.shared["x"], x), (s.shared["v"], v), (s.nodes, last), (s.shared["v"], SHARE @ last)):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_mifa_ends_where_fedavg_with_all_clients_does_whoever_took_part():
    """There the updates of two steps add up to nothing."""
    x = fl.run(my_mifa(TASK, **LOCAL), WORLD, jnp.ones(D), 600, seeds=2, every=600).state.shared["x"]
    eye = np.eye(D)
    pull = [p * (eye - (eye - LR * A) @ (eye - LR * A)) for p, A in zip(SHARE, Q.A.astype(float), strict=True)]
    end = np.linalg.solve(sum(pull), sum(m @ b for m, b in zip(pull, Q.b, strict=True)))
    np.testing.assert_allclose(x, [end] * 2, atol=1e-4)
    assert np.abs(end - optimum(SHARE)).max() > 1e-3


def test_ditto_and_its_global_model_is_that_of_fedavg():
    x, v, lam = np.ones(D), np.ones((N, D)), 0.5
    for members in MEMBERS:
        new, total = np.zeros(D), sum(p for _, p in members)
        for i, p in members:
            new += p / total * descend(i, x)
            v[i] = descend(i, v[i], lambda w, x=x: lam * (w - x))
        x = new
    s = after(ditto, steps=4, lam=lam)
    np.testing.assert_allclose(s.shared["x"], x, atol=1e-5)
    np.testing.assert_allclose(s.nodes, v, atol=1e-5)
    np.testing.assert_allclose(after(fedavg).shared["x"], x, atol=1e-5)


def test_fedavg_stands_beside_ditto_on_every_nodes_own_samples():
    """The personal models stand where FedAvg's one model does, and Ditto's global model beside them."""
    train, test = fl.partition.hold_out(fl.partition.dirichlet(fl.data.digits(), 6, 0.3), 0.3)
    model, world = fl.logistic_regression(64, 10), fl.scenario(train)
    check = fl.metrics.local_test(model, test)
    kw = {"lr": 0.1, "steps": 5, "batch": 8}
    one, two = (fl.run(f(model, **kw), world, model.init, 6, every=3, evaluate=check) for f in (fedavg, ditto))
    np.testing.assert_allclose(two.nodes["local_accuracy_x"], one.nodes["local_accuracy"], atol=0.02)
    assert two.nodes["local_accuracy"].shape == (1, 3, 6)
    assert two.nodes["evaluated"].tolist() == [[0, 3, 6]]
    table = fl.summary({"FedAvg": one.history, "Ditto": two.history}, 6)
    assert table["local_accuracy"].notna().all()
    v = two.state.nodes
    mine = np.asarray(test.order)[test.start[2] : test.start[2] + test.size[2]]
    hit = (np.asarray(test.x)[mine] @ v[2, 10:].reshape(64, 10) + v[2, :10]).argmax(1) == np.asarray(test.y)[mine]
    np.testing.assert_allclose(two.nodes["local_accuracy"][0, -1, 2], hit.mean(), rtol=1e-6)


def test_extra_by_its_matrices_where_a_leaf_is_down_in_one_round():
    """W of the round in which node 3 is down leaves it out, and node 3 remembers what it had."""
    where, lr = fl.mixing.metropolis(fl.graph.star(N)), 0.1
    down = fl.churn.events(N, leaves=[(1, [3])], joins=[(2, [3])])
    there = fl.scenario(DATA, topology=where, churn=down, links=LINKS)
    x = half = np.ones((N, D))  # half: (x + W x) / 2 of the round before
    g, last = lambda x: np.stack([grad(i, x[i]) for i in range(N)]), np.zeros((N, D))
    for t in range(3):
        w, up = fl.mixing.matrix(where).astype(float), np.arange(N) != (3 if t == 1 else -1)
        w = np.where(up[:, None] & up, w, 0)
        w += np.diag(1 - w.sum(1))
        new = x + w @ x - half - lr * (g(x) - last)
        x, half, last = (np.where(up[:, None], a, b) for a, b in ((new, x), ((x + w @ x) / 2, half), (g(x), last)))
    system = extra(TASK, fl.Network(codec=fl.codecs.error_feedback(fl.codecs.plain())), lr=lr)
    found = fl.run(system, there, jnp.ones(D), 3, every=1)
    np.testing.assert_allclose(found.state.nodes["x"], x, atol=1e-5)
    np.testing.assert_array_equal(found.history["up_bits"][1:], [32 * D * edges for edges in (10, 8, 10)])
    # the middle sends 5 messages, or 4: at 100 bits a second it is the slowest, beside the longest step
    np.testing.assert_allclose(found.history["seconds"][1:], [6.5 + 32 * D * k / 100 for k in (5, 4, 5)], rtol=1e-5)


def test_extra_ends_in_the_optimum_and_gossip_at_its_rate_does_not():
    there = fl.scenario(DATA, topology=fl.mixing.metropolis(fl.graph.star(N)))
    away = lambda rows: np.abs(np.asarray(rows) - optimum(np.ones(N))).max()
    run = lambda system: system.read(fl.run(system, there, jnp.ones(D), 600, every=600).state)
    assert away(run(extra(TASK, lr=0.1))) < 1e-4
    assert away(run(dsgd(TASK, lr=0.1, steps=1, batch=None))) > 1e-2


SMALL = ["--nodes", "8", "--data", "digits", "--model", "logistic", "--rounds", "2", "--every", "1", "--seeds", "1"]
SMALL += ["--cohort", "4", "--steps", "2", "--topology", "ring", "--mbit", "1", "--latency-ms", "30", "--step-ms", "5"]


def test_the_command_line_compares_them_with_the_zoo_and_goes_on(tmp_path, capsys, monkeypatch):
    """Seconds and bits are those of the equations' messages, without a word from the authors."""
    monkeypatch.chdir(HERE)
    files = [f"./{name}.py:{name}" for name in ("my_mifa", "ditto", "extra")]
    out = tmp_path / "o"
    assert jaxfl("compare", "fedavg", *files, *SMALL, "--codec", "half", "--checkpoints", "--json", "--out", out) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    rows = {row["name"]: row for row in map(json.loads, lines)}
    assert list(rows) == ["fedavg", "my_mifa", "ditto", "extra"]
    d, way = 650, lambda numbers, bits: 0.03 + numbers * bits / 1e6
    round_trip = lambda up: 2 * (way(d, 32) + 2 * 0.005 + way(up, 16))
    seconds = {name: row["simulated_s"] for name, row in rows.items()}
    np.testing.assert_allclose([seconds["fedavg"], seconds["my_mifa"]], round_trip(d), rtol=1e-5)
    np.testing.assert_allclose(seconds["ditto"], round_trip(d) + 2 * 2 * 0.005, rtol=1e-5)
    np.testing.assert_allclose(seconds["extra"], 2 * (0.005 + 0.03 + 2 * d * 16 / 1e6), rtol=1e-5)
    folder = next(out.glob("*ditto*/models"))
    assert sorted(p.name for p in folder.iterdir()) == ["seed-0-nodes.npz", "seed-0.npz"]
    rows, one = (fl.load_model(folder / f"seed-0{part}.npz").row for part in ("-nodes", ""))
    assert rows.shape == (8, d)
    assert one.shape == (d,)
    systems, setup = kept.load(out / "config.toml")
    assert systems == ["fedavg", *(str(HERE / f"{name}.py:{name}") for name in ("my_mifa", "ditto", "extra"))]
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
    systems, setup = kept.load(tmp_path / "o" / "config.toml")
    assert (systems, setup.rule, setup.data) == (["fedavg"], f"{file}:my_rule", f"{file}:my_data")
    file.write_text(MINE + "\n")
    assert jaxfl("run", "--config", tmp_path / "o" / "config.toml", "--out", tmp_path / "p") == 2
    assert "is not the file that" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("./none.py:f", "there is no file none.py"),
        ("{mine}:my_rull", "has no 'my_rull', did you mean my_rule"),
        ("{mine}:broken", "is of type int, but must be a function"),
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


def test_what_cannot_be_made_gets_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("\ndef raises(*a): raise KeyError('two\\nlines')\ndef nothing(): return None\n")
    says = "cannot be made (KeyError: 'two\\nlines', line 2 of own.py)."
    for what in plugins.GROUPS:
        who, slot = ("own.py:raises", []) if what == "system" else ("dsgd", [f"--{what}", "own.py:raises"])
        small = ["--nodes", 8, "--rounds", 2, "--seeds", 1, *(["--data", "digits"] if what != "data" else [])]
        assert jaxfl("run", who, *small, "--byzantine", 2, *slot) == 2
        told = capsys.readouterr().err
        assert told.startswith(f"jaxfl: {what} "), told
        assert told.endswith(f"{says}\n"), told
        assert told.count("\n") == 1
    assert jaxfl("run", "fedavg", *SMALL[:6], "--byzantine", 2, "--attack", "own.py:nothing") == 2
    assert capsys.readouterr().err.startswith("jaxfl: attack 'own.py:nothing' makes nothing")


def test_registered_names_are_known_everywhere(capsys):
    fl.register("system", "Mifa-Mine", my_mifa)
    fl.register("system", "extra", fl.System(extra, kind="gossip"))
    assert zoo.find("mifa_mine").make is my_mifa
    assert (zoo.find("mifa-mine").kind, zoo.find("extra").kind) == ("server", "gossip")
    assert jaxfl("list") == 0
    assert "mifa_mine" in capsys.readouterr().out
    wrong = {"what is 'rules'": ("rules", "x", print), "letters": ("rule", "a b", print), "is a int": ("rule", "a", 3)}
    for says, bad in wrong.items():
        with pytest.raises(fl.InputError, match=says):
            fl.register(*bad)


def test_a_name_of_the_zoo_stays_the_zoos(tmp_path):
    (tmp_path / "mine.py").write_text("import jaxfl as fl\nfrom jaxfl.algorithms import fedprox as fedavg\n")
    assert zoo.adopt(f"{tmp_path}/mine.py:fedavg") == "mine_fedavg"
    assert zoo.find("mine_fedavg").make is not zoo.find("fedavg").make


def test_the_one_import_has_everything_it_offers():
    for name in fl.__all__:
        assert getattr(fl, name) is not None, name
    assert set(fl.__all__) <= set(dir(fl))
    with pytest.raises(AttributeError, match="jaxfl has no 'runn'"):
        _ = fl.runn
    assert fl.algorithms.fedavg is fedavg
    with pytest.raises(AttributeError, match="no system 'fedavgg'"):
        _ = fl.algorithms.fedavgg
