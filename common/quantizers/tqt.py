"""TQT: power-of-two scales from trained thresholds (Jain et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from common.quantizers.lsq import UniformQuantizer, quantize_learned
from common.quantizers.modules import Traits

LN2 = math.log(2)
_TINY = 2.0**-60  # threshold of an all-zero tensor


def power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent for integer-valued exponents in -126 .. 127: exact on every device, which exp2 does not promise."""
    biased = exponent.detach().clamp(-126, 127).to(torch.int32) + 127
    return (biased << 23).view(torch.float32).to(exponent.dtype)


def power_of_two_ste(log2_x: Tensor) -> Tensor:
    """2^ceil(log2_x), whose gradient takes ceil for the identity: 2^ceil(log2_x) ln 2."""
    value = power_of_two(torch.ceil(log2_x))
    return value + (log2_x - log2_x.detach()) * (value * LN2)


class TQT(UniformQuantizer):
    """Uniform quantizer with scale 2^ceil(log2 t) / 2^(b-1) signed, / 2^b unsigned; log2 t is trained.

    y = scale * clip(round(x / scale), n, p); both gradients ask whether the *rounded* value is in the range:
    dy/dx is 1 where n <= round(x / scale) <= p, else 0; dy/dlog2 t is scale ln 2 times round(x / scale) - x / scale
    there, n below, p above. One threshold per tensor.

    Args:
        bit_width: b, 2..16.
        signed: two's complement or 0 .. 2^b - 1.
        start: what `calibrate` takes for a threshold: "max", the largest |x| (static mode), "3std", three standard
            deviations (retraining), or a function of (x, bit_width, signed), such as a KL calibration.

    Parameter: log2_threshold, scalar.

    Raises:
        ValueError: a width that the class does not have, an unknown start.
    """

    traits: ClassVar[Traits] = Traits(bit_widths=tuple(range(2, 17)))

    def __init__(
        self, bit_width: int = 8, signed: bool = True, start: str | Callable[[Tensor, int, bool], float] = "max"
    ) -> None:
        super().__init__(bit_width, signed)
        if not callable(start) and start not in ("max", "3std"):
            raise ValueError(f"start must be max, 3std or a function, got {start!r}")
        self.start = start
        self.log2_threshold = nn.Parameter(torch.tensor(0.0))

    def step_size(self) -> Tensor:
        exponent = int(self.signed) - self.bit_width
        return power_of_two_ste(self.log2_threshold) * power_of_two(exponent.to(self.log2_threshold.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return quantize_learned(x, self.step_size(), self.quant_min, self.quant_max, "rounded")

    @torch.no_grad()
    def set_threshold(self, threshold: float) -> None:
        """Set t; 0, of an all-zero tensor, becomes a small number."""
        self.log2_threshold.fill_(math.log2(max(threshold, _TINY)))

    @torch.no_grad()
    def calibrate(self, x: Tensor, max_abs: float | None = None) -> None:
        """Set the threshold by `start`.

        Args:
            x: initial weights, or a sample of the activation.
            max_abs: largest |x| of the whole tensor, if x is a sample.
        """
        if callable(self.start):
            self.set_threshold(self.start(x, int(self.bit_width), self.signed))
        elif self.start == "max":
            self.set_threshold(float(x.abs().max()) if max_abs is None else max_abs)
        else:
            self.set_threshold(3 * float(x.std()))
