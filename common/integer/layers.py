"""Layers that compute on integer codes with int32 accumulators.

A real tensor is scale * (code - zero_point); `Grid` says which. With symmetric weights (zero point 0), a layer
Y = W X + bias is (lecture on quantization, part II; Jacob et al. 2018, section 2.4)

    code_Y = clip(round(M (sum_j w_j x_j + b)) + Z_Y)
    M = S_W S_X / S_Y,   b = round(bias / (S_W S_X)) - Z_X sum_j w_j

where M is a fixed-point number, per output channel if the weights' scale is. ReLU and ReLU6 are bounds of the clip.
Because b is the same at all positions, feature maps are padded with Z_X, the code of 0.

Sums run in float64, which has kernels for all layers on all devices: codes and sums are integers far below 2^53, and a
layer whose sums could leave int32 is refused when it is made, so every partial sum is exact in any order.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from common.integer.fixed_point import (
    INT32_MAX,
    MANTISSA_BITS,
    FixedPoint,
    Rounding,
    check_rounding,
    fixed_multiplier_and_addend,
    rescale,
    rounding_divide,
    rounding_shift,
)
from common.quantizers.encoding import AffineEncoding
from common.quantizers.functional import quantize
from common.quantizers.modules import AffineQuantizer, Quantizer

Activation = Literal["relu", "relu6"] | None


@dataclass(frozen=True)
class Grid:
    """The codes of an activation tensor: real value = scale * (code - zero_point), quant_min <= code <= quant_max.

    Raises:
        ValueError: scale not above 0, or a zero point outside the range: padding and ReLU need a code for 0.
    """

    scale: float
    zero_point: int
    quant_min: int
    quant_max: int

    def __post_init__(self) -> None:
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise ValueError(f"scale must be positive and finite, got {self.scale}")
        if not self.quant_min <= self.zero_point <= self.quant_max:
            raise ValueError(f"zero_point must lie in {self.quant_min}..{self.quant_max}, got {self.zero_point}")

    @classmethod
    def of(cls, quantizer: Quantizer) -> Grid:
        """The grid of a quantizer with one scale, whose codes are then the integers of `functional.quantize`.

        Raises:
            UserError: a quantizer without an affine grid, or with one scale per channel.
        """
        try:
            form = quantizer.inference_form()
        except TypeError as error:
            raise UserError(f"no integer form: {error}") from None
        name = type(quantizer).__name__
        if not isinstance(form, AffineQuantizer) or form.zero_point.frac().any():
            raise UserError(f"no integer form: the levels of {name} are no integers times one scale")
        if form.channels is not None:
            raise UserError(f"no integer form: {name} has {form.channels} scales for one activation tensor")
        return cls(float(form.scale), int(form.zero_point), int(form.quant_min), int(form.quant_max))

    def quantize(self, x: Tensor) -> Tensor:
        """Codes of real values, int32, computed in float32 or the wider dtype of x."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        scale, zero_point = (torch.tensor(v, dtype=dtype, device=x.device) for v in (self.scale, self.zero_point))
        return quantize(x, scale, zero_point, self.quant_min, self.quant_max)

    def dequantize(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Real values of codes."""
        return (codes - self.zero_point).to(dtype) * self.scale

    def bounds(self, activation: Activation) -> tuple[int, int]:
        """Smallest and largest code that an output with this activation has."""
        if activation not in (None, "relu", "relu6"):
            raise ValueError(f"activation must be None, relu or relu6, got {activation!r}")
        low = self.quant_min if activation is None else self.zero_point
        high = self.quant_max
        if activation == "relu6":
            high = min(high, self.zero_point + round(6 / self.scale))
        return low, high


def integer_weight(encoding: AffineEncoding) -> tuple[Tensor, Tensor]:
    """Weights as integers with zero point 0, and a scale for each output channel.

    Half-integer zero points (grids without a zero) are taken in by halving the scale. Weights whose zero point is not
    the middle of the codes need a bit more than the codes have.

    Returns:
        int32 of the weight's shape, float64 (out_channels,); their product is `encoding.decode()` before that
        is rounded to float32.

    Raises:
        UserError: groups along another axis than the output channels, or a grid that does not pass through multiples
            of scale / 2.
    """
    if encoding.axis != 0:
        raise UserError(f"no integer form: the weights have their scales along axis {encoding.axis}, not 0")
    kept = torch.tensor([width > 0 for width in encoding.bits], device=encoding.scale.device)
    doubled = torch.where(kept, 2 * encoding.zero_point.double(), 0.0)
    if (doubled.frac() != 0).any() or (encoding.offset * kept).any():
        raise UserError("no integer form: the weights have an offset or a fractional zero point")
    steps = torch.where(doubled % 2 == 0, 1, 2)  # of the integer grid, per step of the codes
    scale = encoding.scale.double() / steps
    # channels without bits are all zero on any grid; a fine one keeps their biases
    scale = torch.where(kept, scale, scale[kept].min() if kept.any() else 1.0)

    def spread(values: Tensor) -> Tensor:
        sizes = torch.tensor(encoding.group_sizes, device=values.device)
        return torch.repeat_interleave(values, sizes)

    shape = (-1, *[1] * (encoding.codes.dim() - 1))
    zero_point = (doubled * steps / 2).to(torch.int32)
    integers = encoding.codes * spread(steps).reshape(shape) - spread(zero_point).reshape(shape)
    return (integers * spread(kept).reshape(shape)).to(torch.int32), spread(scale)


class Requantize(nn.Module):
    """codes = clip(round(multiplier * accumulator + addend) + zero_point): the end of every integer layer.

    By itself, a batch norm on accumulators or on codes minus their zero point: its gain goes into the multiplier, which
    may be negative or 0, its shift into the addend, and neither is rounded to the accumulator's unit.

    Args:
        multiplier: real, broadcasts to the accumulators: S_W S_X / S_Y.
        output_grid: what the codes mean.
        addend: real, in output codes, broadcasts to the accumulators; None is 0.
        activation: fused into the clip.
        rounding: see `fixed_point`; "two_step" takes no addend and multipliers below 1.
    """

    mantissa: Tensor
    shift: Tensor
    addend: Tensor | None

    def __init__(
        self,
        multiplier: Tensor | float,
        output_grid: Grid,
        addend: Tensor | float | None = None,
        activation: Activation = None,
        rounding: Rounding = "half_even",
    ) -> None:
        super().__init__()
        check_rounding(rounding)
        if addend is None:
            fixed, fixed_addend = FixedPoint.of(multiplier), None
        else:
            values = (torch.as_tensor(v, dtype=torch.float64) for v in (multiplier, addend))
            fixed, fixed_addend = fixed_multiplier_and_addend(*torch.broadcast_tensors(*values))
        if rounding == "two_step" and (addend is not None or (fixed.shift < 0).any()):
            raise ValueError("two_step rounding takes no addend and multipliers below 1")
        self.output_grid, self.rounding = output_grid, rounding
        self.low, self.high = output_grid.bounds(activation)
        self.register_buffer("mantissa", fixed.mantissa)
        self.register_buffer("shift", fixed.shift)
        self.register_buffer("addend", fixed_addend)

    @property
    def multiplier(self) -> FixedPoint:
        """As stored."""
        return FixedPoint(self.mantissa, self.shift)

    @property
    def is_shift(self) -> bool:
        """Whether no multiplication is needed: all multipliers are powers of two."""
        return bool(self.multiplier.is_power_of_two.all())

    def forward(self, accumulator: Tensor) -> Tensor:
        """int32 codes; the accumulator is any integer dtype within int32."""
        steps = rescale(accumulator, self.multiplier, self.addend, self.rounding)
        return (steps + self.output_grid.zero_point).clamp(self.low, self.high).to(torch.int32)


class Regrid(nn.Module):
    """Codes of one grid to codes of another, and nothing where both are the same.

    With `activation`, a ReLU or ReLU6 that stands alone.
    """

    def __init__(
        self, input_grid: Grid, output_grid: Grid, activation: Activation = None, rounding: Rounding = "half_even"
    ) -> None:
        super().__init__()
        self.input_grid, self.output_grid = input_grid, output_grid
        self.low, self.high = output_grid.bounds(activation)
        self.requantize = None
        if (input_grid.scale, input_grid.zero_point) != (output_grid.scale, output_grid.zero_point):
            self.requantize = Requantize(
                input_grid.scale / output_grid.scale, output_grid, activation=activation, rounding=rounding
            )

    def forward(self, codes: Tensor) -> Tensor:
        if self.requantize is None:
            return codes.clamp(self.low, self.high)
        return self.requantize(codes - self.input_grid.zero_point)


class _WeightedLayer(nn.Module, ABC):
    """What linear layers and convolutions share; subclasses say how products are summed.

    Args:
        weight: integers (out_channels, ...).
        weight_scale: () or (out_channels,), positive.
        bias: real (out_channels,) or None.
        input_grid: of the codes that come in.
        output_grid: of the codes that go out; None: the int32 accumulators, in units of `accumulator_scale`, go out.
        weight_zero_point: integer, () or (out_channels,). Unless 0, outputs need the sum of their inputs, too.
        activation: fused into the clip of the output.
        rounding: see `fixed_point`.
        fine_bias: add the bias to the 63-bit product instead of rounding it to `accumulator_scale`. A rounded bias is
            off by up to half an accumulator unit, which changes about one code in 4 / M against a float bias.

    Attributes:
        accumulator_bound: largest magnitude that a partial sum can reach.

    Raises:
        UserError: sums that could leave int32.
    """

    weight: Tensor
    bias: Tensor
    weight_zero_point: Tensor
    accumulator_scale: Tensor
    groups = 1

    def __init__(
        self,
        weight: Tensor,
        weight_scale: Tensor | float,
        bias: Tensor | None,
        input_grid: Grid,
        output_grid: Grid | None,
        *,
        weight_zero_point: Tensor | int = 0,
        activation: Activation = None,
        rounding: Rounding = "half_even",
        fine_bias: bool = False,
    ) -> None:
        super().__init__()
        if weight.is_floating_point():
            raise ValueError(f"weight must hold integers, got {weight.dtype}")
        weight, out_channels = weight.detach().to(torch.int64), weight.shape[0]
        scale = torch.as_tensor(weight_scale, dtype=torch.float64, device=weight.device).expand(out_channels)
        if not (scale > 0).all():
            raise ValueError(f"weight_scale must be positive, got {scale.min()}")
        if output_grid is None and (activation is not None or fine_bias):
            raise ValueError("activation and fine_bias need an output_grid")
        real_bias = torch.zeros_like(scale) if bias is None else bias.detach().to(scale)
        accumulator_scale = scale * input_grid.scale
        integer_bias = torch.zeros_like(scale) if fine_bias else torch.round(real_bias / accumulator_scale)
        zero_point = torch.as_tensor(weight_zero_point, dtype=torch.int64, device=weight.device).expand(out_channels)
        # Z_X times the sum of w_j - Z_W, over the inputs of the channel's group
        offset = integer_bias - input_grid.zero_point * (weight.flatten(1) - zero_point[:, None]).sum(1)

        self.input_grid = input_grid
        self.accumulator_bound = _checked_bound(weight, zero_point, offset, input_grid)
        self.is_symmetric = not zero_point.any()
        is_byte = weight.min() >= -128 and weight.max() <= 127
        self.register_buffer("weight", weight.to(torch.int8 if is_byte else torch.int32))
        self.register_buffer("bias", self._per_channel(offset.to(torch.int32)))
        self.register_buffer("weight_zero_point", self._per_channel(zero_point.to(torch.int32)))
        self.register_buffer("accumulator_scale", self._per_channel(accumulator_scale))
        self.requantize = None
        if output_grid is not None:
            multiplier, addend = self.accumulator_scale / output_grid.scale, None
            if fine_bias:
                addend = self._per_channel(real_bias / output_grid.scale)
            self.requantize = Requantize(multiplier, output_grid, addend, activation, rounding)

    @abstractmethod
    def _per_channel(self, values: Tensor) -> Tensor:
        """(out_channels,) in the shape that broadcasts to the output."""

    @abstractmethod
    def _sums(self, codes: Tensor, weight: Tensor) -> Tensor:
        """Sums of products of codes with a weight, float64 both."""

    def accumulate(self, codes: Tensor) -> Tensor:
        """int32 accumulators, bias included: the real outputs are `accumulator_scale` times these."""
        codes = codes.double()
        sums = self._sums(codes, self.weight.double()).to(torch.int32)
        if not self.is_symmetric:
            ones = torch.ones_like(self.weight[: self.groups], dtype=torch.float64)
            input_sums = self._sums(codes, ones).to(torch.int32)
            channel = -self.bias.dim()
            per_group = self.weight.shape[0] // self.groups
            sums = sums - self.weight_zero_point * torch.repeat_interleave(input_sums, per_group, dim=channel)
        return sums + self.bias

    def forward(self, codes: Tensor) -> Tensor:
        accumulator = self.accumulate(codes)
        return accumulator if self.requantize is None else self.requantize(accumulator)


def _checked_bound(weight: Tensor, zero_point: Tensor, offset: Tensor, grid: Grid) -> int:
    """Largest magnitude that any partial sum can reach, in any order of summation, for codes of the grid."""
    largest_code = max(abs(grid.quant_min), abs(grid.quant_max))
    weights = weight.abs().flatten(1).sum(1) + zero_point.abs() * weight[0].numel()
    bounds = (weights * largest_code).double() + offset.abs()
    bound, channel = bounds.max(0)
    if not bound <= INT32_MAX:
        raise UserError(
            f"int32 accumulator overflows: output channel {int(channel)} can reach {bound:.4g}; use fewer bits"
        )
    return int(bound)


class IntegerLinear(_WeightedLayer):
    """Linear layer on codes (..., in_features) -> (..., out_features)."""

    def _per_channel(self, values: Tensor) -> Tensor:
        return values

    def _sums(self, codes: Tensor, weight: Tensor) -> Tensor:
        return F.linear(codes, weight)


class IntegerConv2d(_WeightedLayer):
    """Convolution on codes (N, C, H, W), grouped and depthwise ones included.

    Args:
        weight: integers (out_channels, in_channels / groups, kernel height, kernel width).
        stride, padding, dilation, groups: as in `nn.Conv2d`; padding is a number, (height, width), "same" or "valid".
        options: as in `IntegerLinear`.
    """

    def __init__(
        self,
        weight: Tensor,
        weight_scale: Tensor | float,
        bias: Tensor | None,
        input_grid: Grid,
        output_grid: Grid | None,
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | Literal["same", "valid"] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(weight, weight_scale, bias, input_grid, output_grid, **options)
        self.groups = groups
        self.stride, self.dilation = _pair(stride), _pair(dilation)
        if padding == "same":
            total = [d * (k - 1) for d, k in zip(self.dilation, weight.shape[2:], strict=True)]
            top, left = (t // 2 for t in total)
            self.padding = (left, total[1] - left, top, total[0] - top)
        else:
            height, width = _pair(0 if padding == "valid" else padding)
            self.padding = (width, width, height, height)

    def _per_channel(self, values: Tensor) -> Tensor:
        return values.reshape(-1, 1, 1)

    def _sums(self, codes: Tensor, weight: Tensor) -> Tensor:
        padded = F.pad(codes, self.padding, value=self.input_grid.zero_point)  # Z_X is the code of 0
        return F.conv2d(padded, weight, None, self.stride, 0, self.dilation, self.groups)


class IntegerAdd(nn.Module):
    """Sum of two or more tensors of one shape: each is brought to the output's scale, the sum is rounded once.

    Args:
        input_grids: of the tensors, in the order of the call.
        output_grid, activation, rounding: as in `IntegerLinear`; not "two_step".
    """

    mantissas: Tensor
    shift: Tensor

    def __init__(
        self,
        input_grids: Sequence[Grid],
        output_grid: Grid,
        activation: Activation = None,
        rounding: Rounding = "half_even",
    ) -> None:
        super().__init__()
        check_rounding(rounding)
        if rounding == "two_step":
            raise ValueError("a sum is rounded once, two_step is for single products")
        self.zero_points = [grid.zero_point for grid in input_grids]
        self.output_grid, self.rounding = output_grid, rounding
        self.low, self.high = output_grid.bounds(activation)
        ratios = torch.tensor([grid.scale / output_grid.scale for grid in input_grids], dtype=torch.float64)
        shift = FixedPoint.of(ratios).shift.min()  # that of the largest ratio
        self.register_buffer("mantissas", FixedPoint.of(ratios, largest_shift=shift).mantissa)
        self.register_buffer("shift", shift)

    def forward(self, *codes: Tensor) -> Tensor:
        total = sum(
            (x - zero_point).to(torch.int64) * mantissa
            for x, zero_point, mantissa in zip(codes, self.zero_points, self.mantissas, strict=True)
        )
        steps = rounding_shift(total, MANTISSA_BITS + self.shift, self.rounding)
        return (steps + self.output_grid.zero_point).clamp(self.low, self.high).to(torch.int32)


class IntegerConcat(nn.Module):
    """Concatenation: inputs of another grid than the output's are brought to it, the others pass as they are."""

    def __init__(
        self, input_grids: Sequence[Grid], output_grid: Grid, dim: int = 1, rounding: Rounding = "half_even"
    ) -> None:
        super().__init__()
        self.dim = dim
        self.regrids = nn.ModuleList(Regrid(grid, output_grid, rounding=rounding) for grid in input_grids)

    def forward(self, *codes: Tensor) -> Tensor:
        return torch.cat([regrid(x) for regrid, x in zip(self.regrids, codes, strict=True)], self.dim)


class IntegerAveragePool2d(nn.Module):
    """Average pooling of codes: integer sum, one division with rounding.

    Sums are taken of code - zero_point, so padding counts as 0 and halves are rounded as fake quantization rounds them.

    Args:
        kernel_size: int or pair; None averages the whole feature map, as `nn.AdaptiveAvgPool2d(1)`.
        stride, padding, ceil_mode, count_include_pad: as in `nn.AvgPool2d`.
        output_grid: None is the input's.
        rounding: of the division; not "two_step".
    """

    mantissa: Tensor
    shift: Tensor

    def __init__(
        self,
        input_grid: Grid,
        output_grid: Grid | None = None,
        kernel_size: int | tuple[int, int] | None = None,
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        rounding: Rounding = "half_even",
    ) -> None:
        super().__init__()
        check_rounding(rounding)
        if rounding == "two_step":
            raise ValueError("an average is rounded once, two_step is for single products")
        self.input_grid, self.output_grid, self.rounding = input_grid, output_grid or input_grid, rounding
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.ceil_mode, self.count_include_pad = ceil_mode, count_include_pad
        # the quotient's error is that of the ratio times a code, so a shift beyond 0 would gain nothing
        ratio = FixedPoint.of(input_grid.scale / self.output_grid.scale, largest_shift=0)
        self.register_buffer("mantissa", ratio.mantissa)
        self.register_buffer("shift", ratio.shift)

    def forward(self, codes: Tensor) -> Tensor:
        values = (codes - self.input_grid.zero_point).double()
        kernel_size = _pair(self.kernel_size or tuple(values.shape[-2:]))
        grid = self.input_grid
        largest = max(grid.quant_max - grid.zero_point, grid.zero_point - grid.quant_min)
        if largest * math.prod(kernel_size) > INT32_MAX:
            raise UserError(f"int32 sum overflows: average of {math.prod(kernel_size)} codes of up to {largest}")
        options = (kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)
        sums = F.avg_pool2d(values, *options, divisor_override=1)
        ones = torch.ones_like(values[:1, :1])
        counts = torch.round(F.avg_pool2d(ones, *options, divisor_override=1) / F.avg_pool2d(ones, *options))
        products = sums.to(torch.int64) * self.mantissa
        divisor = counts.to(torch.int64) << (MANTISSA_BITS + self.shift)
        steps = rounding_divide(products, divisor, self.rounding) + self.output_grid.zero_point
        return steps.clamp(self.output_grid.quant_min, self.output_grid.quant_max).to(torch.int32)


def max_pool2d(
    codes: Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """`F.max_pool2d` of codes, int32: quantization keeps the order, and padding never wins."""
    return F.max_pool2d(codes.double(), kernel_size, stride, padding, dilation, ceil_mode).to(torch.int32)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
