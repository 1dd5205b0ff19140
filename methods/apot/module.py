"""APoT's choice of quantizers (Li et al. 2020)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import nn

from common.graph import Layer, Site
from common.quantizers import apot
from common.quantizers.transformed import TransformedQuantizer, WeightNormalization
from common.training.quantization_aware import QuantizationAware


class APoT(QuantizationAware):
    """Normalized weights and inputs on sums of powers of two, clipping levels learned; first and last layer at 8 bits.

    A layer computes with its normalized weights, whose standard deviation is 1: batch norm has to follow it, in train
    mode, and makes up for the factor.

    Args:
        weight_alpha, activation_alpha: clipping levels at the start.
        start: "constant" takes those; "mse" the ones of the least squared error instead.
        straight: pass the gradient to clipped weights too; None: at 2 bits alone, as the public ImageNet code; its
            CIFAR-10 code always does.
        differentiate_statistics: let the gradient flow through mean and deviation of the weights, as the public
            ImageNet code does; its CIFAR-10 code does not.
        quantizer_weight_decay: of the clipping levels.

    Other arguments: see QuantizationAware.

    Raises:
        UserError: widths outside 2..8 (32: float), an unknown start.
    """

    own_eight_bits: ClassVar[bool] = False  # a uniform grid at both ends, as in the public code

    def __init__(
        self,
        weight_alpha: float = 3.0,
        activation_alpha: float = 8.0,
        start: Literal["constant", "mse"] = "constant",
        straight: bool | None = None,
        differentiate_statistics: bool = True,
        quantizer_weight_decay: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        self.weight_alpha, self.activation_alpha, self.start = weight_alpha, activation_alpha, start
        self.straight, self.differentiate_statistics = straight, differentiate_statistics
        super().__init__(quantizer_weight_decay=quantizer_weight_decay, **kwargs)

    def weight_quantizer(self, layer: Layer, bit_width: int) -> nn.Module:
        straight = bit_width == 2 if self.straight is None else self.straight
        grid = apot.APoT(bit_width, True, self.weight_alpha, straight, self.start)
        return TransformedQuantizer(WeightNormalization(self.differentiate_statistics), grid)

    def input_quantizer(self, site: Site, bit_width: int) -> nn.Module:
        return apot.APoT(bit_width, not site.non_negative, self.activation_alpha, start=self.start)
