"""DoReFa-Net's choice of quantizers (Zhou et al. 2016)."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from common.graph import Layer, Site
from common.quantizers.dorefa import DoReFaActivation, dorefa_weight
from common.training.quantization_aware import QuantizationAware


class DoReFa(QuantizationAware):
    """Weights on the grid of tanh(w) / max |tanh(w)|, inputs clipped to [0, 1]; first and last layer in float.

    Args:
        differentiate_max: let the gradient flow through the maximum of |tanh(w)|, as the public code does.

    Other arguments: see QuantizationAware.

    Raises:
        UserError: a layer whose input can be negative; widths outside 1..8 (32: float).
    """

    def __init__(
        self,
        differentiate_max: bool = True,
        first_last: Literal["float", "8bit", "same"] = "float",
        **kwargs: Any,
    ) -> None:
        self.differentiate_max = differentiate_max
        super().__init__(first_last=first_last, **kwargs)

    def weight_quantizer(self, layer: Layer, bit_width: int) -> nn.Module:
        return dorefa_weight(bit_width, self.differentiate_max)

    def input_quantizer(self, site: Site, bit_width: int) -> nn.Module:
        return DoReFaActivation(bit_width, signed=not site.non_negative)
