"""AutoQ's latency law and the printed cells of its table."""

import pytest

from methods.autoq.static import latency, latency_law
from reproduce.tables import load_table, printed_text

LATENCIES = {
    "resnet18": [296.8, 1163],
    "resnet50": [616.3, 2357],
    "squeezenet": [43.1, 127.3],
    "mobilenet_v2": [37.4, 123.6],
}


@pytest.mark.parametrize(
    "network, constant, slope",
    [
        ("resnet18", 8.067, 72.183),
        ("resnet50", 36.067, 145.058),
        ("squeezenet", 15.033, 7.0167),
        ("mobilenet_v2", 8.667, 7.1833),
    ],
)
def test_constants_through_the_two_printed_latencies(network, constant, slope):
    assert latency_law(*LATENCIES[network]) == pytest.approx((constant, slope), rel=1e-4)


@pytest.mark.parametrize(
    "network, weight_bits, activation_bits, expected",
    [
        ("resnet18", 4, 4, 296.8),
        ("resnet50", 16, 16, 2357),
        ("resnet18", 4.63, 3.32, 291.07),
        ("resnet18", 3.32, 4.12, 275.03),
        ("resnet50", 3.51, 4.23, 595.01),
        ("resnet50", 4.02, 3.93, 612.64),
        ("squeezenet", 4.27, 3.56, 42.39),
        ("squeezenet", 3.76, 4.05, 42.415),
        ("mobilenet_v2", 4.22, 3.57, 36.548),
        ("mobilenet_v2", 3.67, 4.14, 36.667),
    ],
)
def test_latency_of_average_widths(network, weight_bits, activation_bits, expected):
    inputs = {"network": network, "weight_bits": weight_bits, "activation_bits": activation_bits}
    assert latency({"latencies": LATENCIES, **inputs}) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "table, kind", [("uniform", "static"), ("resource_constrained", "static"), ("accuracy_guaranteed", "trained")]
)
def test_rows_of_the_table(table, kind):
    loaded = load_table(f"autoq/table3_{table}")
    assert len(loaded.rows) == 8
    assert {row.columns["latency"].kind for row in loaded.rows} == {kind}
    for row in loaded.rows if kind == "static" else ():
        for width in ("weight_bits", "activation_bits"):
            assert row.inputs[width] == row.published[width]
    assert loaded.inputs.get("latencies", LATENCIES) == LATENCIES


@pytest.mark.parametrize("network, latencies", LATENCIES.items())
def test_constants_are_the_printed_latencies(network, latencies):
    table = load_table("autoq/table3_uniform")
    rows = [table.row(f"{scheme}_{network}") for scheme in ("network_wise", "original")]
    assert [row.published["latency"] for row in rows] == latencies
    assert [row.published["right_latency"] for row in rows] == latencies


@pytest.mark.parametrize(
    "table, row, column, printed",
    [
        ("uniform", "network_wise_mobilenet_v2", "top1_error", "31.75"),
        ("uniform", "network_wise_mobilenet_v2", "right_top1_error", "31.35"),
        ("uniform", "original_resnet18", "top1_error", "30.10"),
        ("uniform", "original_resnet50", "latency", "2357"),
        ("resource_constrained", "kernel_wise_resnet18", "top1_error", "30.22"),
        ("resource_constrained", "layer_wise_resnet18", "weight_bits", "4.63"),
        ("resource_constrained", "kernel_wise_mobilenet_v2", "latency", "36.1"),
        ("accuracy_guaranteed", "kernel_wise_squeezenet", "latency", "12.5"),
        ("accuracy_guaranteed", "layer_wise_resnet18", "top5_error", "11.90"),
        ("accuracy_guaranteed", "kernel_wise_mobilenet_v2", "weight_bits", "2.26"),
    ],
)
def test_printed_cells(table, row, column, printed):
    assert printed_text(load_table(f"autoq/table3_{table}").row(row).published[column]) == printed
