"""The table at the width of a terminal."""

import io

import pandas as pd
from rich.console import Console

from jaxfl.report import tables


def test_a_narrow_terminal_folds_columns_and_drops_no_digit():
    row = dict.fromkeys(("accuracy", "worst_decile", "consensus", "test_loss", "megabytes", "seconds"), 0.123)
    frame = pd.DataFrame([row | {"accuracy_std": 0.045}], ["fedavg:lr=0.5,steps=2"])
    for width in (80, 40):
        out = io.StringIO()
        tables.table(frame, "title", Console(file=out, width=width))
        lines = out.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        assert out.getvalue().count("0.123") == 6
        assert "0.123 ± 0.045" in out.getvalue()
        assert "…" not in out.getvalue()
