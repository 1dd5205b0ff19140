"""HAWQ-V2's static cells: rates and sizes by hand, parameters of its networks, and the printed cells of its tables."""

import pytest

from common.models import build_model
from methods.hawq_v2.static import acr, size, wcr
from reproduce.tables import load_table, printed_text


@pytest.mark.parametrize("bits, expected", [(32, 1), (8, 4), (7, 4.5714285714), (6, 5.3333333333), (4, 8), (2, 16)])
def test_rates_of_one_width(bits, expected):
    assert wcr({"weight_bits": bits}) == pytest.approx(expected, rel=1e-10)
    assert acr({"activation_bits": bits}) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    "inputs, expected",
    [
        ({"float_size_mb": 91.2, "weight_bits": 8}, 22.8),
        ({"float_size_mb": 91.2, "weight_bits": 7}, 19.95),
        ({"float_size_mb": 91.2, "wcr": 10.67}, 8.54733),
        ({"float_size_mb": 91.2, "wcr": 15.88}, 5.74307),
        ({"float_size_mb": 91.2, "wcr": 12.04}, 7.57475),
        ({"float_size_mb": 97.8, "wcr": 12.28}, 7.96417),
        ({"float_size_mb": 97.8, "wcr": 12.24}, 7.99020),
        ({"float_size_mb": 10.1, "wcr": 9.26}, 1.09071),
        ({"float_size_mb": 10.1, "wcr": 9.40}, 1.07447),
        ({"float_size_mb": 145, "weight_bits": 4}, 18.125),
        ({"float_size_mb": 145, "wcr": 8.10}, 17.90123),
    ],
)
def test_sizes(inputs, expected):
    assert size(inputs) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "model, parameters, printed",
    [
        ("inception_v3_no_aux", 23_834_568, 91.2),
        ("resnet50", 25_557_032, 97.8),
        ("squeezenext23_2x", 2_583_752, 10.1),
        ("retinanet_r50_fpn", 37_968_692, 145),
    ],
)
def test_float_sizes_are_a_little_more_than_the_parameters(model, parameters, printed):
    counted = sum(parameter.numel() for parameter in build_model(model).parameters())
    assert counted == parameters
    assert printed / 1.03 < 4 * parameters / 2**20 < printed


@pytest.mark.parametrize(
    "table, rows, kinds",
    [
        ("table1", 7, {"wcr": {"static": 3, "given": 2, "trained": 2}, "size": {"static": 6, "given": 1}}),
        ("table2", 10, {"wcr": {"static": 6, "given": 3, "trained": 1}, "size": {"static": 7, "given": 3}}),
        ("table3", 4, {"wcr": {"static": 1, "given": 1, "trained": 2}, "size": {"static": 3, "given": 1}}),
        (
            "table4",
            6,
            {
                "wcr": {"static": 3, "trained": 3},
                "acr": {"static": 5, "trained": 1},
                "size": {"static": 5, "given": 1},
            },
        ),
    ],
)
def test_rows_and_kinds(table, rows, kinds):
    loaded = load_table(f"hawq_v2/{table}")
    assert len(loaded.rows) == rows
    for column, counts in kinds.items():
        kinds_of_rows = [row.columns[column].kind for row in loaded.rows]
        assert {kind: kinds_of_rows.count(kind) for kind in set(kinds_of_rows)} == counts
    for row in loaded.rows:  # what is computed has the printed widths and rates
        assert all(row.inputs[name] == row.published[name] for name in row.inputs)


@pytest.mark.parametrize(
    "table, row, column, printed",
    [
        ("table1", "integer_only_w7a7", "size", "20.0"),
        ("table1", "integer_only_w7a7", "wcr", "4.57"),
        ("table1", "direct_w2mpa4mp", "wcr", "15.88"),
        ("table1", "hawq_v2_w2mpa4mp", "top1", "75.68"),
        ("table2", "hawq_v2_w2mpa4mp", "size", "7.99"),
        ("table2", "lq_nets_w3a3", "top1", "74.20"),
        ("table2", "deep_compression_w3amp", "wcr", "10.41"),
        ("table3", "hawq_w3mpa8", "wcr", "9.26"),
        ("table3", "hawq_v2_w3mpa8", "size", "1.07"),
        ("table4", "float", "size", "145"),
        ("table4", "fqn_w4a4", "map", "32.5"),
        ("table4", "hawq_v2_w3mpa4mp", "acr", "7.62"),
        ("table4", "hawq_v2_w3mpa6", "size", "17.90"),
    ],
)
def test_printed_cells(table, row, column, printed):
    assert printed_text(load_table(f"hawq_v2/{table}").row(row).published[column]) == printed
