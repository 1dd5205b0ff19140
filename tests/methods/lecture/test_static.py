"""The lecture's computed cells, and the cells of its table files."""

import math

import pytest

from hardware.network import network
from methods.lecture.static import (
    frobenius_error,
    laplace_clip,
    level,
    operation_saving,
    q_max,
    q_min,
    scale,
    squared_error,
    threshold,
    weight_memory_saving,
    wrpn_compute_cost,
    zero_point,
)
from reproduce.tables import load_table, printed_text


@pytest.mark.parametrize("bits, low, high", [(2, -2, 1), (3, -4, 3), (4, -8, 7), (8, -128, 127)])
def test_integer_ranges(bits, low, high):
    assert (q_min({"bits": bits}), q_max({"bits": bits})) == (low, high)


def test_savings_of_binary_weights():
    assert weight_memory_saving({"weight_bits": 1}) == 32
    assert operation_saving({"operations": 1}) == 2


@pytest.mark.parametrize(
    "width, activation_bits, weight_bits, cost",
    [(1, 32, 32, 1.0), (1, 1, 1, 0.0626), (2, 4, 2, 0.3894), (2, 1, 1, 0.1515), (3, 1, 1, 0.2989)],
)
def test_compute_cost_of_wide_networks(width, activation_bits, weight_bits, cost):
    inputs = {"width": width, "activation_bits": activation_bits, "weight_bits": weight_bits, "network": "resnet34"}
    assert wrpn_compute_cost(inputs) == pytest.approx(cost, abs=5e-5)


def test_compute_cost_by_hand():
    # MACs: stem 118,013,952; first 3x3 of the first stage 64*64*9*56*56; classifier 512,000
    total = network("resnet34").num_macs
    assert total == 3_663_761_408
    inner = total - 118_013_952 - 115_605_504 - 512_000
    expected = (118_013_952 + 2 * 512_000 + 6 / 64 * (2 * 115_605_504 + 4 * inner)) / total
    inputs = {"width": 2, "activation_bits": 4, "weight_bits": 2, "network": "resnet34"}
    assert wrpn_compute_cost(inputs) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("bits, clip", [(1, 1.862817), (2, 2.830683), (3, 3.897229), (4, 5.028640), (8, 9.896760)])
def test_clipping_of_a_laplace_distribution(bits, clip):
    assert laplace_clip({"bits": bits}) == pytest.approx(clip, abs=1e-6)
    assert clip * math.exp(clip) == pytest.approx(3 * 4**bits, rel=1e-5)


@pytest.mark.parametrize(
    "scheme, error",
    [("asymmetric_per_tensor", 0.863378), ("symmetric_per_tensor", 2.284557), ("symmetric_per_channel", 2.079543)],
)
def test_error_of_linear_quantization(scheme, error):
    assert frobenius_error({"scheme": scheme}) == pytest.approx(error, abs=1e-6)


def test_scale_and_zero_point_of_linear_quantization():
    assert scale({"scheme": "asymmetric_per_tensor"}) == pytest.approx(16 / 15)
    assert zero_point({"scheme": "asymmetric_per_tensor"}) == -1
    assert scale({"scheme": "symmetric_per_tensor"}) == pytest.approx(2.12)
    assert zero_point({"scheme": "symmetric_per_tensor"}) == 0


@pytest.mark.parametrize(
    "scheme, cut, positive, error",
    [("binary", 0, 1, 9.2832), ("binary_scaled", 0, 1.04875, 9.245175), ("ternary", 0.734125, 1.5, 2.0932)],
)
def test_binary_and_ternary_weights(scheme, cut, positive, error):
    assert threshold({"scheme": scheme}) == pytest.approx(cut)
    assert level({"scheme": scheme}) == pytest.approx(positive)
    assert squared_error({"scheme": scheme}) == pytest.approx(error, abs=1e-9)


@pytest.mark.parametrize(
    "name, rows, cells",
    [
        (
            "ptq_int8",
            20,
            {
                "kl_resnet152": {"delta_top1": "-0.08"},
                "ema_w_asym_channel_googlenet": {"delta_top1": "0"},
                "ema_w_sym_channel_mobilenet_v1": {"delta_top1": "-11.8", "weights": "symmetric per-channel"},
                "dfq_mobilenet_v2": {"delta_top1": "-0.5", "extra": "weight equalization and bias correction"},
            },
        ),
        (
            "qat_int8",
            15,
            {"float_nasnet_mobile": {"top1": "74.9"}, "qat_symmetric_per_channel_mobilenet_v2": {"top1": "71.1"}},
        ),
        ("integer_only", 4, {"int8_inception_v3": {"top1": "75.4"}}),
        ("binary_first", 2, {"binaryconnect": {"delta_top1": "-21.2"}}),
        (
            "binary_accuracy",
            7,
            {"bwn_googlenet": {"delta_top1": "-5.80"}, "xnor_net_resnet18": {"delta_top1": "-18.1"}},
        ),
        ("binary_cost", 3, {"binary_binary": {"operations": "xnor, popcount", "memory": "32", "computation": "58"}}),
        ("twn_ttq", 4, {"twn": {"top1": "65.3"}, "ttq": {"top1": "66.6"}}),
        ("dorefa_gradient", 8, {"w1a2g32_initialized": {"top1": "49.8"}, "w1a2g32": {"top1": "47.7"}}),
        ("pact_dorefa", 27, {"dorefa_resnet50_2bit": {"top1": "67.1"}, "pact_resnet18_5bit": {"top1": "69.8"}}),
        ("wrpn", 5, {"3x_a1w1": {"top1": "72.38", "compute_cost": "0.30"}}),
        ("integer_ranges", 4, {"n_bit": {"q_max": "2^(N-1) - 1"}}),
        ("inq_schedule", 4, {"step3": {"portion": "87.5"}}),
        ("laplace_clipping", 3, {"3bit": {"clip": "3.89"}}),
        ("linear_example", 3, {"symmetric_per_channel": {"frobenius_error": "2.08"}}),
        ("binary_example", 3, {"binary_scaled": {"squared_error": "9.24"}}),
    ],
)
def test_printed_cells(name, rows, cells):
    table = load_table(f"lecture/{name}")
    assert len(table.rows) == rows
    for row, expected in cells.items():
        published = table.row(row).published
        assert {column: printed_text(published[column]) for column in expected} == expected


def test_first_print_of_the_int8_table_agrees_with_the_training_table():
    drops, accuracies = load_table("lecture/ptq_int8"), load_table("lecture/qat_int8")
    for network_name in ("mobilenet_v1", "mobilenet_v2"):
        start = accuracies.row(f"float_{network_name}").published["top1"]
        for drop, after in (
            ("ema_w_asym_tensor", "ptq_asymmetric_per_tensor"),
            ("ema_w_sym_channel", "ptq_symmetric_per_channel"),
        ):
            delta = drops.row(f"{drop}_{network_name}").published["delta_top1"]
            assert start + delta == pytest.approx(accuracies.row(f"{after}_{network_name}").published["top1"])
