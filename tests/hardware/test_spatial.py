import dataclasses
import math
import time
from functools import cache
from itertools import permutations

import pytest
import torch
from torch import nn

from common.errors import UserError
from common.graph import Layer, layer_table, trace
from common.models import build_model
from hardware import spatial
from hardware.spatial import BITFUSION, CONSTANTS, cycles, cycles_search, demands, energy_nj, latency_ms, products

# MobileNet-V1 by an independent prototype, all layers at the same widths: (weight, activation) bits -> cycles, cycles
# of the tile search, mJ, mJ with the cycles of the tile search
GOLDEN = {
    (4, 4): (3756282.0, 3819366, 13.4525, 13.5564),
    (6, 4): (5662625.0, 5689262, 16.5922, 16.6361),
    (6, 6): (9681629.0, 9709908, 26.8445, 26.8911),
    (8, 8): (9709952.0, 9747464, 30.5241, 30.5859),
}
# HAQ, tables 4 and 5: ms, mJ
PRINTED = {(4, 4): (7.86, 13.47), (6, 4): (11.10, 16.57), (6, 6): (19.99, 26.80), (8, 8): (20.08, 31.03)}
PAIRS = [(w, a) for w in range(1, 9) for a in range(1, 9)]


@cache
def layers_of(model: str) -> tuple[Layer, ...]:
    return table(build_model(model), 3, 224, 224)


def table(network: nn.Module, *input_shape: int) -> tuple[Layer, ...]:
    image = torch.zeros(1, *input_shape)
    return layer_table(trace(network, image), image)


def layer(module: nn.Module, *input_shape: int) -> Layer:
    """As if it stood inside a network: it does not read the image."""
    return dataclasses.replace(table(nn.Sequential(module), *input_shape)[0], reads=())


def total(function, layers, weight_bits, activation_bits):
    return sum(function(BITFUSION, each, weight_bits, activation_bits) for each in layers)


@pytest.mark.parametrize("widths", GOLDEN)
def test_mobilenet_v1_equals_the_prototype(widths):
    layers = layers_of("mobilenet_v1")
    closed, searched, energy, energy_of_search = GOLDEN[widths]
    assert total(cycles, layers, *widths) == closed
    assert total(cycles_search, layers, *widths) == searched
    assert total(energy_nj, layers, *widths) / 1e6 == pytest.approx(energy, abs=6e-5)
    with_search = sum(energy_nj(BITFUSION, each, *widths, cycles_search(BITFUSION, each, *widths)) for each in layers)
    assert with_search / 1e6 == pytest.approx(energy_of_search, abs=6e-5)


@pytest.mark.parametrize("widths", PRINTED)
def test_mobilenet_v1_is_near_the_print(widths):
    layers = layers_of("mobilenet_v1")
    printed_ms, printed_mj = PRINTED[widths]
    assert latency_ms(BITFUSION, total(cycles, layers, *widths)) == pytest.approx(printed_ms, rel=0.045)
    assert latency_ms(BITFUSION, total(cycles_search, layers, *widths)) == pytest.approx(printed_ms, rel=0.03)
    assert total(energy_nj, layers, *widths) / 1e6 == pytest.approx(printed_mj, rel=0.017)


def test_first_and_last_layer_at_8_bits_would_not_give_the_prototypes_cycles():
    first, *body, last = layers_of("mobilenet_v1")
    assert total(cycles, body, 4, 4) + total(cycles, (first, last), 8, 8) == 3798925.0  # against 3756282


def test_products_per_unit():
    table = {(w, a): products(a, w) for w, a in PAIRS}
    assert [table[each] for each in ((8, 8), (6, 6), (6, 4), (4, 6), (4, 4), (4, 2), (2, 2))] == [1, 1, 2, 2, 4, 8, 16]
    for w, a in PAIRS:  # 1 acts like 2, 3 like 4, 5 to 7 like 8
        room = {1: 2, 3: 4, 5: 8, 6: 8, 7: 8}
        assert table[w, a] == table[room.get(w, w), room.get(a, a)]


def test_compute_bound_layers_cost_the_same_from_5_to_8_bits():
    each = layers_of("mobilenet_v1")[14]  # 512 -> 512 at 14 x 14
    assert {cycles(BITFUSION, each, w, a) for w in range(5, 9) for a in range(5, 9)} == {196 * 64 * 64}


@pytest.mark.parametrize("model", ["mobilenet_v1", "mobilenet_v2", "resnet50"])
def test_closed_form_grows_with_both_widths(model):
    for each in layers_of(model):
        for w, a in PAIRS:
            if w < 8:
                assert cycles(BITFUSION, each, w, a) <= cycles(BITFUSION, each, w + 1, a)
            if a < 8:
                assert cycles(BITFUSION, each, w, a) <= cycles(BITFUSION, each, w, a + 1)


@pytest.mark.parametrize("model", ["mobilenet_v1", "mobilenet_v2"])
def test_search_never_beats_the_closed_form(model):
    for each in layers_of(model):
        for w, a in PAIRS:
            assert cycles_search(BITFUSION, each, w, a) >= cycles(BITFUSION, each, w, a)


def test_search_fetches_weights_that_fit_the_buffer_before_it_computes():
    each = layers_of("mobilenet_v2")[50]  # 960 x 320 weights: 3 bits each fit half the buffer, 4 do not
    ratio = cycles_search(BITFUSION, each, 3, 1) / cycles_search(BITFUSION, each, 4, 1)
    assert ratio == pytest.approx(1.22, abs=0.01)


def test_uncached_search_of_mobilenet_v2_is_quick():
    layers = layers_of("mobilenet_v2")
    spatial._search.cache_clear()
    start = time.perf_counter()
    for each in layers:
        for w, a in PAIRS:
            cycles_search(BITFUSION, each, w, a)
    assert time.perf_counter() - start < 10  # 0.1 s on an idle core


# Layers beyond the published ones. All arrays of these fit their buffers whole, so that the search has nothing to
# choose: compute, then everything in (outputs too, at zero), then the outputs out, 128 bits a cycle.


def test_rectangular_and_dilated_kernel_by_hand():
    each = layer(nn.Conv2d(4, 8, (3, 5), dilation=(2, 1)), 4, 10, 12)  # 6 x 8 positions; windows reach over 5 x 5
    # weights: 15 * 4 inputs padded to 64; outputs: 48 * 8 * 32 bits
    assert (
        cycles_search(BITFUSION, each, 8, 8) == 48 * 15 + (10 * 12 * 4 * 8 + 64 * 8 * 8 + 12288) // 128 + 12288 // 128
    )
    # closed form: unfolded, 60 inputs in 8 lanes; 60 * 48 inputs and 480 weights at 8 bits, outputs in and out
    assert cycles(BITFUSION, each, 8, 8) == max(48 * 8, (60 * 48 * 8 + 480 * 8 + 2 * 12288) / 128) == 402
    # at 4/2 bits a unit computes 8 products: 64 lanes
    assert cycles_search(BITFUSION, each, 2, 4) == 48 * 15 + (480 * 4 + 64 * 8 * 2 + 12288) // 128 + 96


def test_first_convolution_is_unfolded_by_hand():
    (first,) = table(nn.Sequential(nn.Conv2d(4, 8, (3, 5), dilation=(2, 1))), 4, 10, 12)
    unfolded = 48 * 15 * 4 * 8
    assert cycles_search(BITFUSION, first, 8, 8) == 48 * 8 + (unfolded + 64 * 8 * 8 + 12288) // 128 + 96


def test_strided_rectangular_map_by_hand():
    each = layer(nn.Conv2d(8, 8, 3, stride=(2, 1)), 8, 9, 12)  # 4 x 10 positions
    outputs = 40 * 8 * 32
    assert (
        cycles_search(BITFUSION, each, 8, 8) == 40 * 9 + (9 * 12 * 8 * 8 + 72 * 8 * 8 + outputs) // 128 + outputs // 128
    )


def test_depthwise_with_multiplier_by_hand():
    each = layer(nn.Conv2d(8, 16, 5, padding=2, groups=8), 8, 4, 4)  # one unfolded plane of 16 windows of 25
    outputs = 16 * 16 * 32
    assert cycles(BITFUSION, each, 8, 8) == max(16 * 2 * 4, (400 * 8 + 2 * outputs) / 128) == 153
    assert cycles(BITFUSION, each, 4, 4) == max(16 * 2 * 1, (400 * 4 + 2 * outputs) / 128) == 140.5
    assert cycles_search(BITFUSION, each, 8, 8) == 128 + math.ceil((16 * 25 * 8 + 32 * 16 * 8 + outputs) / 128) + 64


def test_tokens_are_positions_by_hand():
    each = layer(nn.Linear(16, 24), 10, 16)
    outputs = 10 * 24 * 32
    assert cycles(BITFUSION, each, 8, 8) == max(10 * 3 * 2, (160 * 8 + 384 * 8 + 2 * outputs) / 128) == 154
    assert cycles_search(BITFUSION, each, 8, 8) == 60 + (160 * 8 + 384 * 8 + outputs) // 128 + outputs // 128
    pixels = layer(nn.Conv2d(16, 24, 1), 16, 10, 1)
    for w, a in PAIRS:
        assert cycles(BITFUSION, each, w, a) == cycles(BITFUSION, pixels, w, a)
        assert cycles_search(BITFUSION, each, w, a) == cycles_search(BITFUSION, pixels, w, a)


def test_search_moves_outputs_in_columns_of_8_by_hand():
    each = layer(nn.Linear(16, 12), 10, 16)
    outputs = 10 * 16 * 32
    assert cycles_search(BITFUSION, each, 8, 8) == 40 + (160 * 8 + 192 * 8 + outputs) // 128 + outputs // 128


def test_several_calls_add_up():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(16, 16, 3, stride=2, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x))

    both = dataclasses.replace(table(Twice(), 16, 28, 28)[0], reads=())
    apart = [layer(nn.Conv2d(16, 16, 3, stride=2, padding=1), 16, side, side) for side in (28, 14)]
    for function in (cycles, cycles_search, energy_nj):
        assert function(BITFUSION, both, 3, 5) == pytest.approx(total(function, apart, 3, 5), rel=1e-12)


def test_energy_counts_cycles_and_the_bits_of_both_maps():
    each = layer(nn.Conv2d(4, 8, (3, 5), dilation=(2, 1)), 4, 10, 12)
    expected = 1.647 * 402 + 0.1783 * 8 * (4 * 10 * 12 + 8 * 6 * 8)
    assert energy_nj(BITFUSION, each, 8, 8) == pytest.approx(expected)
    assert energy_nj(BITFUSION, each, 8, 8, 1402) == pytest.approx(expected + 1647)
    assert (
        sum(math.prod(each.input_shape) + math.prod(each.output_shape) for each in layers_of("mobilenet_v1"))
        == 10187752
    )


def by_the_book(each: Layer, w: int, a: int, first: bool = False) -> int:
    """The tile search with plain loops: hsharma35/bitfusion, optimizer.py, for one image."""
    (_, height, width), (kh, kw), (sh, sw) = each.output_shape, each.kernel_size, each.stride
    eh, ew = each.dilation[0] * (kh - 1) + 1, each.dilation[1] * (kw - 1) + 1
    channels = 1 if each.kind == "depthwise" else each.in_channels
    unfolded = first or each.kind == "depthwise"
    lanes = 8 * (8 // max(w, 2)) * (8 // max(a, 2))
    room = {"act": 64 * 1024 * 8 / 2, "wgt": 256 * 1024 * 8 / 2, "out": 16 * 1024 * 8 / 2}
    depends = {"oh": {"act", "out"}, "ow": {"act", "out"}, "ic": {"act", "wgt"}, "oc": {"wgt", "out"}}
    best = math.inf
    for log_o in range(math.ceil(math.log2(max(height, width))) + 1):
        for log_ic in range(math.ceil(math.log2(channels)) + 1):
            for log_oc in range(math.ceil(math.log2(math.ceil(each.out_channels / 8))) + 1):
                oh, ow = min(2**log_o, height), min(2**log_o, width)
                ic, oc = min(2**log_ic, channels), min(8 * 2**log_oc, each.out_channels)
                trips = {
                    "oh": math.ceil(height / oh),
                    "ow": math.ceil(width / ow),
                    "ic": math.ceil(channels / ic),
                    "oc": math.ceil(each.out_channels / oc),
                }
                tile = {
                    "act": (oh * ow * kh * kw if unfolded else (eh + (oh - 1) * sh) * (ew + (ow - 1) * sw)) * ic * a,
                    "wgt": math.ceil(kh * kw * ic / lanes) * lanes * oc * w,
                    "out": oh * ow * math.ceil(oc / 8) * 8 * 32,
                }
                if any(tile[name] > room[name] for name in tile):
                    continue
                steps = math.ceil(kh * kw * ic / lanes) if unfolded else kh * kw * math.ceil(ic / lanes)
                compute = math.prod(trips.values()) * oh * ow * math.ceil(oc / 8) * steps
                for order in permutations(depends):
                    moved, resident, promoted = dict(tile), dict(tile), dict.fromkeys(tile, True)
                    for loop in order:
                        for name in tile:
                            if not promoted[name]:
                                moved[name] *= trips[loop]
                            elif name in depends[loop]:
                                moved[name] *= trips[loop]
                                if moved[name] > room[name]:
                                    promoted[name] = False
                                else:
                                    resident[name] = moved[name]
                    prologue, epilogue = sum(resident.values()), resident["out"]
                    middle = sum(moved.values()) + moved["out"] - prologue - epilogue
                    cost = compute + max(0, math.ceil(middle / 128) - compute)
                    best = min(best, cost + math.ceil(prologue / 128) + math.ceil(epilogue / 128))
    return best


@pytest.mark.parametrize(
    "module, shape",
    [
        (nn.Conv2d(24, 40, 3, padding=1), (24, 28, 28)),
        (nn.Conv2d(256, 260, (1, 5), stride=2, dilation=2), (256, 15, 31)),
        (nn.Conv2d(512, 640, 3, padding=1), (512, 7, 7)),
        (nn.Conv2d(96, 24, 1, stride=2), (96, 56, 40)),
        (nn.Conv2d(192, 192, 3, stride=2, padding=1, groups=192), (192, 56, 56)),
        (nn.Linear(1024, 1000), (1024,)),
        (nn.Linear(768, 3072), (197, 768)),
    ],
    ids=lambda value: str(value).replace(" ", ""),
)
def test_search_by_the_book(module, shape):
    each = layer(module, *shape)
    flat = each
    if each.kind == "linear":
        positions = math.prod(each.output_shape[:-1])
        flat = dataclasses.replace(each, output_shapes=((each.out_channels, positions, 1),))
    for w, a in ((1, 1), (2, 5), (4, 4), (8, 3), (8, 8)):
        assert cycles_search(BITFUSION, each, w, a) == by_the_book(flat, w, a)


def test_search_of_first_layer_by_the_book():
    first = layers_of("mobilenet_v2")[0]
    for w, a in ((1, 8), (4, 8), (8, 8)):
        assert cycles_search(BITFUSION, first, w, a) == by_the_book(first, w, a, first=True)


def test_demands_are_the_arguments_of_the_closed_form():
    (parts,) = demands(BITFUSION, layers_of("mobilenet_v1")[14], 4, 8)
    assert parts.compute_cycles == 196 * 64 * 32
    assert parts.bits_moved == 196 * 512 * (8 + 64) + 512 * 512 * 4
    assert parts.memory_cycles == parts.bits_moved / 128
    assert parts.cycles == cycles(BITFUSION, layers_of("mobilenet_v1")[14], 4, 8)


def test_refuses_grouped_convolutions():
    grouped = dataclasses.replace(layer(nn.Conv2d(32, 32, 3, groups=4), 32, 8, 8), name="stage.conv2")
    for function in (cycles, cycles_search, energy_nj):
        with pytest.raises(UserError, match=r"'stage.conv2' has 4 groups of 8 channels"):
            function(BITFUSION, grouped, 8, 8)


@pytest.mark.parametrize("w, a, match", [(9, 8, "weights of 1 to 8 bits"), (8, 0, "activations of 1 to 8 bits")])
def test_refuses_widths_outside_1_to_8(w, a, match):
    for function in (cycles, cycles_search, energy_nj):
        with pytest.raises(UserError, match=match):
            function(BITFUSION, layers_of("mobilenet_v1")[2], w, a)


def test_refuses_windows_larger_than_the_buffer():
    huge = layer(nn.Conv2d(1, 8, 2, dilation=300), 1, 301, 301)
    with pytest.raises(UserError, match="not even its smallest tile fits"):
        cycles_search(BITFUSION, huge, 8, 8)


def test_constants_name_their_sources():
    assert [name for name, *_ in CONSTANTS["energy"]] == [
        *(name for name, *_ in CONSTANTS["latency"]),
        "nj_per_cycle",
        "nj_per_activation_bit",
    ]
    assert {status for *_, status, _ in CONSTANTS["latency"]} == {"published"}
    assert ("clock_mhz", 500, "MHz") in [row[:3] for row in CONSTANTS["latency"]]
    assert [row[3] for row in CONSTANTS["energy"][-2:]] == ["fitted", "fitted"]
