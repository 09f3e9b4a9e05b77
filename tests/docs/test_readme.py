"""The README's Python runs, its systems are the zoo's, and its files exist."""

import re
from pathlib import Path

import pytest

from jaxfl import zoo

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()


def test_its_python_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    scope: dict = {}
    for block in blocks:
        exec(block, scope)  # our own README
    assert len(blocks) == 3
    assert scope["histories"]["FedAvg"]["accuracy"].dropna().iloc[-1] > 0.8
    assert scope["history"]["accuracy"].iloc[-1] > 0.7


def test_it_names_every_system_and_claim():
    rows = TEXT.partition("## What runs")[2].partition("What each claim")[0]
    assert set(re.findall(r"`(\w+)`", rows)) == set(zoo.ZOO)
    assert set(re.findall(r"reproduce (\d{3})", rows)) == {p.card for p in zoo.claims().values()}


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([\w/.]+)\)", TEXT))))
def test_its_links_lead_somewhere(path):
    assert (ROOT / path).is_file()
