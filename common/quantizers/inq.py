"""INQ: incremental network quantization to powers of two (Zhou et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from common.quantizers.levels import LevelsEncoding, LevelsQuantizer, midpoints
from common.quantizers.modules import Traits


def power_range(max_abs: float, bit_width: int) -> tuple[int, int]:
    """(n1, n2): the levels are 0 and +-2^n2 .. +-2^n1 (eq. 2 and 3 of the paper).

    n1 = floor(log2(4 s / 3)), s = max |w|; n2 = n1 + 1 - 2^(b-1) / 2.
    """
    largest = math.frexp(4 * max_abs / 3)[1] - 1 if max_abs > 0 else 0
    return largest, largest + 1 - 2 ** (bit_width - 2)


def largest_weights(weight: Tensor, kept: Tensor, portion: float) -> Tensor:
    """Mask of the floor(portion n) weights of largest magnitude; those of the mask `kept` count as the largest."""
    count = math.floor(portion * weight.numel())
    magnitude = weight.detach().abs().masked_fill(kept, math.inf).flatten()
    order = torch.sort(magnitude, descending=True, stable=True).indices
    mask = torch.zeros_like(magnitude, dtype=torch.bool)
    mask[order[:count]] = True
    return mask.reshape(weight.shape)


class INQ(LevelsQuantizer):
    """sign(w) 2^n where 0.75 2^n <= |w| < 1.5 2^n, n2 <= n <= n1 (0.5 2^n2 for the smallest), else 0.

    Values beyond 1.5 2^n1, which can occur in retraining, go to 2^n1 (our choice). The gradient is that of
    `learned_scale` on [-2^n1, 2^n1]; INQ itself retrains only weights that are not quantized (`IncrementalQuantizer`).

    Args:
        bit_width: b, 2..8: one code for zero, 2^(b-1) signed powers.
        signed: True.
        largest: which power is 2^n1: "max", by the largest weight (the paper); "error", of this one and the eight
            below it the one with the least squared error (ours). With few bits the largest weight says little: at 2
            bits all weights below half of the only level are 0.

    Buffers: scale 2^n1; levels in its units.

    Raises:
        ValueError: a width or a rule that the class does not have.
    """

    traits: ClassVar[Traits] = Traits(bit_widths=tuple(range(2, 9)), unsigned=False)

    def __init__(self, bit_width: int = 5, signed: bool = True, largest: str = "max") -> None:
        if largest not in ("max", "error"):
            raise ValueError(f"largest must be max or error, got {largest!r}")
        levels = thresholds = None
        if bit_width in self.traits.bit_widths:
            positive = torch.tensor(
                [0.0, *(2.0 ** (1 + n - 2 ** (bit_width - 2)) for n in range(2 ** (bit_width - 2)))]
            )
            upper = midpoints(positive)  # 0.5 of the smallest power, 0.75 of the others
            lower = torch.nextafter(-upper, torch.zeros(1))  # halves go outwards on both sides
            levels = torch.cat([-positive[1:].flip(0), positive])
            thresholds = torch.cat([lower.flip(0), upper])
        super().__init__(bit_width, signed, levels=levels, thresholds=thresholds)
        self.largest = largest

    @torch.no_grad()
    def calibrate(self, x: Tensor, max_abs: float | None = None) -> None:
        """n1 from the pretrained weights.

        Args:
            x: the weights.
            max_abs: largest |w|, if x is a sample.
        """
        largest = float(x.abs().max()) if max_abs is None else max_abs
        top = power_range(largest, int(self.bit_width))[0]
        exponents = [top] if self.largest == "max" else range(top, top - 9, -1)
        errors = []
        for exponent in exponents:
            self.scale.fill_(2.0**exponent)
            errors.append(float((self(x) - x).double().square().sum()))
        self.scale.fill_(2.0 ** exponents[errors.index(min(errors))])


class IncrementalQuantizer(nn.Module):
    """A weight that is quantized part by part: `advance` fixes the largest weights, the rest stays float and trains.

    Fixed weights are kept here, so that neither momentum nor weight decay moves them, and get no gradient. It keeps the
    quantizer contract when all are fixed.

    Args:
        grid: its levels; calibrate them on the pretrained weights.
        shape: of the weight.

    Buffers: fixed, bool, which weights; values, what they are fixed at.
    """

    def __init__(self, grid: INQ, shape: Sequence[int]) -> None:
        super().__init__()
        self.grid = grid
        self.register_buffer("fixed", torch.zeros(tuple(shape), dtype=torch.bool))
        self.register_buffer("values", torch.zeros(tuple(shape)))

    @property
    def bit_width(self) -> Tensor:
        return self.grid.bit_width

    def calibrate(self, x: Tensor, max_abs: float | None = None) -> None:
        """See `INQ.calibrate`."""
        self.grid.calibrate(x, max_abs)

    @torch.no_grad()
    def advance(self, weight: Tensor, portion: float) -> None:
        """Fix floor(portion n) weights at their levels, the largest first; those fixed already stay as they are.

        Raises:
            ValueError: a portion that is not in [0, 1] or below what is fixed.
        """
        count = math.floor(portion * weight.numel())
        if not int(self.fixed.sum()) <= count <= weight.numel():
            raise ValueError(f"portion must rise, up to 1: got {portion}, {int(self.fixed.sum())} weights are fixed")
        now = largest_weights(weight, self.fixed, portion)
        self.values.copy_(torch.where(now & ~self.fixed, self.grid(weight), self.values))
        self.fixed.copy_(now)

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self.fixed, self.values.to(x.dtype), x)

    def encode(self, x: Tensor) -> LevelsEncoding:
        """Codes of the grid, of every weight."""
        return self.grid.encode(self(x))
