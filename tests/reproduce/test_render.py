"""Rendered results: what stands in them and what does not."""

import json

import pytest

from common.errors import UserError
from reproduce import render
from reproduce.tables import load_table


def write(folder, row, seed, **changes):
    record = {
        **{"format": 1, "paper": "hmq", "table": "digits", "row": row, "seed": seed, "state": "measured"},
        **{"cells": {"top1": 90.0 + seed, "float_top1": 95.0, "wcr": 16.05, "acr": 4.0}, "policy": {"a.weight": 2}},
        **{"settings_hash": "x", "code_hash": "y", "steps": 100, "epochs_done": 5, "epochs_published": 30},
    }
    path = folder / "hmq" / "digits" / row / f"seed{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record | changes))


def test_no_record_no_number(folders):
    assert render.block() == "No row has been measured yet.\n"


def test_a_row_shows_mean_spread_drop_epochs_and_command(folders):
    write(folders[0], "hmq_wcr16_acr4", 0)
    write(folders[0], "hmq_wcr16_acr4", 1)
    line = render.block().splitlines()[2]
    assert "| HMQ | digits_net | digits | 2 | 16.05 | 4.00 | 95.00 | - | 90.50 ± 0.71 (stale) | 4.50 | 2 |" in line
    assert "5 of 30 epochs" in line
    assert "`python -m reproduce run hmq/digits --rows hmq_wcr16_acr4`" in line


def test_results_hold_published_and_static_cells(folders):
    text = render._table(load_table("hmq/table1"))
    line = next(line for line in text.splitlines() if line.startswith("| haq_resnet50_3bit "))
    assert "| 10.41 | 10.574 | 75.30 | not run |" in line
    assert "misprint" in line


def test_the_block_is_replaced_between_its_markers():
    text = "a\n<!-- results -->\nold\n<!-- /results -->\nb\n"
    assert render.replaced(text, "new\n") == "a\n<!-- results -->\nnew\n<!-- /results -->\nb\n"
    with pytest.raises(UserError, match="no block between"):
        render.replaced("a\n<!-- results -->\n", "new\n")


def test_the_overview_counts_rows_and_verdicts(folders, monkeypatch):
    monkeypatch.setattr(render, "list_tables", lambda: ["hmq/table1", "hmq/table2b", "sat/table1"])
    write(folders[0], "hmq_wcr16_acr4", 0)  # of another table
    lines = render.overview().splitlines()
    assert lines[0].startswith("| paper | tables | rows | measured rows | computed cells | equal | within residual |")
    assert lines[2:] == [
        "| [hmq](methods/hmq/README.md) | 2 | 21 | 0 | 14 | 8 | 0 | 0 | 2 | 4 |",
        "| [sat](methods/sat/README.md) | 1 | 28 | 0 | 0 | 0 | 0 | 0 | 0 | 0 |",
    ]
    assert render.computed().startswith("14 static cells: 8 equal, ")
