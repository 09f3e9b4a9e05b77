"""A study cannot flatter: strictness, noise, costs, edges, dead seeds; and it runs what `run` runs."""

from functools import partial
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from common import quadratics

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.claims.evidence import FAILS, HOLDS, IN_PART
from jaxfl.claims.judge import judge
from jaxfl.claims.study import Arm, Inequality, Score, Setting, Study, examine, explore, points, reproduce, tiny
from jaxfl.core import Metric
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario

RATES = (0.1, 0.2, 0.3)
SAYS = Inequality("loss", "ours", "/", "plain", 0.9)


def history(losses, gradients=10.0, bits=8.0):
    """One row a seed, and what it spent."""
    spent = {"total_gradients": gradients, "total_up_bits": bits, "total_down_bits": bits, "time": 1.0}
    return pd.DataFrame([{"seed": s, "round": 1, "loss": loss} | spent for s, loss in enumerate(losses)])


def study(says=(SAYS,), **kw):
    known = {
        "settings": {},
        "arms": {"ours": Arm(print, grid={"mu": (1.0, 2.0, 3.0)}, paper={"mu": 2.0}), "plain": Arm(print)},
        "ablations": ("plain",),
        "model": print,
        "rounds": 3,
        "grid": {"lr": RATES},
        "paper": {"lr": 0.2},
        "scores": {"loss": Score(lambda h: h["loss"].to_numpy())},
        "says": says,
    }
    return Study(**known | kw)


def cells(ours, plain=(1.0, 1.1), best=0.2, **spent):
    """Histories in which both arms are best at the rate `best`, ours with mu = 2."""
    worse = lambda losses, lr: [loss + 5 * abs(lr - best) for loss in losses]
    found = {
        ("", "ours", (lr, mu)): history(worse(ours, lr + abs(mu - 2)), **spent)
        for lr in RATES
        for mu in (1.0, 2.0, 3.0)
    }
    return found | {("", "plain", (lr,)): history(worse(plain, lr)) for lr in RATES}


def test_an_inequality_is_asked_at_the_papers_point_and_at_the_best_of_each():
    found = judge(study(), cells([0.5, 0.55]))
    assert found.verdict == HOLDS
    paper, best, cost, edge = found.checks
    assert paper.what == "loss of ours over that of plain, paper points"
    assert (paper.measured, paper.required, paper.relation) == (pytest.approx(0.5), 0.9, "<")
    assert (best.measured, best.required, best.role) == (pytest.approx(0.5), 1.0, "headline")
    assert (cost.measured, edge.measured) == (1.0, 0)
    assert found.table.loc[("best", "", "ours"), ["lr", "mu", "tried", "total gradients", "total bits"]].tolist() == [
        0.2,
        2,
        9,
        10,
        16,
    ]
    assert found.table.loc[("paper", "", "plain"), "loss_std"] == pytest.approx(np.std([1.0, 1.1], ddof=1))


@pytest.mark.parametrize(
    ("kw", "verdict"),
    [
        ({"ours": [0.95, 1.04]}, IN_PART),  # the bound at the paper's point is missed
        ({"ours": [1.0, 1.1]}, FAILS),  # alike
        ({"ours": [0.5, 2.9]}, FAILS),  # noise
        ({"ours": [0.5, np.nan]}, FAILS),  # a dead seed is the worst there is
        ({"ours": [0.5, 0.5], "plain": [np.nan, 1.0]}, HOLDS),
        ({"ours": [np.inf, 0.5], "plain": [np.inf, 1.0]}, FAILS),
        ({"ours": [0.5, 0.55], "gradients": 10.2}, IN_PART),  # bought
        ({"ours": [0.5, 0.55], "bits": 9.0}, IN_PART),
        ({"ours": [0.5, 0.55], "best": 0.3}, IN_PART),  # the best rate may lie further
    ],
)
def test_what_makes_a_headline_fail(kw, verdict):
    assert judge(study(), cells(**kw)).verdict == verdict


def test_exceptions_need_words_and_are_told():
    dear = SAYS._replace(costlier="it is about bits", untuned="the paper has one rate")
    found = judge(study((dear,)), cells([0.5, 0.55], gradients=20.0, best=0.3))
    assert found.verdict == HOLDS
    assert len(found.checks) == 2
    assert [note.partition("because ")[2] for note in found.notes] == ["the paper has one rate", "it is about bits"]
    end = judge(study(ends={"lr high": "no rate is larger"}), cells([0.5, 0.55], best=0.3))
    assert end.verdict == HOLDS
    assert "no rate is larger" in end.notes[0]
    assert judge(study(ends={"lr low": "none is smaller"}), cells([0.5, 0.55], best=0.3)).verdict == IN_PART


def test_every_seed_and_larger_is_better():
    high = {"loss": Score(lambda h: -h["loss"].to_numpy(), "high")}
    says = Inequality("loss", "ours", "-", "plain", every_seed=True)
    found = judge(study((says,), scores=high), cells([0.5, 1.15], plain=[1.4, 1.1]))
    mean, worst = found.checks[:2]
    assert (mean.relation, mean.measured) == (">", pytest.approx(0.425))
    assert (worst.what, worst.holds) == ("loss of ours minus that of plain, paper points, worst seed", False)


@pytest.mark.parametrize(
    ("kw", "says"),
    [
        ({"says": (SAYS._replace(bound=1.05),)}, "is true of two equal systems"),
        ({"says": (SAYS._replace(op="-", bound=0.01),)}, "is true of two equal systems"),
        ({"says": (SAYS._replace(headline=False),)}, "against an ablation"),
        ({"ablations": ("ours",)}, "against an ablation"),
        ({"ablations": ("plane",)}, "ablations has 'plane'"),
        ({"says": (SAYS._replace(score="los"),)}, "says.score has 'los'"),
        ({"says": (SAYS._replace(op="*"),)}, "op = '\\*'"),
        ({"ends": {"rate low": "x"}}, "ends has 'rate low'"),
        ({"ends": {"lr": "x"}}, "known are lr low, lr high"),
    ],
)
def test_a_study_that_could_flatter_is_refused(kw, says):
    with pytest.raises(InputError, match=says):
        examine(study(**kw))


def test_it_runs_what_run_runs_and_other_data_are_other_seeds():
    _, task, shards = quadratics(8, 3)
    world = scenario(shards, cohort=cohort.uniform(8, 4))
    size = Metric(lambda arrays, x: {"size": jnp.abs(x).sum()})
    make = partial(fedavg, task, steps=2, batch=None)
    half = Arm(make, rounds=0.5, world=lambda w: w._replace(data=w.data))
    arms = {"ours": Arm(make, settings=("one",)), "plain": half}
    kw = {
        "model": task.init,
        "rounds": 4,
        "every": 2,
        "grid": {"lr": (0.01, 0.02)},
        "paper": {"lr": 0.05},
        "arms": arms,
    }
    scores = {"loss": Score(lambda h: h.groupby("seed")["size"].last().to_numpy())}
    s = study(settings={"one": Setting(world, size), "two": Setting(world, size)}, scores=scores, **kw)
    assert points(s, arms["ours"]) == [{"lr": 0.01}, {"lr": 0.02}, {"lr": 0.05}]
    found = explore(s, 2)
    assert set(found) == {(w, a, (lr,)) for w in ("one", "two") for a in arms for lr in (0.01, 0.02, 0.05)} - {
        ("two", "ours", (lr,)) for lr in (0.01, 0.02, 0.05)
    }
    alone = run(make, world, task.init, 4, seeds=2, hyper={"lr": 0.02}, every=2, evaluate=size).history
    np.testing.assert_allclose(found["one", "ours", (0.02,)]["size"], alone["size"], rtol=1e-6)
    assert found["one", "plain", (0.02,)]["round"].max() == 2
    drawn = explore(s._replace(settings=lambda seed: {"one": Setting(world, size)}), 2)
    np.testing.assert_allclose(drawn["one", "ours", (0.02,)]["size"], alone["size"], rtol=1e-6)
    few = tiny(s._replace(arms=arms | {"plain": arms["plain"]._replace(small={"rounds": 3.0})}, stand_in={"one": 1}))
    assert (few.rounds, few.settings, few.arms["plain"].rounds, few.arms["ours"].rounds) == (2, {"one": 1}, 3, 1)
    claim = SimpleNamespace(studies=lambda: [s], extra=lambda seeds, small: judge(s, found))
    with pytest.raises(InputError, match="two checks are called"):
        reproduce(claim, 2, small=True)
    evidence = reproduce(SimpleNamespace(studies=lambda: [s._replace(picture={"y": "size"})]), 2, small=True)
    assert len(evidence.figures) == 1
    assert evidence.verdict in (HOLDS, IN_PART, FAILS)
