"""HWGQ's choice of quantizers (Cai et al. 2017)."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from common.graph import Layer, Site
from common.quantizers import half_wave
from common.quantizers.binary import BWN
from common.training.binary_weights import BinaryWeights


class HWGQ(BinaryWeights):
    """Inputs on the positive levels that suit a half-wave Gaussian, BWN's binary weights; both ends in float.

    Args:
        uniform: evenly spaced levels; otherwise Lloyd's.
        gradient: beyond the largest level: "clipped", "relu" or "log_tailed".

    Other arguments: see QuantizationAware.

    Raises:
        UserError: a layer whose input can be negative; weights of more than 1 bit, inputs of more than 8 (32: float).
    """

    def __init__(
        self,
        weight_bit_width: int = 1,
        activation_bit_width: int = 2,
        uniform: bool = True,
        gradient: Literal["clipped", "relu", "log_tailed"] = "clipped",
        learning_rate_schedule: str = "linear",
        weight_decay: float = 5e-4,
        **kwargs: Any,
    ) -> None:
        self.uniform, self.gradient = uniform, gradient
        super().__init__(
            weight_bit_width=weight_bit_width,
            activation_bit_width=activation_bit_width,
            learning_rate_schedule=learning_rate_schedule,
            weight_decay=weight_decay,
            **kwargs,
        )

    def weight_quantizer(self, layer: Layer, bit_width: int) -> nn.Module:
        return BWN(bit_width, channels=layer.out_channels)

    def input_quantizer(self, site: Site, bit_width: int) -> nn.Module:
        return half_wave.HWGQ(bit_width, not site.non_negative, self.uniform, self.gradient)
