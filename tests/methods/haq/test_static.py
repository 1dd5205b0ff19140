"""HAQ's static cells against values computed by hand or from the published lookup table, and the printed cells."""

import pytest

from hardware.network import network
from methods.haq.static import cost, size
from reproduce.tables import load_table, printed_text


@pytest.mark.parametrize(
    "model, weights, macs, biases, batch_norm_channels",
    [
        ("mobilenet_v1", 4_209_088, 568_740_352, 1000, 10_944),
        ("mobilenet_v2", 3_469_760, 300_774_272, 1000, 17_056),
        ("resnet50", 25_502_912, 4_089_184_256, 1000, 26_560),
    ],
)
def test_counts_of_the_networks(model, weights, macs, biases, batch_norm_channels):
    counted = network(model)
    assert (counted.num_weights, counted.num_macs) == (weights, macs)
    assert (counted.num_biases, counted.batch_norm_channels) == (biases, batch_norm_channels)


# Sums of the published lookup table at 200 MHz for MobileNet-V2; the cycle model for MobileNet-V1.
@pytest.mark.parametrize(
    "model, bits, milliseconds",
    [
        ("mobilenet_v2", 4, 74.458),
        ("mobilenet_v2", 5, 99.427),
        ("mobilenet_v2", 6, 127.070),
        ("mobilenet_v2", 8, 189.821),
        ("mobilenet_v1", 4, 57.49),
        ("mobilenet_v1", 5, 77.52),
        ("mobilenet_v1", 6, 99.86),
        ("mobilenet_v1", 8, 151.09),
    ],
)
def test_cloud_latency_is_within_a_thousandth(model, bits, milliseconds):
    inputs = {"network": model, "target": "bismo-cloud", "weight_bits": bits, "activation_bits": bits}
    assert cost(inputs) == pytest.approx(milliseconds, rel=0.001)


@pytest.mark.parametrize(
    "target, weight_bits, activation_bits, expected",
    [
        ("bismo-edge", 4, 4, 44.600),
        ("bismo-edge", 8, 8, 97.391),
        ("bitfusion", 4, 4, 7.5126),
        ("bitfusion", 6, 4, 11.325),
        ("bitfusion", 6, 6, 19.363),
        ("bitfusion", 8, 8, 19.420),
        ("bitfusion-energy", 4, 4, 13.453),
        ("bitfusion-energy", 8, 8, 30.524),
    ],
)
def test_cost_of_mobilenet_v1(target, weight_bits, activation_bits, expected):
    inputs = {"network": "mobilenet_v1", "weight_bits": weight_bits, "activation_bits": activation_bits}
    assert cost({"target": target, **inputs}) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "model, printed",
    [
        ("mobilenet_v1", {2: "1.09", 3: "1.60", 4: "2.10", 32: "16.14"}),
        ("mobilenet_v2", {2: "0.96", 3: "1.38", 4: "1.79", 32: "13.37"}),
        ("resnet50", {2: "6.32", 3: "9.36", 4: "12.40", 32: "97.49"}),
    ],
)
def test_size_has_the_printed_digits(model, printed):
    convention = {"first_layer_bits": 32, "bias_bits": 32, "batch_norm_values": 2}
    sizes = {bits: f"{size({'network': model, 'weight_bits': bits, **convention}):.2f}" for bits in printed}
    assert sizes == printed


def test_first_layer_at_8_bits_would_not_fit():
    inputs = {"network": "resnet50", "weight_bits": 2, "first_layer_bits": 8, "bias_bits": 32, "batch_norm_values": 2}
    assert f"{size(inputs):.2f}" == "6.29"


@pytest.mark.parametrize(
    "table, rows, static",
    [("table3_edge", 14, 8), ("table3_cloud", 14, 8), ("table4", 7, 4), ("table5", 7, 4), ("table6", 21, 12)],
)
def test_rows_and_static_cells(table, rows, static):
    loaded = load_table(f"haq/{table}")
    assert len(loaded.rows) == rows
    column = list(loaded.columns)[-1]
    computed = [row for row in loaded.rows if row.columns[column].kind == "static"]
    assert len(computed) == static
    for row in computed:  # what is computed has the printed widths
        for width in {"weight_bits", "activation_bits"} & set(row.inputs):
            assert row.inputs[width] == row.published.get(width, row.published.get("bits"))
    assert all(row.columns[column].kind == "trained" for row in loaded.rows if row.method == "HAQ")


@pytest.mark.parametrize(
    "table, row, column, printed",
    [
        ("table3_edge", "pact_mobilenet_v1_4bit", "latency", "45.45"),
        ("table3_edge", "haq_mobilenet_v1_4bit", "latency", "45.51"),
        ("table3_edge", "haq_mobilenet_v2_6bit", "top5", "90.36"),
        ("table3_edge", "original_mobilenet_v2_8bit", "latency", "115.84"),
        ("table3_cloud", "haq_mobilenet_v1_4bit", "top1", "65.33"),
        ("table3_cloud", "haq_mobilenet_v2_5bit", "latency", "99.07"),
        ("table3_cloud", "pact_mobilenet_v2_6bit", "top5", "90.00"),
        ("table3_cloud", "haq_mobilenet_v2_4bit", "bits", "flexible"),
        ("table4", "pact_w6a4", "latency", "11.10"),
        ("table4", "haq_w6a6", "top5", "89.95"),
        ("table5", "pact_w6a6", "energy", "26.80"),
        ("table5", "original_w8a8", "top5", "89.95"),
        ("table6", "deep_compression_mobilenet_v1_2bit", "top1", "37.62"),
        ("table6", "haq_resnet50_2bit", "size", "6.30"),
        ("table6", "haq_mobilenet_v2_2bit", "size", "0.95"),
        ("table6", "original_resnet50_32bit", "top5", "92.86"),
    ],
)
def test_printed_cells(table, row, column, printed):
    assert printed_text(load_table(f"haq/{table}").row(row).published[column]) == printed
