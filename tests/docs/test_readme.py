"""The README's Python runs, and its files exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()


def test_its_python_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    scope: dict = {}
    for block in blocks:
        exec(block, scope)  # our own README
    assert len(blocks) == 4
    assert scope["histories"]["FedAvg"]["accuracy"].dropna().iloc[-1] > 0.8
    assert scope["history"]["accuracy"].iloc[-1] > 0.7


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([\w/.]+)\)", TEXT))))
def test_its_links_lead_somewhere(path):
    assert (ROOT / path).is_file()
