"""The check of static cells, on the tables of an invented paper without code."""

import json
import sys
import types

import pytest

from common.errors import UserError
from reproduce import render, show, static_check, tables
from reproduce.cli import main
from reproduce.tables import load_table


@pytest.fixture
def check(write_table, capsys):
    """check(arguments) -> (status, lines of stdout, lines of stderr)."""

    def call(*arguments):
        status = main(["tables", "--check-static", *arguments])
        out, err = capsys.readouterr()
        return status, out.splitlines(), err.splitlines()

    return call


def verdicts():
    return {
        (cell.row.name, cell.column.name): (cell.verdict, cell.reason)
        for cell in show.static_cells(load_table("inv/one"))
    }


def test_every_static_cell_gets_its_verdict(write_table):
    assert verdicts() == {
        ("float", "size"): ("equal", ""),
        ("float", "latency"): ("", ""),
        ("float", "energy"): ("", "not computable without a run"),
        ("inv_4bit", "size"): ("equal", ""),
        ("inv_4bit", "latency"): ("fitted", "constants fitted to this column"),
        ("inv_4bit", "energy"): ("within residual", "stated residual 2 %; off by 1"),
        ("other_8bit", "size"): ("differs", "misprint"),
        ("other_8bit", "latency"): ("input", ""),
        ("other_8bit", "energy"): ("differs", "of another unit"),
    }


def test_the_cells_are_printed_with_digits_unit_and_residual(check):
    status, out, err = check()
    assert (status, err) == (0, [])
    assert out == [
        "inv/one: Sizes.",
        "  row         column        printed  computed  residual  verdict          reason",
        "  float       size [KB]     4.00     4         +0.00 %   equal",
        "  inv_4bit    size [KB]     0.50     0.500     +0.00 %   equal",
        "              latency [ms]  12.1     12.08     -0.17 %   fitted           constants fitted to this column",
        "              energy [mJ]   11.9     12.08     +1.51 %   within residual  stated residual 2 %; off by 1",
        "  other_8bit  size [KB]     0.9      1         +11.11 %  differs          misprint",
        "              latency [ms]  20       -                   input",
        "              energy [mJ]   24       20        -16.67 %  differs          of another unit",
        "",
        "7 static cells: 2 equal, 1 within residual, 1 fitted, 1 input, 2 differs",
    ]


def test_a_difference_without_a_reason_is_an_error(check, write_table):
    write_table("notes: {size: misprint, energy: of another unit}", "")
    status, _, err = check()
    assert (status, err) == (
        1,
        [
            "inv/one other_8bit size: computed 1, printed 0.9: no reason given",
            "inv/one other_8bit energy: computed 20, printed 24: no reason given",  # the column's note is none
        ],
    )
    assert check("--update")[0] == 1


def test_recorded_verdicts_may_get_better_and_not_worse(check, write_table):
    assert check("--update")[0] == 0
    recorded = json.loads(static_check.VERDICTS.read_text())
    assert recorded["inv/one"]["other_8bit"] == {"energy": "differs", "latency": "input", "size": "differs"}
    assert list(recorded["inv/one"]["inv_4bit"]) == ["energy", "latency", "size"]
    assert check()[0] == 0
    write_table("size: 0.9", "size: 1.0")
    assert check()[0] == 0
    write_table("energy: 11.9", "energy: 12.0")
    assert check()[0] == 0
    write_table("size: 4.00", "size: 4.01")
    assert check()[::2] == (
        1,
        ["inv/one float size: computed 4, printed 4.01: recorded as 'equal', now 'differs', no reason given"],
    )
    write_table("latency: 12.1", "latency: 9.1")
    assert check()[::2] == (
        1,
        ["inv/one inv_4bit latency: computed 12.08, printed 9.1: recorded as 'fitted', now 'differs', no reason given"],
    )


@pytest.mark.parametrize(
    "recorded, verdict, worse",
    [
        ("equal", "within residual", True),
        ("equal", "fitted", True),
        ("within residual", "input", True),
        ("fitted", "input", False),
        ("input", "fitted", False),
        ("fitted", "differs", True),
        ("differs", "equal", False),
    ],
)
def test_the_order_of_verdicts(recorded, verdict, worse, write_table):
    cell = show.static_cells(load_table("inv/one"))[0]
    cell = types.SimpleNamespace(**{**vars(cell), "verdict": verdict, "reason": "some"})
    assert bool(static_check.faults({"inv/one": {"float": {"size": recorded}}}, [cell])) == worse


def test_a_recorded_cell_that_is_gone_is_named(check, write_table):
    check("--update")
    write_table("  - name: float", "  - name: full")
    status, _, err = check()
    assert (status, err) == (
        1,
        ["inv/one float size: recorded as 'equal', no longer a static cell"],
    )
    write_table("size: 4.00", "size: null")
    assert check()[0] == 1


def test_other_tables_are_left_alone(check, write_table):
    write_table(name="two")
    check("--update")
    write_table("  - name: float", "  - name: full", name="two")
    assert check("inv/one")[0] == 0
    assert check()[0] == 1
    assert check("inv/two", "--update")[0] == 0
    assert check()[0] == 0
    assert {path: sorted(rows) for path, rows in static_check.read_verdicts().items()} == {
        "inv/one": ["float", "inv_4bit", "other_8bit"],
        "inv/two": ["full", "inv_4bit", "other_8bit"],
    }
    (tables.METHODS / "inv" / "tables" / "two.yaml").unlink()
    assert check()[0] == 1
    check("--update")
    assert list(static_check.read_verdicts()) == ["inv/one"]


def test_update_alone_is_refused(write_table, capsys):
    assert main(["tables", "--update"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_same_as_data(check):
    status, out, _ = check("--json")
    cells = {(cell["row"], cell["column"]): cell for cell in json.loads("\n".join(out))}
    assert status == 0
    assert len(cells) == 9
    expected = {
        "published": 0.5,
        "printed": "0.50",
        "unit": "KB",
        "kind": "static",
        "state": "static",
        "value": 0.5,
        "verdict": "equal",
        "reason": "",
        "residual": 0.0,
        "record": None,
    }
    cell = cells["inv_4bit", "size"]
    assert {name: cell[name] for name in expected} == expected
    assert cells["float", "energy"]["printed"] is None


def test_given_cells_may_be_texts(write_table, capsys):
    assert main(["tables", "--json"]) == 0
    cells = {(cell["row"], cell["column"]): cell for cell in json.loads(capsys.readouterr().out)}
    assert cells["inv_4bit", "bits"]["value"] == cells["inv_4bit", "bits"]["printed"] == "4 MP"
    assert cells["float", "bits"]["value"] == 32
    assert main(["tables"]) == 0
    out = capsys.readouterr().out
    assert "4 MP" in out
    assert "top1 [%]" in out and "70.10" in out
    assert "not run" in out


def test_a_printed_cell_that_lacks_an_input_is_named(write_table):
    write_table("ms: 12.08", "s: 12.08")
    with pytest.raises(UserError, match=r"inv/one row 'inv_4bit' column 'latency': latency needs the input 'ms'$"):
        show.static_cells(load_table("inv/one"))


def test_a_formula_that_is_not_there_is_named(write_table):
    write_table("formula: latency", "formula: joule")
    with pytest.raises(UserError, match=r"methods/inv/static\.py has no function 'joule'"):
        show.static_cells(load_table("inv/one"))


def test_inputs_of_the_row_come_before_those_of_run_column_and_table(write_table, monkeypatch):
    seen = []
    monkeypatch.setattr(sys.modules["methods.inv.static"], "size", lambda inputs: seen.append(dict(inputs)) or 1)
    (tables.METHODS / "inv" / "configs").mkdir()
    (tables.METHODS / "inv" / "configs" / "x.yaml").write_text("model: {b: config, c: config, d: config, e: config}\n")
    write_table(
        text="""
caption: inputs
dataset: digits
inputs: {a: table, b: table, c: table, d: table, e: [1.50, x]}
columns: {size: {kind: static, inputs: {b: column, c: column, d: column}}}
rows:
  - name: one
    method: Inv
    model: net
    published: null
    inputs: {d: row, f: 2.50}
    run: {config: x.yaml, c: run, epochs: 3}
"""
    )
    show.static_cells(load_table("inv/one"))
    assert seen == [{"a": "table", "b": "config", "c": "run", "d": "row", "e": "config", "f": 2.5}]
    assert type(seen[0]["f"]) is float  # digits belong to the print only


def test_rendered_with_units_digits_verdicts_and_that_there_is_no_code(write_table):
    text = render._table(load_table("inv/one"))
    assert (
        "Invented 2031, table 1. Sizes. Data: imagenet. Printed cut off, not rounded: energy. energy: off by 1." in text
    )
    assert "Tables only so far: the paper's code is not written yet." in text
    assert "| row | method | network | bits | top1 [%] published | top1 [%] ours | size [KB] published |" in text
    line = next(line for line in text.splitlines() if line.startswith("| inv_4bit "))
    assert "| inv_4bit | Inv | net | 4 MP | 69.00 | not run | 0.50 | 0.500 | 12.1 | 12.08 | 11.9 | 12.08 |" in line
    assert (
        "| equal: size; fitted: latency (constants fitted to this column); "
        "within residual: energy (stated residual 2 %; off by 1) |" in line
    )
    line = next(line for line in text.splitlines() if line.startswith("| other_8bit "))
    assert "| 20 | - | 24 | 20 |" in line
    assert "differs: size (misprint); input: latency; differs: energy (of another unit)" in line
