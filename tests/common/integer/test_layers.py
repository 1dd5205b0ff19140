"""Layers on codes: against exact rational arithmetic, against fake-quantized float layers, and at the borders."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.errors import UserError
from common.integer import (
    Grid,
    IntegerAdd,
    IntegerAveragePool2d,
    IntegerConcat,
    IntegerConv2d,
    IntegerLinear,
    Regrid,
    Requantize,
    integer_weight,
    max_pool2d,
)
from common.quantizers import AffineEncoding, AffineQuantizer, PowerOfTwoQuantizer, Quantizer

UINT8 = Grid(0.05, 128, 0, 255)
CONVOLUTIONS = [
    {},
    {"stride": 2, "padding": 1},
    {"padding": (2, 1), "dilation": (2, 1)},
    {"padding": "same"},
    {"padding": "valid", "groups": 2},
    {"stride": (1, 2), "padding": 1, "groups": 4},  # depthwise
]


def half_even(value: Fraction) -> int:
    return round(value)  # Python rounds fractions half to even


def draw_codes(grid: Grid, *shape: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(grid.quant_min, grid.quant_max + 1, shape, generator=draw, dtype=torch.int32)


def draw_weight(*shape: int, bits: int = 8, seed: int = 1) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(1 - 2 ** (bits - 1), 2 ** (bits - 1), shape, generator=draw)


def draw_real(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def convolve(codes, weight, zero_point, weight_zero_point, stride, padding, dilation, groups):
    """Plain loops over Python integers: sum of (w - Z_W)(x - Z_X), nothing outside the map."""
    (count, _, height, width), (out, per_group, kh, kw) = codes.shape, weight.shape
    (sh, sw), (dh, dw), ((top, bottom), (left, right)) = stride, dilation, padding
    rows = (height + top + bottom - dh * (kh - 1) - 1) // sh + 1
    columns = (width + left + right - dw * (kw - 1) - 1) // sw + 1
    result = np.zeros((count, out, rows, columns), dtype=object)
    for n, o, r, c in itertools.product(*map(range, result.shape)):
        for i, y, x in itertools.product(range(per_group), range(kh), range(kw)):
            row, column = r * sh + y * dh - top, c * sw + x * dw - left
            if 0 <= row < height and 0 <= column < width:
                channel = o // (out // groups) * per_group + i
                value = int(codes[n, channel, row, column]) - zero_point
                result[n, o, r, c] += (int(weight[o, i, y, x]) - int(weight_zero_point[o])) * value
    return result


def pair(value):
    return (value, value) if isinstance(value, int) else value


def expected_codes(sums, layer, bias, grid, activation=None):
    """Codes of exact sums: the stored multiplier, exact rounding, clip by the meaning of the activation."""
    multiplier, result = layer.requantize.multiplier, np.zeros(sums.shape, dtype=object)
    low, high = grid.quant_min, grid.quant_max
    if activation is not None:
        low = max(low, grid.zero_point)
    if activation == "relu6":
        high = min(high, grid.zero_point + half_even(Fraction(6) / Fraction(grid.scale)))
    for index in np.ndindex(*sums.shape):
        c = index[1]
        stored = Fraction(int(multiplier.mantissa.flatten()[c]), 1) / 2 ** (31 + int(multiplier.shift.flatten()[c]))
        value = half_even((int(sums[index]) + bias[c]) * stored) + grid.zero_point
        result[index] = min(max(value, low), high)
    return torch.tensor(result.astype(np.int64))


def test_golden_integer_fc():
    weight = torch.tensor([[12, -7, 3], [-127, 50, 0]])
    bias = torch.tensor([0.73, -1.2], dtype=torch.double)
    output = Grid(0.1, 100, 0, 255)
    codes = torch.tensor([[200, 13, 90]])
    for rounding in ("half_even", "half_away", "half_up", "two_step"):
        layer = IntegerLinear(weight, 0.02, bias, UINT8, output, rounding=rounding)
        assert layer.bias.tolist() == [-294, 8656]  # q_b = 730, -1200 and Z_X times the row sums 8, -77
        assert (layer.accumulate(codes) - layer.bias).tolist() == [[2579, -24750]]
        assert layer.accumulate(codes).tolist() == [[2285, -16094]]
        assert layer(codes).tolist() == [[123, 0]]
    multiplier = layer.requantize.multiplier
    assert multiplier.shift.tolist() == [6, 6] and multiplier.mantissa.tolist() == [1374389535] * 2
    assert multiplier.value.tolist() == pytest.approx([0.01, 0.01], rel=2.0**-31)
    real = layer.accumulator_scale * layer.accumulate(codes)
    torch.testing.assert_close(real, torch.tensor([[2.285, -16.094]], dtype=torch.double), rtol=0, atol=1e-9)
    dequantized = output.dequantize(layer(codes), torch.double)
    torch.testing.assert_close(dequantized, torch.tensor([[2.3, -10.0]], dtype=torch.double), rtol=0, atol=1e-9)
    fine = IntegerLinear(weight, 0.02, bias, UINT8, output, fine_bias=True)
    assert fine.bias.tolist() == [-1024, 9856] and fine(codes).tolist() == [[123, 0]]


@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_convolution_equals_big_integers(options, activation):
    groups = options.get("groups", 1)
    weight, scale = draw_weight(8, 4 // groups, 3, 3), torch.linspace(0.002, 0.03, 8, dtype=torch.double)
    bias, zero_points = draw_real(8), torch.arange(-3, 5)
    output, codes = Grid(0.07, 60, 0, 255), draw_codes(UINT8, 2, 4, 5, 6)
    layer = IntegerConv2d(
        weight, scale, bias, UINT8, output, weight_zero_point=zero_points, activation=activation, **options
    )
    padding = options.get("padding", 0)
    padding = {"same": 1, "valid": 0}.get(padding, padding) if isinstance(padding, str) else padding
    stride, dilation = pair(options.get("stride", 1)), pair(options.get("dilation", 1))
    sums = convolve(codes, weight, 128, zero_points, stride, [(p, p) for p in pair(padding)], dilation, groups)
    units = (scale * UINT8.scale).tolist()
    integer_bias = [half_even(Fraction(b) / Fraction(u)) for b, u in zip(bias.tolist(), units, strict=True)]
    result = layer(codes)
    assert torch.equal(result.long(), expected_codes(sums, layer, integer_bias, output, activation))
    assert result.dtype == torch.int32 and result.unique().numel() > 20
    reference = F.conv2d(torch.zeros(2, 4, 5, 6), torch.zeros(8, 4 // groups, 3, 3), **options)
    assert result.shape == reference.shape


def test_same_padding_of_an_even_kernel_is_as_in_torch():
    weight, codes = draw_weight(2, 3, 4, 2), draw_codes(UINT8, 1, 3, 6, 6)
    layer = IntegerConv2d(weight, 1.0, None, UINT8, None, padding="same", dilation=(1, 3))
    real = F.conv2d((codes - 128).double(), weight.double(), padding="same", dilation=(1, 3))
    assert torch.equal(layer.accumulate(codes).double(), real)


@pytest.mark.parametrize("weight_zero_point", [0, 5])
def test_padding_is_the_code_of_zero(weight_zero_point):
    """A map of real zeros gives the bias everywhere, border included."""
    layer = IntegerConv2d(
        draw_weight(3, 2, 3, 3),
        0.01,
        torch.tensor([1.0, -2.0, 0.3]),
        UINT8,
        None,
        padding=1,
        weight_zero_point=weight_zero_point,
    )
    zeros = torch.full((1, 2, 4, 4), 128, dtype=torch.int32)
    expected = torch.tensor([2000, -4000, 600]).reshape(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert torch.equal(layer(zeros).long(), expected)


@pytest.mark.parametrize("kind", ["linear", "conv", "depthwise"])
@pytest.mark.parametrize("rounding, fine_bias", [("half_even", False), ("half_even", True), ("two_step", False)])
def test_within_one_code_of_the_fake_quantized_layer(kind, rounding, fine_bias):
    scale, bias = torch.linspace(0.004, 0.02, 16, dtype=torch.double), draw_real(16)
    output = Grid(0.11 if kind == "depthwise" else 0.4, 117, 0, 255)
    options = {"rounding": rounding, "fine_bias": fine_bias, "activation": "relu"}
    if kind == "linear":
        weight, codes = draw_weight(16, 40), draw_codes(UINT8, 4000, 40)
        layer = IntegerLinear(weight, scale, bias, UINT8, output, **options)
        real = F.linear(UINT8.dequantize(codes, torch.double), weight * scale[:, None], bias)
    else:
        groups = 16 if kind == "depthwise" else 1
        weight, codes = draw_weight(16, 16 // groups, 3, 3), draw_codes(UINT8, 16, 16, 16, 16)
        layer = IntegerConv2d(weight, scale, bias, UINT8, output, padding=1, groups=groups, **options)
        real_weight = weight * scale.reshape(-1, 1, 1, 1)
        real = F.conv2d(UINT8.dequantize(codes, torch.double), real_weight, bias, padding=1, groups=groups)
    difference = layer(codes) - output.quantize(torch.relu(real))
    assert difference.abs().max() <= 1
    share = int(difference.count_nonzero()) / difference.numel()
    mean_multiplier = layer.requantize.multiplier.value.mean().item()
    if fine_bias:
        assert share == 0
    else:  # a bias off by up to half a unit; twice for two_step
        assert 0 < share < mean_multiplier


def test_power_of_two_scales_are_exact_and_shifts():
    input_grid, output = Grid(2.0**-4, 0, 0, 255), Grid(2.0**-1, 0, -128, 127)
    weight, codes = draw_weight(8, 4, 3, 3), draw_codes(input_grid, 8, 4, 12, 12)
    layer = IntegerConv2d(weight, 2.0**-7, None, input_grid, output, padding=1)
    real = F.conv2d(input_grid.dequantize(codes, torch.double), weight.double() * 2.0**-7, padding=1)
    assert layer.requantize.is_shift
    assert (real / output.scale).frac().abs().eq(0.5).sum() > 10  # ties are among them
    assert torch.equal(layer(codes), output.quantize(real))
    assert not IntegerConv2d(weight, 0.01, None, input_grid, output).requantize.is_shift


def test_weight_zero_points_are_a_shift_of_the_weight():
    weight, codes = draw_weight(6, 3, 3, 3), draw_codes(UINT8, 2, 6, 5, 5)
    zero_points = torch.tensor([3, -7, 0, 120, 1, -128])
    general = IntegerConv2d(weight, 1.0, None, UINT8, None, padding=1, groups=2, weight_zero_point=zero_points)
    shifted = IntegerConv2d(weight - zero_points.reshape(-1, 1, 1, 1), 1.0, None, UINT8, None, padding=1, groups=2)
    assert general.weight.dtype == torch.int8 and shifted.weight.dtype == torch.int32
    assert torch.equal(general.accumulate(codes), shifted.accumulate(codes))


def test_linear_takes_any_leading_axes():
    layer = IntegerLinear(draw_weight(5, 7), 0.01, draw_real(5), UINT8, UINT8, weight_zero_point=2)
    codes = draw_codes(UINT8, 2, 3, 7)
    assert torch.equal(layer(codes), layer(codes.reshape(6, 7)).reshape(2, 3, 5))


def test_accumulators_at_the_end_of_int32():
    """65793 products of 128 * 255 are 2^31 - 128."""
    unsigned = Grid(1.0, 0, 0, 255)
    weight = torch.full((2, 65793), -128)
    layer = IntegerLinear(weight, 1.0, None, unsigned, None)
    assert layer.accumulator_bound == 2**31 - 128
    codes = torch.full((1, 65793), 255)
    assert layer.accumulate(codes).tolist() == [[128 - 2**31] * 2]


def test_overflow_is_refused():
    unsigned = Grid(1.0, 0, 0, 255)
    weight = torch.full((3, 70000), 1)
    weight[1] = -128
    with pytest.raises(UserError, match=r"int32 accumulator overflows: output channel 1 can reach 2.285e\+09"):
        IntegerLinear(weight, 1.0, None, unsigned, None)
    with pytest.raises(UserError, match="output channel 0 can reach"):
        IntegerLinear(weight[:1], 1e-6, torch.tensor([2200.0]), unsigned, None)
    with pytest.raises(UserError, match="can reach nan"):
        IntegerLinear(weight[:1], 1.0, torch.tensor([float("nan")]), unsigned, None)


def test_batch_norm_is_a_multiplier_and_an_addend():
    """Gains of both signs and 0; the shift is not rounded to the accumulator's unit."""
    gain, shift = torch.tensor([0.8, -1.3, 0.0, 1e-9]), torch.tensor([0.31, -0.2, 1.234, 2.0])
    gain, shift = (v.double().reshape(-1, 1, 1) for v in (gain, shift))
    weight, codes, output = draw_weight(4, 3, 3, 3), draw_codes(UINT8, 4, 3, 8, 8), Grid(0.03, 99, 0, 255)
    layer = IntegerConv2d(weight, 0.002, None, UINT8, None)
    norm = Requantize(layer.accumulator_scale * gain / output.scale, output, shift / output.scale, activation="relu6")
    real = F.conv2d(UINT8.dequantize(codes, torch.double), weight.double() * 0.002) * gain + shift
    assert torch.equal(norm(layer(codes)), output.quantize(F.relu6(real)))


@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
def test_addition_rounds_once(activation):
    grids, output = [UINT8, Grid(0.013, -20, -128, 127), Grid(0.4, 0, 0, 15)], Grid(0.06, 70, 0, 255)
    codes = [draw_codes(grid, 1000, seed=i) for i, grid in enumerate(grids)]
    real = sum(grid.dequantize(c, torch.double) for grid, c in zip(grids, codes, strict=True))
    clipped = {None: real, "relu": real.relu(), "relu6": F.relu6(real)}[activation]
    result = IntegerAdd(grids, output, activation)(*codes)
    assert result.dtype == torch.int32 and result.unique().numel() > 50
    halves = (real / output.scale).frac().abs().sub(0.5).abs() < 1e-9  # 0.05, 0.013 and 0.06 are rounded numbers
    assert torch.equal(result[~halves], output.quantize(clipped)[~halves])
    assert (result - output.quantize(clipped)).abs().max() <= 1


def test_addition_of_powers_of_two_is_exact():
    grids, output = [Grid(2.0**-3, 3, 0, 255), Grid(2.0**-6, 0, -128, 127)], Grid(2.0**-2, 10, 0, 255)
    codes = [draw_codes(grid, 4000, seed=i) for i, grid in enumerate(grids)]
    real = sum(grid.dequantize(c, torch.double) for grid, c in zip(grids, codes, strict=True))
    assert torch.equal(IntegerAdd(grids, output)(*codes), output.quantize(real))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
        {"kernel_size": (3, 2), "stride": 2, "ceil_mode": True},
        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False},
        {},
    ],
    ids=str,
)
@pytest.mark.parametrize("output", [None, Grid(0.125, 3, 0, 255), Grid(0.013, 50, 0, 255)], ids=str)
def test_average_pooling(options, output):
    input_grid = Grid(0.125, 9, 0, 15)
    codes = draw_codes(input_grid, 50, 2, 6, 6)
    result = IntegerAveragePool2d(input_grid, output, **options)(codes)
    output = output or input_grid
    options = options or {"kernel_size": 6}
    # averages of a few integers: float64 tells a half from its neighbours, if halves are asked for in exact arithmetic
    steps = F.avg_pool2d((codes - 9).double(), **options) * (0.125 / output.scale)
    expected = (torch.round(torch.round(steps * 2**40) / 2**40) + output.zero_point).clamp(
        output.quant_min, output.quant_max
    )
    assert result.dtype == torch.int32 and torch.equal(result.double(), expected)


def test_average_rounds_halves_of_the_real_value():
    """1/2 and 3/2 of a step above the zero point go to 0 and 2 steps, whatever the zero point's parity."""
    codes = torch.tensor([[[[0, 1], [0, 1]]], [[[1, 2], [1, 2]]]], dtype=torch.int32)
    for zero_point in (4, 5):
        grid = Grid(1.0, zero_point, 0, 15)
        assert IntegerAveragePool2d(grid)(codes + zero_point).flatten().tolist() == [zero_point, zero_point + 2]


def test_sum_of_an_average_fits_int32():
    with pytest.raises(UserError, match="int32 sum overflows: average of 40000 codes of up to 65535"):
        IntegerAveragePool2d(Grid(1.0, 0, 0, 65535))(torch.zeros(1, 1, 200, 200, dtype=torch.int32))


def test_max_pooling_of_codes_is_max_pooling_of_values():
    grid = Grid(0.1, 3, -8, 7)
    codes = draw_codes(grid, 4, 3, 7, 7)
    pooled = max_pool2d(codes, 3, 2, padding=1)
    real = F.max_pool2d(grid.dequantize(codes, torch.double), 3, 2, padding=1)
    assert pooled.dtype == torch.int32 and torch.equal(pooled, grid.quantize(real))


def test_concatenation_brings_inputs_to_one_grid():
    grids, output = [UINT8, Grid(0.0131, -20, -128, 127), UINT8], UINT8
    codes = [draw_codes(grid, 2, 3 + i, 4, seed=i) for i, grid in enumerate(grids)]
    result = IntegerConcat(grids, output)(*codes)
    values = [grid.dequantize(c, torch.double) for grid, c in zip(grids, codes, strict=True)]
    assert torch.equal(result, output.quantize(torch.cat(values, 1)))
    assert torch.equal(result[:, :3], codes[0]) and torch.equal(result[:, 7:], codes[2])


def test_regrid_to_a_narrower_range_of_the_same_scale_clips():
    codes = torch.tensor([0, 100, 128, 140, 255], dtype=torch.int32)
    assert Regrid(UINT8, Grid(0.05, 128, 120, 135))(codes).tolist() == [120, 120, 128, 135, 135]
    assert Regrid(UINT8, UINT8, "relu")(codes).tolist() == [128, 128, 128, 140, 255]
    assert Regrid(UINT8, UINT8, "relu6")(codes).tolist() == [128, 128, 128, 140, 248]
    assert Regrid(UINT8, UINT8)(codes).tolist() == codes.tolist()


@pytest.mark.parametrize("zero_point", [0, 100])
def test_relu6_ends_at_the_code_of_six(zero_point):
    assert Grid(0.05, zero_point, 0, 255).bounds("relu6") == (zero_point, zero_point + 120)
    assert Grid(0.02, zero_point, 0, 255).bounds("relu6") == (zero_point, 255)
    assert Grid(0.02, zero_point, 0, 255).bounds(None) == (0, 255)


def test_grid_of_a_quantizer_has_its_integers():
    x = draw_real(500).float() * 3
    quantizer = PowerOfTwoQuantizer(4)
    quantizer.calibrate(x, float(x.abs().max()))
    grid = Grid.of(quantizer)
    assert (grid.zero_point, grid.quant_min, grid.quant_max) == (0, -8, 7)
    assert torch.equal(grid.dequantize(grid.quantize(x)), quantizer(x))
    affine = AffineQuantizer(8, signed=False)
    affine.scale.fill_(0.1)
    affine.zero_point.fill_(31)
    grid = Grid.of(affine)
    assert torch.equal(grid.dequantize(grid.quantize(x)), affine(x))
    assert torch.equal(grid.quantize(x), affine.encode(x).codes)


def test_codes_of_bfloat16_values_are_computed_in_float32():
    x = (torch.arange(0, 400) / 7).to(torch.bfloat16)
    assert torch.equal(Grid(0.1, 3, 0, 255).quantize(x), Grid(0.1, 3, 0, 255).quantize(x.float()))


def test_quantizers_without_a_grid_are_refused():
    class Levels(Quantizer):
        pass

    with pytest.raises(UserError, match="no integer form: Levels has no affine inference form"):
        Grid.of(Levels())
    with pytest.raises(UserError, match="AffineQuantizer has 3 scales for one activation tensor"):
        Grid.of(AffineQuantizer(8, channels=3))
    half = AffineQuantizer(2, signed=False)
    half.zero_point.fill_(1.5)
    with pytest.raises(UserError, match="the levels of AffineQuantizer are no integers times one scale"):
        Grid.of(half)


def encoding(codes, scale, zero_point, bits, group_sizes=(1, 1, 1), offset=0.0, axis=0):
    scale = torch.tensor(scale)
    return AffineEncoding(
        codes=torch.tensor(codes, dtype=torch.int32),
        scale=scale,
        zero_point=torch.tensor(zero_point),
        offset=torch.full_like(scale, offset),
        axis=axis,
        group_sizes=group_sizes,
        bits=bits,
    )


def test_integers_of_encoded_weights():
    """A symmetric channel, a half-integer grid, and one without bits."""
    encoded = encoding([[0, 3], [0, 3], [1, 1]], [0.5, 0.2, 0.0], [2.0, 1.5, 0.3], (2, 2, 0))
    integers, scale = integer_weight(encoded)
    assert integers.tolist() == [[-2, 1], [-3, 3], [0, 0]] and integers.dtype == torch.int32
    torch.testing.assert_close(scale, torch.tensor([0.5, 0.1, 0.1], dtype=torch.double))
    torch.testing.assert_close((integers * scale[:, None]).float(), encoded.decode(), rtol=0, atol=1e-7)
    integers, scale = integer_weight(encoding([[0, 3], [0, 3], [1, 1]], [0.5], [1.0], (2,), (3,)))
    assert integers.tolist() == [[-1, 2], [-1, 2], [0, 0]] and scale.tolist() == [0.5] * 3
    integers, scale = integer_weight(encoding([[1], [1], [1]], [0.5], [1.0], (0,), (3,)))
    assert not integers.any() and (scale > 0).all()


def test_encoded_weights_of_a_quantizer():
    weight = draw_real(4, 3, 2, 2).float()
    quantizer = AffineQuantizer(5, channels=4)
    quantizer.scale.copy_(torch.tensor([0.1, 0.2, 0.05, 0.15]))
    integers, scale = integer_weight(quantizer.encode(weight))
    torch.testing.assert_close((integers * scale.reshape(-1, 1, 1, 1)).float(), quantizer(weight), rtol=1e-6, atol=0)
    assert integers.min() >= -16 and integers.max() <= 15


def test_weights_without_integers_are_refused():
    with pytest.raises(UserError, match="the weights have an offset or a fractional zero point"):
        integer_weight(encoding([[1], [1], [1]], [0.5], [1.25], (2,), (3,)))
    with pytest.raises(UserError, match="the weights have an offset or a fractional zero point"):
        integer_weight(encoding([[1], [1], [1]], [0.5], [1.0], (2,), (3,), offset=0.1))
    with pytest.raises(UserError, match="the weights have their scales along axis 1, not 0"):
        integer_weight(encoding([[1], [1], [1]], [0.5], [1.0], (2,), (1,), axis=1))


def test_layers_are_saved_and_loaded():
    def layer(seed):
        return IntegerConv2d(
            draw_weight(4, 3, 3, 3, seed=seed), 0.01 * seed, draw_real(4, seed=seed), UINT8, UINT8, fine_bias=True
        )

    codes, first, second = draw_codes(UINT8, 1, 3, 5, 5), layer(1), layer(2)
    assert not torch.equal(first(codes), second(codes))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(codes), second(codes))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Grid(0.0, 0, 0, 255), "scale must be positive and finite, got 0.0"),
        (lambda: Grid(1.0, 256, 0, 255), r"zero_point must lie in 0..255, got 256"),
        (lambda: UINT8.bounds("gelu"), "activation must be None, relu or relu6, got 'gelu'"),
        (
            lambda: IntegerLinear(torch.ones(1, 1), 1.0, None, UINT8, None),
            "weight must hold integers, got torch.float32",
        ),
        (lambda: IntegerLinear(draw_weight(1, 1), 0.0, None, UINT8, None), "weight_scale must be positive, got 0.0"),
        (
            lambda: IntegerLinear(draw_weight(1, 1), 1.0, None, UINT8, None, activation="relu"),
            "activation and fine_bias need an output_grid",
        ),
        (lambda: Requantize(0.5, UINT8, rounding="floor"), "rounding must be one of half_even, .* got 'floor'"),
        (
            lambda: Requantize(1.5, UINT8, rounding="two_step"),
            "two_step rounding takes no addend and multipliers below 1",
        ),
        (lambda: Requantize(0.5, UINT8, 1.0, rounding="two_step"), "two_step rounding takes no addend"),
        (lambda: IntegerAdd([UINT8], UINT8, rounding="two_step"), "a sum is rounded once"),
        (lambda: IntegerAveragePool2d(UINT8, rounding="two_step"), "an average is rounded once"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
