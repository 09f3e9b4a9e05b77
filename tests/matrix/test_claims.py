"""Every claim runs, says what its kept results say, and fails where the paper adds nothing."""

import re

import pytest

from jaxfl import zoo
from jaxfl.claims import record, study
from jaxfl.claims.evidence import HOLDS
from jaxfl.claims.judge import judge

CLAIMS = list(zoo.claims_by_name())
KEPT = record.kept()


@pytest.mark.parametrize("name", CLAIMS)
def test_a_small_claim_is_whole_and_fails_where_all_arms_are_alike(name, monkeypatch):
    claim, seen, explore = zoo.claims_by_name()[name], [], study.explore
    monkeypatch.setattr(study, "explore", lambda s, seeds: seen.append((s, explore(s, seeds))) or seen[-1][1])
    evidence = claim.reproduce(1, small=True)
    assert len(evidence.table)
    assert not evidence.table.isna().all(axis=None)
    names = [c.what for c in evidence.checks]
    assert len(names) == len(set(names))
    assert any(c.role == "headline" for c in evidence.checks)
    assert evidence.figures
    for found, cells in seen:
        for history in cells.values():
            alike = judge(found, dict.fromkeys(cells, history))
            held = [c.what for c in alike.checks if c.role == "headline" and c.holds]
            assert not held
    if name in KEPT:
        assert [c["what"] for c in KEPT[name]["checks"]] == names
        assert KEPT[name]["headline"] == claim.headline


@pytest.mark.parametrize("name", CLAIMS)
def test_what_does_not_hold_has_its_cause_in_words_and_no_best_point_lies_at_an_end(name):
    row, text = KEPT[name], zoo.claims_by_name()[name].module.__doc__
    assert (row["verdict"] == HOLDS) == ("\n\nWhy." not in text)
    assert [c["what"] for c in row["checks"] if c["what"].startswith("best points at the end") and not c["holds"]] == []
    assert row["number"] == zoo.claims_by_name()[name].paper.number
    assert re.fullmatch(r"[A-Z0-9].{20,200}\.", row["headline"])
    assert all((record.FOLDER / "results" / picture).exists() for picture in record.pictures(row))


def test_the_pages_are_those_of_the_kept_results():
    assert (record.FOLDER / "README.md").read_text(encoding="utf-8") == record.page()
    assert set(KEPT) == set(CLAIMS)
    front = (record.FOLDER.parents[1] / "README.md").read_text(encoding="utf-8")
    assert f"{record.MARKS[0]}\n{record.counts()}\n{record.MARKS[1]}" in front
