import csv
import dataclasses
import math
import os
import random
import time
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from common.errors import UserError
from common.graph import Layer, layer_table, trace
from common.models import build_model
from hardware.bit_serial import (
    BISMO_CLOUD,
    BISMO_EDGE,
    BISMO_EDGE_TWO,
    CONSTANTS,
    cycles,
    cycles_fast,
    demands,
    latency_ms,
)

MACHINES = {"cloud": BISMO_CLOUD, "edge": BISMO_EDGE, "edge, two constants": BISMO_EDGE_TWO}
NETWORKS = ("mobilenet_v1", "mobilenet_v2", "resnet50")
# computed by an independent prototype, ms for 4, 5, 6 and 8 bits everywhere, without first and last layer
GOLDEN_MS = {
    ("cloud", "mobilenet_v1"): (57.4877, 77.4702, 99.7972, 151.0238),
    ("cloud", "mobilenet_v2"): (74.4589, 99.4290, 127.0724, 189.7943),
    ("edge", "mobilenet_v1"): (44.6003, 57.0240, 69.9995, 97.3913),
    ("edge", "mobilenet_v2"): (53.7909, 68.7120, 84.2965, 117.3927),
    ("edge, two constants", "mobilenet_v1"): (44.4221, 56.8008, 69.7304, 97.0305),
    ("edge, two constants", "mobilenet_v2"): (53.3193, 68.1838, 83.7345, 116.8588),
}
# HAQ, table 3
PRINTED_MS = {
    ("cloud", "mobilenet_v1"): (57.49, 77.52, 99.86, 151.09),
    ("cloud", "mobilenet_v2"): (74.46, 99.43, 127.07, 189.82),
    ("edge", "mobilenet_v1"): (45.45, 57.75, 70.67, 96.20),
    ("edge", "mobilenet_v2"): (52.15, 66.94, 82.49, 115.84),
}
BITS = (4, 5, 6, 8)
# (weight, activation) bits that HAQ published for MobileNet-V2 on the cloud machine at 0.6 of the 8-bit latency
POLICY = (
    "88 77 56 46 56 57 56 74 46 46 77 56 46 73 57 47 73 57 47 77 47 47 64 67 47 74 67 57 74 67 57 74 67 67 64 57 67 64 "
    "57 67 77 47 77 77 47 77 77 47 77 77 47 77 88"
)


@cache
def layers_of(model: str) -> tuple[Layer, ...]:
    return table(build_model(model), 3, 224, 224)


def table(network: nn.Module, *input_shape: int) -> tuple[Layer, ...]:
    image = torch.zeros(1, *input_shape)
    return layer_table(trace(network, image), image)


def layer(module: nn.Module, *input_shape: int) -> Layer:
    return table(nn.Sequential(module), *input_shape)[0]


def network_ms(machine, layers, width, function=cycles):
    return latency_ms(machine, sum(function(machine, each, width, width) for each in layers[1:-1]))


@pytest.mark.parametrize("machine, model", GOLDEN_MS)
def test_network_latencies_equal_the_prototype(machine, model):
    computed = [network_ms(MACHINES[machine], layers_of(model), width) for width in BITS]
    assert computed == pytest.approx(GOLDEN_MS[machine, model], abs=6e-5)


@pytest.mark.parametrize("machine, model", PRINTED_MS)
def test_network_latencies_are_near_the_printed_ones(machine, model):
    residual = {"cloud": 0.001, "edge": 0.035}[machine]
    computed = [network_ms(MACHINES[machine], layers_of(model), width) for width in BITS]
    assert computed == pytest.approx(PRINTED_MS[machine, model], rel=residual)


def test_two_edge_constants_are_nearer_to_the_print_than_one():
    def worst(machine):
        return max(
            abs(network_ms(machine, layers_of(model), width) / printed - 1)
            for model in ("mobilenet_v1", "mobilenet_v2")
            for width, printed in zip(BITS, PRINTED_MS["edge", model], strict=True)
        )

    assert worst(BISMO_EDGE) == pytest.approx(0.0315, abs=5e-4)
    assert worst(BISMO_EDGE_TWO) == pytest.approx(0.0226, abs=5e-4)


@pytest.mark.parametrize("model", ["mobilenet_v1", "mobilenet_v2"])
def test_plain_roofline_is_two_percent_below_the_printed_cloud_latencies(model):
    for width, printed in zip(BITS, PRINTED_MS["cloud", model], strict=True):
        assert 0.979 < network_ms(BISMO_CLOUD, layers_of(model), width, cycles_fast) / printed < 0.985


@pytest.mark.parametrize(
    "index, weight_bits, activation_bits, expected",
    [
        (0, 8, 8, 1620752),
        (1, 8, 8, 3212832),
        (3, 8, 8, 4860688),
        (3, 2, 6, 1209584),  # 80 above the published cell
        (6, 4, 4, 458544),
        (20, 8, 8, 57456),
        (21, 8, 8, 331888),
        (42, 4, 4, 63792),
        (42, 8, 8, 248944),
        (43, 8, 8, 436800),
        (50, 8, 8, 340080),
        (51, 4, 4, 168496),
    ],
)
def test_cloud_cycles_of_mobilenet_v2_layers(index, weight_bits, activation_bits, expected):
    assert cycles(BISMO_CLOUD, layers_of("mobilenet_v2")[index], weight_bits, activation_bits) == expected


def test_published_policy_costs_0_5964_of_8_bits():
    layers = layers_of("mobilenet_v2")  # all of them: the policy's own budget counts the first and the last layer
    policy = [(int(pair[0]), int(pair[1])) for pair in POLICY.split()]
    mixed = sum(cycles(BISMO_CLOUD, each, *widths) for each, widths in zip(layers, policy, strict=True))
    assert mixed / sum(cycles(BISMO_CLOUD, each, 8, 8) for each in layers) == pytest.approx(0.5964, abs=5e-5)


def test_published_table_of_mobilenet_v2():
    shared = Path(os.environ.get("SHARED_DIR", Path(__file__).resolve().parents[3] / "shared"))
    file = shared / "papers" / "tables" / "bismo_cloud_mobilenetv2_batch16_cycles.csv"
    if not file.exists():
        pytest.skip(f"no {file}: set SHARED_DIR")
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    layers, errors = layers_of("mobilenet_v2"), []
    for index, weight_bits, *published in list(csv.reader(lines))[1:]:
        for activation_bits, cell in enumerate(published, start=1):
            computed = cycles(BISMO_CLOUD, layers[int(index)], int(weight_bits), activation_bits)
            errors.append(abs(computed / int(cell) - 1))
    assert len(errors) == 53 * 8 * 8
    assert sum(error == 0 for error in errors) / len(errors) >= 0.6
    assert sum(error <= 0.001 for error in errors) / len(errors) >= 0.85
    assert sum(error <= 0.01 for error in errors) / len(errors) >= 0.979
    assert max(errors) <= 0.07


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("model", NETWORKS)
def test_cycles_grow_with_both_widths_and_stay_above_the_plain_roofline(model, machine):
    for each in layers_of(model):
        costs = [[cycles(MACHINES[machine], each, w, a) for a in range(1, 9)] for w in range(1, 9)]
        assert all(row == sorted(row) for row in costs), each
        assert all(list(column) == sorted(column) for column in zip(*costs, strict=True)), each
        for w, a in ((1, 8), (3, 5), (8, 1), (8, 8)):
            assert cycles_fast(MACHINES[machine], each, w, a) <= costs[w - 1][a - 1]


def test_full_table_of_mobilenet_v2_is_quick():
    layers, start = layers_of("mobilenet_v2"), time.perf_counter()
    for each in layers:
        for w in range(1, 9):
            for a in range(1, 9):
                cycles(BISMO_CLOUD, each, w, a)
    assert time.perf_counter() - start < 3  # 0.2 s on an idle core


def test_depthwise_layers_are_bound_by_activations():
    each = layers_of("mobilenet_v2")[1]
    assert cycles(BISMO_EDGE, each, 8, 4) == pytest.approx(cycles(BISMO_EDGE, each, 1, 4), rel=0.01)
    assert cycles(BISMO_EDGE, each, 8, 8) == pytest.approx(2 * cycles(BISMO_EDGE, each, 8, 4), rel=0.01)


# Generalisations. Names in the comments are those of cycles(): f fetch of a row tile, fw of a weight tile, e = w a.


def test_narrow_kernel_on_a_rectangular_map_by_hand():
    each = layer(nn.Conv2d(16, 32, (1, 7)), 16, 6, 16)  # 6 x 10 positions, K = 112, two column groups of 16
    # w = 2, a = 3: e = 6; 4 row tiles, 12 rows in the last; f = 48, last 36; fw = 32
    # order 1: rows 3 (48 + 6) + (36 + 6) = 204; weights 2 max(32, 24) + 3 * 6 = 82
    # order 2: weights 2 (3 * 6 + 32) = 100; rows 48 + 2 * 48 + 36 + 12 - 3 = 189
    assert cycles(BISMO_CLOUD, each, 2, 3) == 16 * 189 + 16 * 1 * 1


def test_depthwise_5x5_by_hand():
    each = layer(nn.Conv2d(32, 32, 5, padding=2, groups=32), 32, 4, 4)
    # two products with K = 25 * 16 = 400 in 2 slices, one row tile; w = 1, a = 2: f = 32 hides the rest
    assert cycles(BISMO_CLOUD, each, 1, 2) == 2 * 2 * 16 * 32


def test_only_output_positions_and_row_length_count():
    plain = layer(nn.Conv2d(32, 48, 3, padding=1), 32, 9, 9)
    same = [
        layer(nn.Conv2d(32, 48, 3, padding=2, dilation=2), 32, 9, 9),
        layer(nn.Conv2d(32, 48, 3, stride=2, padding=1), 32, 17, 17),
        layer(nn.Conv2d(32, 48, (1, 9), padding=(0, 4)), 32, 9, 9),
        layer(nn.Conv2d(32, 48, (9, 1)), 32, 11, 27),  # 3 x 27 positions
    ]
    for machine in MACHINES.values():
        assert {cycles(machine, each, 3, 5) for each in same} == {cycles(machine, plain, 3, 5)}


def test_groups_with_an_array_of_outputs_are_products_of_their_own():
    grouped = layer(nn.Conv2d(64, 80, 3, groups=2), 64, 12, 12)
    one = layer(nn.Conv2d(32, 40, 3), 32, 12, 12)
    for machine in MACHINES.values():
        assert cycles(machine, grouped, 3, 5) == 2 * cycles(machine, one, 3, 5)
        assert cycles_fast(machine, grouped, 3, 5) == 2 * cycles_fast(machine, one, 3, 5)


def test_narrow_groups_share_a_product():
    grouped = layer(nn.Conv2d(32, 32, 3, groups=8), 32, 12, 12)  # 4 groups of 4 outputs fill 16 columns
    dense = layer(nn.Conv2d(16, 16, 3), 16, 12, 12)  # as long a row: 4 groups of 4 inputs
    assert cycles(BISMO_CLOUD, grouped, 3, 5) == 2 * cycles(BISMO_CLOUD, dense, 3, 5)
    uneven = layer(nn.Conv2d(36, 36, 3, groups=9), 36, 12, 12)  # 4 + 4 + 1 groups
    assert cycles(BISMO_CLOUD, uneven, 3, 5) == 3 * cycles(BISMO_CLOUD, dense, 3, 5)
    lone = layer(nn.Conv2d(12, 36, 3, groups=3), 12, 12, 12)  # 12 outputs: a second group of them has no room
    narrow = layer(nn.Conv2d(4, 12, 3), 4, 12, 12)
    assert cycles(BISMO_CLOUD, lone, 3, 5) == 3 * cycles(BISMO_CLOUD, narrow, 3, 5)


def test_channel_multiplier_shares_columns_too():
    doubled = layer(nn.Conv2d(16, 32, 3, groups=16), 16, 12, 12)  # 8 groups of 2 outputs a product: 2 products
    plain = layer(nn.Conv2d(32, 32, 3, groups=32), 32, 12, 12)  # 16 groups of 1: also 2
    assert doubled.kind == "depthwise"
    assert cycles(BISMO_CLOUD, doubled, 3, 5) == cycles(BISMO_CLOUD, plain, 3, 5)


def test_fewer_groups_than_columns_make_one_short_row():
    each = layer(nn.Conv2d(4, 4, 9, padding=4, groups=4), 4, 4, 4)  # K = 4 * 81 = 324: 2 slices, not 16 * 81 in 6
    assert cycles(BISMO_CLOUD, each, 1, 2) == 2 * 16 * 32


def test_several_calls_add_up():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(16, 16, 3, stride=2, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x))

    (both,) = table(Twice(), 16, 28, 28)
    first = layer(nn.Conv2d(16, 16, 3, stride=2, padding=1), 16, 28, 28)
    second = layer(nn.Conv2d(16, 16, 3, stride=2, padding=1), 16, 14, 14)
    for function in (cycles, cycles_fast):
        assert function(BISMO_EDGE, both, 3, 5) == sum(function(BISMO_EDGE, each, 3, 5) for each in (first, second))


def test_tokens_are_positions_of_a_pointwise_layer():
    tokens = layer(nn.Linear(192, 64), 10, 192)
    pixels = layer(nn.Conv2d(192, 64, 1), 192, 2, 5)
    for machine in MACHINES.values():
        assert cycles(machine, tokens, 3, 5) == cycles(machine, pixels, 3, 5)


def test_linear_layer_by_hand():
    # 1280 x 1000 weights fill 5000 rows of 256 bits; 5 * 63 products of 16 x 16 x 256 bits take a cycle per bit pair
    classifier = layers_of("mobilenet_v2")[-1]
    assert cycles(BISMO_CLOUD, classifier, 3, 8) == 15000
    assert cycles(BISMO_CLOUD, classifier, 8, 8) == 40000
    assert cycles(BISMO_EDGE, classifier, 3, 8) == 8 * 15000
    tall = layer(nn.Linear(4096, 16), 4096)
    assert cycles(BISMO_CLOUD, tall, 2, 8) == 16 * 16 * 8  # the rows of 16 images, 16 slices each
    wide = layer(nn.Linear(16, 4096), 16)
    assert cycles(BISMO_CLOUD, wide, 8, 8) == 256 * 64  # compute: one slice, 256 column groups


def test_map_of_one_position_is_a_linear_layer():
    linear = layer(nn.Linear(96, 24), 96)
    for module, shape in ((nn.Conv2d(96, 24, 1), (96, 1, 1)), (nn.Conv2d(24, 24, 2), (24, 2, 2))):
        assert cycles(BISMO_CLOUD, layer(module, *shape), 3, 5) == cycles(BISMO_CLOUD, linear, 3, 5)


def test_depthwise_layer_on_one_position_streams_its_weights():
    each = layer(nn.Conv2d(16, 16, 3, padding=1, groups=16), 16, 1, 1)
    assert cycles(BISMO_CLOUD, each, 1, 1) == 16 * 16  # 16 rows of weights for each of 16 images


@pytest.mark.parametrize("channels, row_cycles", [(24, 1), (32, 1), (33, 2), (224, 7), (256, 8), (320, 16)])
def test_edge_fetches_short_rows_in_words_of_32_bits(channels, row_cycles):
    each = layer(nn.Conv2d(channels, 8, 1), channels, 2, 4)  # one tile; at 1/1 bits its fetch is all there is
    assert cycles(BISMO_EDGE, each, 1, 1) == 8 * row_cycles


def test_edge_fetches_depthwise_rows_whole():
    assert cycles(BISMO_EDGE, layer(nn.Conv2d(8, 8, 3, padding=1, groups=8), 8, 2, 4), 1, 1) == 8 * 8


def test_second_edge_constant_holds_for_pointwise_activations_only():
    pointwise = layer(nn.Conv2d(256, 8, 1), 256, 2, 4)  # 8 rows of 256 bits, 8 planes: 512 or 256 cycles
    assert (cycles(BISMO_EDGE, pointwise, 1, 8), cycles(BISMO_EDGE_TWO, pointwise, 1, 8)) == (512, 256)
    assert (cycles(BISMO_EDGE, pointwise, 8, 1), cycles(BISMO_EDGE_TWO, pointwise, 8, 1)) == (512 + 448, 512 + 224)
    depthwise = layer(nn.Conv2d(8, 8, 3, padding=1, groups=8), 8, 2, 4)
    assert cycles(BISMO_EDGE, depthwise, 3, 8) == cycles(BISMO_EDGE_TWO, depthwise, 3, 8)
    odd = layer(nn.Conv2d(160, 8, 1), 160, 3, 3)  # 9 rows of 5 words at 2.5 cycles, 7 planes: 157.5
    assert cycles(BISMO_EDGE_TWO, odd, 1, 7) == 158


# A width per output channel


def test_kernel_wise_widths_by_hand():
    each = layer(nn.Conv2d(256, 32, 1), 256, 4, 4)  # one row tile, f = 128 at a = 8
    # groups of 8 and of 2 bits: e = 64, 16; fw = 128, 32
    # order 1: rows 128 + 16; weights 128 + 32 = 160; order 2: weights 160; rows 128 + 80 - 8
    sorted_widths = [8] * 16 + [2] * 16
    assert cycles(BISMO_CLOUD, each, sorted_widths, 8) == 16 * 160 + 16 * 7
    mixed = [8, 2] * 16  # both groups run at 8 bits unless sorted: e = 64, 64; fw = 128, 128; rows 128 + 128 - 8
    assert cycles(BISMO_CLOUD, each, mixed, 8, sort_channels=False) == 16 * 256 + 16 * 7
    assert cycles(BISMO_CLOUD, each, mixed, 8) == cycles(BISMO_CLOUD, each, sorted_widths, 8)


def test_pipelines_fill_and_drain_at_the_widest_group():
    each = layer(nn.Conv2d(256, 32, 1), 256, 4, 8)  # two row tiles, a = 1: weights max(32, 4) + max(128, 16) + 8
    assert cycles(BISMO_CLOUD, each, [2] * 16 + [8] * 16, 1, sort_channels=False) == 16 * 168 + 16 * 7


def test_groups_that_share_a_product_are_sorted_by_their_widest_channel():
    depthwise = layer(
        nn.Conv2d(32, 32, 3, padding=1, groups=32), 32, 4, 4
    )  # at a = 1 the weights' fetch is the longest
    assert cycles(BISMO_CLOUD, depthwise, [8, 1] * 16, 1, sort_channels=False) == 2 * (16 * 128 + 16 * 7)
    assert cycles(BISMO_CLOUD, depthwise, [8, 1] * 16, 1) == 16 * 128 + 16 * 7 + 16 * 16
    grouped = layer(nn.Conv2d(32, 32, 3, padding=1, groups=8), 32, 4, 4)
    for widths in (
        [8, 1, 1, 1, 1, 1, 1, 1] * 4,
        ([8] + [1] * 7) * 2 + [8, 1, 1, 1] * 2 + [1] * 8,
    ):  # 4 groups with an 8
        assert cycles(BISMO_CLOUD, grouped, widths, 1) == 16 * 128 + 16 * 7 + 16 * 16


def test_linear_layer_fetches_each_channel_at_its_width():
    each = layer(nn.Linear(256, 1000), 256)
    assert cycles(BISMO_CLOUD, each, [4] * 300 + [1] * 700, 1) == 1000 + 3 * 300
    odd = layer(nn.Linear(100, 15), 100)  # planes of 1500 and 500 bits: 6 + 2 rows; compute 1 + ... is less
    assert cycles(BISMO_EDGE, odd, [2] * 5 + [1] * 10, 1) == 8 * (6 + 2)


@pytest.mark.parametrize("machine", MACHINES)
def test_uniform_vector_costs_what_the_scalar_does(machine):
    for each in layers_of("mobilenet_v2"):
        for width in (1, 3, 8):
            for sort_channels in (False, True):
                vector = [width] * each.out_channels
                for function in (cycles, cycles_fast):
                    assert function(MACHINES[machine], each, vector, 5, sort_channels=sort_channels) == function(
                        MACHINES[machine], each, width, 5
                    )


def random_layers(seed: int, count: int):
    """Layers of all kinds with widths 0..8 for their channels, and a machine."""
    rng = random.Random(seed)
    for _ in range(count):
        groups, inputs, outputs = rng.choice((1, 1, 2, 8)), rng.choice((1, 3, 16, 40)), rng.choice((1, 3, 12, 16, 50))
        kernel, height, width = rng.choice(((1, 1), (3, 3), (1, 7))), rng.choice((1, 3, 14)), rng.choice((1, 5, 14))
        kind = "depthwise" if inputs == 1 < groups else "pointwise" if kernel == (1, 1) and groups == 1 else "conv"
        num_weights = groups * inputs * outputs * math.prod(kernel)
        yield (
            rng.choice(tuple(MACHINES.values())),
            Layer(
                name="layer",
                kind=kind,
                in_channels=groups * inputs,
                out_channels=groups * outputs,
                kernel_size=kernel,
                stride=(1, 1),
                dilation=(1, 1),
                groups=groups,
                input_shapes=((groups * inputs, height, width),),
                output_shapes=((groups * outputs, height, width),),
                num_weights=num_weights,
                num_biases=0,
                num_macs=num_weights * height * width,
                reads=(),
                has_bias=False,
            ),
            rng.choices((0, 1, 2, 3, 4, 8), k=groups * outputs),
            rng.randint(1, 8),
        )


def test_sorting_channels_never_costs():
    saved = 0
    for machine, each, widths, a in random_layers(0, 300):
        for function in (cycles, cycles_fast):
            in_order = function(machine, each, widths, a, sort_channels=False)
            assert function(machine, each, widths, a) <= in_order
            saved += function(machine, each, widths, a) < in_order
    assert saved > 100


def test_order_of_channels_does_not_count_when_sorted():
    for machine, each, widths, a in random_layers(1, 100):
        if each.groups == 1:
            assert cycles(machine, each, widths, a) == cycles(machine, each, widths[::-1], a)


def test_wider_channels_never_cost_less():
    for machine, each, widths, a in random_layers(2, 300):
        wider = list(widths)
        wider[len(wider) // 2] += 1
        assert cycles(machine, each, wider, a) >= cycles(machine, each, widths, a)
        assert cycles(machine, each, widths, a + 1) >= cycles(machine, each, widths, a)


@pytest.mark.parametrize("machine", MACHINES)
def test_halving_half_of_the_widths_costs_less(machine):
    each = layers_of("mobilenet_v2")[21]  # compute bound
    uniform, half = [8] * each.out_channels, [8, 4] * (each.out_channels // 2)
    assert cycles(MACHINES[machine], each, half, 8) < 0.8 * cycles(MACHINES[machine], each, uniform, 8)


def test_pruned_channels_drop_out():
    each = layer(nn.Conv2d(64, 48, 1), 64, 7, 7)
    kept = layer(nn.Conv2d(64, 32, 1), 64, 7, 7)
    for sort_channels in (False, True):
        assert cycles(BISMO_CLOUD, each, [5, 0, 5] * 16, 4, sort_channels) == cycles(BISMO_CLOUD, kept, 5, 4)
    depthwise = layer(nn.Conv2d(48, 48, 3, groups=48), 48, 9, 9)
    kept = layer(nn.Conv2d(32, 32, 3, groups=32), 32, 9, 9)
    assert cycles(BISMO_CLOUD, depthwise, [5, 0, 5] * 16, 4) == cycles(BISMO_CLOUD, kept, 5, 4)
    for nothing in (0, [0] * 48):
        assert cycles(BISMO_CLOUD, each, nothing, 4) == cycles_fast(BISMO_CLOUD, each, nothing, 4) == 0
    assert cycles(BISMO_CLOUD, layer(nn.Linear(8, 8), 8), 0, 4) == 0


def test_demands_are_the_arguments_of_the_plain_roofline():
    each = layers_of("mobilenet_v2")[3]  # 16 -> 96 at 112 x 112
    (parts,) = demands(BISMO_CLOUD, each, 4, 4)
    assert parts.compute_cycles == 16 * 784 * 6 * 16  # images, row tiles, column groups, e
    assert parts.activation_cycles == 16 * 112 * 112 * 4
    assert parts.weight_cycles == 96 * 16 * 4
    assert parts.activation_bits_moved == 256 * parts.activation_cycles
    assert parts.weight_bits_moved == 256 * parts.weight_cycles
    assert parts.cycles == cycles_fast(BISMO_CLOUD, each, 4, 4)
    (parts,) = demands(BISMO_EDGE, each, 4, 4)
    assert parts.activation_bits_moved == 32 * 112 * 112 * 4  # rows of 16 bits: one word


def test_latency_at_200_mhz():
    assert latency_ms(BISMO_CLOUD, 200_000) == latency_ms(BISMO_EDGE, 200_000) == 1.0
    assert latency_ms(dataclasses.replace(BISMO_EDGE, clock_mhz=100), 200_000) == 2.0


@pytest.mark.parametrize("name, side, batch", [("bismo-cloud", 16, 16), ("bismo-edge", 8, 1)])
def test_constants_name_their_sources(name, side, batch):
    values = {constant: value for constant, value, *_ in CONSTANTS[name]}
    assert (values["side"], values["batch"], values["depth"], values["clock_mhz"]) == (side, batch, 256, 200)
    for *_, status, source in CONSTANTS[name]:
        assert status in ("published", "decoded", "fitted", "chosen")
        assert source


@pytest.mark.parametrize("bad", [-1, 2.5, "4", [4, 4], [[4] * 16]])
def test_refuses_odd_weight_widths(bad):
    with pytest.raises(UserError, match="weight_bits must be"):
        cycles(BISMO_CLOUD, layer(nn.Conv2d(16, 16, 1), 16, 4, 4), bad, 4)


@pytest.mark.parametrize("bad", [0, -1, 2.5])
def test_refuses_odd_activation_widths(bad):
    with pytest.raises(UserError, match="activation_bits must be a whole number of at least 1"):
        cycles(BISMO_CLOUD, layer(nn.Conv2d(16, 16, 1), 16, 4, 4), 4, bad)
