"""DuQ: clipping level and output scale learned apart (PROFIT, Park and Yoo 2020)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.quantizers.lsq import MIN_SCALE, OffsetQuantizer, UniformQuantizer, computed, quantize_learned
from common.quantizers.modules import AffineQuantizer, Traits
from common.quantizers.transformed import TransformedQuantizer

H_SWISH_OFFSET = -3 / 8  # the minimum of h-swish
FIT_VALUES = 2**16  # of a tensor, that a fitted range looks at


def inverse_softplus(value: Tensor) -> Tensor:
    """x with softplus(x) = value > 0."""
    return value + torch.log(-torch.expm1(-value))


class DuQGrid(UniformQuantizer):
    """Uniform levels up to a learned c = softplus(c'): signed -L .. L with L = 2^(b-1) - 1, unsigned 0 .. 2^b - 1.

    Gradients are those of `learned_scale` on the closed range.

    Args:
        bit_width: b, 2..8.
        signed: weights; unsigned: activations.
        offset: the real value of the lowest activation.

    Parameter: raw_scale c', scalar.
    """

    traits: ClassVar[Traits] = Traits(bit_widths=tuple(range(2, 9)))

    def __init__(self, bit_width: int = 4, signed: bool = True, offset: float = 0.0) -> None:
        super().__init__(bit_width, signed, narrow=True)
        if signed and offset:
            raise ValueError(f"offset={offset}: weights have none")
        self.offset = offset
        self.raw_scale = nn.Parameter(inverse_softplus(torch.tensor(1.0)))

    def output_scale(self) -> Tensor:
        """c, the largest level (above the offset)."""
        return F.softplus(self.raw_scale)

    def step_size(self) -> Tensor:
        return self.output_scale() / self.quant_max

    def forward(self, x: Tensor) -> Tensor:
        if not self.offset:
            return quantize_learned(x, self.step_size(), self.quant_min, self.quant_max, "closed")
        moved = x.to(self.raw_scale.dtype) - self.offset
        y = quantize_learned(moved, self.step_size(), self.quant_min, self.quant_max, "closed")
        return (y + self.offset).to(x.dtype)

    def inference_form(self) -> AffineQuantizer | OffsetQuantizer:  # type: ignore[override]
        plain = super().inference_form()
        return OffsetQuantizer.of(plain, torch.tensor(self.offset)) if self.offset else plain


class _Rescale(nn.Module):
    """x -> (x - offset) c / a + offset, which turns the range that ends at a = softplus(a') into that of the grid."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset
        self.raw_clip = nn.Parameter(inverse_softplus(torch.tensor(1.0)))

    def forward(self, x: Tensor, output_scale: Tensor) -> Tensor:
        values, ratio = x.to(self.raw_clip.dtype), computed(output_scale / F.softplus(self.raw_clip))
        if not self.offset:
            return (values * ratio).to(x.dtype)
        return ((values - self.offset) * ratio + self.offset).to(x.dtype)


class _FixedRescale(nn.Module):
    """x -> (x - offset) ratio + offset; both are buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ratio", torch.tensor(1.0))
        self.register_buffer("offset", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        return ((x.to(self.ratio.dtype) - self.offset) * self.ratio + self.offset).to(x.dtype)


class RescaledQuantizer(TransformedQuantizer):
    """An `OffsetQuantizer` behind a fixed rescaling: what a packed file holds of a DuQ activation; all is buffers.

    Args: see `AffineQuantizer`.
    """

    transform: _FixedRescale
    grid: OffsetQuantizer

    def __init__(self, bit_width: int = 8, signed: bool = True, channels: int | None = None) -> None:
        super().__init__(_FixedRescale(), OffsetQuantizer(bit_width, signed, channels))

    def inference_form(self) -> RescaledQuantizer:  # type: ignore[override]
        return self


class DuQ(TransformedQuantizer):
    """c round(clip(x / a, -1, 1) L) / L, or c round(clip(x / a, 0, 1) L) / L, with a and c learned apart.

    The grid (`DuQGrid`) has the levels of c; a rescaling by c / a stands before it, because quantizing twice with
    a != c does change values. Rounding is straight-through, all else is differentiated as it stands.

    Args:
        bit_width: b, 2..8.
        signed: weights, L = 2^(b-1) - 1; unsigned: activations, L = 2^b - 1.
        offset: of activations: -3/8 behind h-swish (`H_SWISH_OFFSET`), which padding then has to use too.

    Parameters: transform.raw_clip a', grid.raw_scale c', scalars; a = softplus(a'), c = softplus(c').
    """

    grid: DuQGrid
    transform: _Rescale

    def __init__(self, bit_width: int = 4, signed: bool = True, offset: float = 0.0) -> None:
        super().__init__(_Rescale(offset), DuQGrid(bit_width, signed, offset))

    def transformed(self, x: Tensor) -> Tensor:
        return self.transform(x, self.grid.output_scale())

    @torch.no_grad()
    def calibrate(self, x: Tensor, max_abs: float | None = None) -> None:
        """a = c = 0.9 max |w| for weights; the 95 % point of the values above the offset for activations.

        Args:
            x: initial weights, or the activation of the first batch.
            max_abs: largest |w|, if x is a sample.
        """
        if self.grid.signed:
            end = 0.9 * (x.abs().max() if max_abs is None else torch.tensor(max_abs))
        else:
            above = x[x > self.grid.offset].float() - self.grid.offset
            end = above.kthvalue(-(-above.numel() * 95 // 100)).values if above.numel() else torch.tensor(0.0)
        raw = inverse_softplus(end.float().clamp(min=MIN_SCALE))
        self.grid.raw_scale.copy_(raw)
        self.transform.raw_clip.copy_(raw)

    @torch.no_grad()
    def fit_range(self, x: Tensor, candidates: int = 100) -> None:
        """a = c with the least squared error on x, among even parts of the largest |x| (above the offset); our choice.

        Args:
            x: weights, or an activation.
            candidates: number of parts.
        """
        values = x.float() if self.grid.signed else x[x > self.grid.offset].float()
        largest = (values - self.grid.offset).abs().max() if values.numel() else torch.tensor(0.0)
        if values.numel() > FIT_VALUES:
            values = values.flatten()[:: -(-values.numel() // FIT_VALUES)]
        errors, raws = [], []
        for part in range(1, candidates + 1):
            raws.append(inverse_softplus((largest * part / candidates).clamp(min=MIN_SCALE)))
            self.grid.raw_scale.copy_(raws[-1])
            errors.append((self.grid(values) - values).square().sum())
        best = torch.stack(raws)[torch.stack(errors).argmin()]
        self.grid.raw_scale.copy_(best)
        self.transform.raw_clip.copy_(best)

    @torch.no_grad()
    def inference_form(self) -> RescaledQuantizer:  # type: ignore[override]
        """The same function with everything fixed; as it rescales first, quantizing twice may change values."""
        form = RescaledQuantizer(int(self.bit_width), self.grid.signed).to(self.grid.raw_scale.device)
        plain = self.grid.inference_form()
        form.grid = plain if isinstance(plain, OffsetQuantizer) else OffsetQuantizer.of(plain, torch.tensor(0.0))
        form.transform.offset.fill_(self.grid.offset)
        form.transform.ratio.copy_(self.grid.output_scale() / F.softplus(self.transform.raw_clip))
        return form
