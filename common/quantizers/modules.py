"""The quantizer contract and the uniform primitives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from common.quantizers.encoding import AffineEncoding
from common.quantizers.functional import fake_quantize, integer_range, power_of_two_exponent, quantize


@dataclass(frozen=True)
class Traits:
    """What a quantizer class supports; the property tests read it, unsupported combinations raise ValueError.

    Attributes:
        bit_widths: the widths that it takes.
        signed, unsigned: which ranges it has.
        per_channel: whether it can hold one scale per channel.
        zero_is_level: whether 0.0 is always one of its values.
    """

    bit_widths: tuple[int, ...]
    signed: bool = True
    unsigned: bool = True
    per_channel: bool = False
    zero_is_level: bool = True


class Quantizer(nn.Module):
    """A module whose forward puts real values on a grid of at most 2^bit_width values per group.

    In eval mode `forward` is deterministic and idempotent, and `encode(x).decode()` equals `forward(x)` as numbers.
    `bit_width` is a buffer wherever a schedule or a search changes it, so that a change is no recompilation.
    """

    traits: ClassVar[Traits]
    bit_width: Tensor

    @classmethod
    def of_width(cls, bit_width: int, signed: bool) -> Quantizer:
        """One of this width and range, all else at its defaults: how the property tests make it."""
        return cls(bit_width, signed)

    def encode(self, x: Tensor) -> AffineEncoding:
        """Codes and scales of x on the grid of eval mode."""
        return self.inference_form().encode(x)

    def inference_form(self) -> AffineQuantizer:
        """The plain quantizer with the same grid as this one in eval mode: what a packed file stores."""
        raise TypeError(f"{type(self).__name__} has no affine inference form")


class AffineQuantizer(Quantizer):
    """y = scale * round(clip(x / scale, quant_min - zero_point, quant_max - zero_point)); everything is a buffer.

    Args:
        bit_width: bits per value, 1..16; the integer range is `integer_range(bit_width, signed)`.
        signed: two's complement or 0 .. 2^b - 1.
        channels: number of output channels (axis 0) with a scale each; None is per tensor.
    """

    traits: ClassVar[Traits] = Traits(bit_widths=tuple(range(1, 17)), per_channel=True)

    def __init__(self, bit_width: int = 8, signed: bool = True, channels: int | None = None) -> None:
        super().__init__()
        if not 1 <= bit_width <= 16:
            raise ValueError(f"bit_width must be in [1, 16], got {bit_width}")
        size = () if channels is None else (channels,)
        quant_min, quant_max = integer_range(bit_width, signed)
        self.channels = channels
        self.register_buffer("bit_width", torch.tensor(bit_width))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("zero_point", torch.zeros(size))
        self.register_buffer("quant_min", torch.tensor(float(quant_min)))
        self.register_buffer("quant_max", torch.tensor(float(quant_max)))

    def _per_channel(self, values: Tensor, x: Tensor) -> Tensor:
        return values if self.channels is None else values.reshape(-1, *[1] * (x.dim() - 1))

    def forward(self, x: Tensor) -> Tensor:
        scale, zero_point = self._per_channel(self.scale, x), self._per_channel(self.zero_point, x)
        return fake_quantize(x, scale, zero_point, self.quant_min, self.quant_max)

    def encode(self, x: Tensor) -> AffineEncoding:
        scale, zero_point = self._per_channel(self.scale, x), self._per_channel(self.zero_point, x)
        integers = quantize(x, scale, zero_point, self.quant_min, self.quant_max)
        groups = self.channels or 1
        return AffineEncoding(
            codes=integers - self.quant_min.to(torch.int32),
            scale=self.scale.detach().reshape(-1),
            zero_point=(self.zero_point - self.quant_min).reshape(-1),
            offset=torch.zeros(groups, device=x.device),
            axis=0,
            group_sizes=(1,) * groups if self.channels else (x.shape[0] if x.dim() else 1,),
            bits=(int(self.bit_width),) * groups,
        )

    def inference_form(self) -> AffineQuantizer:
        return self


class SymmetricQuantizer(Quantizer):
    """Uniform grid of `bit_width` bits around zero (signed) or above it (unsigned), one real-valued scale per tensor.

    The scale minimises the squared error of what `calibrate` sees. Signed ranges are two's complement; gradients are
    those of `fake_quantize` with respect to x, the scale is a buffer.
    """

    traits: ClassVar[Traits] = Traits(bit_widths=tuple(range(1, 17)))

    def __init__(self, bit_width: int = 8, signed: bool = True) -> None:
        super().__init__()
        self.signed = signed
        self.grid = AffineQuantizer(bit_width, signed)

    @property
    def bit_width(self) -> Tensor:  # type: ignore[override]
        return self.grid.bit_width

    def forward(self, x: Tensor) -> Tensor:
        return self.grid(x)

    def candidate_scales(self, max_abs: float) -> list[float]:
        """Step sizes that `calibrate` tries: 200 equal parts of the one whose range just covers `max_abs`."""
        levels = max(1.0, float(-self.grid.quant_min if self.signed else self.grid.quant_max))
        return [max(i / 200 * max_abs / levels, torch.finfo(torch.float32).tiny) for i in range(1, 201)]

    @torch.no_grad()
    def calibrate(self, x: Tensor, max_abs: float) -> None:
        """Choose the candidate scale with the least squared error on x, the first one among equals.

        Args:
            x: values of the tensor to be quantized (all of them or a sample), any shape.
            max_abs: largest absolute value of the tensor, at which the candidate ranges end.
        """
        best, best_error = self.grid.scale.clone(), float("inf")
        for scale in self.candidate_scales(max_abs):
            self.grid.scale.fill_(scale)
            error = float(torch.mean((self.grid(x) - x) ** 2))
            if error < best_error:
                best, best_error = self.grid.scale.clone(), error
        self.grid.scale.copy_(best)

    def inference_form(self) -> AffineQuantizer:
        return self.grid


class PowerOfTwoQuantizer(SymmetricQuantizer):
    """`SymmetricQuantizer` whose threshold, the real value at which the range ends, is a power of two.

    threshold = scale * 2^(bit_width - 1) signed, scale * 2^bit_width unsigned, so that rescaling is a shift.
    """

    def candidate_scales(self, max_abs: float) -> list[float]:
        """Step sizes of the thresholds 2^m: the smallest that covers `max_abs`, and 8 halvings of it."""
        top = power_of_two_exponent(max_abs)
        steps = int(self.bit_width) - int(self.signed)  # scale = threshold * 2^-steps
        return [2.0 ** (exponent - steps) for exponent in range(top, top - 9, -1)]
