"""Table files, their schema, and the cells that need no training."""

import json

import pytest

from common.errors import UserError
from reproduce import tables
from reproduce.tables import (
    Column,
    Printed,
    _TableLoader,
    compare,
    decimals,
    expand_names,
    list_tables,
    load_table,
    method_arguments,
    parse_table,
    parse_yaml,
    printed_text,
    static_cell,
    why_no_run,
)


def table(**changes):
    content = {
        "caption": "invented",
        "dataset": "digits",
        "columns": {"target_wcr": "given", "wcr": "trained", "acr": "static"},
        "rows": [{"name": "one", "method": "HMQ", "model": "net", "published": {"wcr": 8.05}}],
    }
    return content | changes


def row(**changes):
    return {"rows": [{"name": "one", "method": "HMQ", "model": "net", "published": None} | changes]}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rows": []}, "rows must be a list with at least one row"),
        ({"row": []}, "unknown entry 'row'; did you mean rows"),
        ({"columns": {"wcr": "learned"}}, "kind must be one of given, static, trained, got 'learned'"),
        ({"columns": ["wcr"]}, "columns: expected a mapping"),
        ({"test_images": "many"}, "test_images must be an integer"),
        (row(published={"top9": 1}), "'top9' is no column of the table"),
        (row(published={"wcr": "high"}), "published wcr must be a number or null, got 'high'"),
        (row(published={"acr": "4"}), "published acr must be a number or null, got '4'"),
        (row(published={"wcr": float("nan")}), "published wcr must be a number or null, got nan"),
        (row(published={"target_wcr": True}), "published target_wcr must be a number, a text or null, got True"),
        (row(published={"target_wcr": [1]}), "published target_wcr must be a number, a text or null"),
        (row(columns={"acr": "learned"}), "column 'acr': kind must be one of given, static, trained, got 'learned'"),
        (row(columns={"acr": {"kind": "static", "formula": "other"}}), "formula is declared once, in the table's col"),
        (row(columns={"acr": {"kind": "static", "rounding": "cut"}}), "rounding is declared once"),
        (row(columns={"acr": {"kind": "static", "residual": 0.1}}), "residual is declared once"),
        (row(columns={"wcr": {"kind": "static", "formula": "other"}}), "formula is declared once"),
        (row(columns={"acr": {}}), "lacks 'kind'"),
        (row(inputs=[1]), "inputs: expected a mapping"),
        ({"inputs": [1]}, "inputs: expected a mapping"),
        ({"columns": {"wcr": {"kind": "static", "rounding": "up"}}}, "rounding must be one of nearest, cut, got 'up'"),
        ({"columns": {"wcr": {"kind": "static", "residual": 3.5}}}, "residual must be a share of the print"),
        ({"columns": {"wcr": {"kind": "static", "residual": "low"}}}, "residual must be a share of the print"),
        ({"columns": {"wcr": {"kind": "static", "fitted": "yes"}}}, "fitted cannot be 'yes'"),
        ({"columns": {"wcr": {"kind": "static", "unit": 3}}}, "unit cannot be 3"),
        ({"columns": {"wcr": {"kind": "static", "inputs": 3}}}, "inputs cannot be 3"),
        ({"columns": {"wcr": {"kind": "static", "fromula": "x"}}}, "unknown entry 'fromula'; did you mean formula"),
        (row(notes={"top9": "reason"}), "'top9' is no column"),
        (row(name="a/b"), "a name has letters"),
        (row(run={"model": "net"}), "lacks 'config'"),
        (row(run={"config": "x.yaml", "seeds": 3}), "seeds must be a list of integers, got 3"),
        (row(run={"config": "x.yaml", "data": 3}), "data: expected a mapping"),
        (row(run={"config": "x.yaml", "weights_from": "two"}), "weights_from names 'two'"),
        (row(tolerance={"wcr": "low"}), "wcr must be a number"),
        ({"rows": [*row()["rows"], *row()["rows"]]}, "row 'one' is there twice"),
        ({"rows": [{"name": "one"}]}, "lacks 'method'"),
    ],
)
def test_a_table_off_the_schema_is_refused_in_one_line(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_table(table(**changes), "hmq", "invented")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("hmq/invented")


def test_a_null_published_row_is_our_own():
    parsed = parse_table(table(**row()), "hmq", "invented")
    assert parsed.row("one").own
    assert not parse_table(table(), "hmq", "invented").row("one").own


@pytest.mark.parametrize("text, value", [("1e-5", 1e-5), ("1.0e+3", 1000.0), ("3", 3), ("-2.5", -2.5), (".5", 0.5)])
def test_numbers_are_read_as_numbers(text, value):
    read = parse_yaml(text, "text")
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("loader", [tables._Loader, tables._TableLoader])
@pytest.mark.parametrize("text", ["a: [1", "!!python/object/apply:os.getcwd []", "a: b: c"])
def test_what_is_no_plain_yaml_is_refused(text, loader):
    with pytest.raises(UserError, match=r"^file\.yaml.*: not valid YAML"):
        parse_yaml(text, "file.yaml", loader)


@pytest.mark.parametrize("name", ["hmq/tabel1", "nothing/table1", "hmq", "../hmq/table1", "hmq/../../x"])
def test_an_unknown_table_is_named(name):
    with pytest.raises(UserError, match="unknown table"):
        load_table(name)


def test_every_table_of_the_paper_is_there_with_its_rows():
    sizes = {name: len(load_table(name).rows) for name in list_tables()}
    published = {
        "hmq/table1": 18,
        "hmq/table2a": 2,
        "hmq/table2b": 3,
        "hmq/table3": 4,
        "hmq/table4": 6,
        "hmq/baselines": 4,
    }
    assert {name: sizes[name] for name in published} == published


def test_every_run_names_a_configuration_that_exists():
    for name in list_tables():
        for entry in load_table(name).rows:
            if entry.run is not None:
                assert method_arguments(load_table(name), entry)["model"]


@pytest.mark.parametrize(
    "value, printed, settings, verdict, reason",
    [
        (14.807, 14.8, {}, "equal", ""),
        (8.031, 8, {}, "equal", ""),
        (8.6, 8, {}, "differs", "cut off, not rounded"),
        (9.1, 8, {}, "differs", ""),
        (-0.4, 1, {}, "differs", ""),
        (3.0, None, {}, "", ""),
        # Half of the last printed digit, both ways at ties; a printed zero is a digit.
        (26.805, Printed("26.80"), {}, "equal", ""),
        (26.795, Printed("26.80"), {}, "equal", ""),
        (26.84, Printed("26.80"), {}, "differs", ""),
        (26.84, 26.8, {}, "equal", ""),
        (1249.9, Printed("1.2e3"), {}, "equal", ""),
        (0.285, Printed("0.28"), {}, "equal", ""),
        (-26.805, Printed("-26.80"), {}, "equal", ""),
        (9.688, 9.68, {}, "differs", "cut off, not rounded"),
        (9.688, 9.68, {"residual": 0.001}, "within residual", "stated residual 0.1 %; cut off, not rounded"),
        (9.688, 9.68, {"rounding": "cut"}, "equal", ""),
        (9.688, 9.69, {"rounding": "cut"}, "differs", "rounded, not cut off"),
        (9.68, 9.68, {"rounding": "cut"}, "equal", ""),
        (9.7 - 1e-15, 9.7, {"rounding": "cut"}, "equal", ""),  # 9.7 but for the last bit
        (-9.688, -9.68, {"rounding": "cut"}, "equal", ""),
        (-0.3, 0, {"rounding": "cut"}, "equal", ""),
        (7.99, 8, {"rounding": "cut"}, "differs", "rounded, not cut off"),
        # The residual is relative to the print.
        (103.4, 100, {"residual": 0.035}, "within residual", "stated residual 3.5 %"),
        (96.6, 100, {"residual": 0.035}, "within residual", "stated residual 3.5 %"),
        (103.6, 100, {"residual": 0.035}, "differs", ""),
        (-103.4, -100, {"residual": 0.035}, "within residual", "stated residual 3.5 %"),
        (1.6, 0, {"residual": 0.5}, "differs", ""),
        (100.0, 100, {"residual": 0.035, "fitted": True}, "fitted", "constants fitted to this column"),
        (103.4, 100, {"residual": 0.035, "fitted": True}, "fitted", "constants fitted to this column"),
        (103.6, 100, {"residual": 0.035, "fitted": True}, "differs", ""),
        (float("nan"), 100, {}, "differs", ""),
        (float("inf"), 100, {"residual": 0.5}, "differs", ""),
    ],
)
def test_verdicts(value, printed, settings, verdict, reason):
    assert compare(value, printed, **settings) == (verdict, reason)


def cell(name, row_name, column):
    found = load_table(name)
    return static_cell(found, found.row(row_name), found.row(row_name).columns[column])


@pytest.mark.parametrize(
    "row_name, value",
    [
        ("haq_mobilenet_v1_2bit", 14.81),
        ("haq_mobilenet_v2_2bit", 14.07),
        ("haq_resnet50_2bit", 15.47),
        ("haq_mobilenet_v1_3bit", 10.22),
        ("haq_mobilenet_v2_3bit", 9.69),
        ("haq_resnet50_3bit", 10.57),
        ("haq_mobilenet_v1_4bit", 7.80),
        ("haq_mobilenet_v2_4bit", 7.47),
        ("haq_resnet50_4bit", 8.03),
    ],
)
def test_compression_of_haq_follows_from_its_sizes(row_name, value):
    assert round(cell("hmq/table1", row_name, "wcr").value, 2) == value


def test_the_misprint_differs_with_its_reason():
    misprint = cell("hmq/table1", "haq_resnet50_3bit", "wcr")
    assert misprint.verdict == "differs"
    assert "9.36" in misprint.reason


@pytest.mark.parametrize(
    "name, row_name, column, value, verdict",
    [
        ("hmq/table2a", "dq_mobilenet_v2", "acr", 8.053, "equal"),
        ("hmq/table2a", "dq_mobilenet_v2", "wcr", 8.535, "differs"),  # printed 8.53
        ("hmq/table2b", "hawq_resnet50", "wcr", 12.286, "differs"),  # printed 12.28
        ("hmq/table2b", "hawq_v2_resnet50", "wcr", 12.240, "equal"),
    ],
)
def test_compression_of_the_other_papers_follows_from_their_sizes(name, row_name, column, value, verdict):
    computed = cell(name, row_name, column)
    assert computed.value == pytest.approx(value, abs=6e-4)
    assert computed.verdict == verdict
    assert ("cut off, not rounded" in computed.reason) == (verdict == "differs")


@pytest.mark.parametrize(
    "name, row_name, value",
    [
        ("hmq/table2a", "mobilenet_v2_wcr8_acr8", 8.0),
        ("hmq/table2b", "resnet50_wcr13_acr8", 8.0),
        ("hmq/table4", "mobilenet_v1_wcr16_acr8", 8.0),
        ("hmq/table3", "efficientnet_b0_wcr12", 4.0),
        ("hmq/cifar10_resnet20", "hmq_wcr16_acr8", 8.0),
        ("hmq/digits", "uniform_w3_acr4", 4.0),
    ],
)
def test_activation_compression_of_our_rows_is_exact(name, row_name, value):
    assert cell(name, row_name, "acr").value == value


def test_a_papers_name_stands_for_all_of_its_tables():
    assert expand_names(["hmq/table3", "hmq", "nothing/here"])[0] == "hmq/table3"
    expanded = expand_names(["hmq"])
    assert "hmq/table1" in expanded and "hmq/table4" in expanded and len(set(expanded)) == len(expanded)
    assert expand_names(["nothing/here"]) == ["nothing/here"]


@pytest.mark.parametrize(
    "methods, paper, reason",
    [
        (["HMQ (mixed)", "HAQ"], "hmq", "no run is set up yet"),
        (["HAQ", "HMQ"], "hmq", "of HAQ, which the paper compares with"),
        (["INV-V2 4 bit", "INV"], "inv_v2", "the paper's code is not written yet"),
        (["INV", "INV-V2"], "inv_v2", "of INV, which the paper compares with"),
        (["min-max", "ACIQ"], "notes", "the paper's code is not written yet"),  # no row bears the folder's name
    ],
)
def test_why_a_row_has_no_run(methods, paper, reason):
    rows = [{"name": f"row{i}", "method": m, "model": "net", "published": None} for i, m in enumerate(methods)]
    parsed = parse_table(table(rows=rows), paper, "invented")
    assert why_no_run(parsed, parsed.rows[0]) == reason


def test_digits_are_kept_as_printed():
    text = "{a: 26.80, b: 8, c: 1.2e3, d: null, e: 4 MP, f: -.50}"
    read = parse_yaml(text, "text", _TableLoader)
    assert [printed_text(value) for value in read.values()] == ["26.80", "8", "1.2e3", "-", "4 MP", "-.50"]
    assert [decimals(read[name]) for name in "abcf"] == [2, 0, -2, 2]
    assert read["a"] == 26.8
    assert json.dumps(read["a"]) == "26.8"
    assert type(parse_yaml(text, "text")["a"]) is float


def test_a_row_changes_the_kind_of_a_column_and_nothing_else():
    columns = {"wcr": {"kind": "trained", "formula": "ratio", "rounding": "cut", "residual": 0.01, "unit": "x"}}
    rows = row(columns={"wcr": "static"})
    parsed = parse_table(table(columns=columns, **rows), "hmq", "invented")
    changed = parsed.rows[0].columns["wcr"]
    assert changed == Column("wcr", "static", "ratio", unit="x", rounding="cut", residual=0.01)
    assert parsed.columns["wcr"].kind == "trained"


def test_a_formula_has_its_columns_name_unless_it_is_given():
    assert parse_table(table(), "hmq", "invented").columns["acr"].formula == "acr"
