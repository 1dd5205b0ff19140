"""WRPN: uniform weights on [-1, 1] for widened networks (Mishra et al. 2018)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from common.quantizers.lsq import UniformQuantizer, quantize_learned
from common.quantizers.modules import Traits


class WRPN(UniformQuantizer):
    """c round((2^(k-1) - 1) clip(w / c, -1, 1)) / (2^(k-1) - 1) for weights; the gradient is 1 on [-c, c].

    The paper has c = 1. One-bit weights are those of `BWN`; activations are those of `DoReFaActivation`.

    Args:
        bit_width: k, 2..8.
        signed: True.
        start: "constant": c is 1; "mse": `calibrate` takes the c of the least squared error, which then stays (ours).

    Buffer: limit, c.

    Raises:
        ValueError: a width that the class does not have, an unknown start.
    """

    traits: ClassVar[Traits] = Traits(bit_widths=tuple(range(2, 9)), unsigned=False)

    def __init__(self, bit_width: int = 4, signed: bool = True, start: str = "constant") -> None:
        super().__init__(bit_width, signed, narrow=True)
        if start not in ("constant", "mse"):
            raise ValueError(f"start must be constant or mse, got {start!r}")
        self.start = start
        self.register_buffer("limit", torch.tensor(1.0))

    def step_size(self) -> Tensor:
        return self.limit / self.quant_max

    def forward(self, x: Tensor) -> Tensor:
        return quantize_learned(x, self.step_size(), self.quant_min, self.quant_max, "closed")

    @torch.no_grad()
    def calibrate(self, x: Tensor, max_abs: float | None = None) -> None:
        """With start "mse", set c to the one of 100 equal parts of max |x| with the least squared error.

        Args:
            x: initial weights.
            max_abs: not needed.
        """
        largest = x.abs().max()
        if self.start == "constant" or largest == 0:
            return
        limits, errors = [largest * (i + 1) / 100 for i in range(100)], []
        for limit in limits:
            self.limit.copy_(limit)
            errors.append(float((self(x) - x).square().mean()))
        self.limit.copy_(limits[errors.index(min(errors))])


def relative_cost(width: float, activation_bit_width: int, weight_bit_width: int) -> float:
    """Cost of the quantized layers of a network with `width` times the filters; the float32 network of width 1 is 1.

    width^2 (b_a + b_w) / 64, which reproduces the printed costs but for the float first and last layers (within 0.03).
    """
    return width**2 * (activation_bit_width + weight_bit_width) / 64
