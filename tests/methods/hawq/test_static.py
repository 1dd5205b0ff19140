"""HAWQ's static cells: rates and sizes by hand, the widths behind 13.11, and the printed cells of its tables."""

import pytest

from hardware.network import network
from hardware.static import compression_rate, mean_weight_bits
from methods.hawq.static import acr, size, wcr
from reproduce.tables import load_table, printed_text


@pytest.mark.parametrize("bits, expected", [(32, 1), (8, 4), (4, 8), (3, 10.6666666667), (2, 16)])
def test_rates_of_one_width(bits, expected):
    assert wcr({"weight_bits": bits}) == pytest.approx(expected, rel=1e-10)
    assert acr({"activation_bits": bits}) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    "inputs, expected",
    [
        ({"float_size_mb": 97.8, "weight_bits": 2}, 6.1125),
        ({"float_size_mb": 97.8, "weight_bits": 3}, 9.16875),
        ({"float_size_mb": 97.8, "wcr": 12.28}, 7.96417),
        ({"float_size_mb": 10.1, "weight_bits": 8}, 2.525),
        ({"float_size_mb": 10.1, "wcr": 9.04}, 1.11726),
        ({"float_size_mb": 10.1, "wcr": 9.25}, 1.09189),
    ],
)
def test_sizes(inputs, expected):
    assert size(inputs) == pytest.approx(expected, rel=1e-5)


def test_an_assignment_with_the_rate_of_table_1():
    layers = network("resnet20").layers
    assert [layer.num_weights for layer in layers] == [
        *[432, *[2304] * 6, 4608, *[9216] * 5, 18432, *[36864] * 5, 640],
    ]
    blocks = [8, 8, 8, 3, 3, 2, 2, 2, 2]  # two layers each
    widths = [8, *[width for width in blocks for _ in range(2)], 3]
    policy = {layer.name: width for layer, width in zip(layers, widths, strict=True)}
    assert compression_rate(mean_weight_bits(layers, policy)) == pytest.approx(13.107464, rel=1e-7)


@pytest.mark.parametrize(
    "table, rows, kinds",
    [
        ("table1", 13, {"wcr": {"static": 9, "given": 2, "trained": 2}, "acr": {"static": 13}}),
        ("table3", 9, {"wcr": {"static": 6, "given": 2, "trained": 1}, "size": {"static": 6, "given": 3}}),
        ("table4", 5, {"wcr": {"static": 3, "trained": 2}, "size": {"static": 3, "given": 2}}),
    ],
)
def test_rows_and_kinds(table, rows, kinds):
    loaded = load_table(f"hawq/{table}")
    assert len(loaded.rows) == rows
    for column, counts in kinds.items():
        kinds_of_rows = [row.columns[column].kind for row in loaded.rows]
        assert {kind: kinds_of_rows.count(kind) for kind in set(kinds_of_rows)} == counts
    for row in loaded.rows:  # what is computed has the printed widths and rates
        assert all(row.inputs[name] == row.published[name] for name in row.inputs)


@pytest.mark.parametrize(
    "table, row, column, printed",
    [
        ("table1", "float", "top1", "92.37"),
        ("table1", "lq_nets_w3a32", "wcr", "10.67"),
        ("table1", "dnas_w1mpa32_wcr16.60", "wcr", "16.60"),
        ("table1", "dnas_w1mpa32_wcr11.60", "weight_bits", "1 MP"),
        ("table1", "hawq_w2mpa4", "wcr", "13.11"),
        ("table3", "deep_compression_w3amp", "wcr", "10.41"),
        ("table3", "haq_wmpamp", "size", "9.22"),
        ("table3", "hawq_w2mpa4mp", "size", "7.96"),
        ("table4", "resnet18", "size", "44.7"),
        ("table4", "hawq_w8a8", "size", "2.53"),
        ("table4", "hawq_w3mpa8", "wcr", "9.25"),
    ],
)
def test_printed_cells(table, row, column, printed):
    assert printed_text(load_table(f"hawq/{table}").row(row).published[column]) == printed
