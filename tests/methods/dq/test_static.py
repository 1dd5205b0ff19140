"""DQ's static cells: counted weights and ReLU outputs, sizes by hand, and the printed cells of its tables."""

import pytest

from hardware.network import network
from hardware.static import relu_outputs
from methods.dq.static import activation_size, weight_size
from reproduce.tables import load_table, printed_text, static_cell


@pytest.mark.parametrize(
    "model, weights, biases",
    [("resnet20", 268_336, 10), ("mobilenet_v2", 3_469_760, 1000), ("resnet18", 11_678_912, 1000)],
)
def test_counted_weights(model, weights, biases):
    assert (network(model).num_weights, network(model).num_biases) == (weights, biases)


@pytest.mark.parametrize(
    "model, relus, largest, total",
    [
        ("resnet20", 19, 16_384, 188_416),
        ("mobilenet_v2", 35, 1_204_224, 6_105_792),
        ("resnet18", 17, 802_816, 2_308_096),
    ],
)
def test_relu_outputs(model, relus, largest, total):
    sizes = relu_outputs(network(model))
    assert (len(sizes), max(sizes.values()), sum(sizes.values())) == (relus, largest, total)


@pytest.mark.parametrize(
    "model, unit_bytes, bits, expected",
    [
        ("resnet20", 1024, 32, 1048.2265625),
        ("resnet20", 1024, 2, 65.51416015625),
        ("mobilenet_v2", 2**20, 32, 13.239898681640625),
        ("mobilenet_v2", 2**20, 4, 1.6549873352050781),
        ("resnet18", 2**20, 32, 44.55533981323242),
        ("resnet18", 2**20, 4, 5.569417476654053),
    ],
)
def test_weight_sizes(model, unit_bytes, bits, expected):
    assert weight_size({"network": model, "unit_bytes": unit_bytes, "weight_bits": bits}) == pytest.approx(expected)


@pytest.mark.parametrize(
    "model, unit_bytes, over, bits, expected",
    [
        ("resnet20", 1024, "max", 32, 64),
        ("resnet20", 1024, "max", 4, 8),
        ("resnet20", 1024, "sum", 32, 736),
        ("resnet20", 1024, "sum", 4, 92),
        ("mobilenet_v2", 2**20, "max", 32, 4.59375),
        ("mobilenet_v2", 2**20, "max", 4, 0.57421875),
        ("resnet18", 2**20, "max", 32, 3.0625),
        ("resnet18", 2**20, "max", 4, 0.3828125),
    ],
)
def test_activation_sizes(model, unit_bytes, over, bits, expected):
    inputs = {"network": model, "unit_bytes": unit_bytes, "over": over, "activation_bits": bits}
    assert activation_size(inputs) == expected


def test_the_misprint_differs_and_says_why():
    table = load_table("dq/table4_resnet18")
    row = table.row("float")
    cell = static_cell(table, row, row.columns["activation_max"])
    assert (cell.value, cell.verdict) == (3.0625, "differs")
    assert "8 times the rounded 0.38" in cell.reason


@pytest.mark.parametrize(
    "table, rows, static", [("table3", 15, 17), ("table4_mobilenet_v2", 5, 6), ("table4_resnet18", 5, 6)]
)
def test_rows_and_static_cells(table, rows, static):
    loaded = load_table(f"dq/{table}")
    assert len(loaded.rows) == rows
    cells = [
        (row, name)
        for row in loaded.rows
        for name, column in row.columns.items()
        if column.kind == "static" and row.published[name] is not None
    ]
    assert len(cells) == static
    for row in loaded.rows:  # what is computed has the printed widths
        assert all(row.inputs[name] == row.published[name] for name in row.inputs)


@pytest.mark.parametrize(
    "table, row, column, printed",
    [
        ("table3", "float", "weight_size", "1048"),
        ("table3", "float", "top1_error", "7.29"),
        ("table3", "fixed_w2a4_uniform", "weight_size", "65.5"),
        ("table3", "fixed_w2a4_pow2", "top1_error", "11.62"),
        ("table3", "tqt_w2a32_uniform", "weight_q_max", "learned"),
        ("table3", "dq_8a_8b_uniform", "activation_sum", "92"),
        ("table3", "dq_8a_8b_uniform", "activation_max", "-"),
        ("table3", "dq_8a_8c_pow2", "top1_error", "11.23"),
        ("table4_mobilenet_v2", "float", "weight_size", "13.23"),
        ("table4_mobilenet_v2", "dq_8a_8c", "weight_size", "1.55"),
        ("table4_mobilenet_v2", "dq_unconstrained", "top1_error", "29.41"),
        ("table4_resnet18", "float", "activation_max", "3.04"),
        ("table4_resnet18", "dq_8a_8c", "weight_size", "5.40"),
        ("table4_resnet18", "dq_unconstrained", "weight_size", "10.50"),
    ],
)
def test_printed_cells(table, row, column, printed):
    assert printed_text(load_table(f"dq/{table}").row(row).published[column]) == printed
