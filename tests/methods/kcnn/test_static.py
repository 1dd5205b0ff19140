"""KCNN's static cells: exact counts of the convolutions, the ratios, and the printed cells of its tables."""

import pytest

from hardware.network import network
from methods.kcnn.static import additions, multiplications, weights
from reproduce.tables import load_table, printed_text, static_cell

LOW_RANK = {"one_plane_multiplications": 1434, "one_plane_additions": 5.27, "one_plane_weights": 149.6}


@pytest.mark.parametrize(
    "model, macs, outputs, num_weights, kernels",
    [
        ("alexnet_single", 1_076_634_144, 650_080, 3_745_824, 1376),
        ("resnet18", 1_813_561_344, 2_483_712, 11_166_912, 4800),
    ],
)
def test_counts_of_the_convolutions(model, macs, outputs, num_weights, kernels):
    layers = [layer for layer in network(model).layers if layer.kind != "linear"]
    assert sum(layer.num_macs for layer in layers) == macs
    assert sum(layer.num_weights for layer in layers) == num_weights
    assert sum(layer.out_channels for layer in layers) == kernels
    heights_and_widths = [layer.output_shape[1] * layer.output_shape[2] for layer in layers]
    assert sum(layer.out_channels * n for layer, n in zip(layers, heights_and_widths, strict=True)) == outputs


@pytest.mark.parametrize(
    "model, planes, expected",
    [
        ("alexnet_single", 1, (1656.156, 1, 31.62821)),
        ("alexnet_single", 2, (828.0782, 0.4996983, 15.81411)),
        ("alexnet_single", 3, (552.0521, 0.3329313, 10.54274)),
        ("alexnet_single", 4, (414.0391, 0.2495480, 7.907053)),
        ("alexnet_single", 5, (331.2313, 0.1995181, 6.325642)),
        ("resnet18", 1, (730.1818, 1, 31.56581)),
        ("resnet18", 2, (365.0909, 0.4993162, 15.78291)),
        ("resnet18", 3, (243.3939, 0.3324228, 10.52194)),
        ("resnet18", 4, (182.5455, 0.2489771, 7.891454)),
        ("resnet18", 5, (146.0364, 0.1989104, 6.313163)),
    ],
)
def test_ratios(model, planes, expected):
    inputs = {"network": model, "planes": planes}
    assert (multiplications(inputs), additions(inputs), weights(inputs)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "planes, expected",
    [
        (1, (1434, 5.27, 149.6)),
        (2, (717, 2.62535, 74.8)),
        (3, (478, 1.74385, 49.86667)),
        (4, (358.5, 1.30313, 37.4)),
        (5, (286.8, 1.03873, 29.92)),
    ],
)
def test_low_rank_ratios_follow_from_those_of_one_plane(planes, expected):
    inputs = {"network": "alexnet_single", "planes": planes, **LOW_RANK}
    assert (multiplications(inputs), additions(inputs), weights(inputs)) == pytest.approx(expected, rel=1e-5)


def test_ternary_weights_take_two_bits_and_one_scale():
    # 32 * 11166912 / (2 * 11166912 + 32 * 4800)
    assert weights({"network": "resnet18", "planes": 1, "weight_bits": 2}) == pytest.approx(15.8907, rel=1e-5)


@pytest.mark.parametrize(
    "table, rows, differing",
    [
        (
            "table1",
            23,
            {
                ("bwn_1bit", "weights"),
                ("kcnn_1bit", "weights"),
                ("abc_3bit", "additions"),
                ("kcnn_3bit", "additions"),
            },
        ),
        ("table2", 11, {("twn_2bit", "weights"), ("abc_3bit", "additions"), ("kcnn_3bit", "additions")}),
    ],
)
def test_all_cells_are_equal_but_those_with_a_reason(table, rows, differing):
    loaded = load_table(f"kcnn/{table}")
    assert len(loaded.rows) == rows
    cells = {
        (row.name, name): static_cell(loaded, row, column)
        for row in loaded.rows
        for name, column in row.columns.items()
        if column.kind == "static"
    }
    assert {key for key, cell in cells.items() if cell.verdict == "differs"} == differing
    assert all(cells[key].reason for key in differing)
    assert all(cell.verdict == "equal" for key, cell in cells.items() if key not in differing)


@pytest.mark.parametrize(
    "table, row, column, printed",
    [
        ("table1", "pruning", "float_top1", "57.2"),
        ("table1", "sparsification_2", "top5_drop", "6.1"),
        ("table1", "sparsification_3", "weights", "-"),
        ("table1", "eec", "weights", "11"),
        ("table1", "bwn_1bit", "top5_drop", "37.3"),
        ("table1", "abc_4bit", "weights", "7.90"),
        ("table1", "kcnn_3bit", "additions", "0.32"),
        ("table1", "kcnn_1bit", "weights", "30.6"),
        ("table1", "kcnn_low_rank_1bit", "weights", "149.6"),
        ("table1", "kcnn_low_rank_5bit", "additions", "1.03"),
        ("table2", "twn_2bit", "weights", "31.5"),
        ("table2", "kcnn_4bit", "multiplications", "182"),
        ("table2", "abc_5bit", "top1", "68.3"),
    ],
)
def test_printed_cells(table, row, column, printed):
    assert printed_text(load_table(f"kcnn/{table}").row(row).published[column]) == printed
