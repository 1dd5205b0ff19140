"""WRPN: uniform weights on [-1, 1] for widened networks (Mishra et al. 2018)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from common.quantizers.lsq import UniformQuantizer, quantize_learned
from common.quantizers.modules import Traits


class WRPN(UniformQuantizer):
    """round((2^(k-1) - 1) clip(w, -1, 1)) / (2^(k-1) - 1) for weights; the gradient is 1 on [-1, 1].

    One-bit weights are those of `BWN`; activations are those of `DoReFaActivation`.

    Args:
        bit_width: k, 2..8.
        signed: True.
    """

    traits: ClassVar[Traits] = Traits(bit_widths=tuple(range(2, 9)), unsigned=False)

    def __init__(self, bit_width: int = 4, signed: bool = True) -> None:
        super().__init__(bit_width, signed, narrow=True)

    def step_size(self) -> Tensor:
        return 1 / self.quant_max

    def forward(self, x: Tensor) -> Tensor:
        return quantize_learned(x, self.step_size(), self.quant_min, self.quant_max, "closed")


def relative_cost(width: float, activation_bit_width: int, weight_bit_width: int) -> float:
    """Cost of the quantized layers of a network with `width` times the filters; the float32 network of width 1 is 1.

    width^2 (b_a + b_w) / 64, which reproduces the printed costs but for the float first and last layers (within 0.03).
    """
    return width**2 * (activation_bit_width + weight_bit_width) / 64
